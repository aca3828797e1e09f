"""The house: imports run downwards, and the version is one."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest

import wdmoe_env

ROOT = Path(__file__).parents[1]

# The floors from the ground up: a module may import of the package what stands before it here, and its own floor.
FLOORS = (
    "optional",
    "command",
    "checks",
    "named",
    "reading",
    "writing",
    "precision",
    "fields",
    "channel_config",
    "device_config",
    "serving_config",
    "config",
    "physics",
    "radio",
    "optimize",
    "observations",
    "actions",
    "bits",
    "metrics",
    "policies",
    "moe",
    "text",
    "references",
    "own_predictions",
    "episodes",
    "deploy",
    "rollout",
    "simulator",
    "relaxed",
    "process",
    "serving",
    "rendering",
    "env",
    "mo_env",
    "vector_info",
    "vector_env",
    "serve_env",
    "price_env",
    "token_env",
    "serve_price_env",
    "serve_token_env",
    "evaluation",
    "scoring",
    "generation",
    "testbed",
    "integrations",
)


def imported(path):
    """Modules that a file names in imports, wherever they stand in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted((ROOT / "wdmoe_env").rglob("*.py"))
}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    floor = module.split(".")[1]
    names = set(imported(MODULES[module]))
    assert not {name.split(".")[0] for name in names} & {"agents", "train", "eval"}
    if floor == "__init__":
        return
    own = {name.split(".")[1] for name in names if name.startswith("wdmoe_env.")}
    assert own <= set(FLOORS[: FLOORS.index(floor) + 1])


def test_no_import_comes_back():
    """No module is reached by its own imports, also within a floor."""
    graph = {module: set(imported(path)) & MODULES.keys() for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("package", ["physics", "optimize"])
def test_physics_and_optimizer_are_numpy_only(package):
    for path in (ROOT / "wdmoe_env" / package).rglob("*.py"):
        outside = {module.split(".")[0] for module in imported(path)} & {"torch", "scipy", "transformers", "gymnasium"}
        assert not outside, path


def test_the_version_is_the_same_everywhere():
    assert wdmoe_env.__version__ == metadata.version("wdmoe-env")
    assert f"version: {wdmoe_env.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {wdmoe_env.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()

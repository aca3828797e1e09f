"""The house: imports run downwards, and the version is one."""

from __future__ import annotations

import ast
from importlib import metadata
from pathlib import Path

import pytest

import wdmoe_env

ROOT = Path(__file__).parents[1]

# What each floor may import of the package; a floor may always import itself.
FLOORS = {
    "checks": set(),
    "optional": set(),
    "config": {"checks"},
    "physics": {"config"},
    "radio": {"checks", "config", "optional", "physics"},
    "optimize": {"config", "physics"},
    "moe": {"config", "optional"},
    "text": {"checks", "config"},
    "observations": {"physics"},
    "actions": {"config", "observations", "physics"},
    "rewards": {"physics"},
    "references": {"text"},
    "episodes": {"moe", "physics", "references", "text"},
    "view": {"moe", "observations", "physics"},
    "simulator": {"config", "episodes", "moe", "observations", "physics", "view"},
    "relaxed": {"moe", "observations", "optimize", "physics", "simulator"},
    "process": {"actions", "config", "observations", "optimize", "physics", "rewards", "simulator"},
    "rendering": {"observations", "optional", "physics", "simulator"},
    "env": {"checks", "config", "observations", "physics", "process", "rendering", "simulator"},
    "mo_env": {"config", "env", "observations", "physics", "process"},
    "vector_info": set(),
    "vector_env": {"actions", "checks", "config", "observations", "physics", "process", "simulator", "vector_info"},
    "scoring": {"actions", "config", "episodes", "observations", "physics", "process", "simulator", "text"},
    "generation": {"moe", "scoring", "simulator", "text"},
    "integrations": {
        "checks",
        "config",
        "generation",
        "moe",
        "optional",
        "physics",
        "scoring",
        "text",
        "vector_env",
        "vector_info",
    },
}


def imported(path):
    """Modules that a file names in imports, wherever they stand in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "wdmoe_env").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    floor = path.relative_to(ROOT / "wdmoe_env").with_suffix("").parts[0]
    if floor == "__init__":
        return
    own = {module.split(".")[1] for module in imported(path) if module.startswith("wdmoe_env.")}
    assert own <= FLOORS[floor] | {floor}
    assert not any(module.split(".")[0] in ("agents", "train", "eval") for module in imported(path))


@pytest.mark.parametrize("package", ["physics", "optimize"])
def test_physics_and_optimizer_are_numpy_only(package):
    for path in (ROOT / "wdmoe_env" / package).rglob("*.py"):
        outside = {module.split(".")[0] for module in imported(path)} & {"torch", "scipy", "transformers", "gymnasium"}
        assert not outside, path


def test_the_version_is_the_same_everywhere():
    assert wdmoe_env.__version__ == metadata.version("wdmoe-env")
    assert f"version: {wdmoe_env.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {wdmoe_env.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()

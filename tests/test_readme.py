"""Code in the README, on every page of the documentation and in the environment's docstring runs as it stands.

The programs of ``docs/integrations`` have tests of their own. Of shell commands, modules, flags, files and targets of
``make`` exist.
"""

from __future__ import annotations

import inspect
import io
import re
import runpy
import sys
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest

from wdmoe_env.env import WDMoEEnv
from wdmoe_env.metrics import METRICS

ROOT = Path(__file__).parents[1]
OWN = {"agents", "benchmarks", "eval", "tests", "train", "wdmoe_env"}
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "wdmoe_env/assets/tiny/MODEL_CARD.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
TEXTS["WDMoEEnv"] = inspect.getdoc(WDMoEEnv) or ""
# The blocks of a page are one program.
CODE = {
    name: code
    for name, text in TEXTS.items()
    if not name.startswith("docs/integrations/")
    and (code := "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)))
}


def _commands(text):
    """Commands of the ``sh`` blocks, with their variables put in, and inline ones that begin with ``python``."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        block = re.sub(r"\\\n", " ", block)
        for name, value in re.findall(r'^(\w+)="(.*)"$', block, flags=re.MULTILINE):
            block = block.replace(f"${name} ", f"{value} ")
        yield from (re.sub(r"\s#.*", "", line).strip() for line in block.splitlines())
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from (" ".join(span.split()) for span in re.findall(r"`(python [^`]+)`", prose))


COMMANDS = {name: commands for name, text in TEXTS.items() if (commands := sorted({*_commands(text)} - {""}))}


@cache
def _help_of(module, *subcommand):
    """What ``python -m MODULE [SUBCOMMAND] --help`` prints, in this process, which has imported torch; or ``None``."""
    argv, sys.argv = sys.argv, [module, *subcommand, "--help"]
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=False)
    finally:
        sys.argv = argv
    return None if ended.value.code else printed.getvalue()


def test_there_is_code():
    assert {"README.md", "docs/index.md", "docs/guide.md", "docs/splitting.md", "WDMoEEnv"} <= set(CODE)
    assert sum("python -m" in command for commands in COMMANDS.values() for command in commands) > 30


@pytest.mark.parametrize("name", CODE)
def test_documented_code_runs(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    with patch.dict(METRICS):  # a page registers one
        exec(CODE[name], {})


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("page", COMMANDS)
def test_documented_commands_exist(page):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for command in COMMANDS[page]:
        module = re.match(r"python -m ([\w.]+)(?: ([a-z]+)(?= |$))?", command)
        if module and module[1].split(".")[0] in OWN:
            assert find_spec(module[1]), command
            known = _help_of(module[1], *([module[2]] if module[1] == "wdmoe_env.testbed" and module[2] else []))
            if known is None:
                assert module[1] == "eval.lm_eval", "which is not installed everywhere"
                continue
            assert set(re.findall(r"\s(--[a-z][\w-]*)", command)) <= set(re.findall(r"--[a-z][\w-]*", known)), command
        assert set(re.findall(r"^make (\w+)", command)) <= targets, command
        for file in re.findall(r"(?:^python|-m pytest) ((?:\w+/)*\w+\.\w+)", command):
            assert (ROOT / file).exists(), command


def test_every_linked_file_exists():
    links = [
        (page, target) for page in PAGES for target in re.findall(r"\]\(((?!http)[^)#\s]+\.\w+)\)", page.read_text())
    ]
    assert len(links) > 50
    assert not [(page.name, target) for page, target in links if not (page.parent / target).exists()]

"""Code in the README and in the environment's docstring runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wdmoe_env.env import WDMoEEnv

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_readme_has_code():
    assert len(BLOCKS) >= 2
    assert "@@" not in README


@pytest.mark.parametrize("code", [*BLOCKS, *re.findall(r"```python\n(.*?)```", WDMoEEnv.__doc__ or "", re.DOTALL)])
def test_documented_code_runs(code, capsys):
    lines = code.splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    exec("\n".join(line[indent:] for line in lines), {})


def test_every_linked_file_exists():
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / target).exists(), target

"""Code in the README, the documentation and the environment's docstring runs as it stands; links lead somewhere."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from wdmoe_env.env import WDMoEEnv

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
TEXTS["WDMoEEnv"] = inspect.getdoc(WDMoEEnv) or ""
# The blocks of a page are one program.
CODE = {name: "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)) for name, text in TEXTS.items()}


def test_there_is_code():
    assert {"README.md", "guide.md", "splitting.md", "WDMoEEnv"} <= {name for name, code in CODE.items() if code}


@pytest.mark.parametrize("name", [name for name, code in CODE.items() if code])
def test_documented_code_runs(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(CODE[name], {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_linked_file_exists(page):
    for target in re.findall(r"\]\(((?!http)[^)#\s]+\.\w+)\)", TEXTS[page.name]):
        assert (page.parent / target).exists(), target

"""The documentation site builds without a warning, holds what it takes from elsewhere, and fetches nothing."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from wdmoe_env.env import WDMoEEnv

ROOT = Path(__file__).parents[1]


def build(config, site):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    outcome = build(ROOT / "mkdocs.yml", folder)
    assert outcome.returncode == 0, outcome.stderr
    return folder


class Reader(HTMLParser):
    """Rows of tables, what is fetched on opening the page, and its text."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.fetched, self.text = [], [], ""
        self._cell = False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True
        fetched = attributes.get("src") or (attributes.get("href") if tag == "link" else None)
        if fetched and attributes.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(fetched)

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data


def table_rows(markdown):
    """Cells of every row of a text's tables, without marks of code."""
    lines = [line for line in markdown.splitlines() if line.startswith("|") and not re.fullmatch(r"[|\-: ]+", line)]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


def test_environment_page_holds_every_table_of_the_docstring(site):
    wanted = table_rows(inspect.getdoc(WDMoEEnv))
    assert len(wanted) > 30
    rows = [[cell.strip() for cell in row] for row in Reader(site / "environment.html").rows]
    assert not [row for row in wanted if row not in rows]


@pytest.mark.parametrize(
    ("page", "file"),
    [
        ("model-card.html", "wdmoe_env/assets/tiny/MODEL_CARD.md"),
        ("benchmarks.html", "benchmarks/results.md"),
        ("changelog.html", "CHANGELOG.md"),
    ],
)
def test_a_page_is_the_file(site, page, file):
    text = (ROOT / file).read_text(encoding="utf-8")
    reader = Reader(site / page)
    assert all(heading in reader.text for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE))
    assert len(reader.rows) == len(table_rows(text))


def test_a_linked_source_is_shown(site):
    lines = (ROOT / "wdmoe_env/policies/network.py").read_text(encoding="utf-8").splitlines()
    assert lines[0] in Reader(site / "source/wdmoe_env/policies/network.py.html").text


def test_opening_a_page_fetches_files_of_the_site_alone(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        for fetched in Reader(page).fetched:
            parts = urlsplit(fetched)
            assert (parts.scheme, parts.netloc) == ("", ""), (page.name, fetched)
            assert page.name == "404.html" or (page.parent / parts.path).exists(), (page.name, fetched)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


def test_the_model_card_shows_its_pictures(site):
    pictures = [name for name in Reader(site / "model-card.html").fetched if name.startswith("source/")]
    assert [Path(name).name for name in pictures] == ["loss.png", "routing.png"]


def test_make_docs_counts_warnings():
    """MkDocs drops the warnings that ``--strict`` would count where it is told to be quiet."""
    (recipe,) = re.findall(r"^docs:.*\n\t(.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert "mkdocs build --strict" in recipe
    assert not re.search(r"--quiet|-q\b", recipe)


def test_broken_links_fail_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    broken = ["nowhere.md", "#nowhere", "nowhere.png", "/index.md", "nowhere"]
    (tmp_path / "docs/index.md").write_text("# Page\n\n" + "\n".join(f"[x]({target})" for target in broken))
    settings = {"docs_dir": "docs", "hooks": "[]", "plugins": "[]", "watch": "[]", "theme": "null", "nav": "null"}
    lines = [f"INHERIT: {ROOT / 'mkdocs.yml'}", *(f"{name}: {value}" for name, value in settings.items())]
    (tmp_path / "mkdocs.yml").write_text("\n".join(lines))
    outcome = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert outcome.returncode != 0
    assert all(f"'{target}'" in outcome.stderr for target in broken), outcome.stderr
    assert outcome.stderr.count("WARNING") == len(broken)

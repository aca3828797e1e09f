"""The HTML page: whole, self-contained, and inert whatever a name says."""

from __future__ import annotations

import json
import re
import shutil
from functools import reduce
from html.parser import HTMLParser
from operator import getitem

import numpy as np
import pytest

from eval.__main__ import main
from eval.page.chart import round_ticks
from eval.page.html import Markup, tag
from eval.page.write import matched_points, page, write_page
from eval.replay import read_results

SMALL = ["--model", "micro", "--num-tokens", "8", "--episodes", "6", "--batch-size", "4"]
POLICIES = ["--policies", "vanilla-optimal", "top1", "wdmoe:0.5", "wdmoe:0.9", "marginal-price:0.5", "random"]
VOID = {"meta"}


class Reader(HTMLParser):
    """Elements, attributes and text of a page; fails on an element that is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.elements.append(name)
        self.attributes += [(key, value or "") for key, value in attributes]
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, text):
        self.text.append(text)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of windows and one of the suite."""
    windows, suite = (tmp_path_factory.mktemp("page") / name for name in ("windows", "suite"))
    assert main([*SMALL, *POLICIES, "--out", str(windows)]) == 0
    on_suite = ["--suite", "--suite-items", "6", "--model", "micro", "--num-tokens", "64", "--batch-size", "8"]
    assert main([*on_suite, "--policies", "vanilla-optimal", "wdmoe:0.5", "--out", str(suite)]) == 0
    return windows, suite


@pytest.fixture(scope="module")
def shown(folders):
    """The page of both."""
    assert main(["--report", *map(str, folders)]) == 0
    return Reader((folders[0] / "report.html").read_text())


def test_the_page_is_well_formed_and_loads_and_runs_nothing(shown):
    assert not {"script", "img", "link", "iframe", "object", "embed", "form"} & set(shown.elements)
    assert not any(key.startswith("on") or key in ("href", "src") for key, _ in shown.attributes)
    assert not re.search(r"https?:|url\(|@import", "".join(shown.text))
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in shown.attributes


def test_the_page_says_what_was_run(shown, folders):
    text = " ".join(shown.text)
    summary = json.loads((folders[0] / "results.json").read_text())
    headings = ("Latency at matched quality", "What is dropped, and when", "Accuracy by format")
    for part in ("marginal-price:0.5", *headings, summary["made_by"]["command"]):
        assert part in text
    assert all(digest in text for digest in summary["sha256"].values())
    assert f"{summary['policies'][2]['latency_ms']['mean']:.1f}" in text


def test_a_name_is_text_wherever_it_stands(folders):
    evil = "<script>alert(1)</script>\"'&"
    saved = read_results(folders[0])
    text = json.dumps(saved.summary)
    for name in ("wdmoe:0.9", "wdmoe", "top1", saved.config.environment.model):
        text = text.replace(json.dumps(name), json.dumps(evil + name))
    saved.summary.clear()
    saved.summary.update(json.loads(text))
    found = Reader(page([(evil, saved)]))
    assert "script" not in found.elements
    assert "<script>" in "".join(found.text)


def test_only_markup_passes_unescaped():
    assert tag("p", "a<b", Markup("<b>c</b>"), [None, "&"], class_='"x"') == (
        '<p class="&quot;x&quot;">a&lt;b<b>c</b>&amp;</p>'
    )


def test_results_of_an_earlier_version_are_refused_in_a_sentence(folders, tmp_path, capsys):
    old = shutil.copytree(folders[0], tmp_path / "old")
    summary = json.loads((old / "results.json").read_text())
    del summary["breakdowns"]
    (old / "results.json").write_text(json.dumps(summary))
    with pytest.raises(SystemExit) as stop:
        main(["--report", str(old), "--out", str(tmp_path / "page.html")])
    assert stop.value.code == 2
    assert "without breakdowns" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def places(value, path=()):
    """The paths of a value of JSON: every key, and the last element of every list."""
    if path:
        yield path
    keys = list(value) if isinstance(value, dict) else [-1][: len(value)] if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*path, key))


MISSING = object()
ODD = (MISSING, None, "x", [], {}, -1, 1e308, True, [None], "\0")


@pytest.mark.parametrize(("folder", "stem"), [(0, "results"), (1, "suite")])
def test_results_that_do_not_fit_together_are_one_sentence(folders, tmp_path, folder, stem):
    """Each value in turn is replaced by something else: the page is drawn, or refused in a sentence."""
    copied, text = shutil.copytree(folders[folder], tmp_path / "copied"), (folders[folder] / f"{stem}.json").read_text()
    found = [path for path in places(json.loads(text)) if path[:2] != ("config", "environment")]
    assert len(found) > 100
    sentences = []
    for number, path in enumerate(found):
        summary = json.loads(text)
        *above, last = path
        branch = reduce(getitem, above, summary)
        odd = ODD[number % len(ODD)]
        if odd is MISSING:
            del branch[last]
        else:
            branch[last] = odd
        (copied / f"{stem}.json").write_text(json.dumps(summary))
        try:
            write_page([copied], tmp_path / "page.html")
        except ValueError as error:
            sentences.append(str(error))
    assert len(sentences) > len(found) / 4
    assert not [one for one in sentences if str(copied) not in one or "\n" in one]


def test_a_place_is_named(folders, tmp_path):
    copied = shutil.copytree(folders[0], tmp_path / "copied")
    summary = json.loads((copied / "results.json").read_text())
    summary["settings"][1]["latency_ms"]["low"] = 0.0
    (copied / "results.json").write_text(json.dumps(summary))
    expected = r"expected a finite number above 0 in the results, settings\[1\], latency_ms, low, got 0.0"
    with pytest.raises(ValueError, match=expected):
        write_page([copied], tmp_path / "page.html")


def test_accuracy_at_matched_quality_mixes_the_settings_item_by_item(folders):
    suite = read_results(folders[1])
    mixture = {"first": "vanilla-optimal", "second": "wdmoe:0.5", "share_of_second": 0.25}
    rows = [
        {"reference": "wdmoe:0.5", "family": "x", "mixture": mixture},
        {"reference": "wdmoe:0.9", "family": "x", "mixture": mixture},
        {"reference": "wdmoe:0.5", "family": "y", "mixture": None},
    ]
    points = matched_points(rows, suite)
    assert list(points) == [("wdmoe:0.5", "x")]  # the others lack a setting in the suite or a mixture
    correct = {
        policy: np.array([float(row["correct"]) for row in suite.rows if row["policy"] == policy])
        for policy in ("vanilla-optimal", "wdmoe:0.5")
    }
    expected = 75 * (correct["vanilla-optimal"] - correct["wdmoe:0.5"]).mean()
    assert points["wdmoe:0.5", "x"]["mean"] == pytest.approx(expected)


@pytest.mark.parametrize(("low", "high"), [(0.93, 1.07), (26.0, 113.0), (-3.0, 2e-3), (1.0, 1.0)])
def test_round_ticks_are_few_and_within(low, high):
    ticks = [value for value, _ in round_ticks(np.array([low, high]))]
    assert len(ticks) <= 8
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in ticks)
    assert len(ticks) >= 3 or low == high

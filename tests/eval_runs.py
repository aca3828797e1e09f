"""Small evaluations, and refusals, for the tests of what a run leaves and of what replays."""

from __future__ import annotations

import csv

import pytest

from eval.__main__ import main
from eval.results import EpisodeResults

METRICS, COLUMNS = EpisodeResults.metrics(), EpisodeResults.columns()
SMALL = ["--model", "micro", "--num-tokens", "8", "--episodes", "6", "--batch-size", "4"]


def run(out, *flags):
    """Evaluate into a folder."""
    assert main([*SMALL, "--out", str(out), *flags]) == 0
    return out


def rows(folder, without=()):
    """Rows of a results folder as dicts."""
    with open(folder / "results.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def refused(capsys, *arguments):
    """The sentence with which a command is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("python -m eval: ")
    assert captured.err.count("\n") == 1
    return captured.err

"""`python -m train.rules` measures both grids and chooses within its bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from train import queue_rules, rules


def test_the_choice_keeps_its_bounds(monkeypatch, capsys):
    monkeypatch.setattr(rules, "STOPPING_GAINS", (0.5, 0.0))
    monkeypatch.setattr(rules, "PRICES_PER_MS", (0.0, 1e6))
    rules.main(["--model", "micro", "--episodes", "64", "--max-loss-points", "100"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:24].strip(): [float(number) for number in line[24:].split()] for line in lines[1:-2]}
    assert rows["vanilla-optimal"][1:] == [0.0, 0.0]
    assert rows["marginal-price:0"][1] == pytest.approx(0.0, abs=1e-4)
    assert rows["wdmoe, gain 0"][0] <= rows["wdmoe, gain 0.5"][0] <= rows["vanilla-optimal"][0]
    assert lines[-2] == "STOPPING_GAIN = 0"
    assert rows["marginal-price:1e+06"][0] < rows["wdmoe, gain 0"][0] < rows["marginal-price:0"][0]
    assert lines[-1] == "DEFAULT_PRICE_PER_MS = 1e+06"


def test_a_grid_without_a_fitting_value_is_said(monkeypatch):
    monkeypatch.setattr(rules, "STOPPING_GAINS", (0.0,))
    monkeypatch.setattr(rules, "PRICES_PER_MS", (0.0,))
    with pytest.raises(SystemExit, match=r"no stopping gain of the grid loses at most -100\.0 points"):
        rules.main(["--model", "micro", "--episodes", "64", "--max-loss-points", "-100"])
    with pytest.raises(SystemExit, match="no price of the grid is as fast as wdmoe"):
        rules.main(["--model", "micro", "--episodes", "64", "--max-loss-points", "100"])


def test_a_slope_is_chosen_at_equal_quality(capsys):
    """Half way to a setting of 0.02 nats and 60 ms stand 80 ms at the rule's 0.01 nats; the other slope has 90."""
    own, rule = {"paper": (0.0, 100.0)}, {"paper": (0.01, 100.0)}
    points = {0.0: {0.5: {"paper": (0.01, 90.0)}}, 0.4: {0.2: {"paper": (0.02, 60.0)}, 0.1: {"paper": (0.005, 95.0)}}}
    assert queue_rules.choose("queue-price", points, own, rule) == (0.4, 0.1)
    out = capsys.readouterr().out
    assert "slope 0: E2E over that of wdmoe:0.8 at its added NLL 0.900" in out
    assert "slope 0.4: E2E over that of wdmoe:0.8 at its added NLL 0.800" in out


def test_the_search_plays_training_episodes(monkeypatch, capsys):
    family = queue_rules.FAMILIES[2]
    monkeypatch.setattr(queue_rules, "FAMILIES", (replace(family, slopes=(0.5,), levels=(0.9,)),))
    monkeypatch.setitem(queue_rules.CELL, "requests", 2)
    rules.main(["--serve", "--model", "micro", "--episodes", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["vanilla-optimal", "wdmoe:0.8"]
    assert lines[-1] == "wdmoe-queue: slope = 0.5, setting = 0.7"
    assert queue_rules.process_of("boards", "micro").config.split == "train"

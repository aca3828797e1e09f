"""`python -m train.rules` measures both grids and chooses within its bounds."""

from __future__ import annotations

import pytest

from train import rules


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

"""Learning curves of runs: read over resumptions, with the returns of rules, and drawn."""

from __future__ import annotations

import json

from train.__main__ import main as train
from train.curves import main


def test_curves_of_runs_are_gathered_and_drawn(tmp_path, capsys):
    small = ["--model", "micro", "--num-tokens", "8", "--no-progress", "--reward", "latency_quality"]
    run, other = tmp_path / "run", tmp_path / "other"
    small += ["--settings", "windows=2,rollouts=2"]
    assert train([*small, "--timesteps", "12", "--out", str(run)]) == 0
    assert train([*small, "--timesteps", "24", "--out", str(run), "--resume"]) == 0
    assert train([*small, "--timesteps", "12", "--quality-weight", "3", "--out", str(other)]) == 0
    table, drawn = tmp_path / "curves.json", tmp_path / "curves.png"
    assert main(["--runs", str(run), "--episodes", "4", "--json", str(table), "--out", str(drawn)]) == 0
    found = json.loads(table.read_text())
    assert found["curves"][0]["blocks"] == [12, 24]
    assert found["curves"][0]["name"] == "ppo windows=2,rollouts=2"
    assert -3 < found["rules"]["vanilla-optimal"] < 0
    assert drawn.read_bytes().startswith(b"\x89PNG")
    drawn.unlink()
    assert main(["--json", str(table), "--out", str(drawn)]) == 0
    assert drawn.is_file()
    capsys.readouterr()
    assert main(["--runs", str(run), str(other), "--json", str(table)]) == 2
    assert "expected runs of one reward and weight" in capsys.readouterr().err
    assert main(["--runs", str(tmp_path), "--json", str(table)]) == 2
    assert capsys.readouterr().err.count("\n") == 1

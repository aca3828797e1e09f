"""The benchmarks: the straightforward implementation is right, and every part runs and fits the table."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import growth, ppo, solver, step
from benchmarks.__main__ import main
from benchmarks.reference import ReferenceEnv, slsqp_latency_s
from benchmarks.table import Row, Settings, markdown
from benchmarks.timing import in_turn, ratio_in_turn
from wdmoe_env.optimize.bandwidth import min_max_bandwidth

QUICK = Settings(quick=True, steps=1000)


@pytest.fixture(scope="module")
def stock():
    return AutoModelForCausalLM.from_pretrained(step.TINY, dtype=torch.float32, experts_implementation="eager").eval()


def test_the_straightforward_implementation_gives_the_librarys_results(stock):
    env = gym.make("wdmoe_env:WDMoE-Selection-v0", num_tokens=16)
    reference = ReferenceEnv(stock, num_tokens=16)
    observation, _ = env.reset(seed=3)
    own = reference.reset(seed=3)
    generator = np.random.default_rng(0)
    done = False
    while not done:
        np.testing.assert_array_equal(own, observation["routed"] > 0)
        selection = (generator.random(own.shape) < 0.3) | (own & (generator.random(own.shape) < 0.5))
        selection[~selection.any(axis=-1), 0] = True
        observation, _, done, _, info = env.step(env.unwrapped.encode_action(selection))
        own, _, _, reference_info = reference.step(selection)
        assert reference_info["block_latency_ms"] == pytest.approx(info["block_latency_ms"], rel=1e-4)
    assert reference_info["latency_ms"] == pytest.approx(info["latency_ms"], rel=1e-4)
    assert reference_info["nll"] == pytest.approx(info["nll"], abs=1e-4)


def test_both_solvers_of_the_benchmark_find_the_optimum():
    links, load = solver.instances(3, 8)
    conic = solver.ConicMinMax(8)
    assert conic.problem.is_dcp(dpp=True)
    exact = min_max_bandwidth(links, load).latency_s
    for n in range(3):
        pair = links.row(n), load.row(n)
        assert conic.latency_s(*pair) == pytest.approx(exact[n], rel=1e-6)
        assert slsqp_latency_s(*pair) == pytest.approx(exact[n], rel=1e-6)


@pytest.mark.parametrize("module", [step, solver, ppo])
def test_a_section_gives_rows_with_figures(module):
    rows = module.rows(QUICK)
    assert rows
    assert all(np.isfinite(row.value) for row in rows)
    shares = [row for row in rows if row.unit == "%" and row.section.startswith(("profile", "PPO"))]
    for section in {row.section for row in shares}:
        assert sum(row.value for row in shares if row.section == section) == pytest.approx(100.0)


def test_growth_measures_in_a_process_of_its_own(tmp_path):
    sizes = {**growth.DEFAULTS, "N": 2, "J": 8, "E": 4, "U": 4, "blocks": 2, "hidden": 32, "inner": 16}
    model = growth.random_model(tmp_path, sizes)
    measured = growth.in_own_process({**sizes, "model": str(model), "seconds": 0.01})
    assert measured["seconds"] > 0
    assert measured["peak_mib"] > 0
    with pytest.raises(RuntimeError, match="failed"):
        growth.in_own_process({**sizes, "model": "no-such-model", "seconds": 0.01})


def test_a_verdict_follows_its_target():
    assert Row("", "", 1.05, "", "<= 1.10").verdict == "met"
    assert Row("", "", 1999.0, "", ">= 2,000").verdict == "missed"
    assert Row("", "", None, "", "<= 1").verdict == Row("", "", 1.0).verdict == ""
    lines = markdown([Row("a", "long name", 12345.6, "ms"), Row("b", "n", None)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "12,346" in lines[2]
    assert "not measured" in lines[3]


def test_the_first_of_several_calls_in_a_row_does_not_count():
    """And neither does the first of all; a call that is longer than a turn counts alone."""
    many, few = iter(np.arange(1000.0) * 1e-6), iter(np.arange(1000.0) + 1.0)
    taken = in_turn({"short": lambda: next(many), "long": lambda: next(few)}, seconds=0.0)
    assert taken["short"] == pytest.approx(np.quantile([2e-6, 3e-6, 4e-6, 5e-6], 0.25))
    assert taken["long"] == 2.0


def test_a_ratio_is_the_median_of_rounds_whatever_one_slow_round_says():
    one, other = iter([9.0, 2.0, 2.0, 50.0, 2.0, 3.0]), iter([9.0, 1.0, 2.0, 1.0, 1.0, 2.0])
    assert ratio_in_turn(lambda: next(one), lambda: next(other), seconds=65.0) == 2.0


def test_the_command_prints_and_saves_one_table(tmp_path, capsys):
    assert main(["--quick", "--only", "solver", "decision", "--out", str(tmp_path)]) == 0
    table = (tmp_path / "results.md").read_text()
    assert "min_max_bandwidth, one instance" in table
    assert table.splitlines()[-1] in capsys.readouterr().out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {"section", "name", "value", "unit", "target", "verdict"} <= set(rows[0])

"""Metrics are declared once: the table, what is read from it, and a row of one's own."""

from __future__ import annotations

import inspect
import pickle
import re
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pytest

from eval.results import EpisodeResults
from eval.runner import evaluate
from eval.study import Study, setting_summaries
from wdmoe_env.env import WDMoEEnv
from wdmoe_env.evaluation import Evaluated
from wdmoe_env.metrics import METRICS, Metric, register_metric, result_metrics

BUSY = Metric(
    name="busy_devices",
    shape=(),
    unit="-",
    meaning="devices that serve a token",
    when="block",
    value=lambda block: (block.tokens > 0).sum(axis=-1),
    over_blocks="mean",
    better="lower",
    in_terms=True,
    in_results=True,
)


@pytest.fixture
def table():
    """A table of metrics that the test may add rows to."""
    with patch.dict(METRICS):
        yield METRICS


OF_RUNNERS = {"unserved_pairs", "simulated_latency_ms"}
"""What only a runner knows that is not the local one."""


def section(heading):
    """Rows of the tables below a heading of the environment's docstring, without the rules and the marks of code."""
    lines = inspect.getdoc(WDMoEEnv).split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    rows = [line for line in lines if line.startswith("|") and not line.startswith("|-")]
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows]


def unmarked(text):
    return text.replace("`", "")


def test_the_docstring_of_the_environment_is_the_table():
    header, window, *rows = section("Information")
    assert header == ["Key", "Shape", "When", "Meaning", "Unit"]
    assert window[0] == "window"
    declared = [
        [one.name, str(one.shape).replace("'", ""), one.when, unmarked(one.meaning), one.unit]
        for when in ("block", "episode")
        for one in METRICS.values()
        if one.in_info and one.when == when
    ]
    assert [row for row in rows if row[0] != "reward_terms"] == declared


def test_the_docstring_names_every_term():
    rows = section("Rewards")
    first, second = rows.index(["Term", "Meaning", "Unit"]), rows.index(["Requested term", "Shape", "Meaning", "Unit"])
    terms = [one for one in METRICS.values() if one.in_terms]
    declared = [[one.name, unmarked(one.meaning), one.unit] for one in terms if not one.on_request]
    assert rows[first + 1 : second] == declared
    shapes = [str(one.shape).replace("'", "") for one in terms if one.on_request]
    declared = [[one.name, unmarked(one.meaning), one.unit] for one in terms if one.on_request]
    assert rows[second + 1 :] == [[row[0], shape, *row[1:]] for row, shape in zip(declared, shapes, strict=True)]


@pytest.mark.parametrize(("num_envs", "token_terms"), [(1, False), (3, False), (3, True)])
def test_info_is_what_the_table_says(num_envs, token_terms):
    settings = {"model": "micro", "autoreset_mode": "DISABLED", "token_terms": token_terms}
    env = gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=num_envs, **settings)
    env.reset(seed=0)
    sizes = {"U": 8, "J": 32, "E": env.unwrapped.simulator.sizes.num_experts}
    steps, ended = [], False
    while not ended:
        _, _, terminated, _, info = env.step(env.action_space.sample())
        steps.append({key: value for key, value in info.items() if not key.startswith("_")})
        ended = terminated.all()
    rare = {"replaced_pairs", "unserved_tokens"} | OF_RUNNERS  # these need devices that can be away, or a runner
    asked = ("", *["token_terms"] * token_terms)
    known = [one for one in METRICS.values() if one.name not in rare and one.on_request in asked]
    for one in known:
        shape = (num_envs, *(sizes[letter] for letter in one.shape))
        places = [step if one.in_info else step["reward_terms"] for step in steps]
        present = [one.name in place for place in places]
        assert present[-1], one.name
        assert all(present) if one.when == "block" or one.in_terms else not any(present[:-1]), one.name
        assert places[-1][one.name].shape == shape, one.name
    terms = [one.name for when in ("block", "episode") for one in known if one.in_terms and one.when == when]
    assert [name for name in steps[-1]["reward_terms"] if not name.startswith("_")] == terms


def test_blocks_become_an_episode_as_the_row_says():
    blocks = [{"wlr": np.array([1.0, 2.0]), "repaired_tokens": np.array([1, 0])} for _ in range(3)]
    blocks[-1] |= {"nll": np.array([4.0, 5.0]), "reward_terms": {"latency_ratio": np.array([0.5, 0.5])}}
    for block in blocks[:-1]:
        block["reward_terms"] = {"latency_ratio": np.array([1.0, 2.0])}
    blocks[0]["wlr"] = np.array([4.0, 2.0])
    found = {name: METRICS[name].of_episode(blocks).tolist() for name in ("wlr", "repaired_tokens", "nll")}
    assert found == {"wlr": [2.0, 2.0], "repaired_tokens": [3.0, 0.0], "nll": [4.0, 5.0]}
    np.testing.assert_allclose(METRICS["latency_ratio"].of_episode(blocks), [2.5 / 3, 1.5])


def test_a_new_figure_is_one_row(table):
    register_metric(BUSY)
    env = gym.make("wdmoe_env:WDMoE-v0", model="micro", reward=lambda terms: -terms["busy_devices"])
    env.reset(seed=0)
    _, reward, _, _, info = env.step(env.action_space.sample())
    assert info["busy_devices"] == (info["load"] > 0).sum() == info["reward_terms"]["busy_devices"] == -reward


def test_a_row_is_seen_by_environments_that_are_made_after_it(table):
    env = gym.make("wdmoe_env:WDMoE-v0", model="micro").unwrapped
    register_metric(BUSY)
    env.reset(seed=0)
    assert "busy_devices" not in env.step(env.action_space.sample())[4]


def test_an_environment_with_a_row_that_cannot_be_pickled_can(table):
    register_metric(BUSY)
    env = gym.make("wdmoe_env:WDMoE-v0", model="micro").unwrapped
    env.reset(seed=0)
    action = env.action_space.sample()
    again = pickle.loads(pickle.dumps(env))
    assert env.step(action)[4]["busy_devices"] == again.step(action)[4]["busy_devices"]


def test_a_term_of_the_episode_is_nothing_before_its_end(table):
    register_metric(
        Metric(
            "worst_nll", (), "nats", "largest of a token", "episode", lambda end: end.token_nll.max(-1), in_terms=True
        )
    )
    env = gym.make("wdmoe_env:WDMoE-v0", model="micro")
    env.reset(seed=0)
    infos, ended = [], False
    while not ended:
        _, _, ended, _, info = env.step(env.action_space.sample())
        infos.append(info)
    assert [info["reward_terms"]["worst_nll"] for info in infos[:-1]] == [0.0] * (len(infos) - 1)
    assert infos[-1]["reward_terms"]["worst_nll"] == infos[-1]["worst_nll"] == infos[-1]["token_nll"].max()
    assert "worst_nll" not in infos[0]


def test_an_evaluation_measures_the_row(table):
    register_metric(BUSY)
    results = evaluate(["top1"], {"model": "micro", "split": "test"}, episodes=2, progress=False)
    busy = results.measurements["top1"]["busy_devices"]
    assert busy.shape == (2,)
    assert (busy <= results.measurements["vanilla"]["busy_devices"]).all()
    assert results.columns()[-2:] == ("busy_devices", "decision_ms")
    assert [float(row["busy_devices"]) for row in results.rows() if row["policy"] == "top1"] == busy.tolist()
    vanilla = setting_summaries(Study(results))[0]["busy_devices"]["mean"]
    assert vanilla == pytest.approx(results.measurements["vanilla"]["busy_devices"].mean())


def test_the_columns_of_an_evaluation_are_results_of_the_table():
    names = [metric.name for metric in result_metrics()] + ["decision_ms"]
    assert names == list(EpisodeResults.metrics())
    assert re.findall(r"- ``(\w+)``:", Evaluated.__doc__) == names


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda block: 1.0, r"expected an array \(1\) as the metric odd, got shape \(\)"),
        (lambda block: block.shares, r"expected an array \(1\) as the metric odd, got shape \(1, 8\)"),
    ],
)
def test_a_value_of_another_shape_is_refused(table, value, message):
    register_metric(Metric("odd", (), "-", "of another shape", "block", value))
    env = gym.make("wdmoe_env:WDMoE-v0", model="micro")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(env.action_space.sample())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"when": "pass"}, "when must be one of"),
        ({"over_blocks": "max"}, "over_blocks must be one of"),
        ({"better": "more"}, "better must be one of"),
        ({"shape": ("U",), "in_results": True}, r"must have the shape \(\) and be always there, got \('U',\)"),
        ({"shape": ("H",), "in_terms": True}, r"must have a shape of J, E and U, got \('H',\)"),
        ({"in_info": False}, "expected in_info or in_terms, got neither"),
        ({"in_results": True}, "must say how blocks become an episode"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(changed, message):
    row = {"name": "odd", "shape": (), "unit": "-", "meaning": "nothing", "when": "block", "value": len}
    with pytest.raises(ValueError, match=message):
        Metric(**row | changed)


@pytest.mark.parametrize("name", ["wlr", "reward_terms"])
def test_names_of_the_package_are_its_own(table, name):
    with pytest.raises(ValueError, match="must have a name of its own"):
        register_metric(Metric(name, (), "-", "mine", "block", len))

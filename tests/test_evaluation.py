"""``wdmoe_env.evaluate``: what it takes for policies, what it refuses, and what it measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import wdmoe_env
from wdmoe_env.evaluation import with_reference
from wdmoe_env.policies import rules
from wdmoe_env.policies.named import named
from wdmoe_env.policies.registry import TRAINED


def own_routing(block):
    return rules.vanilla_optimal(block)


class Stock:
    """An object with Stable-Baselines3's ``predict``: all experts and equal shares, as one flat action."""

    def __init__(self, size):
        self.size = size

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.ones((len(observation["gate_probs"]), self.size), dtype=np.float32), state


def run(policies, config, **keywords):
    return wdmoe_env.evaluate(policies, config, **{"episodes": 6, "batch_size": 4, "progress": False, **keywords})


def test_a_rule_of_ones_own_measures_as_the_same_rule_by_name(micro):
    measurements = run([own_routing, "vanilla-optimal"], micro).measurements
    assert list(measurements) == ["vanilla", "own_routing", "vanilla-optimal"]
    for metric, values in measurements["vanilla-optimal"].items():
        assert values.shape == (6,)
        if metric != "decision_ms":
            assert (measurements["own_routing"][metric] == values).all(), metric
    assert (measurements["vanilla"]["added_nll"] == 0).all()


def test_a_mapping_names_anything_that_acts(micro):
    size = 8 * 8 + 8
    results = run({"mine": own_routing, "stock": Stock(size), "paper": "wdmoe:0.8", "vanilla": "vanilla"}, micro)
    assert list(results.measurements) == ["mine", "stock", "paper", "vanilla"]
    assert len(results.domains) == len(results.episodes) == 6


def test_a_file_reads_the_hidden_states_that_its_card_asks_for():
    file = TRAINED / "straight-through-10.safetensors"
    results = run([file, "straight-through-10"], {"split": "test"}, episodes=2)
    by_file, by_name = (results.measurements[name]["latency_ms"] for name in (str(file), "straight-through-10"))
    assert (by_file == by_name).all()


def test_the_same_seed_gives_the_same_episodes_and_fewer_are_the_first_of_more(micro):
    more, fewer, other = run(["top1"], micro), run(["top1"], micro, episodes=4), run(["top1"], micro, seed=1)
    assert (more.measurements["top1"]["latency_ms"][:4] == fewer.measurements["top1"]["latency_ms"]).all()
    assert (more.episodes.seeds[:4] == fewer.episodes.seeds).all()
    assert (more.episodes.seeds != other.episodes.seeds).all()


@pytest.mark.parametrize(
    ("policies", "error", "sentence"),
    [
        ("wdmoe", TypeError, "expected a list of policies"),
        (Path("policy.json"), TypeError, "expected a list of policies"),
        (None, TypeError, "expected a list of policies"),
        ([3], TypeError, "got 3: name it in a mapping"),
        ([Stock(1)], TypeError, "name it in a mapping"),
        ({"mine": 3}, TypeError, "a function or an object with predict as policy mine, got 3"),
        ({3: "wdmoe"}, TypeError, "expected text as the name of a policy, got 3"),
        ([lambda block: block, lambda block: None], ValueError, "got two of the name '<lambda>'"),
        ({"vanilla": own_routing}, ValueError, "expected the model's own routing under the name 'vanilla'"),
    ],
)
def test_what_is_no_policy_is_one_sentence(policies, error, sentence):
    with pytest.raises(error, match=sentence):
        with_reference(named(policies))


@pytest.mark.parametrize(
    ("policies", "keywords", "error", "sentence"),
    [
        (["nobody"], {}, ValueError, "unknown policy 'nobody'"),
        ([lambda block: block.routed], {}, TypeError, "expected a rule to give selection"),
        ([lambda block: (block.routed[:, 1:], block.weights)], {}, ValueError, "selection"),
        ({"stock": Stock(3)}, {}, ValueError, "action"),
        (["top1"], {"episodes": 0}, ValueError, "episodes must be a whole number of at least 1, got 0"),
        (["top1"], {"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1, got 0"),
    ],
)
def test_a_mistake_is_met_before_the_first_episode(micro, monkeypatch, policies, keywords, error, sentence):
    monkeypatch.setattr("wdmoe_env.evaluation.play", lambda *_: pytest.fail("ran"))
    with pytest.raises(error, match=sentence):
        run(policies, micro, **keywords)


def test_an_environment_with_half_the_decision_is_refused(micro):
    with pytest.raises(ValueError, match="decision must be 'joint'"):
        run(["top1"], {**micro, "decision": "selection"})


def test_nothing_else_is_loaded_lazily():
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        wdmoe_env.evaluat  # noqa: B018

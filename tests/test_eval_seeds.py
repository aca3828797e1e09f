"""Statistics over training seeds: families, interquartile means, fronts and latency at matched quality."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import trim_mean

from eval.matched import is_within, latency_at, matched_quality, mixture_at
from eval.members import Member, Setting, member, settings_of
from eval.pareto import hull
from eval.plan import EvaluationConfig
from eval.results import EpisodeResults
from eval.statistics import SeededBootstrap, interquartile_mean
from eval.study import Study, setting_summaries
from wdmoe_env.evaluation import Episodes
from wdmoe_env.policies.policy_file import FORMAT

EPISODES = 120
CARD = {"format": FORMAT, "network": "token-shared", "decision": "joint"}


def rule(name):
    family, _, number = name.partition(":")
    return Member(name, family, number, float(number) if number else None, 0, False)


def learned(weight, seed, family="ppo"):
    return Member(f"runs/{family}-{weight:g}-{seed}/policy.json", family, f"quality {weight:g}", weight, seed, True)


def results(means, noise=0.0, episodes=EPISODES):
    """Results in which each member has a mean latency and added NLL, on episodes that share a channel."""
    generator = np.random.default_rng(0)
    channel = generator.gamma(8.0, 1 / 8.0, episodes)
    measured = {}
    for one, (latency, added) in means.items():
        values = {name: np.ones(episodes) for name in EpisodeResults.metrics()}
        values["latency_ms"] = latency * channel
        values["wlr"] = 1.0 / values["latency_ms"]
        values["added_nll"] = added + noise * generator.normal(size=episodes)
        measured[one.policy] = values
    config = EvaluationConfig(policies=tuple(one.policy for one in means), episodes=episodes)
    numbers = np.arange(episodes)
    return EpisodeResults(config, {}, tuple(means), measured, Episodes(numbers, numbers), ("news",) * episodes)


OWN = {rule("vanilla"): (100.0, 0.0), rule("vanilla-optimal"): (60.0, 0.0)}


def test_rules_are_settings_by_number_and_seeds_of_a_setting_are_one_row():
    members = [rule("wdmoe:0.9"), learned(10, 1), rule("wdmoe"), rule("wdmoe:0.10"), learned(2, 0), learned(10, 0)]
    found = settings_of(members)
    assert [one.name for one in found] == ["wdmoe", "wdmoe:0.10", "wdmoe:0.9", "ppo quality 2", "ppo quality 10"]
    assert found[-1].seeds == (0, 1)
    assert found[-1].policies == (learned(10, 0).policy, learned(10, 1).policy)


def test_a_second_policy_of_a_seed_is_no_further_seed():
    again = Member("shipped/policy.json", "ppo", "quality 10", 10.0, 0, True)
    found = settings_of([learned(10, 0), again, learned(10, 1)])
    assert [one.seeds for one in found] == [(0, 1), (0,)]
    assert found[1].name == "ppo quality 10 (shipped)"


@pytest.mark.parametrize(
    ("card", "setting", "seed", "family"),
    [
        ({}, "", 0, "ppo"),
        ({"family": "sac", "arguments": {"reward": "wlr", "seed": 3}}, "wlr", 3, "sac"),
        ({"arguments": {"reward": "latency_quality", "quality_weight": 2.5}}, "quality 2.5", 0, "ppo"),
        ({"family": "wdmoe", "arguments": {"reward": "wlr"}}, "wlr", 0, "wdmoe (learned)"),
        ({"family": "sac", "arguments": {"reward": "wlr", "devices": "boards"}}, "wlr", 0, "sac on boards"),
        ({"family": "sac", "arguments": {"reward": "wlr", "devices": "paper"}}, "wlr", 0, "sac"),
    ],
)
def test_the_card_names_family_setting_and_seed(tmp_path, card, setting, seed, family):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(CARD | card))
    found = member(str(path.with_suffix(".safetensors")))
    assert (found.setting, found.seed, found.family, found.learned) == (setting, seed, family, True)


@pytest.mark.parametrize("card", [{"family": ["a"]}, {"family": "a" * 99}, {"arguments": {"seed": "0"}}])
def test_a_card_of_other_types_is_refused_in_a_sentence(tmp_path, card):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(CARD | card))
    with pytest.raises(ValueError, match="in the card of"):
        member(str(path))


def test_the_interquartile_mean_is_the_trimmed_mean():
    scores = np.random.default_rng(1).normal(size=40) ** 3
    assert interquartile_mean(scores)[0] == pytest.approx(trim_mean(scores, 0.25), abs=1e-12)


def test_weights_of_the_interquartile_mean_count_repetitions():
    generator = np.random.default_rng(2)
    scores, weights = generator.normal(size=13), generator.integers(0, 5, size=(50, 13))
    weights[:, 0] += 1
    repeated = [np.repeat(scores, 4 * row) for row in weights]  # a multiple of 4 in number
    expected = [trim_mean(np.sort(row), 0.25) for row in repeated]
    assert interquartile_mean(scores, weights.astype(float)) == pytest.approx(expected, abs=1e-12)


def test_seeds_widen_the_interval_as_theory_says():
    setting = Setting("ppo", "", None, True, tuple("abcde"), tuple(range(5)))
    runs = np.arange(5.0)[:, None] + np.random.default_rng(3).normal(size=(5, 200))
    bootstrap = SeededBootstrap([setting], 200, np.random.default_rng(4), resamples=4000)
    interval = bootstrap.mean(setting, runs)
    error = np.hypot(runs.mean(axis=1).std() / 5**0.5, runs.mean(axis=0).std() / 200**0.5)
    assert bootstrap.resampled_means(setting, runs).std() == pytest.approx(error, rel=0.05)
    assert interval.mean == pytest.approx(runs.mean())
    shuffled = bootstrap.interquartile_mean(setting, runs)
    assert shuffled.mean == pytest.approx(trim_mean(runs.ravel(), 0.25), abs=1e-12)
    assert shuffled.low < shuffled.mean < shuffled.high


def test_the_front_is_the_least_latency_of_any_mixture():
    generator = np.random.default_rng(5)
    added, latency = generator.random((30, 6)), generator.random((30, 6))
    for row in range(30):
        fastest = added[row, latency[row].argmin()]
        at = generator.uniform(added[row].min(), fastest) if fastest > added[row].min() else fastest
        found = linprog(latency[row], A_ub=added[row : row + 1], b_ub=[at], A_eq=np.ones((1, 6)), b_eq=[1.0])
        least = latency_at(added[row : row + 1], latency[row : row + 1], np.array([at]))[0]
        assert least == pytest.approx(found.fun, abs=1e-9)
        mixed = mixture_at(added[row], latency[row], at)
        weights = np.zeros(6)
        weights[mixed.first] += 1 - mixed.share
        weights[mixed.second] += mixed.share
        assert weights @ latency[row] == pytest.approx(found.fun, abs=1e-9)
        assert weights @ added[row] == pytest.approx(at, abs=1e-9)


def test_beyond_its_ends_a_front_says_nothing():
    added, latency = np.array([[0.0, 0.1]] * 4), np.array([[60.0, 40.0]] * 4)
    at = np.array([-0.01, 0.0, 0.1, 0.2])
    assert is_within(added, latency, at).tolist() == [False, True, True, False]
    assert latency_at(added, latency, at).tolist() == [np.inf, 60.0, 40.0, 40.0]


def test_the_hull_leaves_out_what_a_mixture_beats():
    points = np.array([[0.0, 60.0], [0.02, 45.0], [0.01, 55.0], [0.05, 40.0], [0.06, 41.0], [0.02, 50.0]])
    assert hull(points).tolist() == [[0.0, 60.0], [0.02, 45.0], [0.05, 40.0]]
    cloud = np.random.default_rng(6).random((40, 2))
    corners = hull(cloud)
    for at in np.linspace(*corners[[0, -1], 0], 7):
        expected = latency_at(cloud[None, :, 0], cloud[None, :, 1], np.array([at]))[0]
        assert np.interp(at, *corners.T) == pytest.approx(expected, abs=1e-12)


def test_latency_at_matched_quality_by_hand():
    means = OWN | {rule("wdmoe:0.7"): (50.0, 0.02), learned(9, 0): (44.0, 0.02), learned(9, 1): (40.0, 0.04)}
    study = Study(results(means | {rule("wdmoe:0.9"): (30.0, 0.2)}))
    light, heavy = (row for row in matched_quality(study) if row["family"] == "ppo")
    # The front leads from (0, 60) to the mean of the seeds, (0.03, 42): at 0.02 it is at 48.
    assert light["latency_ratio"]["mean"] == pytest.approx(0.96)
    assert light["mixture"]["share_of_second"] == pytest.approx(2 / 3)
    assert light["latency_ratio"]["low"] < 0.96 < light["latency_ratio"]["high"]
    assert heavy["reference"] == "wdmoe:0.9"
    assert heavy["latency_ratio"] is None
    assert heavy["outside"] == "right"
    assert heavy["fastest_added_nll"] == pytest.approx(0.03)


def test_the_interval_of_matched_latency_is_that_of_every_draw_of_seeds():
    means = OWN | {rule("wdmoe:0.7"): (50.0, 0.02), learned(9, 0): (44.0, 0.02), learned(9, 1): (40.0, 0.04)}
    row = next(row for row in matched_quality(Study(results(means))) if row["family"] == "ppo")
    ratios = []
    for a, b in itertools.product([(44.0, 0.02), (40.0, 0.04)], repeat=2):
        latency, added = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2
        ratios.append((60 + (latency - 60) * 0.02 / added) / 50)
    assert row["latency_ratio"]["low"] == pytest.approx(min(ratios))
    assert row["latency_ratio"]["high"] == pytest.approx(max(ratios))


def test_a_quality_that_noise_may_put_left_of_the_front_is_not_reached():
    means = OWN | {rule("wdmoe:0.3"): (58.0, 0.0001), learned(9, 0): (44.0, 0.02)}
    row = next(row for row in matched_quality(Study(results(means, noise=0.01))) if row["family"] == "ppo")
    assert row["latency_ratio"] is None
    assert row["outside"] in ("left", "noise")


def test_a_family_against_an_equal_one_has_the_ratio_one():
    means = OWN | {rule("wdmoe:0.7"): (50.0, 0.02), rule("marginal-price:0.7"): (50.0, 0.02)}
    means |= {rule("marginal-price:0.9"): (45.0, 0.05)}
    row = next(row for row in matched_quality(Study(results(means))) if row["family"] == "marginal-price")
    assert row["latency_ratio"] == {side: pytest.approx(1.0) for side in ("mean", "low", "high")}


def test_the_leaderboard_compares_with_the_best_threshold():
    means = OWN | {rule("wdmoe:0.5"): (50.0, 0.01), rule("wdmoe:0.7"): (40.0, 0.03), rule("fractional"): (30.0, 0.2)}
    rows = {row["name"]: row for row in setting_summaries(Study(results(means | {learned(9, 0): (32.0, 0.1)})))}
    iqm = rows["ppo quality 9"]["iqm"]
    assert iqm["wlr_ratio_to_best_wdmoe"]["mean"] == pytest.approx(40 / 32)
    assert iqm["wlr_ratio_to_fractional"]["high"] == pytest.approx(30 / 32)
    assert iqm["latency_ratio_to_vanilla"]["low"] == pytest.approx(0.32)
    assert rows["vanilla"]["latency_ratio_to_vanilla"] == {"mean": 1.0, "low": 1.0, "high": 1.0}

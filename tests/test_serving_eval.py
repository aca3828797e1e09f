"""Policies compared on cells that serve requests, rules that see the queue, and tricks that must not pay."""

from __future__ import annotations

import csv
import json

import gymnasium as gym
import numpy as np
import pytest

from eval.__main__ import main
from eval.serve import Resamples, family_of, matched
from wdmoe_env.policies.registry import make_policy
from wdmoe_env.serving.arrivals import Requests
from wdmoe_env.serving.cell import Cell
from wdmoe_env.serving_config import ServingConfig

SHORT = {"slots": 2, "chunk": 4, "prompt_tokens": [3, 9], "answer_tokens": [1, 5], "requests": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of an evaluation at two loads."""
    out = tmp_path_factory.mktemp("serve")
    config = out / "config.json"
    config.write_text(json.dumps({"model": "micro", "serving": SHORT}))
    policies = ["wdmoe:0.5", "wdmoe:0.9"]
    flags = ["--serve", "--load", "0.5", "1.1", "--episodes", "2", "--config", str(config)]
    assert main([*flags, "--policies", *policies, "--out", str(out / "results")]) == 0
    return out / "results"


def test_results_hold_every_entry(folder):
    summary = json.loads((folder / "results.json").read_text())
    assert [one["load"] for one in summary["loads"]] == [0.5, 1.1]
    assert summary["policies"][0]["policy"] == "vanilla-optimal"
    for one in summary["policies"]:
        for name in ("e2e_ms", "e2e_ms_p95", "ttft_ms", "tpot_ms", "added_nll"):
            assert one[name]["low"] <= one[name]["mean"] <= one[name]["high"]
    reference = summary["policies"][0]
    assert abs(reference["added_nll"]["mean"]) < 1e-6
    assert reference["e2e_ratio_iqm"]["mean"] == pytest.approx(1.0)
    assert (folder / "load.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "timeline.png").exists()


def test_requests_are_those_of_the_summary(folder):
    rows = list(csv.DictReader((folder / "requests.csv").read_text().splitlines()))
    assert len(rows) == 2 * 3 * 2 * 4
    here = [row for row in rows if row["load"] == "0.5" and row["policy"] == "wdmoe:0.9"]
    summary = json.loads((folder / "results.json").read_text())
    found = next(one for one in summary["policies"] if one["policy"] == "wdmoe:0.9")
    assert np.mean([float(row["e2e_ms"]) for row in here]) == pytest.approx(found["e2e_ms"]["mean"], rel=1e-5)
    other = [row for row in rows if row["load"] == "0.5" and row["policy"] == "wdmoe:0.5"]
    for name in ("arrival_ms", "document", "prompt", "answer"):  # paired
        assert [row[name] for row in here] == [row[name] for row in other]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--serve", "--suite"], "--suite does not go with --serve"),
        (["--serve", "--load", "0"], "load must be a finite number"),
        (["--load", "0.9"], "--load goes with --serve alone"),
        (["--serve", "--policies", "nobody"], "nobody"),
    ],
)
def test_mistakes_are_one_sentence(flags, message, tmp_path, capsys):
    try:
        code = main([*flags, "--out", str(tmp_path / "out")])
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_resamples_draw_documents():
    """Requests of one document come and go together; the interval of a mean widens accordingly."""
    generator = np.random.default_rng(0)
    effect = generator.standard_normal(40)
    documents = np.repeat(np.arange(40), 10).reshape(100, 4)
    values = effect[documents] + 0.01 * generator.standard_normal(documents.shape)
    clustered = Resamples(documents, np.random.default_rng(1)).means(values).std()
    single = Resamples(np.arange(400).reshape(100, 4), np.random.default_rng(1)).means(values).std()
    assert clustered > 1.4 * single
    weights = Resamples(documents, np.random.default_rng(1))
    assert weights.quantiles(values, 0.5)[0] == pytest.approx(np.quantile(values, 0.5, method="inverted_cdf"))


def test_matched_by_hand():
    """Half way between own routing (0 nats, 100 ms) and the family's point (0.02, 60) stand 80 ms at 0.01."""
    one = np.ones(3)
    points = {
        "vanilla-optimal": {"added_nll": 0 * one, "e2e_ms": 100 * one, "e2e_ms_p95": 200 * one},
        "wdmoe:0.8": {"added_nll": 0.01 * one, "e2e_ms": 90 * one, "e2e_ms_p95": 160 * one},
        "straight-through-10": {"added_nll": 0.02 * one, "e2e_ms": 60 * one, "e2e_ms_p95": 120 * one},
    }
    mean, tail = matched(points)
    assert mean["ratio"]["mean"] == pytest.approx(80 / 90)
    assert tail["ratio"]["mean"] == pytest.approx(1.0)
    assert mean["mixture"]["share_of_second"] == pytest.approx(0.5)
    assert family_of("straight-through-30") == family_of("straight-through-4") == "straight-through"


@pytest.mark.parametrize("name", ["queue-price:0.3", "wdmoe-queue:0.6", "load-price:0.3"])
def test_rules_drop_more_where_more_wait(name):
    env = gym.make_vec("wdmoe_env:WDMoE-Serve-v0", num_envs=2, serving={"slots": 2, "requests": 3})
    observation, _ = env.reset(seed=0)
    alone = {**observation, "queue": np.zeros((2, 4), dtype=np.float32)}
    crowd = {**observation, "queue": np.full((2, 4), 20.0, dtype=np.float32)}
    policy = make_policy(name, env)
    kept = [env.unwrapped.codec.decode(policy.predict(one)[0], (2,))["experts"].sum() for one in (alone, crowd)]
    assert kept[1] < kept[0]
    mixed = {**observation, "queue": np.stack([alone["queue"][0], crowd["queue"][1]])}
    both = env.unwrapped.codec.decode(policy.predict(mixed)[0], (2,))["experts"]
    for n, one in enumerate((alone, crowd)):
        own = env.unwrapped.codec.decode(policy.predict(one)[0], (2,))["experts"]
        assert (both[n] == own[n]).all()


def total_system_s(order, block_s=0.1):
    """Time in the system of three requests served in some order of slowness: (block time by request in the slot)."""
    requests = Requests(np.array([0.0, 0.1, 0.2]), np.zeros(3, int), np.array([4, 4, 4]), np.array([4, 4, 4]))
    cell, total = Cell(requests, ServingConfig(slots=1, chunk=4, requests=3)), 0.0
    while not cell.done:
        rows, _ = cell.begin_pass()
        total += cell.advance(block_s * order[int(rows.request[0])])
        cell.end_pass(rows)
    return total


def test_delayed_tokens_and_starved_latecomers_cost_more():
    """To slow any pass, be it of the last request, lengthens the time in the system of whoever is there."""
    fair = total_system_s([1, 1, 1])
    assert total_system_s([1, 1, 3]) > fair  # starve the late
    assert total_system_s([1, 2, 1]) > fair  # delay tokens for even gaps
    assert total_system_s([2, 1, 1]) > total_system_s([1, 1, 2])  # who is first holds up the others


class Slow:
    """A policy that gives a slow device's link the least share, in some blocks."""

    def __init__(self, env, when):
        self.env, self.when = env, when

    def predict(self, observation):
        selection = observation["routed"] > 0.5
        shares = np.full(observation["placement"].shape[-1], 1.0)
        if self.when(observation):
            shares[0] = 1e-3
        return self.env.unwrapped.encode_action(selection, shares / shares.sum()), None


def returned(env, policy, seed=0):
    observation, _ = env.reset(seed=seed)
    total, ended = 0.0, False
    while not ended:
        observation, reward, terminated, truncated, info = env.step(policy.predict(observation)[0])
        total, ended = total + reward, terminated or truncated
    return total, info


def test_no_trick_pays():
    """Delays, refusal by never ending a pass, and speed bought by dropping everything of the short ones."""
    env = gym.make(
        "wdmoe_env:WDMoE-Serve-v0",
        disable_env_checker=True,
        devices="paper",
        serving={"slots": 1, "requests": 3, "load": 3.0, "prompt_tokens": (8, 8), "answer_tokens": (4, 4)},
    )
    fair, _ = returned(env, Slow(env, lambda seen: False))
    delayed, _ = returned(env, Slow(env, lambda seen: seen["row_phase"].any()))  # delay tokens
    starved, _ = returned(env, Slow(env, lambda seen: seen["queue"][0] > 0))  # starve who waits
    refused, info = returned(env, Slow(env, lambda seen: True))  # let hardly anybody in
    dropped, _ = returned(env, make_policy("top1", env))  # finish by dropping everything
    kept, _ = returned(env, make_policy("vanilla-optimal", env))
    assert max(delayed, starved, refused) < fair
    assert refused <= min(delayed, starved) + 1e-9
    assert (info["request_system_ms"] > 0).all()
    assert dropped < kept

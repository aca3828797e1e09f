"""Policies compared on cells that serve requests, rules that see the queue, and tricks that must not pay."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from eval.__main__ import main
from eval.members import Setting
from eval.provenance import code_hash
from eval.serve import ServeEvaluation, ServePlan
from eval.serve_parts import Parts
from eval.serve_report import load_lines, terminal
from eval.serve_statistics import Fronts, Resamples, Run, family_of
from wdmoe_env.policies.network import Architecture, TokenSharedNetwork
from wdmoe_env.policies.policy_file import save_policy
from wdmoe_env.policies.registry import make_policy
from wdmoe_env.serving.arrivals import Requests
from wdmoe_env.serving.cell import Cell
from wdmoe_env.serving.play import play
from wdmoe_env.serving.process import ServingProcess, serving_config
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


def test_the_terminal_sets_policies_against_the_rule(folder):
    stored = Path(__file__).parents[1] / "docs" / "results" / "serving" / "paper-0.95" / "results.json"
    figures, compared = terminal(json.loads(stored.read_text())).split("\n\n")
    assert figures.startswith("load 0.95\n")
    head, _, *rows = compared.splitlines()
    assert "over the paper's rule" in head
    found = {row.split()[0]: row.split()[1:] for row in rows}
    assert found["serve-paper-1.5"] == ["0.805", "[0.787,", "0.824]", "0.741", "[0.710,", "0.775]"]
    assert not any(name.startswith("wdmoe:") for name in found)
    assert "over the paper's rule" not in terminal(json.loads((folder / "results.json").read_text()))  # rules alone


def test_a_replay_comes_to_the_same(folder, tmp_path, capsys):
    assert main(["--replay", str(folder)]) == 0
    assert "match: 3 policies" in capsys.readouterr().out
    for name in ("results.json", "requests.csv"):
        (tmp_path / name).write_text((folder / name).read_text())
    rows = (folder / "requests.csv").read_text().splitlines()
    e2e_ms = rows[5].split(",")[4]
    rows[5] = rows[5].replace(e2e_ms, str(1.5 * float(e2e_ms)), 1)
    (tmp_path / "requests.csv").write_text("\n".join(rows) + "\n")
    assert main(["--replay", str(tmp_path)]) == 1
    assert "requests.csv line 6" in capsys.readouterr().out
    summary = json.loads((folder / "results.json").read_text())
    assert summary["config"]["batch_size"] == 64
    summary["sha256"] = dict.fromkeys(summary["sha256"], "0")
    (tmp_path / "results.json").write_text(json.dumps(summary))
    assert main(["--replay", str(tmp_path)]) == 1
    assert "the model micro has changed since" in capsys.readouterr().out
    (tmp_path / "results.json").write_text(json.dumps(summary | {"loads": [{"load": 1}]}))
    with pytest.raises(SystemExit) as ended:
        main(["--replay", str(tmp_path)])
    assert ended.value.code == 2


def test_the_page_shows_tables_loads_and_one_cell(folder, tmp_path):
    assert main(["--report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    for text in ("Requests served", "Load 0.5", "Load 1.1", "Against load", "One cell in time", "wdmoe:0.9"):
        assert text in page
    assert "<script" not in page


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path, monkeypatch):
    environment = serving_config({"model": "micro", "split": "test", "serving": {**SHORT, "requests": 2}}, {})
    plan = ServePlan(policies=("top1",), environment=environment, episodes=3, batch_size=2)
    evaluation = ServeEvaluation(plan)
    parts = Parts(tmp_path, plan.to_dict(), evaluation.sha256)
    whole = evaluation.run(parts)
    assert {path.name for path in parts.paths} == {path.name for path in tmp_path.iterdir()}
    again = ServeEvaluation(plan)
    monkeypatch.setattr("eval.serve.play", None)  # nothing is played again
    for policy, run in again.run(parts)[0.95].items():
        for name, values in run.requests.items():
            assert values.dtype == whole[0.95][policy].requests[name].dtype
            np.testing.assert_array_equal(values, whole[0.95][policy].requests[name])
    assert again.timelines.keys() == {"vanilla-optimal", "top1"}
    other = ServePlan(policies=("top1",), environment=environment, episodes=3, batch_size=2, seed=8)
    assert not Parts(tmp_path, other.to_dict(), evaluation.sha256).paths & parts.paths
    parts.remove()
    assert not list(tmp_path.iterdir())


def test_lines_against_load_are_one_for_each_family():
    """At the threshold whose quality most families reach, though it loses not quite the same at each load."""

    def row(reference, family, added_nll, front):
        values = {"reference_value": 100.0, "front_value": front, "ratio": None, "mixture": None}
        return {"reference": reference, "family": family, "added_nll": added_nll, "figure": "e2e_ms", **values}

    loads = [
        {
            "load": load,
            "matched_quality": [row("wdmoe:0.8", "top-p", lost, 90.0), row("wdmoe:0.9", "top-p", 3 * lost, None)],
        }
        for load, lost in ((0.7, 0.0126), (1.05, 0.0142))
    ]
    summary = {"loads": loads, "matched_quality": loads[0]["matched_quality"]}
    # Asked for, though the family does not reach it.
    assert list(load_lines(summary, "wdmoe:0.9")) == ["wdmoe:0.9 (+0.038 to +0.043 nats)"]
    assert load_lines(summary) == {
        "wdmoe:0.8 (+0.013 to +0.014 nats)": {0.7: {"e2e_ms": 100.0}, 1.05: {"e2e_ms": 100.0}},
        "top-p, as good": {0.7: {"e2e_ms": 90.0}, 1.05: {"e2e_ms": 90.0}},
    }


def test_parts_of_other_code_are_not_taken(tmp_path):
    """A rule whose constant has changed measures something else."""
    (tmp_path / "rules").mkdir()
    rule = tmp_path / "rules" / "queue.py"
    rule.write_text("SLOPE = 0.5")
    before = code_hash(tmp_path)
    (tmp_path / "notes.txt").write_text("no code")
    assert code_hash(tmp_path) == before
    rule.write_text("SLOPE = 0.25")
    assert code_hash(tmp_path) != before
    plan = {"policies": ("top1",), "loads": (0.95,), "seed": 7}
    one, other = (Parts(tmp_path, plan, {"the code": digest}).paths for digest in (before, code_hash(tmp_path)))
    assert not one & other


def test_how_many_run_at_once_changes_rounding_alone():
    """And each episode is that of ``reset`` with its seed."""
    process = ServingProcess(serving_config({"model": "micro", "serving": SHORT, "observe_hidden_states": True}, {}))
    policy, seeds = make_policy("wdmoe-history:0.7", process), [5, 6, 7, 8, 9]
    one, two = (play(process, policy, seeds, at_once) for at_once in (1, 3))
    for name, values in one.figures.items():
        np.testing.assert_allclose(two.figures[name], values, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(two.returns, one.returns, rtol=1e-5, atol=1e-4)  # ten times a rounded NLL
    env = gym.make("wdmoe_env:WDMoE-Serve-v0", disable_env_checker=True, config=process.config)
    total, info = returned(env, StatefulPolicy(policy), seed=6)
    assert total == pytest.approx(one.returns[1], rel=1e-6)
    np.testing.assert_allclose(info["request_e2e_ms"], one.figures["request_e2e_ms"][1], rtol=1e-6)


class StatefulPolicy:
    """Hands a policy what it returned before."""

    def __init__(self, policy):
        self.policy, self.state = policy, None

    def predict(self, observation):
        action, self.state = self.policy.predict(observation, self.state, self.state is None)
        return action, None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--serve", "--suite"], "--suite does not go with --serve"),
        (["--serve", "--load", "0"], "load must be a finite number"),
        (["--load", "0.9"], "--load goes with --serve alone"),
        (["--serve", "--policies", "nobody"], "nobody"),
        (["--serve", "--batch-size", "0"], "batch_size must be"),
        (["--serve", "--episodes", "0"], "episodes must be"),
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
    """Half way between own routing (0 nats, 100 ms) and the family's point (0.02, 60) stand 80 ms at 0.01.

    Of two cells of two requests the halves of both together are 40, 80, 80 and 120 ms, so that the p95 is 120.
    """
    times = {"vanilla-optimal": [80.0, 120.0], "wdmoe:0.8": [70.0, 110.0], "straight-through-10": [40.0, 80.0]}
    lost = {"vanilla-optimal": 0.0, "wdmoe:0.8": 0.01, "straight-through-10": 0.02}
    resamples = Resamples(np.arange(4).reshape(2, 2), np.random.default_rng(0), resamples=50)
    same = np.ones(len(resamples.requests))
    runs, points = {}, {}
    for name, pair in times.items():
        e2e_ms = np.array([pair, pair])
        runs[name] = Run({"request_e2e_ms": e2e_ms}, {}, 0.0)
        points[name] = {"added_nll": lost[name] * same, "e2e_ms": e2e_ms.mean() * same, "goodput_hz": 2.0 * same}
        points[name]["e2e_ms_p95"] = resamples.quantiles(e2e_ms, 0.95)
    rows = Fronts(points, runs, resamples).rows()
    at = {(row["reference"], row["figure"]): row for row in rows}
    mean, tail = at["wdmoe:0.8", "e2e_ms"], at["wdmoe:0.8", "e2e_ms_p95"]
    assert mean["ratio"]["mean"] == pytest.approx(80 / 90)
    assert mean["mixture"]["share_of_second"] == pytest.approx(0.5)
    assert (tail["front_value"], tail["reference_value"]) == (120.0, 110.0)
    assert at["wdmoe:0.8", "goodput_hz"]["ratio"]["mean"] == pytest.approx(1.0)
    assert at["straight-through-10", "e2e_ms"]["ratio"] is None  # adds more than the fastest of the rule's
    assert family_of("straight-through-30") == family_of("straight-through-4") == "straight-through"
    assert family_of("serve-paper-1.5") == family_of("serve-paper-4") == "serve-paper"
    assert family_of("marginal-price:0.5") == "marginal-price"


def figures_of(figures, resamples):
    """Points and runs of policies that have the same added NLL and E2E in every request."""
    same, points, runs = np.ones(len(resamples.requests)), {}, {}
    for name, (added, e2e_ms) in figures.items():
        points[name] = {"added_nll": added * same, "e2e_ms": e2e_ms * same, "e2e_ms_p95": e2e_ms * same}
        points[name]["goodput_hz"] = same
        runs[name] = Run({"request_e2e_ms": np.full((1, 2), e2e_ms)}, {}, 0.0)
    return points, runs


def test_a_policy_is_set_against_the_rule_at_its_own_quality():
    """At 0.005 nats the rule's front stands at 95 ms, half way from own routing to the threshold 0.8."""
    resamples = Resamples(np.arange(2).reshape(1, 2), np.random.default_rng(0), resamples=10)
    figures = {"vanilla-optimal": (0.0, 100.0), "wdmoe:0.8": (0.01, 90.0), "top1": (0.005, 57.0)}
    fronts = Fronts(*figures_of(figures, resamples), resamples)
    row = next(one for one in fronts.rows() if one["reference"] == "top1")
    assert row["ratio"]["mean"] == pytest.approx(57 / 95)
    assert (row["family"], row["front_value"]) == ("wdmoe", pytest.approx(95.0))


def test_training_seeds_are_drawn_anew():
    """The rule's front stands at 95 and 99 ms, its p95 at 100; a quarter of the resamples has one seed twice."""
    resamples = Resamples(np.arange(2).reshape(1, 2), np.random.default_rng(0), resamples=200)
    figures = {"vanilla-optimal": (0.0, 100.0), "wdmoe:0.8": (0.01, 90.0), "a": (0.005, 57.0), "b": (0.001, 79.2)}
    fronts = Fronts(*figures_of(figures, resamples), resamples)
    setting = Setting("ppo", "quality 10", 10.0, True, ("a", "b"), (0, 4))
    row = fronts.of_training_seeds(setting, np.random.default_rng(1))
    assert (row["setting"], row["policies"], row["seeds"]) == ("ppo quality 10", ["a", "b"], [0, 4])
    assert row["ratios"]["e2e_ms"] == pytest.approx({"mean": 0.7, "low": 0.6, "high": 0.8})
    assert row["ratios"]["e2e_ms_p95"] == pytest.approx({"mean": 0.681, "low": 0.57, "high": 0.792})
    assert row["e2e_ms"] == pytest.approx({"mean": 68.1, "low": 57.0, "high": 79.2})
    assert row["added_nll"] == pytest.approx({"mean": 0.003, "low": 0.001, "high": 0.005})
    figures["b"] = (0.02, 40.0)  # adds more than the fastest of the rule's
    beyond = Fronts(*figures_of(figures, resamples), resamples).of_training_seeds(setting, np.random.default_rng(1))
    assert set(beyond["ratios"].values()) == {None}
    assert beyond["e2e_ms"]["mean"] == pytest.approx(48.5)


def test_seeds_of_one_recipe_have_a_row_of_their_own(tmp_path, capsys):
    """Other recipes, and rules, stand apart; a replay and the page have the row too."""
    torch.manual_seed(0)
    recipes = {"seed-0": (1.5, 0), "seed-1": (1.5, 1), "other": (4.0, 0)}
    for name, (weight, seed) in recipes.items():
        network = TokenSharedNetwork(Architecture(8))
        torch.nn.init.normal_(network.pair_line.weight, std=2.0)
        arguments = {"reward": "serving", "quality_weight": weight, "seed": seed, "devices": "boards"}
        save_policy(tmp_path / f"{name}.safetensors", network, "selection", {"family": "ppo", "arguments": arguments})
    (tmp_path / "config.json").write_text(json.dumps({"model": "micro", "serving": SHORT}))
    flags = ["--serve", "--load", "0.5", "1.1", "--episodes", "2", "--config", str(tmp_path / "config.json")]
    names = ["top1", *(str(tmp_path / f"{name}.safetensors") for name in recipes)]
    assert main([*flags, "--policies", *names, "--out", str(tmp_path / "out")]) == 0
    assert "ppo on boards quality 1.5, of requests" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "results.json").read_text())
    for load in summary["loads"]:
        (row,) = load["training_seeds"]
        assert (row["policies"], row["seeds"]) == (names[1:3], [0, 1])
        each = [one["e2e_ms"]["mean"] for one in load["policies"] if one["policy"] in names[1:3]]
        assert each[0] != each[1]
        assert row["e2e_ms"]["mean"] == pytest.approx(np.mean(each))
        assert row["ratios"]["e2e_ms"] is None  # no rule of the paper was asked for
    assert main(["--replay", str(tmp_path / "out")]) == 0
    assert main(["--report", str(tmp_path / "out"), "--out", str(tmp_path / "page.html")]) == 0
    assert "ppo on boards quality 1.5, of requests" in (tmp_path / "page.html").read_text()
    summary["loads"][1]["training_seeds"][0]["added_nll"] = 7
    (tmp_path / "out" / "results.json").write_text(json.dumps(summary))
    with pytest.raises(SystemExit):
        main(["--replay", str(tmp_path / "out")])
    assert "expected an object in the training seeds[0], added_nll" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["queue-price:0.3", "wdmoe-queue:0.6", "load-price:1"])
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


@pytest.mark.parametrize(
    ("name", "queue", "price"),
    [("queue-price:0.3", [1, 3, 0, 9], 0.3 * (1 + 0.5 * 4)), ("load-price:0.3", [1, 3, 0, 8], 0.3 * (1 + 0.1 * 8))],
)
def test_the_price_grows_by_the_slope_of_its_page(name, queue, price):
    env = gym.make_vec("wdmoe_env:WDMoE-Serve-v0", num_envs=2, serving={"slots": 2, "requests": 3})
    observation, _ = env.reset(seed=0)
    seen = {**observation, "queue": np.array([queue, queue], dtype=np.float32)}
    found, expected = (make_policy(one, env).predict(seen)[0] for one in (name, f"marginal-price:{price}"))
    np.testing.assert_array_equal(found, expected)


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

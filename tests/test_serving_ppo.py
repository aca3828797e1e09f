"""The token-wise learner where requests are served: what a block delays, the start, the gain, and exact resume."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_vector_env import make_vec
from train_runs import assert_refused

from agents import cells
from agents.delay import expected_behind, requests_behind
from train import agent, ppo
from train.__main__ import main
from train.arguments import Arguments
from train.environment import make_env
from wdmoe_env.policies import make_policy
from wdmoe_env.policies.policy_file import save_policy
from wdmoe_env.serving.arrivals import Requests
from wdmoe_env.serving.cell import Cell
from wdmoe_env.serving_config import ServingConfig

SERVING = "slots=2,chunk=4,prompt_tokens=3-9,answer_tokens=1-5,requests=4"
SMALL = {"model": "micro", "env_id": "WDMoE-Serve-Selection-v0", "serving": SERVING, "devices": "paper"}


def trainer(**changes):
    arguments = Arguments(**{**SMALL, **changes})
    env = make_env(arguments, 1).unwrapped
    settings = agent.settings_of(arguments) | {"windows": 2, "rollouts": 2, "minibatches": 2}
    return ppo.Trainer(arguments, settings, env.simulator, joint=False)


def served(requests, config, seconds, late=None):
    """Sum of the times in the system, and begins and ends of the passes, one of which may take a little longer."""
    cell, spans = Cell(requests, config), []
    while not cell.done:
        rows, _ = cell.begin_pass()
        begin = cell.clock_s
        cell.advance(seconds[len(spans)] + (1e-6 if len(spans) == late else 0.0))
        cell.end_pass(rows)
        spans.append((begin, cell.clock_s))
    return cell.system_s().sum(), *np.array(spans).T, cell.finish_s


def test_a_pass_delays_all_that_end_behind_it_until_the_cell_is_empty():
    generator, config = np.random.default_rng(3), ServingConfig(slots=2, chunk=4, requests=12)
    prompt, answer = generator.integers(3, 10, 12), generator.integers(1, 6, 12)
    requests = Requests(np.cumsum(generator.exponential(2.0, 12)), np.zeros(12, int), prompt, answer)
    seconds = generator.uniform(0.1, 0.6, 200)
    total, begin, end, finish = served(requests, config, seconds)
    found = requests_behind(begin, end, finish)
    slopes = [(served(requests, config, seconds, n)[0] - total) / 1e-6 for n in range(len(begin))]
    np.testing.assert_allclose(slopes, found, atol=1e-4)
    assert (begin[1:] > end[:-1]).sum() >= 2  # it was empty more than once
    assert set(found.tolist()) >= {1, 2, 3}


def test_what_is_expected_is_what_came_in_the_mean():
    queue = np.array([[0, 1, 0, 0], [0, 1, 0, 0], [2, 4, 0, 0], [2, 4, 0, 0], [1, 4, 0, 0]], dtype=float)
    found = expected_behind(queue, np.zeros(5), np.array([1.0, 3.0, 8.0, 10.0, 7.0]))
    np.testing.assert_allclose(found, [2.0, 2.0, 9.0, 9.0, 7.0])


def test_the_derivative_of_the_time_in_the_system_is_that_of_the_samples(monkeypatch):
    """One block of one pass takes a little longer: the sum of all times grows by those who are told to wait."""
    learner, extra, late = trainer(), 1e-7, 20
    real, behind = Cell.advance, []
    totals, steps = [], []
    monkeypatch.setattr(cells, "requests_behind", lambda *spans: behind.append(requests_behind(*spans)) or behind[-1])
    for seconds_more in (0.0, extra):
        steps.clear()

        def advance(self, seconds, more=seconds_more):
            steps.append(self)
            return real(self, seconds + (more if len(steps) - 1 == late else 0.0))

        monkeypatch.setattr(Cell, "advance", advance)
        totals.append(learner.experience(0).measured["e2e_ms"])
    order = list(dict.fromkeys(map(id, steps)))  # the cells, by their numbers
    number = order.index(id(steps[late]))
    blocks = sum(step is steps[late] for step in steps[:late])
    grown = (totals[1] - totals[0]) * 4 * len(order) / (1e3 * extra)
    assert grown == pytest.approx(behind[number][blocks // 3], abs=0.05)


def test_experience_is_that_of_the_environment():
    learner = trainer()
    experience = learner.experience(1)
    rows = experience.mask.sum(1)
    assert experience.mask.shape == (2 * 2 * 4, 9 + 5 - 1)
    assert torch.equal(rows[0::2], rows[1::2])  # rollouts of a request stand together
    assert {sample.block for sample in experience.samples} == {0, 1, 2}
    tokens = torch.cat([sample.at[sample.at >= 0] for sample in experience.samples if sample.block == 1])
    assert torch.equal(tokens.sort().values, experience.mask.flatten().nonzero()[:, 0])  # each token once
    assert experience.deviations[0].max() < 1e-9 < experience.deviations[1].max()
    assert (experience.divergence >= 0).all()
    assert experience.added_nll.abs().max() > 0
    advantages = learner.objective.advantages(experience)
    pairs = [advantage.view(-1, 2, 13).sum(1) for advantage in advantages]
    assert max(pair.abs().max() for pair in pairs) < 1e-5  # each is the other's baseline


def test_its_start_acts_as_the_policy_of_windows_did(tmp_path):
    first = trainer().network
    architecture = replace(first.architecture, serving_features=0)
    plain = type(first)(architecture)
    for weights in plain.parameters():
        weights.data += 0.3 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1))
    save_policy(tmp_path / "plain.safetensors", plain, "selection", {})
    assert "serving_features" not in json.loads((tmp_path / "plain.json").read_text())
    blind = trainer(start=str(tmp_path / "plain.safetensors"), serving_features=0).network
    assert blind.architecture == architecture
    started = trainer(start=str(tmp_path / "plain.safetensors")).network
    save_policy(tmp_path / "started.safetensors", started, "selection", {})
    serving = {"slots": 2, "chunk": 4, "prompt_tokens": (3, 9), "answer_tokens": (1, 5), "requests": 3}
    env = make_vec(2, "WDMoE-Serve-v0", serving=serving).unwrapped
    observation, _ = env.reset(seed=0)
    one, other = (make_policy(str(tmp_path / f"{name}.safetensors"), env) for name in ("plain", "started"))
    for _ in range(20):
        actions, _ = one.predict(observation)
        np.testing.assert_array_equal(actions, other.predict(observation)[0])
        observation, *_ = env.step(actions)
    started.serving_line.data += 3.0
    save_policy(tmp_path / "moved.safetensors", started, "selection", {})
    moved = make_policy(str(tmp_path / "moved.safetensors"), env)
    assert not np.array_equal(actions, moved.predict(observation)[0])
    windows = make_vec(2).unwrapped  # where there is no queue it sees one request alone
    observation, _ = windows.reset(seed=0)
    assert make_policy(str(tmp_path / "moved.safetensors"), windows).predict(observation)[0].shape[0] == 2


def test_it_improves_its_reward():
    learner = trainer(quality_weight=0.0, settings="learning_rate=1e-2")
    before = learner.experience(99).measured["e2e_ms"]
    for number in range(4):
        learner.update(number, 0.0)
    assert learner.experience(99).measured["e2e_ms"] < 0.97 * before


def flags(out, *more):
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in SMALL.items()]
    settings = ("--settings", "windows=2,rollouts=2,minibatches=2")
    return [*(word for pair in pairs for word in pair), "--no-progress", *settings, "--out", str(out), *more]


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(flags(whole, "--timesteps", "48")) == 0
    real = ppo.Trainer.update

    def update(self, number, progress):
        if number >= 2:
            raise KeyboardInterrupt
        return real(self, number, progress)

    with monkeypatch.context() as patch:
        patch.setattr(ppo.Trainer, "update", update)
        with pytest.raises(KeyboardInterrupt):
            main(flags(killed, "--checkpoint-every", "16", "--timesteps", "48"))
    assert main(flags(killed, "--resume", "--timesteps", "48")) == 0
    one, other = (load_file(folder / "policy.safetensors") for folder in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    card = json.loads((whole / "policy.json").read_text())
    assert (card["family"], card["timesteps"], card["serving_features"]) == ("ppo", 48, 7)
    assert (card["decision"], card["arguments"]["reward"]) == ("selection", "serving")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--serving", "requests"), "serving must be NAME=VALUE with commas between, such as requests=8"),
        (("--serving", "horizon_s=2"), "expected serving with generate=false and no horizon_s to learn from"),
        (("--load", "0"), "load must be"),
        (("--serving-features", "8"), "serving_features must be"),
        (("--without-domains", "code"), "without_domains is not known where requests are served"),
        (("--settings", "delay=guessed"), "delay must be one of exact, expected, got 'guessed'"),
        (("--settings", "pair_prices=false"), "pair_prices=false is for windows alone"),
        (("--reward", "wlr"), "reward must be one of serving for ppo, got 'wlr'"),
        (("--env-id", "WDMoE-v0"), "serving goes with WDMoE-Serve-v0 or WDMoE-Serve-Selection-v0, got WDMoE-v0"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, more, sentence):
    assert_refused([*flags(tmp_path / "run"), *more], sentence, capsys)

"""PPO whose ratios, clips and advantages are each token's own: credit by hand, a bandit, exact resume, messages."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_vector_env import make_vec
from train_runs import assert_refused

from agents.credit import costs_to_go, foretold, group_relative, leave_one_out, text_returns, with_later_tokens
from agents.experience import Experience, Sample, token_log_probs
from agents.token_ppo import Objective, clipped
from train import agent, ppo
from train.__main__ import main
from train.arguments import Arguments
from train.environment import make_env
from wdmoe_env.actions import settled_plan
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.optimize.pricing import device_prices
from wdmoe_env.physics.latency import device_load
from wdmoe_env.policies import make_policy

SETTINGS = {"windows": 4, "rollouts": 2}


def flags(out, *more):
    small = ("--model", "micro", "--num-tokens", "8", "--no-progress", "--settings", "windows=4,rollouts=2")
    return [*small, "--out", str(out), *more]


def test_credit_by_hand():
    returns = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [8.0, 3.0]]])
    # The others' means: (3 + 8) / 2, (1 + 8) / 2, (1 + 3) / 2.
    torch.testing.assert_close(leave_one_out(returns)[0, :, 0], torch.tensor([-4.5, -1.5, 6.0]))
    spread = math.sqrt(((1 - 4) ** 2 + (3 - 4) ** 2 + (8 - 4) ** 2) / 2)
    torch.testing.assert_close(group_relative(returns)[0, :, 0], torch.tensor([-3.0, -1.0, 4.0]) / spread)
    assert not group_relative(torch.ones(1, 3, 2)).any()
    later = with_later_tokens(torch.tensor([1.0, 2.0, 4.0]), 0.5)
    torch.testing.assert_close(later, torch.tensor([1 + 1 + 1, 2 + 2, 4.0]))
    costs, mask = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]])
    torch.testing.assert_close(text_returns(costs, mask, 10.0, 0.5), torch.tensor([[-10.0, -10.0, 0.0]]))
    torch.testing.assert_close(text_returns(costs, mask, 10.0, None), torch.tensor([[-15.0, -15.0, 0.0]]))


def test_the_critic_tells_each_block_what_it_added():
    costs, before = torch.tensor([[5.0]]), [torch.tensor([[value]]) for value in (0.0, 2.0, 3.0)]
    for trace, expected in ((0.0, [2.0, 1.0, 2.0]), (1.0, [5.0, 3.0, 2.0]), (0.5, [3.0, 2.0, 2.0])):
        assert [one.item() for one in costs_to_go(before, costs, trace)] == expected
    deviations = torch.tensor([[1.0], [3.0], [0.0], [1.0]])
    costs = 2.0 * deviations + torch.tensor([[5.0], [5.0], [9.0], [9.0]])  # windows differ, the factor does not
    torch.testing.assert_close(foretold(deviations, costs, rollouts=2), 2.0 * deviations)
    assert not foretold(torch.zeros(4, 1), costs, rollouts=2).any()


def test_a_ratio_is_clipped_where_it_has_gained_enough():
    ratio, advantage = torch.tensor([0.5, 0.5, 1.5, 1.5]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    torch.testing.assert_close(clipped(ratio, advantage, 0.2), torch.tensor([0.5, -0.8, 1.2, -1.5]))


def bandit(tokens, arms):
    """One block of N rollouts in which token j has ``arms`` pairs."""
    return SimpleNamespace(token=torch.arange(tokens).repeat_interleave(arms), num_tokens=tokens, num_rows=2)


def test_the_log_probability_of_a_token_is_that_of_its_pairs():
    logits, drawn = torch.tensor([0.0, math.log(3.0), 0.0, 0.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    found = token_log_probs(bandit(2, 2), logits, drawn).exp()
    torch.testing.assert_close(found, torch.tensor([0.5 * 0.25, 0.25]))


@pytest.mark.parametrize(
    "objective", [{}, {"pair_prices": False}, {"pair_prices": False, "baseline": "group-relative"}]
)
def test_the_best_choice_of_a_bandit_is_found(objective):
    """Token 0 must drop its pair, whose price exceeds its loss; token 1 must keep its own, which is worth it."""
    price, loss = 1.0, torch.tensor([0.2, 5.0])
    objective = Objective(quality_weight=2.0, rollouts=16, decay=0.0, critic="none", **objective)
    logits, noise = torch.zeros(2, requires_grad=True), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(60):
        mask = torch.ones(16, 2, dtype=torch.bool)
        drawn = (torch.rand(16, 2, generator=noise) < logits.detach().sigmoid()).float()
        inputs, now = bandit(32, 1), logits.detach().expand(16, 2)
        log_prob = token_log_probs(inputs, now.flatten(), drawn.flatten())
        prices, prob = torch.full((32,), -price), now.flatten().sigmoid()
        sample = Sample(0, inputs, drawn.flatten(), prob, log_prob, prices, torch.arange(32))
        costs, rewards = loss * (1.0 - drawn), (-price * drawn.sum(1),)
        experience = Experience((sample,), (torch.zeros(16, 2),), mask, costs, costs, {}, rewards)
        (advantages,) = objective.advantages(experience)
        for _ in range(2):
            optimizer.zero_grad()
            (-objective.value(sample, logits.expand(16, 2).flatten(), advantages) / 16).backward()
            optimizer.step()
    assert logits[0] < -1.0
    assert logits[1] > 1.0


@pytest.mark.parametrize(("slope", "moved", "pushed"), [(-1.0, -0.3, False), (-1.0, 0.3, True), (1.0, 0.3, False)])
def test_a_price_pushes_no_further_than_its_clip(slope, moved, pushed):
    objective = Objective(quality_weight=2.0, rollouts=2, price_clip=0.2)
    logits = torch.tensor([0.5 + moved]).logit().requires_grad_()
    old = torch.tensor([0.5])
    log_prob = token_log_probs(bandit(1, 1), old.logit(), torch.ones(1))
    sample = Sample(0, bandit(1, 1), torch.ones(1), old, log_prob, torch.tensor([slope]), torch.arange(1))
    objective.value(sample, logits, torch.zeros(1, 1)).backward()
    assert bool(logits.grad.abs() > 0) is pushed


def test_experience_is_that_of_the_environment():
    """The same draws in the environment: latency, loss of the text, and divergence as the relaxed episodes have it."""
    arguments = Arguments(model="micro", num_tokens=8, reward="latency_quality")
    env = make_env(arguments, 1).unwrapped
    trainer = ppo.Trainer(arguments, agent.settings_of(arguments) | SETTINGS, env.simulator, joint=False)
    with torch.no_grad():
        trainer.network.start.fill_(0.0)
    experience = trainer.experience(3)
    generator = np.random.default_rng([0, 3])
    windows = trainer.source.windows(generator, 4).repeat(2)
    channels = [np.random.default_rng([0, 3, window]) for window in range(4) for _ in range(2)]
    rollout, latency = env.simulator.start(channels, windows), 0.0
    for choice in experience.choices:
        plan = settled_plan(rollout.block, {"experts": choice.selection.numpy()}, 0.0)
        result = rollout.step(plan)
        latency = latency + 1e3 * result.block_latency_s
    np.testing.assert_allclose(sum(choice.latency_ms for choice in experience.choices), latency, rtol=1e-5)
    episode = rollout.finish()
    np.testing.assert_allclose(experience.added_nll.mean(1), episode.nll - episode.reference_nll, atol=1e-5)
    assert experience.deviations[0].max() < 1e-9 < experience.deviations[1].max()
    assert (experience.divergence > -1e-6).all()
    assert len({tuple(choice) for choice in experience.choices[0].selection.flatten(1).tolist()}) == 8


def test_the_slope_of_a_pair_is_its_price_at_the_bandwidth_optimum():
    """With one expert a device, a pair costs a token sent and an expert run, over the latency of the own routing."""
    arguments = Arguments(model="micro", num_tokens=8, reward="latency_quality")
    env = make_env(arguments, 1).unwrapped
    trainer = ppo.Trainer(arguments, agent.settings_of(arguments) | SETTINGS, env.simulator, joint=False)
    choice = trainer.experience(0).choices[0]
    links, selection = choice.seen.pairs.block.links, choice.selection.numpy()
    load = device_load(selection, links)
    prices = device_prices(links, load, min_max_bandwidth(links, load), np.ones(len(selection)), 0.0)
    expected = -(prices.token + prices.expert)[:, None] / choice.vanilla_latency_ms.numpy()[:, None, None]
    # Where its best expert was drawn, a token's others change nothing but themselves.
    drawn, best = choice.seen.spread(choice.drawn) > 0.5, choice.seen.best
    others = (choice.seen.candidates & ~best & (drawn & best).any(-1, keepdim=True)).numpy()
    found = choice.seen.spread(choice.slope).numpy()[others]
    assert len(found) > 10
    np.testing.assert_allclose(found, np.broadcast_to(expected, others.shape)[others], rtol=1e-4)


def test_it_improves_its_reward(tmp_path):
    path = agent.train(
        Arguments(model="micro", num_tokens=8, timesteps=2400, out=str(tmp_path), progress=False, settings="windows=8")
    )
    env = make_vec(128, "WDMoE-Selection-v0").unwrapped
    rewards = {}
    for name in ("vanilla-optimal", str(path)):
        observation, _ = env.reset(seed=5)
        rewards[name] = env.step(make_policy(name, env).predict(observation)[0])[1]
    gain = rewards[str(path)] - rewards["vanilla-optimal"]
    assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5


@pytest.mark.parametrize("env_id", ["WDMoE-Selection-v0", "WDMoE-v0"])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(tmp_path, monkeypatch, env_id):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ("--reward", "latency_quality", "--timesteps", "72", "--env-id", env_id)
    assert main(flags(whole, *more)) == 0
    real = ppo.Trainer.update

    def update(self, number, progress):
        if number >= 2:
            raise KeyboardInterrupt
        return real(self, number, progress)

    with monkeypatch.context() as patch:
        patch.setattr(ppo.Trainer, "update", update)
        with pytest.raises(KeyboardInterrupt):
            main(flags(killed, "--checkpoint-every", "24", *more))
    assert main(flags(killed, "--resume", *more)) == 0
    one, other = (load_file(folder / "policy.safetensors") for folder in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    card = json.loads((whole / "policy.json").read_text())
    assert (card["family"], card["timesteps"]) == ("ppo", 72)
    assert card["hyperparameters"]["rollouts"] == 2


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ("--env-id", "WDMoE-Bandwidth-v0"),
            "env_id must be one of WDMoE-Selection-v0, WDMoE-v0, WDMoE-Serve-Selection-v0",
        ),
        (("--reward", "wlr_device"), "reward must be one of wlr, latency_quality, latency_divergence for ppo"),
        (("--settings", "speed=1"), "settings of ppo are windows, rollouts,"),
        (("--settings", "rollouts"), "settings must be NAME=VALUE with commas between"),
        (("--settings", "rollouts=1"), "rollouts must be at least 2, each a baseline of the others, got 1"),
        (("--settings", "credit=window"), "credit must be one of token, episode, got 'window'"),
        (("--settings", "baseline=group-relative"), "group-relative goes with pair_prices=false"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, more, sentence):
    assert_refused([*flags(tmp_path / "run"), *more], sentence, capsys)
    assert not (tmp_path / "run" / "arguments.json").exists()


def test_it_goes_on_from_a_policy_that_ships_and_from_a_file(tmp_path, capsys):
    assert main(flags(tmp_path / "first", "--timesteps", "24", "--extra-experts", "1")) == 0
    start = ("--start", str(tmp_path / "first" / "policy.safetensors"))
    assert main(flags(tmp_path / "then", "--timesteps", "24", "--extra-experts", "1", *start)) == 0
    first, then = (load_file(tmp_path / name / "policy.safetensors") for name in ("first", "then"))
    assert 0 < max((first[name] - then[name]).abs().max() for name in first) < 0.1
    shipped = ("--start", "straight-through-wlr")
    assert main(flags(tmp_path / "shipped", "--timesteps", "24", "--extra-experts", "1", *shipped)) == 0
    capsys.readouterr()
    assert main(flags(tmp_path / "other", "--timesteps", "24", *shipped)) == 2
    assert "expected a policy to start from of Architecture" in capsys.readouterr().err

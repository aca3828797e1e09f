"""Rollouts of explicit texts: copied, begun again, without a reference, and of a text that is being generated."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from wdmoe_env.config import EnvConfig
from wdmoe_env.generation import generate
from wdmoe_env.policies import make_policy
from wdmoe_env.process import DecisionProcess
from wdmoe_env.scoring import Player, Scorer, channel_generator
from wdmoe_env.text.continuations import Continuation, continuation_windows

CONFIG = EnvConfig(model="micro", num_tokens=16)
TEXTS = [Continuation([1, 2, 3], [4, 5]), Continuation([9, 8], [7, 6, 5, 4])]


@pytest.fixture(scope="module")
def player():
    process = DecisionProcess(CONFIG)
    return Player(process, make_policy("top1", process))


def text_rollout(player):
    windows, _ = continuation_windows(TEXTS, CONFIG.num_tokens)
    generators = [channel_generator(seed) for seed in range(len(TEXTS))]
    return player.rollout(windows, player.process.simulator.channel.sample(generators))


def one_block(player, rollout):
    player.process.run(rollout, {"experts": rollout.block.routed & (rollout.block.gate_probs > 0.2)})


def end_of(player, rollout):
    while not rollout.done:
        one_block(player, rollout)
    return rollout.finish()


def in_another_thread(player, rollout, memory=None):
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(end_of, player, rollout).result()


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda rollout: pickle.loads(pickle.dumps(rollout))], ids=["deepcopy", "pickle"]
)
def test_a_copy_of_a_text_rollout_goes_on_with_the_same_text(clone, player):
    rollout = text_rollout(player)
    one_block(player, rollout)
    twin = clone(rollout)
    whole, copied = end_of(player, rollout), end_of(player, twin)
    np.testing.assert_array_equal(twin.texts.token_ids, rollout.texts.token_ids)
    for name in ("token_nll", "correct", "latency_s", "nll"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(copied, name))
    assert np.unique(whole.token_nll[rollout.token_mask]).size > 2


def test_another_thread_goes_on_with_the_same_text(player):
    expected = end_of(player, text_rollout(player))
    rollout = text_rollout(player)
    one_block(player, rollout)
    np.testing.assert_array_equal(in_another_thread(player, rollout).token_nll, expected.token_nll)


def test_texts_from_outside_leave_the_split_of_the_simulator_alone(player):
    source = player.process.simulator.source
    end_of(player, text_rollout(player))
    assert player.process.simulator.source is source


def test_without_a_reference_there_is_no_added_nll(player):
    rollout = text_rollout(player)
    assert "added_nll" not in player.play(rollout)
    assert rollout.finish().reference_nll is None


@pytest.mark.parametrize("reward", ["latency_quality", lambda terms: pytest.fail("a reward was evaluated")])
def test_no_reward_is_made_of_texts_from_outside(reward):
    """The reward needs a reference, which such texts do not have."""
    config = EnvConfig(model="micro", num_tokens=16, reward=reward)
    plain, other = Scorer(None, CONFIG), Scorer(None, config)
    for (rows, expected), (_, found) in zip(plain.batches(TEXTS, [0, 1]), other.batches(TEXTS, [0, 1]), strict=True):
        assert len(rows) == len(TEXTS)
        np.testing.assert_array_equal(found.logprob, expected.logprob)
    tokens, terms = generate(other, [5, 6, 7], seed=0, max_new_tokens=3)
    assert len(tokens) == 3
    assert "added_nll" not in terms


def test_a_pass_of_a_generation_has_no_text_to_score_and_no_copy(monkeypatch):
    play, seen = Player.play, []

    def looked_at(self, rollout, memory):
        seen.append(rollout)
        for clone in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="a paused forward pass cannot be pickled or copied"):
                clone(rollout)
        return play(self, rollout, memory)

    monkeypatch.setattr(Player, "play", looked_at)
    generate(Scorer(None, CONFIG), [5, 6, 7], seed=0, max_new_tokens=2)
    assert len(seen) == 2
    with pytest.raises(RuntimeError, match="expected passes that score a text"):
        seen[0].finish()


def test_a_pass_of_a_generation_does_not_begin_again(monkeypatch):
    """What came before it in the text would have to be generated again."""
    monkeypatch.setattr(Player, "play", in_another_thread)
    with pytest.raises(RuntimeError, match="a pass of a generation cannot begin again"):
        generate(Scorer(None, CONFIG), [5, 6, 7], seed=0, max_new_tokens=2)

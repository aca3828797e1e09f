"""Settings of a generation: what transformers' ``generate`` takes is passed on, the rest is refused by name."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from wdmoe_env.config import EnvConfig
from wdmoe_env.generation import REFUSED, TAKEN, check_settings, generate
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.physics import channel
from wdmoe_env.physics.gains import Gains
from wdmoe_env.physics.recording_file import write_recording
from wdmoe_env.policies import make_policy
from wdmoe_env.scoring import Scorer

CONFIG = EnvConfig(model="micro", num_tokens=64)
PROMPT = [5, 6, 7, 8, 9, 10]


@pytest.fixture(scope="module")
def model():
    return load_model("micro")


@pytest.fixture(scope="module")
def scorer():
    return Scorer(None, CONFIG)


def top1(config=CONFIG):
    return Scorer(lambda env: make_policy("top1", env), config)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": list(range(2000))},
        {"num_beams": 4},
        {"num_beams": 3, "length_penalty": -2.0, "early_stopping": True},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
        {"do_sample": True, "num_beams": 2},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 2},
        {"prompt_lookup_num_tokens": 3},
        {"return_dict_in_generate": True, "output_scores": True},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_vanilla_writes_what_the_untouched_model_writes(settings, model, scorer):
    ids = torch.tensor([PROMPT])
    torch.manual_seed(3)
    own = model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, pad_token_id=0, **settings)
    torch.manual_seed(3)
    tokens, terms = generate(scorer, PROMPT, seed=3, max_new_tokens=9, pad_token_id=0, **settings)
    assert tokens == getattr(own, "sequences", own)[0, len(PROMPT) :].tolist()
    assert np.isfinite(terms["block_latency_ms"]).all()


def test_none_and_false_are_as_good_as_none(scorer):
    plain, _ = generate(scorer, PROMPT, seed=3, max_new_tokens=9)
    settings = {"num_beams": None, "repetition_penalty": None, "token_healing": False, "assistant_model": None}
    assert generate(scorer, PROMPT, seed=3, max_new_tokens=9, **settings)[0] == plain


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.8}, {"no_repeat_ngram_size": 1}, {"num_beams": 4}])
def test_a_setting_matters(settings, scorer):
    plain, _ = generate(scorer, PROMPT, seed=3, max_new_tokens=12)
    assert generate(scorer, PROMPT, seed=3, max_new_tokens=12, pad_token_id=0, **settings)[0] != plain


def test_a_pass_reads_the_rows_of_all_beams(model, scorer):
    """The gate weight that is served is one unit for each token that a pass reads."""
    tokens, terms = generate(scorer, PROMPT, seed=3, max_new_tokens=4, num_beams=3, pad_token_id=0)
    read = np.repeat([3 * len(PROMPT)] + [3] * (len(tokens) - 1), model.num_blocks)
    np.testing.assert_allclose(terms["gate_weight_served"][:, 0], read, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"do_sample": True, "num_beams": 16}, 16 * 6),
        ({"num_beams": 11}, 11 * 6),
        ({"do_sample": True, "num_return_sequences": 12}, 12 * 6),
        ({"num_beams": 5, "use_cache": False}, 5 * (6 + 8 - 1)),
    ],
)
@pytest.mark.parametrize("policy", ["vanilla", "top1"])
def test_beams_that_exceed_the_window_are_refused_before_a_pass(settings, needed, policy, scorer, monkeypatch):
    sentence = f"num_tokens must be at least {needed}, a pass over .* sequences of .* tokens .*, got 64"
    used = scorer if policy == "vanilla" else top1()
    monkeypatch.setattr(type(used.model), "run", lambda *arguments: pytest.fail("a pass began"))
    with pytest.raises(ValueError, match=sentence):
        generate(used, PROMPT, seed=3, max_new_tokens=8, **settings)


@pytest.mark.parametrize("make", [lambda: Scorer(None, CONFIG), top1], ids=["vanilla", "top1"])
def test_beams_that_fill_the_window_run(make):
    tokens, _ = generate(make(), PROMPT, seed=3, max_new_tokens=2, num_beams=10, pad_token_id=0)
    assert len(tokens) == 2


def test_beams_of_the_models_own_settings_count_too(model, scorer, monkeypatch):
    monkeypatch.setattr(model.model, "generation_config", GenerationConfig(num_beams=16))
    with pytest.raises(ValueError, match="num_tokens must be at least 96"):
        generate(scorer, PROMPT, seed=3, max_new_tokens=2)
    check_settings(scorer, len(PROMPT), 2, {"num_beams": 1})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"repetition_penalti": 1.2}, "got 'repetition_penalti'; did you mean 'repetition_penalty'?"),
        ({"nun_beams": 2}, "got 'nun_beams'; did you mean 'num_beams'?"),
        ({"xyzzy": None}, "expected settings of transformers' generate, got 'xyzzy'"),
        ({"attention_mask": [[1]]}, "got 'attention_mask'"),
        ({"input_ids": [[1]]}, "got 'input_ids'"),
        ({"stopping_criteria": []}, "got 'stopping_criteria'"),
        ({"negative_prompt_ids": [[1]]}, "got 'negative_prompt_ids'"),
        ({"custom_generate": "folder"}, "the setting custom_generate is not taken, since it runs code"),
        ({"trust_remote_code": True}, "the setting trust_remote_code is not taken, since it runs code"),
        ({"assistant_early_exit": 1}, "the setting assistant_early_exit is not taken, since its drafts leave"),
        ({"token_healing": True}, "the setting token_healing is not taken, since it writes the prompt anew; got True"),
        ({"max_length": 40}, "the setting max_length is not taken, since max_new_tokens"),
        ({"cache_implementation": "paged"}, "the setting cache_implementation is not taken"),
        ({"num_return_sequences": 2}, "Greedy methods"),
        ({"num_beams": 2, "num_return_sequences": 3}, "`num_return_sequences` (3) has to be smaller or equal"),
        ({"early_stopping": "sometimes"}, "`early_stopping` must be a boolean or 'never'"),
        ({"num_beams": 0}, "num_beams must be a whole number of at least 1, got 0"),
        ({"num_beams": "4"}, "num_beams must be a whole number of at least 1, got '4'"),
        ({"num_beams": 2.0}, "num_beams must be a whole number of at least 1, got 2.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_generate_does_not_take_is_named_before_a_pass(settings, sentence, scorer, monkeypatch):
    monkeypatch.setattr(type(scorer.model), "run", lambda *arguments: pytest.fail("a pass began"))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        generate(scorer, PROMPT, seed=3, max_new_tokens=4, **settings)


def test_every_field_of_generation_config_is_taken_or_refused():
    fields = {name for name in GenerationConfig().to_dict() if not name.startswith("_")}
    assert fields <= TAKEN | REFUSED.keys()


def pass_channels(config, tokens=4):
    """Radio latencies of one token at equal shares, (passes, I, U), that the passes of a text meet."""
    seen = []

    class Looking:
        def predict(self, observation, **keywords):
            seen.append(observation["unit_latency"][0])
            return self.codec.encode(observation["routed"] > 0.5, np.full((1, 8), 1 / 8)), None

    def make(env):
        policy = Looking()
        policy.codec = env.codec
        return policy

    generate(Scorer(make, config), PROMPT, seed=3, max_new_tokens=tokens)
    return np.array(seen).reshape(tokens, -1, 8)


def test_time_goes_on_from_pass_to_pass(model):
    passes = pass_channels(CONFIG)
    assert passes.shape == (4, model.num_blocks, 8)
    for one, other in pairwise(passes):
        assert (one != other).all()
    np.testing.assert_array_equal(pass_channels(CONFIG), passes)
    np.testing.assert_array_equal(pass_channels(CONFIG, tokens=2), passes[:2])


def test_the_first_pass_meets_the_episode_of_the_same_seed():
    env = gym.make("wdmoe_env:WDMoE-v0", config=CONFIG)
    observation, _ = env.reset(seed=3)
    np.testing.assert_allclose(pass_channels(CONFIG)[0, 0], observation["unit_latency"], rtol=1e-6)


def test_without_fading_and_movement_all_passes_are_alike():
    passes = pass_channels(replace(CONFIG, channel={"fading": "none"}))
    assert (passes == passes[0, 0]).all()


def test_a_recording_of_one_pass_is_met_again_in_every_pass(model, tmp_path):
    gain = np.geomspace(1e-9, 1e-10, model.num_blocks * 8).reshape(model.num_blocks, 1, 8)
    write_recording(tmp_path / "gains.npz", Gains.of(gain))
    passes = pass_channels(replace(CONFIG, channel=f"trace:{tmp_path / 'gains.npz'}"))
    assert (passes == passes[0]).all()
    assert (passes[0, 0] != passes[0, 1]).all()


def test_a_channel_that_is_spent_begins_again(model, monkeypatch):
    monkeypatch.setattr(channel, "MOST_BLOCKS", 2 * model.num_blocks + 1)
    passes = pass_channels(CONFIG)
    assert (passes[0] != passes[1]).all()
    np.testing.assert_array_equal(passes[2:], passes[:2])


class Counting:
    """Counts the blocks that it has decided on, as its state, and notes where episodes begin."""

    def __init__(self, codec, starts):
        self.codec, self.starts = codec, starts

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        self.starts.append((0 if state is None else state[0], bool(episode_start[0])))
        shares = np.full(observation["placement"].shape[::2], 1.0)
        return self.codec.encode(observation["routed"], shares), (len(self.starts),)


def test_a_policy_keeps_its_state_from_pass_to_pass():
    starts = []
    scorer = Scorer(lambda env: Counting(env.codec, starts), CONFIG)
    tokens, _ = generate(scorer, PROMPT, 0, 4)
    assert len(starts) == 4 * scorer.player(scorer.padded(1)).process.simulator.sizes.num_blocks
    assert starts == [(number, number == 0) for number in range(len(starts))]
    assert len(tokens) == 4

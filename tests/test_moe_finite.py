"""Models that hand out NaN or infinity: one sentence where the numbers leave the model, and nothing is written."""

from __future__ import annotations

import json
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from model_folders import copy_of, edit_weights, fill, save_micro, scale

import eval.__main__
import train.__main__
from eval.folder import json_text
from wdmoe_env.config import EnvConfig
from wdmoe_env.episodes import checked_nll
from wdmoe_env.generation import generate
from wdmoe_env.moe.finite import check_finite
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.relaxed import Draw, relaxed_episodes
from wdmoe_env.scoring import Scorer
from wdmoe_env.simulator import Simulator
from wdmoe_env.text.continuations import Continuation

NAN, INF = float("nan"), float("inf")
SCORES = "scores of the text( under its own routing)?"
GATES = "gate probabilities in block {} of 3"
EXPERT = "model.layers.{}.block_sparse_moe.experts.{}.w2"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "healthy"
    path.mkdir()
    save_micro(path)
    return path


@pytest.fixture
def folder(healthy, tmp_path):
    return copy_of(healthy, tmp_path / "spoilt")


def make(folder, **keywords):
    return gym.make("wdmoe_env:WDMoE-v0", model=str(folder), num_tokens=16, disable_env_checker=True, **keywords)


def own_episode(env, **options):
    """The info of the last block under the model's own routing."""
    observation, _ = env.reset(seed=0, options=options)
    done = False
    while not done:
        action = env.unwrapped.encode_action(observation["routed"] > 0.5, np.full(8, 1 / 8))
        observation, _, done, _, info = env.step(action)
    return info


@pytest.mark.parametrize(
    ("change", "where", "weight"),
    [
        (fill("layers.1.block_sparse_moe.gate", NAN), GATES.format(2), "model.layers.1.mlp.gate.weight"),
        (fill("layers.2.block_sparse_moe.gate", INF), GATES.format(3), "model.layers.2.mlp.gate.weight"),
        (fill("layers.2.block_sparse_moe.gate", NAN, 3), GATES.format(3), "model.layers.2.mlp.gate.weight"),
        (fill("layers.1.self_attn.o_proj", NAN), GATES.format(2), "model.layers.1.self_attn.o_proj.weight"),
        (fill("layers.0.block_sparse_moe.experts", NAN), GATES.format(2), "model.layers.0.mlp.experts.gate_up_proj"),
        (fill("layers.2.block_sparse_moe.experts", NAN), SCORES, "model.layers.2.mlp.experts.gate_up_proj"),
        (fill("layers.2.block_sparse_moe.experts", -INF, 0), SCORES, "model.layers.2.mlp.experts.gate_up_proj"),
        (fill("lm_head", NAN), SCORES, "lm_head.weight"),
        (fill("lm_head", INF, 5), SCORES, "lm_head.weight"),
        (fill("lm_head", NAN, 5), SCORES, "lm_head.weight"),
        (fill("model.norm", NAN, 0), SCORES, "model.norm.weight"),
    ],
)
def test_numbers_that_are_not_finite_are_one_sentence_and_end_the_episode(folder, change, where, weight):
    edit_weights(folder, change)
    env = make(folder)
    with pytest.raises(FloatingPointError, match=rf"^the model {folder} hands out {where} that are not .*") as caught:
        own_episode(env)
    assert str(caught.value).endswith(f"; its weight {weight} is not finite")
    assert "\n" not in str(caught.value)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())


@pytest.mark.parametrize("hidden", [False, True])
def test_experts_that_tokens_use(folder, hidden):
    edit_weights(folder, fill(EXPERT.format(0, 3), NAN))
    batch = gym.make_vec(
        "wdmoe_env:WDMoE-v0", num_envs=3, model=str(folder), num_tokens=16, observe_hidden_states=hidden
    )
    batch.reset(seed=0)
    with pytest.raises(FloatingPointError, match=r"gate probabilities in block 2 of 3 .*layers\.0\.mlp\.experts\.down"):
        batch.step(np.full(batch.action_space.shape, 1.0, np.float32))


def test_an_expert_that_no_token_uses_is_not_seen(healthy, folder):
    clean = make(healthy)
    window = {}
    for number in range(len(clean.unwrapped.simulator.source.windows)):
        observation, _ = clean.reset(seed=0, options={"window": number})
        idle = np.flatnonzero(observation["routed"].sum(axis=0) == 0)
        if idle.size:
            window = {"window": number}
            break
    assert window, "a window with an idle expert in the first block"
    edit_weights(folder, fill(EXPERT.format(0, idle[0]), NAN))
    env = make(folder)
    found = own_episode(env, **window)
    assert found["nll"] == found["reference_nll"] == own_episode(clean, **window)["nll"]


def test_numbers_at_padding_are_of_no_matter():
    model = SimpleNamespace(model=load_model("micro").model)
    mask = np.array([[True, True, False], [True, False, False]])
    nll = np.array([[1.0, 2.0, NAN], [3.0, INF, -INF]])
    np.testing.assert_array_equal(checked_nll(model, nll, mask), [[1, 2, 0], [3, 0, 0]])
    with pytest.raises(FloatingPointError, match="the model MixtralForCausalLM hands out scores of the text that are"):
        checked_nll(model, nll, ~mask)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_number_is_enough(value, dtype):
    model, values = load_model("micro").model, np.full((4, 5), np.finfo(dtype).max, dtype)
    check_finite(model, "figures", values)
    values[3, 2] = value
    with pytest.raises(FloatingPointError, match=r"hands out figures that are not finite$"):
        check_finite(model, "figures", values)


@pytest.mark.parametrize(
    ("change", "where", "weight"),
    [
        (scale("lm_head", 1e6), SCORES, "; its weight lm_head.weight is not finite"),
        (scale("layers.0.block_sparse_moe.experts", 300.0), GATES.format(2), ""),
    ],
)
def test_what_overflows_half_precision_is_told_of_bfloat16(folder, change, where, weight):
    edit_weights(folder, change)
    told = rf'{where} that are not finite{weight}; float16 ends at 65504, and dtype="bfloat16" has the range of float32'
    with pytest.raises(FloatingPointError, match=told):
        own_episode(make(folder, dtype="float16"))
    for dtype in ("bfloat16", "float32"):
        assert np.isfinite(own_episode(make(folder, dtype=dtype))["nll"])


def test_nan_in_the_file_is_not_laid_to_half_precision(folder):
    edit_weights(folder, fill("lm_head", NAN, 5))
    with pytest.raises(FloatingPointError, match=r"its weight lm_head\.weight is not finite$"):
        own_episode(make(folder, dtype="float16"))


@pytest.mark.parametrize("part", ["embed_tokens", "0.input_layernorm"])
def test_a_model_without_any_finite_gate_is_refused_when_made(folder, part):
    edit_weights(folder, fill(part, NAN))
    with pytest.raises(ValueError, match=r"expected finite gate weights .*, got none; its weight model\."):
        make(folder)


def test_a_block_without_any_finite_gate_is_named_at_the_first_reset(folder):
    """Loading does not run the experts, so that a gate spoils its own block alone there."""
    edit_weights(folder, fill("0.block_sparse_moe.gate", NAN))
    env = make(folder)
    with pytest.raises(FloatingPointError, match=r"gate probabilities in block 1 of 3 .*its weight model\.layers\.0"):
        env.reset(seed=0)


def test_every_way_to_texts_from_outside(folder):
    edit_weights(folder, fill("lm_head", NAN, 5))
    scorer = Scorer(None, EnvConfig(model=str(folder), num_tokens=32))
    with pytest.raises(FloatingPointError, match="scores of the text that are not finite"):
        list(scorer.batches([Continuation([1, 2], [3])], [0]))
    with pytest.raises(FloatingPointError, match="scores of the next token that are not finite"):
        generate(scorer, [1, 2], seed=0, max_new_tokens=3)


def test_the_gradient_of_an_episode(folder):
    edit_weights(folder, fill("lm_head", NAN, 5))
    simulator = Simulator(EnvConfig(model=str(folder), num_tokens=8))

    def actor(observation):
        routed = observation["routed"] > 0.5
        return Draw(routed, routed.float(), routed)

    with pytest.raises(FloatingPointError, match="scores of the text that are not finite"):
        relaxed_episodes(simulator, [np.random.default_rng(0)], actor)


@pytest.mark.parametrize("change", [fill("lm_head", NAN, 5), fill("layers.1.block_sparse_moe.gate", NAN)])
def test_the_commands_write_nothing_and_exit_with_two(folder, tmp_path, capsys, change):
    edit_weights(folder, change)
    out, model = tmp_path / "out", ["--model", str(folder)]
    few = ["--episodes", "2", "--num-tokens", "8", "--policies", "top1"]
    assert eval.__main__.main([*model, *few, "--out", str(out)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"python -m eval: the model {folder} hands out ")
    assert not out.exists()
    few = ["--num-tokens", "8", "--timesteps", "8", "--no-progress"]
    assert train.__main__.main([*model, *few, "--out", str(out)]) == 2
    assert f"python -m train: the model {folder} hands out " in capsys.readouterr().err
    assert not list(out.glob("policy*"))


@pytest.mark.parametrize("value", [NAN, INF, np.float64("nan")])
def test_json_never_holds_nan(value):
    assert json.loads(json_text({"policies": [{"nll": [1.0, 2.0]}]})) == {"policies": [{"nll": [1.0, 2.0]}]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text({"policies": [{"nll": [1.0, value]}]})

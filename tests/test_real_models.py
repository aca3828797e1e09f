"""Models of real size: what a device must hold, loading that much and no more, and how a large model is placed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from moe_models import CONFIGS, random_model, random_tokens
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, Qwen3VLMoeConfig

from wdmoe_env.moe.blank import blank_model
from wdmoe_env.moe.memory import main, memory_of
from wdmoe_env.moe.partial import load_device_experts
from wdmoe_env.moe.published import PUBLISHED
from wdmoe_env.moe.runner import run_expert
from wdmoe_env.moe.zoo import load_model

ROOT = Path(__file__).parents[1]
SHARDED = ("mixtral", "olmoe", "qwen3_moe", "gpt_oss")
"""Three with a tensor for each expert, by two conventions, and one with fused tensors and biases."""


@pytest.fixture(scope="module", params=SHARDED)
def sharded(request, tmp_path_factory):
    """A folder with many small files, and the model that was saved there."""
    folder = tmp_path_factory.mktemp(request.param)
    model = random_model(request.param)
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 4
    return folder, model


def experts_of(model):
    return [module for module in model.modules() if hasattr(module, "is_concatenated")]


def spread(model, devices):
    count = experts_of(model)[0].num_experts
    return [expert * devices // count for expert in range(count)]


def test_the_experts_of_a_device_are_rows_of_the_whole_models(sharded):
    folder, model = sharded
    placement = spread(model, 4)
    held = load_device_experts(folder, placement, [1, 3])
    own = [expert for expert, device in enumerate(placement) if device in (1, 3)]
    assert held.experts == (tuple(own),) * len(experts_of(model))
    for loaded, whole in zip(held.parameters, experts_of(model), strict=True):
        assert set(loaded) == {name for name, _ in whole.named_parameters()}
        for name, values in loaded.items():
            assert torch.equal(values, getattr(whole, name)[own])
            assert values.untyped_storage().nbytes() == values.nbytes, "no view of a larger tensor"


def test_only_their_bytes_are_read(sharded):
    folder, model = sharded
    placement = spread(model, 4)
    whole = sum(parameter.nbytes for module in experts_of(model) for parameter in module.parameters())
    parts = [load_device_experts(folder, placement, [device]).bytes_read for device in range(4)]
    assert parts == [whole * placement.count(device) // len(placement) for device in range(4)]
    assert load_device_experts(folder, placement, [9]).bytes_read == 0


def test_no_other_tensor_is_touched(sharded, monkeypatch):
    folder, model = sharded
    asked = []

    class Watched:
        def __init__(self, *args, **keywords):
            self.file = safe_open(*args, **keywords)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.__exit__(*error)

        def get_tensor(self, name):
            asked.append((name, self.file.get_slice(name).get_shape()))
            return self.file.get_tensor(name)

        def get_slice(self, name):
            asked.append((name, self.file.get_slice(name).get_shape()))
            return self.file.get_slice(name)

    monkeypatch.setattr("wdmoe_env.moe.partial.safe_open", Watched)
    load_device_experts(folder, spread(model, 4), [0])
    assert asked
    assert all(".experts." in name for name, _ in asked)
    fused = {name for name, shape in asked if shape[0] == experts_of(model)[0].num_experts and len(shape) > 1}
    assert all(name.endswith(("proj", "bias")) for name in fused), "a fused tensor is sliced, others are of one expert"


def test_a_placement_may_differ_from_block_to_block(sharded):
    folder, model = sharded
    blocks, count = len(experts_of(model)), experts_of(model)[0].num_experts
    placement = [[(block + expert) % 2 for expert in range(count)] for block in range(blocks)]
    held = load_device_experts(folder, placement, [0])
    assert held.experts == tuple(tuple(range(block % 2, count, 2)) for block in range(blocks))
    for own, loaded, whole in zip(held.experts, held.parameters, experts_of(model), strict=True):
        assert torch.equal(loaded["down_proj"], whole.down_proj[list(own)])


def test_an_experts_module_of_a_device_computes_what_the_whole_one_does(sharded):
    folder, model = sharded
    held = load_device_experts(folder, spread(model, 4), [2])
    inputs = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    for block, whole in enumerate(experts_of(model)):
        module = held.module(block)
        for at, expert in enumerate(held.experts[block]):
            torch.testing.assert_close(
                run_expert(module, at, inputs), run_expert(whole, expert, inputs), rtol=0, atol=1e-6
            )


def test_another_type_and_a_single_file(tmp_path):
    model = random_model("mixtral")
    model.save_pretrained(tmp_path)
    held = load_device_experts(tmp_path, [0, 1, 2, 3], [1], dtype=torch.bfloat16)
    whole = experts_of(model)[0].gate_up_proj[1:2]
    assert torch.equal(held.parameters[0]["gate_up_proj"], whole.bfloat16())
    assert held.bytes_read == 3 * 3 * 32 * 48 * 4


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    model = random_model("mixtral")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    with pytest.raises(ValueError, match=r"placement must have shape \(4,\) or \(3, 4\), got \(2,\)"):
        load_device_experts(tmp_path, [0, 1], [0])
    with pytest.raises(ValueError, match=r"expected a transformers model in .*nowhere"):
        load_device_experts(tmp_path / "nowhere", [0], [0])
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    renamed = {name.replace("experts.2.w1", "experts.2.first"): file for name, file in content["weight_map"].items()}
    index.write_text(json.dumps(content | {"weight_map": renamed}))
    with pytest.raises(ValueError, match=r"expected .*experts\.gate_up_proj in .*, or its parts for each expert"):
        load_device_experts(tmp_path, [0, 0, 1, 1], [1])
    for odd in ([], {"weight_map": []}, {"weight_map": {"lm_head.weight": 3}}):
        index.write_text(json.dumps(odd))
        with pytest.raises(ValueError, match=r"expected a (weight_map from tensors|JSON object) .*index.json, got"):
            load_device_experts(tmp_path, [0, 0, 1, 1], [1])
    gone = {name: file for name, file in content["weight_map"].items() if "layers.1.block_sparse_moe" not in name}
    index.write_text(json.dumps(content | {"weight_map": gone}))
    with pytest.raises(ValueError, match=r"expected the experts of model\.layers\.1\.mlp\.experts .*none of that"):
        load_device_experts(tmp_path, [0, 0, 1, 1], [1])
    index.write_text(json.dumps(content))
    shard = tmp_path / content["weight_map"]["model.layers.2.block_sparse_moe.experts.3.w2.weight"]
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_device_experts(tmp_path, [0, 0, 1, 1], [1])
    index.unlink()
    with pytest.raises(ValueError, match=r"expected model\.safetensors or its index in"):
        load_device_experts(tmp_path, [0, 0, 1, 1], [1])


def by_hand(config):
    """Parameters of one expert and of all that is not an expert, by the formulas of the three architectures."""
    width, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    inner = config.get("moe_intermediate_size", config["intermediate_size"])
    experts = config.get("num_experts", config.get("num_local_experts"))
    head = config.get("head_dim", width // heads)
    queries, keys = heads * head, config["num_key_value_heads"] * head
    attention = 2 * width * queries + 2 * width * keys
    norms = {"mixtral": 0, "olmoe": queries + keys, "qwen3_moe": 2 * head}[config["model_type"]] + 2 * width
    rest = layers * (attention + norms + experts * width) + width + 2 * config["vocab_size"] * width
    return 3 * width * inner, rest, layers * experts


@pytest.mark.parametrize(
    ("name", "billions"), [("mixtral-8x7b", 46.70), ("olmoe-1b-7b", 6.92), ("qwen3-30b-a3b", 30.53)]
)
def test_memory_of_published_models_agrees_with_a_formula_and_with_their_sizes(name, billions):
    memory = memory_of(name)
    expert, rest, count = by_hand(PUBLISHED[name])
    assert memory.expert == 2 * expert
    assert memory.base_station == 2 * rest
    assert memory.devices == (2 * expert * count // 8,) * 8
    assert memory.num_parameters == expert * count + rest == pytest.approx(billions * 1e9, abs=5e6)


def test_memory_follows_placement_and_type():
    even, uneven = memory_of("mixtral-8x7b"), memory_of("mixtral-8x7b", [0, 0, 0, 1, 1, 2, 3, 3], devices=5)
    assert uneven.devices == tuple(32 * even.expert * count for count in (3, 2, 1, 2, 0))
    rows = [[0, 0, 1, 1, 2, 2, 3, 3], *[[3] * 8] * 31]
    assert memory_of("mixtral-8x7b", rows, 4).devices == tuple(even.expert * count for count in (2, 2, 2, 250))
    assert memory_of("mixtral-8x7b", dtype="float32").base_station == 2 * even.base_station
    with pytest.raises(ValueError, match="placement must name devices 0 to 4, got 0 to 5"):
        memory_of("mixtral-8x7b", [0, 1, 2, 3, 4, 5, 0, 0], devices=5)
    with pytest.raises(ValueError, match=r"unknown model .mixtral.; the nearest known are mixtral-8x7b"):
        memory_of("mixtral")


def test_memory_of_a_folder_is_that_of_its_tensors(tmp_path):
    random_model("deepseek_v3").save_pretrained(tmp_path)
    memory = memory_of(str(tmp_path), devices=2, dtype="float32")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if "correction_bias" not in name}  # noqa: SIM118
    experts = sum(tensor.nbytes for name, tensor in tensors.items() if ".experts." in name)
    assert sum(memory.devices) == experts
    assert memory.base_station == sum(tensor.nbytes for tensor in tensors.values()) - experts
    assert (memory.num_blocks, memory.num_experts) == (2, 8)


def test_the_command_prints_the_table_of_the_page(capsys):
    assert main(list(PUBLISHED)) == 0
    assert capsys.readouterr().out.strip() in (ROOT / "docs" / "real-models.md").read_text()


def test_a_blank_model_takes_no_memory_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    blank = blank_model(CONFIGS["qwen3_moe"]())
    assert all(parameter.is_meta for parameter in blank.model.parameters())
    assert blank.experts == ("model.layers.1.mlp.experts", "model.layers.2.mlp.experts")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_multimodal_checkpoint_is_split_on_text(tmp_path):
    small = {"hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "depth": 1, "out_hidden_size": 32}
    text = CONFIGS["qwen3_moe"]().to_dict()
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    keep = {name: value for name, value in text.items() if name not in ("model_type", "architectures", "layer_types")}
    config = Qwen3VLMoeConfig(
        text_config=keep | {"rope_parameters": rope}, vision_config=small | {"deepstack_visual_indexes": [0]}
    )
    torch.manual_seed(0)
    untouched = AutoModelForImageTextToText.from_config(config, experts_implementation="eager").eval()
    untouched.save_pretrained(tmp_path)
    split = load_model(str(tmp_path))
    ids = random_tokens(untouched.model.language_model, 2, 8)
    with torch.no_grad():
        expected = untouched(input_ids=ids).logits
    torch.testing.assert_close(split.own_logits(ids), expected, rtol=0, atol=1e-5)
    assert split.num_blocks == 2


def test_device_map_places_a_sharded_model(tmp_path):
    pytest.importorskip("accelerate", reason="pip install 'wdmoe-env[accelerate]'")
    untouched = random_model("olmoe")
    untouched.save_pretrained(tmp_path, max_shard_size="20KB")
    ids = random_tokens(untouched, 2, 8)
    with torch.no_grad():
        expected = untouched(ids).logits
    for device_map in ("auto", {"": "cpu"}):
        split = load_model(str(tmp_path), device_map=device_map)
        torch.testing.assert_close(split.own_logits(ids), expected, rtol=0, atol=1e-5)
        assert load_model(str(tmp_path), device_map=device_map) is split


def test_device_map_takes_the_place_of_device():
    with pytest.raises(ValueError, match="device_map takes the place of device, for a model of files, got 'meta'"):
        load_model("tiny", device="meta", device_map="auto")
    with pytest.raises(ValueError, match="for a model of files, got 'cpu' for 'micro'"):
        load_model("micro", device_map="auto")


def test_device_map_without_accelerate_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"pip install 'wdmoe-env\[accelerate\]'"):
        load_model("tiny", device_map="auto")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_environment_in_half_precision(dtype):
    env = gym.make("wdmoe_env:WDMoE-v0", model="micro", num_tokens=8, dtype=dtype)
    whole = gym.make("wdmoe_env:WDMoE-v0", model="micro", num_tokens=8)
    assert env.unwrapped.config.dtype == dtype
    observation, _ = env.reset(seed=0)
    other, _ = whole.reset(seed=0)
    np.testing.assert_allclose(observation["gate_probs"], other["gate_probs"], atol=0.02)
    assert observation["gate_probs"].dtype == np.float32
    done = False
    while not done:
        _, reward, done, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
        assert np.isfinite(reward)
    assert np.isfinite(info["nll"])


def test_a_type_that_is_none():
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int4'"):
        gym.make("wdmoe_env:WDMoE-v0", model="micro", dtype="int4")

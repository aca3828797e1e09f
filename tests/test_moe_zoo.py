"""Names of models, the cache, and what is said of folders that are not one."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from moe_models import random_model, random_tokens
from transformers import AutoModelForCausalLM, LlamaConfig

from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.zoo import KNOWN_MODELS, Tokenizer, load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    random_model("olmoe").save_pretrained(path)
    return path


@pytest.fixture
def damaged(folder, tmp_path):
    path = tmp_path / "damaged"
    shutil.copytree(folder, path)
    return path


def rewrite_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_known_models_split_and_speak_the_same_tokens(name):
    model = load_model(name)
    ids = torch.tensor([model.tokenizer.encode("The people of the United States, in order to form")])
    assert ids.shape[1] < 30
    assert ids.max() < model.vocabulary_size
    assert ids.shape[1] <= model.context_length
    forward = model.forward(ids)
    while forward.block is not None:
        forward.resume(forward.block.routed)
    assert torch.equal(forward.result.logits, model.own_logits(ids))
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert model.dtype == torch.float32


def test_micro_is_small_and_its_gates_are_neither_uniform_nor_certain():
    micro = load_model("micro")
    assert (micro.num_blocks, micro.num_experts, micro.top_k) == (3, 8, 2)
    assert (micro.hidden_size, micro.intermediate_size) == (32, 48)
    top = micro.forward(random_tokens(micro.model, 4, 32)).block.gate_probs.amax(dim=1).mean()
    assert 0.3 < top < 0.8


def test_micro_is_the_same_in_every_process():
    code = (
        "from wdmoe_env.moe.zoo import load_model; import torch; torch.manual_seed({}); "
        "print(load_model('micro').own_logits(torch.arange(8)[None]).double().sum().item())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code.format(seed)], capture_output=True, text=True) for seed in (1, 2)
    ]
    here = load_model("micro").own_logits(torch.arange(8)[None]).double().sum().item()
    assert [float(run.stdout) for run in runs] == pytest.approx([here, here], abs=1e-3)


def test_loading_leaves_the_global_generator_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model.__globals__["_load"].cache_clear()
    load_model("micro")
    load_model(str(folder))
    assert torch.equal(torch.rand(3), expected)


def test_one_copy_per_process(folder, monkeypatch):
    model = load_model(str(folder))
    monkeypatch.chdir(folder.parent)
    assert load_model(f"./{folder.name}") is model
    assert load_model(str(folder), dtype="bfloat16") is not model
    assert load_model(str(folder), dtype="bfloat16").dtype == torch.bfloat16
    assert copy.deepcopy(model) is model
    assert pickle.loads(pickle.dumps(model)) is model
    assert pickle.loads(pickle.dumps(load_model("micro"))) is load_model("micro")


def test_a_folder_gives_the_untouched_models_logits(folder, capfd):
    model = load_model(str(folder))
    untouched = random_model("olmoe")
    ids = random_tokens(untouched, 2, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.own_logits(ids), untouched(ids).logits, rtol=0, atol=1e-5)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("micr", "unknown model 'micr'; the nearest known are micro, tiny"),
        ("tny", "unknown model 'tny'; the nearest known are tiny"),
        ("mixtral-8x7b", "unknown model 'mixtral-8x7b'; the nearest known are"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(name, message):
    with pytest.raises(ValueError, match=message):
        load_model(name)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere/at/all", "tests/nowhere", "conftest/a/b"])
def test_a_missing_folder(name, request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)
    with pytest.raises(FileNotFoundError, match=f"found no folder '{name}'"):
        load_model(name)


@pytest.mark.parametrize("content", ["{}", "not json", None])
def test_a_folder_without_a_tokenizer_that_can_be_read(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=f"expected a tokenizer in {tmp_path}, which cannot be loaded") as caught:
        Tokenizer(str(tmp_path)).encode("text")
    assert "\n" not in str(caught.value)


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(FileNotFoundError, match="found no folder"):
        load_model(str(folder / "config.json"))


def test_a_hub_id_that_cannot_be_fetched_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="expected a transformers model in nobody/no-such-model") as caught:
        load_model("nobody/no-such-model")
    assert "\n" not in str(caught.value)


def test_truncated_weights(damaged):
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"weights of the model .*damaged are truncated or damaged"):
        load_model(str(damaged))


def test_missing_weights_are_not_filled_with_random_ones(damaged):
    rewrite_config(damaged, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"lacks \d+ of its weights, such as model\.layers\.2"):
        load_model(str(damaged))


def test_weights_in_pickle_are_not_read(damaged):
    (damaged / "model.safetensors").unlink()
    torch.save({}, damaged / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"expected a transformers model in .*damaged"):
        load_model(str(damaged))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"model_type": "nothing"}', '{"model_type": "mixtral", "hidden_size": "wide"}']
)
def test_a_folder_that_is_not_a_model(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=f"expected a transformers model in {tmp_path}") as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=f"expected a transformers model in {tmp_path}"):
        load_model(str(tmp_path))


def test_a_model_without_experts(tmp_path):
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"cannot split the model .*: expected a model with MoE blocks .*LlamaFor"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"device": "gpu"}, "expected a device that torch can use here, got 'gpu'"),
        ({"device": "cuda:99"}, "expected a device that torch can use here, got 'cuda:99'"),
    ],
)
def test_other_bad_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        load_model("micro", **keywords)


def test_blocks_of_unequal_size_are_refused():
    model = random_model()
    model.model.layers[1].mlp.experts.num_experts = 3
    with pytest.raises(ValueError, match=r"as many experts in every block, got blocks of \[3, 4\] experts"):
        SplitModel(model)


def test_a_block_without_a_known_router_is_refused():
    model = random_model()
    block = model.model.layers[0].mlp
    block.chooser = block.gate
    del block.gate
    with pytest.raises(ValueError, match=r"a router named gate or router beside model\.layers\.0\.mlp\.experts"):
        SplitModel(model)

"""Names of models, the cache, and what is said of folders that are not one."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import socket
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from model_folders import add_token, copy_of, edit_json, edit_weights, save_micro
from moe_models import random_model, random_tokens
from transformers import AutoModelForCausalLM, LlamaConfig

import eval.__main__
from wdmoe_env.config import EnvConfig
from wdmoe_env.episodes import check_tokens
from wdmoe_env.generation import generate
from wdmoe_env.moe.blank import read_config
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.zoo import KNOWN_MODELS, Tokenizer, load_model
from wdmoe_env.scoring import Scorer
from wdmoe_env.text.continuations import Continuation


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with all that an environment needs."""
    path = tmp_path_factory.mktemp("whole")
    save_micro(path)
    return path


@pytest.fixture
def spoilt(whole, tmp_path):
    return copy_of(whole, tmp_path / "spoilt")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def rewrite_config(path, **changes):
    edit_json(path / "config.json", **changes)


def one_sentence(error):
    return "\n" not in str(error.value) and len(str(error.value)) < 600


def environment(folder):
    return gym.make("wdmoe_env:WDMoE-v0", model=str(folder), num_tokens=8)


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
    run = subprocess.run([sys.executable, "-c", code.format(1)], capture_output=True, text=True)
    here = load_model("micro").own_logits(torch.arange(8)[None]).double().sum().item()
    assert float(run.stdout) == pytest.approx(here, abs=1e-3)


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
        ("micr", "unknown model 'micr'; the nearest known are micro; a folder of your own works too"),
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


def test_a_misspelt_name_is_refused_without_asking_anybody(no_network):
    with pytest.raises(ValueError, match=r"unknown model .mixtrall.; the nearest known are mixtral-8x7b; a folder"):
        read_config("mixtrall")
    with pytest.raises(ValueError, match=r"unknown model .mixtrall.; the nearest known are tiny, micro; a folder"):
        environment("mixtrall")


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    asked = []

    def unreachable(*args, **keywords):
        asked.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(socket.socket, "connect", unreachable)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waited {seconds} s for another try"))
    with pytest.raises(ValueError, match="expected a transformers model in nobody/no-such-model") as caught:
        load_model("nobody/no-such-model")
    assert one_sentence(caught)
    assert len(asked) == 1


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


@pytest.mark.parametrize("number", [9, 0, -1, 10**6])
@pytest.mark.parametrize(("architecture", "experts"), [("mixtral", 4), ("deepseek_v3", 8)])
def test_experts_per_token_that_there_are_not(tmp_path, architecture, experts, number):
    random_model(architecture).save_pretrained(tmp_path)
    rewrite_config(tmp_path, num_experts_per_tok=number)
    with pytest.raises(ValueError, match=rf"cannot split the model {tmp_path}: .*") as caught:
        load_model(str(tmp_path))
    assert str(caught.value).endswith(f"(num_experts_per_tok is {number}, of {experts} experts)")
    assert one_sentence(caught)


def test_as_many_experts_per_token_as_there_are(spoilt):
    rewrite_config(spoilt, num_experts_per_tok=8)
    assert load_model(str(spoilt)).top_k == 8


def converted(part, dtype):
    """Tensors whose names hold a part, in another type."""
    return lambda tensors: {name: tensor.to(dtype) if part in name else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("part", "dtype", "named"),
    [
        ("experts", torch.int8, r"model\.layers\.0\.block_sparse_moe\.experts\.0\.w1\.weight is I8"),
        ("layers.2.block_sparse_moe.experts.7.w2", torch.int64, r"layers\.2\..*experts\.7\.w2\.weight is I64"),
        ("experts", torch.float8_e4m3fn, r"experts\.0\.w1\.weight is F8_E4M3"),
        ("lm_head", torch.bool, r"lm_head\.weight is BOOL"),
        ("q_proj", torch.complex64, r"model\.layers\.0\.self_attn\.q_proj\.weight is C64"),
        ("", torch.uint8, r"lm_head\.weight is U8"),
    ],
)
def test_weights_that_are_no_plain_numbers(spoilt, part, dtype, named):
    edit_weights(spoilt, converted(part, dtype))
    with pytest.raises(ValueError, match=f"expected weights in float32, bfloat16 or float16 in .*, but .*{named}$"):
        load_model(str(spoilt))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_type_that_are(spoilt, dtype):
    edit_weights(spoilt, converted("", dtype))
    assert load_model(str(spoilt)).dtype == torch.float32


def without(part):
    """All tensors but those whose names hold a part."""
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("experts.3.w1", r"lacks model\.layers\.0\.block_sparse_moe\.experts\.3\.w1\.weight"),
        ("layers.2.block_sparse_moe.experts.0.w2", r"lacks model\.layers\.2\..*\.experts\.0\.w2\.weight"),
        (
            "layers.1.block_sparse_moe.experts",
            r"lacks 2 of its weights, such as model\.layers\.1\.mlp\.experts\.",
        ),
        ("layers.1.block_sparse_moe.gate", r"lacks 1 of its weights, such as model\.layers\.1\.mlp\.gate\.weight"),
        ("lm_head", r"lacks 1 of its weights, such as lm_head\.weight"),
        ("layers.1.block_sparse_moe.experts.7", r"other shapes: expected model\.layers\.1\..*\(8, .*got \(7, "),
    ],
)
def test_weights_that_are_not_there(spoilt, part, sentence):
    edit_weights(spoilt, without(part))
    with pytest.raises(ValueError, match=f"the model {spoilt} .*{sentence}") as caught:
        load_model(str(spoilt))
    assert one_sentence(caught)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": 64}, r"lm_head\.weight of shape \(4096, 64\) by its config\.json, got \(4096, 32\)"),
        (
            {"intermediate_size": 24},
            r"model\.layers\.0\..*down_proj of shape \(8, 32, 24\) .*\(8, 32, 48\)",
        ),
        ({"num_local_experts": 4}, r"model\.layers\.0\.mlp\.experts\.down_proj of shape \(4, 32, 48\) .*\(8, 32, 48\)"),
        ({"vocab_size": 0}, r"lm_head\.weight of shape \(0, 32\) .*, got \(4096, 32\)"),
        ({"vocab_size": 5000}, r"lm_head\.weight of shape \(5000, 32\) .*, got \(4096, 32\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_weights_of_other_shapes(spoilt, changes, sentence, capfd):
    rewrite_config(spoilt, **changes)
    with pytest.raises(ValueError, match=f"the model {spoilt} has weights of other shapes: expected {sentence}"):
        load_model(str(spoilt))
    assert capfd.readouterr() == ("", "")


def test_experts_of_unequal_shapes(spoilt, capfd):
    def narrowed(tensors):
        return {name: tensor[:40].clone() if ".experts.3.w1" in name else tensor for name, tensor in tensors.items()}

    edit_weights(spoilt, narrowed)
    with pytest.raises(ValueError, match=r"its tensors cannot be put together to the weights that its config\.json"):
        load_model(str(spoilt))
    assert capfd.readouterr() == ("", "")


def test_tensors_that_no_one_reads_are_told_of(spoilt):
    edit_weights(spoilt, lambda tensors: {**tensors, "more.weight": torch.ones(3)})
    with pytest.warns(UserWarning, match=f"1 tensors of the model {spoilt} are not read, such as more.weight"):
        load_model(str(spoilt))


@pytest.fixture
def sharded(tmp_path):
    random_model("mixtral").save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path, json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]


def test_a_file_that_the_index_names_is_missing(sharded):
    folder, files = sharded
    (folder / files["lm_head.weight"]).unlink()
    with pytest.raises(ValueError, match=f"lacks its file {files['lm_head.weight']}, which model.safetensors.index"):
        load_model(str(folder))


def test_a_tensor_that_the_index_names_is_missing(sharded):
    folder, files = sharded
    other = next(file for file in files.values() if file != files["lm_head.weight"])
    edit_json(folder / "model.safetensors.index.json", weight_map=files | {"lm_head.weight": other})
    with pytest.raises(ValueError, match=rf"lacks lm_head\.weight, which .*index\.json seeks in {other}"):
        load_model(str(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "[" * 100_000, '{"weight_map": 3}'])
def test_an_index_that_is_none(sharded, content):
    (sharded[0] / "model.safetensors.index.json").write_text(content)
    with pytest.raises(
        ValueError,
        match=r"expected (JSON|a JSON object|a weight_map .*) in .*index\.json, got",
    ):
        load_model(str(sharded[0]))


@pytest.mark.parametrize("size", [0, 7, 100, 5000])
def test_a_file_of_weights_that_ends_early(spoilt, size):
    path = spoilt / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"the weights of the model {spoilt} are truncated or damaged"):
        load_model(str(spoilt))


def remove(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def empty_vocabulary(folder):
    path = folder / "tokenizer.json"
    model = json.loads(path.read_text())["model"]
    edit_json(path, model=model | {"vocab": {}, "merges": []}, added_tokens=[])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (remove("tokenizer.json", "tokenizer_config.json"), "expected a tokenizer in {}, which .*no tokenizer.json"),
        (remove("tokenizer.json"), "expected a tokenizer in {}, which cannot be loaded: there is no tokenizer.json"),
        (empty_vocabulary, "expected a tokenizer in {} that knows some tokens, got an empty vocabulary"),
        (remove("config.json"), "expected a transformers model in {}"),
    ],
)
def test_a_tokenizer_that_is_none_is_told_before_the_weights_are_read(
    spoilt, monkeypatch, no_network, change, sentence
):
    change(spoilt)
    monkeypatch.setattr("wdmoe_env.moe.zoo._pretrained", lambda *args: pytest.fail("the weights were read"))
    with pytest.raises(ValueError, match=sentence.format(spoilt)) as caught:
        environment(spoilt)
    assert one_sentence(caught)


def test_a_folder_without_weights_is_not_sought_elsewhere(spoilt, no_network):
    (spoilt / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"expected a transformers model in {spoilt}, .*no file named model.safetens"):
        environment(spoilt)


def test_a_token_without_an_embedding_is_found_when_the_environment_is_made(spoilt):
    add_token(spoilt, " the")
    sentence = (
        f"expected a tokenizer that fits the model {spoilt}, whose tokens are 0 to 4095, got token 4096 of a text"
    )
    with pytest.raises(ValueError, match=sentence):
        environment(spoilt)


def test_a_token_without_an_embedding_that_no_text_has_is_of_no_matter(whole, spoilt):
    add_token(spoilt, "<|pad|>")
    first, second = (environment(folder).reset(seed=0)[0] for folder in (whole, spoilt))
    np.testing.assert_array_equal(first["gate_probs"], second["gate_probs"])


def test_texts_from_outside_are_looked_at_before_the_first_pass():
    scorer = Scorer(None, EnvConfig(model="micro", num_tokens=32))
    asked = [Continuation([1, 2, 3], [4]), Continuation([1], [4096])]
    with pytest.raises(ValueError, match="whose tokens are 0 to 4095, got token 4096 of a text"):
        next(scorer.batches(asked, [0, 1], batch_size=1))
    with pytest.raises(ValueError, match="whose tokens are 0 to 4095, got token 4097 of a text"):
        generate(scorer, [1, 4097], seed=0, max_new_tokens=2)
    check_tokens(scorer.model, np.array([0, 4095]))


def test_what_is_no_folder_and_cannot_be_fetched_says_what_was_looked_for(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for make in (load_model, environment):
        with pytest.raises(
            ValueError, match=r"in nobody/none, .*no such folder here, and as a name on the Hugging"
        ) as e:
            make("nobody/none")
        assert one_sentence(e)


def test_a_model_of_the_hub_is_looked_at_like_a_folder(whole, tmp_path, monkeypatch, no_network):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, dtype in (("sound", torch.float16), ("whole", torch.int8)):
        cache, commit = tmp_path / f"models--somebody--{name}", "0" * 40
        (cache / "refs").mkdir(parents=True)
        (cache / "refs" / "main").write_text(commit)
        edit_weights(copy_of(whole, cache / "snapshots" / commit), converted("experts", dtype))
    assert load_model("somebody/sound").num_blocks == 3
    with pytest.raises(ValueError, match=r"expected weights in float32, .*, but .*experts\.0\.w1\.weight is I8"):
        load_model("somebody/whole")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: rewrite_config(folder, num_experts_per_tok=9),
        lambda folder: rewrite_config(folder, num_experts_per_tok=0),
        lambda folder: rewrite_config(folder, hidden_size=64),
        lambda folder: add_token(folder, " the"),
        lambda folder: edit_weights(folder, converted("experts", torch.int8)),
        lambda folder: edit_weights(folder, without("lm_head")),
        lambda folder: (folder / "config.json").write_text("no JSON"),
        empty_vocabulary,
        remove("tokenizer.json", "tokenizer_config.json"),
        remove("model.safetensors"),
        shutil.rmtree,
    ],
)
def test_the_command_says_so_in_one_line_and_exits_with_two(spoilt, tmp_path, capfd, change):
    change(spoilt)
    with pytest.raises(SystemExit) as caught:
        eval.__main__.main(["--model", str(spoilt), "--num-tokens", "8", "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    told = capfd.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert told.err.startswith("python -m eval: ")
    assert not (tmp_path / "out").exists()

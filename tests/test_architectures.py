"""Every MoE architecture of the installed transformers: split against untouched, or refused in one sentence."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import transformers
from architectures import (
    DECORATED,
    MEASURED,
    MODELS,
    TOLERANCE,
    Architecture,
    architectures,
    committed,
    examine,
    random_model,
    table,
)
from packaging.version import Version
from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear
from transformers.integrations.mxfp4 import Mxfp4GptOssExperts
from transformers.utils.quantization_config import FineGrainedFP8Config

from wdmoe_env.moe.split import SplitModel

ALL = architectures()
PATCHED = ["longcat_flash", "step3p7"]
REFUSED = ["dbrx", "doge", "jetmoe", "llama4", "nllb_moe", "switch_transformers", "vitpose_backbone"]
TALKER = "Qwen3OmniMoeTalkerTextExperts"
SERVED = [one for one in ALL if one.folder not in REFUSED and one.experts != TALKER]
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def named(folder):
    return next(one for one in ALL if one.folder == folder)


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity(level)


@pytest.mark.parametrize("architecture", SERVED, ids=str)
def test_split_against_untouched(architecture):
    finding = examine(architecture)
    assert not finding.refusal
    assert finding.num_blocks == 2
    assert finding.difference <= TOLERANCE, "own selection"
    assert finding.change > 0.05, "without the best expert of every token"
    assert finding.rule.startswith("none") == (architecture.folder == "phimoe")
    if finding.tokens is not None:
        untouched, split = finding.tokens
        assert split == untouched


@pytest.mark.parametrize("architecture", [one for one in ALL if one not in SERVED], ids=str)
def test_the_others_are_refused_in_one_sentence_that_says_why(architecture):
    wanted = "expected a model with MoE blocks served by transformers' experts registry"
    assert re.fullmatch(rf"{wanted}, got \w+: [^.\n]+", examine(architecture).refusal)


def test_every_decorated_class_is_among_them():
    sources = "\n".join(path.read_text() for path in MODELS.glob("*/modeling_*.py"))
    decorated = set(re.findall(r"^@use_experts_implementation(?:\([^)]*\))?\nclass (\w+)", sources, re.MULTILINE))
    assert decorated == {one.experts for one in ALL if one.decorated}
    assert len(decorated) >= 65
    assert sum(not examine(one).refusal for one in ALL) >= 66
    assert sorted({one.folder for one in ALL if not one.decorated}) == sorted(PATCHED + REFUSED)


def test_a_decorator_with_arguments_on_several_lines_is_found():
    assert DECORATED.findall("@use_experts_implementation(is_transposed=True, has_bias=True)\nclass OneExperts(x):")


@pytest.mark.parametrize("folder", PATCHED)
def test_a_patched_model_keeps_its_keys_and_copies(folder):
    untouched, model = random_model(named(folder)), random_model(named(folder))
    split = SplitModel(model)
    assert list(model.state_dict()) == list(untouched.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), untouched.parameters(), strict=True))
    copied = copy.deepcopy(model)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        expected = untouched(input_ids=ids)[0]
        torch.testing.assert_close(model(input_ids=ids)[0], expected, rtol=0, atol=TOLERANCE)
        for parameter in split.model.parameters():
            parameter.zero_()
        torch.testing.assert_close(copied(input_ids=ids)[0], expected, rtol=0, atol=TOLERANCE)


def test_identity_experts_are_no_part_of_a_selection():
    split = SplitModel(random_model(named("longcat_flash")))
    forward = split.forward(torch.arange(90)[None, :64])
    assert split.num_experts == forward.block.routed.shape[1] == 8
    assert split.top_k == 2
    assert set(forward.block.routed.sum(dim=1).tolist()) == {1, 2}


def test_a_token_that_skips_the_block_carries_no_weight():
    model = random_model(named("zaya"))
    split = SplitModel(model)
    ids = torch.arange(64)[None]
    gate, experts = model.model.layers[0].mlp.gate, split.experts[0]
    seen = {}
    gate.register_forward_hook(lambda module, args, output: seen.update(logits=output[0]))
    experts.register_forward_hook(lambda module, args, output: seen.update(weights=args[2], outputs=output))
    gate.balancing_biases.zero_()
    split.own_logits(ids)
    probs = seen["logits"].softmax(dim=1)
    gate.balancing_biases[-1] = (probs[:, :-1].amax(dim=1) - probs[:, -1]).median()  # so that about half skip
    split.own_logits(ids)
    skips = seen["weights"][:, 0] == 0
    assert 0 < skips.sum() < 64
    assert (seen["outputs"][skips] == 0).all()
    assert (seen["outputs"][~skips] != 0).any(dim=1).all()


def test_quantised_experts_are_refused():
    model = random_model(named("mixtral"))
    model = replace_with_fp8_linear(model, quantization_config=FineGrainedFP8Config(weight_block_size=(8, 8)))
    wanted = "expected experts in float32, bfloat16 or float16, got quantised ones: "
    with pytest.raises(ValueError, match=rf"{wanted}model\.layers\.0\.mlp\.experts is FP8\w+ of torch\.float8_e4m3fn"):
        SplitModel(model.to_empty(device="cpu"))


def test_a_quantised_module_in_place_of_the_experts_is_refused():
    model = random_model(named("gpt_oss"))
    for layer in model.model.layers:
        layer.mlp.experts = Mxfp4GptOssExperts(model.config)
    with pytest.raises(ValueError, match="got GptOssForCausalLM: its weights are quantised"):
        SplitModel(model)


def test_the_page_has_the_table_of_the_pinned_version():
    """Where it has not, ``python -m tests.architectures`` writes it anew."""
    pinned = re.search(r"^transformers==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)[1]
    assert committed().startswith(f"transformers {pinned}: ")
    if Version(transformers.__version__) != Version(pinned):
        pytest.skip(f"the table is of transformers {pinned}")
    assert _without_measured(committed()) == _without_measured(table())


def _without_measured(lines):
    rows = [line.split("|") for line in lines.splitlines()]
    return [[cell for at, cell in enumerate(row) if len(row) < 8 or at != MEASURED + 1] for row in rows]


def test_an_architecture_is_named_by_its_experts():
    assert str(Architecture("mixtral", "MixtralExperts", decorated=True)) == "MixtralExperts"

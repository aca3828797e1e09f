"""Scores of a text without all of its logits are the scores of its logits, whatever the model does to make them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lockstep_runs import run_to_the_end
from moe_models import CONFIGS, random_model, random_tokens
from torch.nn import functional
from transformers import MixtralForCausalLM

from wdmoe_env.moe import token_scores
from wdmoe_env.moe.lockstep import own_scores
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.token_scores import score_tokens

J = 8


@pytest.fixture
def small_parts(monkeypatch):
    """A few rows at once, in parts that do not come out even."""
    monkeypatch.setattr(token_scores, "LOGITS_AT_ONCE", 1)
    monkeypatch.setattr(token_scores, "ROWS_AT_ONCE", 5)


class SoftCap(MixtralForCausalLM):
    """Does something to its logits, as Gemma does."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 3.0 * torch.tanh(output.logits / 3.0)
        return output


def soft_cap():
    model = random_model("mixtral")
    model.__class__ = SoftCap
    return model


@pytest.mark.parametrize(("at_once", "rows"), [(2**19, 1), (150, 1), (1, 5), (1, 1)])
@pytest.mark.parametrize("with_layer", [True, False])
def test_scores_are_those_of_the_whole_at_any_size(at_once, rows, with_layer, monkeypatch):
    monkeypatch.setattr(token_scores, "LOGITS_AT_ONCE", at_once)
    monkeypatch.setattr(token_scores, "ROWS_AT_ONCE", rows)
    layer = torch.nn.Linear(16, 50).requires_grad_(False)
    hidden_states = torch.randn(3, J, 16, generator=torch.Generator().manual_seed(0))
    logits = layer(hidden_states)
    targets = logits.argmax(dim=-1)
    targets[:, ::2] = 7
    expected = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(3, J)
    scores = score_tokens(hidden_states, targets, layer) if with_layer else score_tokens(logits, targets)
    nll, correct, divergence = scores
    assert divergence is None
    np.testing.assert_allclose(nll, expected, atol=1e-6)
    np.testing.assert_array_equal(correct, logits.argmax(dim=-1) == targets)


@pytest.mark.parametrize("architecture", [*CONFIGS, "soft cap"])
@pytest.mark.filterwarnings("ignore:the gate weights follow no known score")
def test_scores_of_a_model_are_those_of_its_logits(architecture, small_parts):
    model = SplitModel(soft_cap() if architecture == "soft cap" else random_model(architecture))
    token_ids, targets = random_tokens(model.model, 3, J), random_tokens(model.model, 3, J, seed=2)
    mask = torch.ones(3, J, dtype=torch.bool)
    logits = model.own_logits(token_ids, mask)
    expected = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(3, J)
    for nll, correct, _ in (
        own_scores(model, token_ids, mask, targets),
        run_to_the_end(model, (token_ids, mask, targets)),
    ):
        np.testing.assert_allclose(nll, expected, atol=1e-5)
        np.testing.assert_array_equal(correct, logits.argmax(dim=-1) == targets)


def test_a_model_that_does_more_than_its_output_layer_hands_out_its_logits():
    assert SplitModel(random_model("mixtral")).output_layer is not None
    assert SplitModel(soft_cap()).output_layer is None


def test_a_model_without_a_layer_of_outputs_hands_out_its_logits():
    model = random_model("mixtral")
    probe = random_tokens(model, 1, J)
    assert token_scores.output_layer(model, probe) is model.lm_head
    assert token_scores.output_layer(model.model, probe) is None


def test_the_logits_never_exist_together(small_parts):
    model = SplitModel(random_model("mixtral"))
    seen = []
    model.model.lm_head.register_forward_hook(lambda layer, args, output: seen.append(output.shape[:-1].numel()))
    batch = random_tokens(model.model, 3, J)
    run_to_the_end(model, (batch, torch.ones(3, J, dtype=torch.bool), batch))
    assert (max(seen), sum(seen)) == (5, 3 * J)

"""Changed routings: what they select, and that the packed suite scores as windows of their own do."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from train.language_model.ablation import Bench, Outcome, first_and_wrong, first_expert, first_expert_in, wrong_runner
from train.language_model.held_out import HeldOut, RoutingRecord, cut, routed_by, token_losses
from train.language_model.packed_suite import item_scores
from train.language_model.specialisation import most_used, specialisations, without
from wdmoe_env.moe.hook import BlockInput, ExpertChooser
from wdmoe_env.moe.runner import run_expert
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.token_scores import score_tokens
from wdmoe_env.text.suite import Item, SuiteWindows, suite_windows, window_rows

VOCABULARY, CONTEXT = 128, 32


def make(experts: int = 4, runner: Callable[..., torch.Tensor] | None = None) -> SplitModel:
    """Random weights, sharp enough for experts and positions to matter."""
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=experts,
        num_experts_per_tok=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MixtralForCausalLM(config)
    return SplitModel(model) if runner is None else SplitModel(model, runner=runner)


@pytest.fixture(scope="module")
def suite() -> SuiteWindows:
    """Items whose contexts and choices differ in length; a token is a byte."""
    rng = np.random.default_rng(0)

    def word(size: int) -> str:
        return "".join(rng.choice(list("abcdefgh "), size))

    formats = ("cloze", "continuation")
    items = [
        Item(
            formats[k % 2],
            "code",
            word(int(rng.integers(1, 40))),
            tuple(word(n) for n in rng.permutation(range(2, 6))),
            k % 4,
        )
        for k in range(40)
    ]
    return suite_windows(items, lambda text: list(text.encode()), CONTEXT)


@pytest.fixture(scope="module")
def text() -> HeldOut:
    tokens = np.random.default_rng(1).integers(1, VOCABULARY, 400)
    return cut(tokens, [("a", "", 0, 150, 150), ("b", "", 150, 250, 250)], CONTEXT)


@pytest.mark.parametrize("policy", [None, first_expert, first_expert_in(1), without([(0, 1), (2, 3)], make())])
def test_packed_items_score_as_windows_of_their_own(suite: SuiteWindows, policy: ExpertChooser | None) -> None:
    model, items = make(), np.arange(3, 40)
    rows = window_rows(items)
    with routed_by(model, policy) as transformer:
        logits = transformer(input_ids=torch.from_numpy(suite.windows.token_ids[rows])).logits
    token_nll, *_ = score_tokens(logits, torch.from_numpy(suite.windows.targets[rows]))
    scores = item_scores(model, suite, items, policy, "")
    np.testing.assert_allclose(scores, suite.choice_scores(token_nll, items), rtol=1e-4)
    if policy is not None:
        assert np.abs(scores - item_scores(model, suite, items, None, "")).max() > 1e-2


def block_input(gate_probs: list[list[float]], index: int = 0) -> BlockInput:
    probs = torch.tensor(gate_probs)
    routed = torch.zeros_like(probs, dtype=torch.bool).scatter_(1, probs.topk(2).indices, True)
    return BlockInput(index, torch.zeros(len(probs), 1), probs, routed)


PROBS = [[0.1, 0.5, 0.3, 0.1], [0.4, 0.05, 0.25, 0.3]]


def test_selections() -> None:
    block = block_input(PROBS)
    assert first_expert(block).tolist() == [[False, True, False, False], [True, False, False, False]]
    assert first_expert_in(2)(block) is None
    drawn = torch.stack([first_and_wrong(torch.Generator().manual_seed(seed))(block) for seed in range(200)]).float()
    np.testing.assert_allclose(drawn.mean(0), [[0.5, 1, 0, 0.5], [1, 0.5, 0.5, 0]], atol=0.15)
    model = make()
    gone = without([(0, 1), (0, 2), (1, 0)], model)
    assert gone(block).tolist() == [[True, False, False, False], [True, False, False, True]]
    assert gone(block_input(PROBS, index=1)).tolist() == [[False, True, True, False], [False, False, False, True]]


def test_a_wrong_expert_answers_with_the_seconds_weight() -> None:
    """Of three experts the wrong one is known."""
    generator = torch.Generator().manual_seed(0)
    experts = make(3).experts[0]
    hidden = torch.randn(5, 16, generator=generator)
    weights = torch.tensor([0.7, 0.3, 0.0]).repeat(5, 1)
    mixed = wrong_runner(generator)(experts, hidden, weights > 0, weights)
    expected = 0.7 * run_expert(experts, 0, hidden) + 0.3 * run_expert(experts, 2, hidden)
    torch.testing.assert_close(mixed, expected)


def test_specialisation_finds_the_planted_expert(text: HeldOut) -> None:
    model, record = make(), RoutingRecord()
    own = token_losses(model, text, record, "")
    counts = record.counts(text)
    assert sum(count.sum() for count in counts.values()) == 2 * model.num_blocks * text.real.sum()
    assert most_used(np.array([[1, 9, 3], [8, 0, 9]])) == [(0, 1), (1, 2), (1, 0)]
    found = specialisations(model, text, own, counts)["a"]
    assert found.experts == most_used(counts["a"])
    lost = token_losses(model, text, without(found.experts, model), "")
    rows = text.domains == "a"
    added = (lost - own).sum(axis=1)
    assert found.own == pytest.approx(added[rows].sum() / 149)
    assert found.others == pytest.approx(added[~rows].sum() / 249)


def test_effects_are_paired(text: HeldOut, suite: SuiteWindows) -> None:
    bench, model = Bench(text, suite), make()
    own = bench.outcome(model, None, "")
    effect = bench.effect("same", own, "own", own)
    assert (effect.nats.low, effect.nats.high, effect.points.low, effect.points.high) == (0, 0, 0, 0)
    worse = Outcome(own.nats + 0.25 * text.real.sum(axis=1), np.zeros_like(own.right))
    effect = bench.effect("worse", worse, "own", own)
    assert effect.nats.low == pytest.approx(0.25)
    assert effect.points.mean == pytest.approx(-100 * own.right.mean())
    assert effect.points.low < effect.points.mean < effect.points.high <= 0


def test_every_token_is_a_target_once(text: HeldOut) -> None:
    assert text.real.sum() == 149 + 249
    assert text.sizes == {"a": 150, "b": 250}
    tokens = np.random.default_rng(1).integers(1, VOCABULARY, 400)
    np.testing.assert_array_equal(text.targets[text.real], np.concatenate([tokens[1:150], tokens[151:]]))

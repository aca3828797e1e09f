"""Texts from outside under a policy: windows, scores, latency and generation."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from conftest import live_greenlets
from torch.nn.functional import log_softmax

from eval.suite import evaluate_suite
from wdmoe_env.config import EnvConfig
from wdmoe_env.generation import generate
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.policies import make_policy
from wdmoe_env.scoring import SHORTEST_WINDOW, Scorer
from wdmoe_env.text.continuations import Continuation, continuation_windows, cut_contexts, encode_continuations
from wdmoe_env.text.suite import load_suite, suite_windows

CONFIG = EnvConfig(model="micro", num_tokens=64)
ITEMS = load_suite()[::400]
PREFIX = 0


@pytest.fixture(scope="module")
def model():
    return load_model("micro")


def continuations(items, num_tokens, encode):
    for item in items:
        yield from cut_contexts(encode_continuations(item.context, item.choices, encode, PREFIX), num_tokens)


def scores_of(scorer, asked, seeds, batch_size=None):
    """Scores in the order of what was asked."""
    parts = list(scorer.batches(asked, seeds, batch_size))
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    names = ("logprob", "greedy", "latency_ms", "vanilla_latency_ms", "wlr")
    return {name: np.concatenate([getattr(part, name) for _, part in parts])[order] for name in names}


def test_windows_are_the_suites(model):
    expected = suite_windows(ITEMS, model.tokenizer.encode, 64)
    windows, scored = continuation_windows(list(continuations(ITEMS, 64, model.tokenizer.encode)), 64)
    for name in ("token_ids", "targets", "mask"):
        np.testing.assert_array_equal(getattr(windows, name), getattr(expected.windows, name))
    np.testing.assert_array_equal(scored, expected.scored)


def test_a_text_that_melts_into_the_context_ends_it_for_all():
    def encode(text):
        """A token for each pair of letters: "abc" ends in another one than "abcd" has there."""
        return [hash(text[start : start + 2]) for start in range(0, len(text), 2)]

    melted = encode_continuations("abc", ["d", "e f"], encode, PREFIX)
    assert [one.context for one in melted] == [encode("ab")] * 2
    assert [one.tokens for one in melted] == [encode("cd"), encode("ce f")]
    assert encode_continuations("a", ["b"], encode, PREFIX) == [Continuation([PREFIX], encode("ab"))]
    assert encode_continuations("", ["ab"], encode, PREFIX) == [Continuation([PREFIX], encode("ab"))]
    with pytest.raises(ValueError, match="expected a token of every text that follows 'ab', got ''"):
        encode_continuations("ab", ["cd", ""], encode, PREFIX)


@pytest.mark.parametrize("space", [" ", "  ", "\n", "\t", " \n   ", "\u00a0", "\u2003"])
def test_white_space_goes_over_to_the_texts(space, model):
    encode = model.tokenizer.encode
    texts = [" was", " had been", "?"]
    found = encode_continuations("The king of France" + space, texts, encode, PREFIX)
    assert found == encode_continuations("The king of France", [space + text for text in texts], encode, PREFIX)
    assert found[0].context == encode("The king of France")
    assert [one.context + one.tokens for one in found] == [encode(f"The king of France{space}{text}") for text in texts]


def test_white_space_alone_goes_over_where_a_prefix_stands_in_its_place(model):
    encode = model.tokenizer.encode
    assert encode_continuations(" \n", ["a river"], encode, PREFIX) == [Continuation([PREFIX], encode(" \na river"))]
    spelt = [Continuation(list(b" \n"), list(b"a river"))]
    assert encode_continuations(" \n", ["a river"], lambda text: list(text.encode())) == spelt


def test_a_context_is_cut_alike_for_all():
    cut = cut_contexts([Continuation([1, 2, 3, 4, 5], [6]), Continuation([1, 2, 3, 4, 5], [7, 8, 9])], num_tokens=5)
    assert cut == [Continuation([3, 4, 5], [6]), Continuation([3, 4, 5], [7, 8, 9])]
    with pytest.raises(ValueError, match="num_tokens must be at least 3, the longest continuation, got 2"):
        cut_contexts(cut, num_tokens=2)


def test_vanilla_scores_as_the_untouched_model(model):
    asked = list(continuations(ITEMS, CONFIG.num_tokens, model.tokenizer.encode))
    found = scores_of(Scorer(None, CONFIG), asked, range(len(asked)))
    for row, one in enumerate(asked):
        ids = torch.tensor([one.context + one.tokens])
        logits = log_softmax(model.own_logits(ids[:, :-1])[0, len(one.context) - 1 :], dim=-1)
        expected = logits.gather(1, ids[0, len(one.context) :, None])[:, 0]
        assert found["logprob"][row] == pytest.approx(float(expected.double().sum()), abs=1e-4)
        assert found["greedy"][row] == bool((logits.argmax(dim=-1) == ids[0, len(one.context) :]).all())
    np.testing.assert_array_equal(found["latency_ms"], found["vanilla_latency_ms"])


@pytest.mark.parametrize("policy", ["vanilla", "top1", "wdmoe:0.9", "wdmoe-history"])
def test_latency_is_that_of_the_suites_evaluation(policy, model):
    results = evaluate_suite([policy], {"model": "micro", "split": "suite", "num_tokens": 64}, 10, progress=False)
    asked = list(continuations(results.items, 64, model.tokenizer.encode))
    scorer = Scorer(lambda env: make_policy(policy, env), CONFIG)
    found = scores_of(scorer, asked, results.seeds.repeat(4).tolist())
    for name, reference in (("latency_ms", policy), ("vanilla_latency_ms", "vanilla")):
        expected = results.measurements[reference]["latency_ms"]
        np.testing.assert_allclose(found[name].reshape(-1, 4).mean(axis=1), expected, rtol=1e-6)
    choices = found["logprob"].reshape(-1, 4).argmax(axis=1)
    summed = np.array([item.format != "continuation" for item in results.items])
    np.testing.assert_array_equal(choices[summed], results.measurements[policy]["choice"][summed])


def test_neither_the_batch_nor_the_order_matters(model):
    asked = list(continuations(ITEMS[:4], CONFIG.num_tokens, model.tokenizer.encode))
    seeds = list(range(len(asked)))
    scorer = Scorer(lambda env: make_policy("wdmoe:0.8", env), CONFIG)
    together = scores_of(scorer, asked, seeds)
    alone = scores_of(scorer, asked[::-1], seeds[::-1], batch_size=1)
    for name in ("logprob", "latency_ms", "wlr"):
        np.testing.assert_allclose(together[name], alone[name][::-1], rtol=1e-5)


def test_windows_have_few_lengths():
    scorer = Scorer(None, EnvConfig(model="micro", num_tokens=200))
    assert [scorer.padded(length) for length in (1, SHORTEST_WINDOW, 33, 64, 65, 129, 200)] == [
        32,
        32,
        64,
        64,
        128,
        200,
        200,
    ]
    fixed = Scorer(None, EnvConfig(model="micro", num_tokens=200), one_length=True)
    assert [fixed.padded(length) for length in (1, 200)] == [200, 200]
    short = [Continuation([1, 2], [3]), Continuation([1] * 40, [3])]
    assert [rows.tolist() for rows, _ in scorer.batches(short, [0, 1], batch_size=1)] == [[1], [0]]


def test_without_a_reference_there_is_no_ratio():
    scorer = Scorer(lambda env: make_policy("top1", env), CONFIG, reference=False)
    found = scores_of(scorer, [Continuation([1, 2, 3], [4])], [0])
    assert np.isnan(found["vanilla_latency_ms"]).all()
    assert found["latency_ms"] > 0


def test_vanilla_generates_as_the_untouched_model(model):
    prompt = model.tokenizer.encode("The house stood near the river")
    ids = torch.tensor([prompt])
    expected = model.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9)
    tokens, terms = generate(Scorer(None, CONFIG), prompt, seed=3, max_new_tokens=9)
    assert tokens == expected[0, len(prompt) :].tolist()
    assert terms["block_latency_ms"].shape == (len(tokens) * model.num_blocks, 1)
    np.testing.assert_array_equal(terms["block_latency_ms"], terms["vanilla_latency_ms"])


def test_each_pass_is_an_episode_of_what_it_reads(model):
    """Served gate weight under top-1 is below that of the own routing, one unit for each token that a pass reads."""
    prompt = model.tokenizer.encode("The house stood near the river")
    scorer = Scorer(None, CONFIG)
    tokens, terms = generate(scorer, prompt, seed=3, max_new_tokens=4)
    read = np.repeat([len(prompt)] + [1] * (len(tokens) - 1), model.num_blocks)
    np.testing.assert_allclose(terms["gate_weight_served"][:, 0], read, rtol=1e-6)
    # The first pass is the window of the prompt on the channel of the same seed.
    (_, window), *_ = scorer.batches([Continuation(prompt[:1], [*prompt[1:], 0])], [3])
    assert terms["block_latency_ms"][: model.num_blocks].sum() == pytest.approx(window.latency_ms[0], rel=1e-6)


def test_a_policy_changes_what_is_generated(model):
    prompt = model.tokenizer.encode("The house stood near the river")
    own = generate(Scorer(None, CONFIG), prompt, seed=3, max_new_tokens=12)
    top1 = generate(Scorer(lambda env: make_policy("top1", env), CONFIG), prompt, seed=3, max_new_tokens=12)
    assert own[0] != top1[0]
    assert top1[1]["block_latency_ms"].sum() < own[1]["block_latency_ms"].sum()


def test_generation_stops_where_it_shall(model):
    scorer = Scorer(None, CONFIG)
    tokens, _ = generate(scorer, [5, 6, 7], seed=0, max_new_tokens=8)
    stopped, _ = generate(scorer, [5, 6, 7], 0, 8, stop=lambda so_far: so_far[-1] == tokens[2])
    assert stopped == tokens[: tokens.index(tokens[2]) + 1]


def test_a_generation_that_fails_leaves_nothing_paused(model):
    class Failing:
        def predict(self, *args, **kwargs):
            raise RuntimeError("a policy's own")

    before = live_greenlets()  # of other tests' environments
    with pytest.raises(RuntimeError, match="a policy's own"):
        generate(Scorer(lambda env: Failing(), CONFIG), [5, 6, 7], seed=0, max_new_tokens=2)
    gc.collect()
    assert live_greenlets() <= before


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match="unknown policy 'wdmo'"):
        Scorer(lambda env: make_policy("wdmo", env), CONFIG)

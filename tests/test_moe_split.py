"""Splitting a real model: exactness against the untouched model, and every guard of pausing it."""

from __future__ import annotations

import copy
import pickle
import random
import re
import threading
import weakref

import greenlet
import pytest
import torch
from conftest import live_greenlets
from moe_models import ARCHITECTURES, random_model, random_tokens
from torch.nn import functional

from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.zoo import load_model

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
GREEDY = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def split():
    return SplitModel(random_model())


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request):
    """The same weights twice: untouched, and split."""
    return random_model(request.param), SplitModel(random_model(request.param))


def finish(forward, choose=lambda block: block.routed):
    """Run a forward pass to its end and return the blocks that were seen."""
    blocks = []
    while forward.block is not None:
        blocks.append(forward.block)
        forward.resume(choose(forward.block))
    return blocks


def untouched_logits(model, *inputs):
    with torch.no_grad():
        return model(*inputs).logits


def greedy_tokens(model, ids):
    return model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **GREEDY)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("choose", [lambda block: block.routed, lambda block: None], ids=["explicit", "none"])
def test_own_selection_gives_the_logits_of_the_untouched_model(pair, batch, choose):
    untouched, split = pair
    ids = random_tokens(untouched, batch, 12)
    forward = split.forward(ids)
    blocks = finish(forward, choose)
    expected = untouched_logits(untouched, ids)
    torch.testing.assert_close(forward.result.logits, expected, **TOLERANCE)
    torch.testing.assert_close(split.own_logits(ids), expected, **TOLERANCE)
    assert [block.index for block in blocks] == list(range(split.num_blocks))
    assert all(block.hidden_states.shape == (batch * 12, split.hidden_size) for block in blocks)
    assert all((block.routed.sum(dim=1) == split.top_k).all() for block in blocks)


@pytest.mark.parametrize("choose", [lambda block: block.routed, lambda block: None], ids=["explicit", "none"])
def test_generate_gives_the_tokens_of_the_untouched_model(pair, choose):
    untouched, split = pair
    ids = random_tokens(untouched, 2, 5)
    forward = split.run(lambda model: greedy_tokens(model, ids))
    blocks = finish(forward, choose)
    expected = greedy_tokens(untouched, ids)
    assert len(expected.unique()) > 3
    assert torch.equal(forward.result, expected)
    assert [len(block.routed) for block in blocks] == [10] * split.num_blocks + [2] * 11 * split.num_blocks
    assert torch.equal(greedy_tokens(split.model, ids), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_with_a_mask_is_as_in_the_untouched_model(pair, side):
    untouched, split = pair
    ids = random_tokens(untouched, 3, 10)
    mask = torch.ones_like(ids)
    padding = slice(0, 4) if side == "left" else slice(6, 10)
    mask[1, padding] = 0
    forward = split.forward(ids, mask.bool())
    finish(forward)
    expected = untouched_logits(untouched, ids, mask)
    real = mask.bool()
    torch.testing.assert_close(forward.result.logits[real], expected[real], **TOLERANCE)


def test_gate_probs_are_the_score_of_the_routers_own_logits(pair):
    untouched, split = pair
    ids = random_tokens(untouched, 2, 6)
    logits = []
    handles = [
        module.register_forward_hook(lambda module, args, output: logits.append(output[0]))
        for name, module in untouched.named_modules()
        if name.endswith(("mlp.gate", "mlp.router", "moe.router"))
    ]
    untouched_logits(untouched, ids)
    for handle in handles:
        handle.remove()
    blocks = finish(split.forward(ids))
    assert len(logits) == len(blocks) == split.num_blocks
    for block, seen in zip(blocks, logits, strict=True):
        sigmoid = untouched.config.model_type == "deepseek_v3"
        expected = seen.sigmoid() if sigmoid else seen.softmax(dim=-1)
        torch.testing.assert_close(block.gate_probs, expected.view(block.gate_probs.shape), **TOLERANCE)
        if not sigmoid:
            torch.testing.assert_close(block.gate_probs.sum(dim=-1), torch.ones(len(seen)), **TOLERANCE)


def dense_mixtral_logits(model, ids, selections):
    """Independent reference: every expert on every token, weights renormalised over the selection."""
    blocks = [layer.mlp for layer in model.model.layers]

    def dense(block, selection):
        def forward(hidden_states):
            tokens = hidden_states.flatten(0, 1)
            scores = functional.linear(tokens, block.gate.weight).softmax(dim=-1) * selection
            weights = scores / scores.sum(dim=-1, keepdim=True)
            outputs = torch.zeros_like(tokens)
            for expert in range(selection.shape[1]):
                gate, up = (tokens @ block.experts.gate_up_proj[expert].T).chunk(2, dim=-1)
                outputs += weights[:, expert, None] * ((functional.silu(gate) * up) @ block.experts.down_proj[expert].T)
            return outputs.view_as(hidden_states)

        return forward

    for block, selection in zip(blocks, selections, strict=True):
        block.forward = dense(block, selection)
    return untouched_logits(model, ids)


def test_other_selections_agree_with_a_dense_reference(split):
    """Dropped experts, added ones, tokens with one expert or with all; expert 0 gets no token at all."""
    ids = random_tokens(split.model, 2, 9)
    generator = torch.Generator().manual_seed(3)
    selections = [torch.rand(18, 4, generator=generator) < 0.5 for _ in range(split.num_blocks)]
    for selection in selections:
        selection[:, 0] = False
        selection[:, 3] |= ~selection.any(dim=1)
    forward = split.forward(ids)
    blocks = finish(forward, lambda block: selections[block.index])
    assert any((selections[block.index] & ~block.routed).any() for block in blocks)
    expected = dense_mixtral_logits(random_model(), ids, selections)
    torch.testing.assert_close(forward.result.logits, expected, **TOLERANCE)
    assert (expected - split.own_logits(ids)).abs().max() > 0.1


def test_scale_and_sum_of_the_models_own_weights_are_kept():
    """DeepSeek scales its weights, OLMoE's do not sum to 1: a swap of one expert keeps a token's sum."""
    for architecture in ("deepseek_v3", "olmoe"):
        seen = []

        def spy(experts, hidden_states, selection, weights, seen=seen):
            seen.append((selection, weights))
            return torch.zeros_like(hidden_states)

        split = SplitModel(random_model(architecture), runner=spy)
        ids = random_tokens(split.model, 1, 7)
        seen.clear()
        finish(split.forward(ids), lambda block: block.routed)
        finish(split.forward(ids), lambda block: block.routed.roll(1, dims=1))
        own, rolled = seen[: split.num_blocks], seen[split.num_blocks :]
        for (_, own_weights), (selection, weights) in zip(own, rolled, strict=True):
            torch.testing.assert_close(weights.sum(dim=1), own_weights.sum(dim=1))
            assert (weights[~selection] == 0).all()
            assert (weights[selection] > 0).all()
            assert ((own_weights.sum(dim=1) - 1).abs() > 0.1).any()


def test_a_model_whose_weights_follow_no_score_keeps_its_own_and_says_so():
    untouched = random_model("phimoe")
    with pytest.warns(UserWarning, match="follow no known score"):
        split = SplitModel(random_model("phimoe"))
    ids = random_tokens(untouched, 2, 7)
    forward = split.forward(ids)
    blocks = finish(forward)
    torch.testing.assert_close(blocks[0].gate_probs.sum(dim=1), torch.ones(14))
    torch.testing.assert_close(forward.result.logits, untouched_logits(untouched, ids), **TOLERANCE)


def test_a_token_without_expert_gets_nothing_from_the_block(split):
    ids = random_tokens(split.model, 1, 6)
    forward = split.forward(ids)
    finish(forward, lambda block: torch.zeros_like(block.routed))
    assert forward.result.logits.isfinite().all()


def test_the_runner_gets_what_was_selected_and_may_replace_the_experts():
    calls = []

    def remote(experts, hidden_states, selection, weights):
        calls.append((hidden_states, selection))
        return torch.zeros_like(hidden_states)

    split = SplitModel(random_model(), runner=remote)
    calls.clear()
    ids = random_tokens(split.model, 1, 6)
    forward = split.forward(ids)
    blocks = finish(forward, lambda block: block.routed.roll(1, dims=1))
    assert len(calls) == split.num_blocks
    for block, (hidden_states, selection) in zip(blocks, calls, strict=True):
        assert hidden_states is block.hidden_states
        assert torch.equal(selection, block.routed.roll(1, dims=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_number_types(dtype):
    untouched, split = random_model(dtype=dtype), SplitModel(random_model(dtype=dtype))
    ids = random_tokens(untouched, 2, 8)
    forward = split.forward(ids)
    blocks = finish(forward)
    assert blocks[0].gate_probs.dtype == torch.float32
    torch.testing.assert_close(forward.result.logits, untouched_logits(untouched, ids), rtol=0.02, atol=0.02)


def test_forwards_on_one_model_interleave(split):
    """Plain, no_grad, inference_mode and generate side by side, resumed in random order, a learner in between."""
    lengths = [3, 4, 5, 6, 7, 8, 9, 10]
    tokens = [random_tokens(split.model, 1, length, seed=length) for length in lengths]
    untouched = random_model()
    uses = {
        "plain": lambda model, ids: model(ids).logits,
        "no_grad": torch.no_grad()(lambda model, ids: model(ids).logits),
        "inference_mode": torch.inference_mode()(lambda model, ids: model(ids).logits),
        "generate": greedy_tokens,
    }
    names = [list(uses)[i % len(uses)] for i in range(len(tokens))]
    forwards = [
        split.run(lambda model, ids=ids, name=name: uses[name](model, ids))
        for ids, name in zip(tokens, names, strict=True)
    ]
    learner = torch.nn.Linear(split.hidden_size, 1)
    optimizer = torch.optim.SGD(learner.parameters(), lr=1e-3)
    order = random.Random(0)
    while paused := [forward for forward in forwards if forward.block is not None]:
        forward = order.choice(paused)
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        before = learner.weight.detach().clone()
        optimizer.zero_grad()
        (learner(forward.block.hidden_states).square().sum() + forward.block.gate_probs.sum()).backward()
        optimizer.step()
        assert not torch.equal(before, learner.weight)
        forward.resume(forward.block.routed)
        if order.random() < 0.2:
            torch.testing.assert_close(split.own_logits(tokens[0]), untouched_logits(untouched, tokens[0]), **TOLERANCE)
    for forward, ids, name in zip(forwards, tokens, names, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(forward.result, uses[name](untouched, ids), **TOLERANCE)


def test_own_logits_do_not_stop_even_inside_a_paused_use(split):
    ids = random_tokens(split.model, 1, 5)
    forward = split.run(lambda model: (split.own_logits(ids), model(ids).logits))
    assert len(finish(forward)) == split.num_blocks
    assert torch.equal(*forward.result)


def test_gradients_of_a_learner_run_through_a_step(split):
    """A loss built from two blocks has the gradient that it has without a model in between."""
    ids = random_tokens(split.model, 1, 6)
    weight = torch.ones(split.num_experts, requires_grad=True)
    forward = split.forward(ids)
    first = forward.block.gate_probs.clone()
    loss = (first @ weight).sum()
    second = forward.resume(None).gate_probs.clone()
    loss = loss + (second @ weight).sum()
    loss.backward()
    torch.testing.assert_close(weight.grad, first.sum(dim=0) + second.sum(dim=0))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("end", ["finish", "close", "drop", "fail"])
def test_the_callers_modes_survive_any_end(split, mode, end):
    ids = random_tokens(split.model, 1, 4)

    def modes():
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")

    @torch.inference_mode()
    def use(model):
        with torch.autocast("cpu", torch.bfloat16):
            model(ids)
            if end == "fail":
                raise ArithmeticError
            return torch.is_autocast_enabled("cpu")

    with mode():
        before = modes()
        forward = split.run(use)
        assert modes() == before
        forward.resume(forward.block.routed)
        assert modes() == before
        if end == "finish":
            finish(forward)
            assert forward.result is True
        elif end == "fail":
            with pytest.raises(ArithmeticError):
                finish(forward)
        elif end == "close":
            forward.close()
        del forward
        assert modes() == before


def test_the_callers_modes_do_not_reach_the_model(split):
    ids = random_tokens(split.model, 1, 6)
    expected = split.own_logits(ids)
    with torch.autocast("cpu", torch.bfloat16):
        forward = split.forward(ids)
        finish(forward)
        own = split.own_logits(ids)
    assert torch.equal(forward.result.logits, expected)
    assert torch.equal(own, expected)
    with torch.inference_mode():
        forward = split.forward(ids)
        forward.resume(None)
    finish(forward)
    assert not forward.result.logits.is_inference()
    assert torch.equal(forward.result.logits, expected)


def test_a_forward_paused_in_autocast_does_not_keep_a_learners_old_weights(split):
    """Autocast caches casts of weights until the outermost context of the thread is left."""
    ids = random_tokens(split.model, 1, 4)
    forward = split.run(torch.autocast("cpu", torch.bfloat16)(lambda model: model(ids)))
    learner = torch.nn.Linear(4, 1, bias=False)
    for value in (1.0, 2.0):
        with torch.no_grad():
            learner.weight.fill_(value)
        with torch.autocast("cpu", torch.bfloat16):
            assert learner(torch.ones(1, 4)).item() == 4 * value
    forward.close()


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_abandoned_forwards_leave_no_greenlet_and_no_memory(split):
    ids = random_tokens(split.model, 2, 32)

    def abandon(count):
        for index in range(count):
            use = (lambda model: greedy_tokens(model, ids)) if index % 10 == 0 else (lambda model: model(ids))
            forward = split.run(use)
            if index % 2:
                forward.resume(None)
            if index % 3 == 0:
                forward.close()

    before = live_greenlets()
    abandon(200)
    resident = resident_bytes()
    abandon(1000)
    assert live_greenlets() == before
    assert resident_bytes() - resident < 10e6
    torch.testing.assert_close(split.own_logits(ids), untouched_logits(random_model(), ids), **TOLERANCE)


def test_an_owner_in_a_cycle_is_freed_with_its_forward(split):
    class Owner:
        def __init__(self):
            self.itself = self
            self.forward = split.forward(random_tokens(split.model, 1, 4))

    before = live_greenlets()
    owner = weakref.ref(Owner())
    assert live_greenlets() == before
    assert owner() is None
    assert torch.is_grad_enabled()


def test_close_is_final_and_idempotent(split):
    forward = split.forward(random_tokens(split.model, 1, 4))
    forward.close()
    forward.close()
    assert forward.block is None
    with pytest.raises(RuntimeError, match="has ended cannot be resumed"):
        forward.resume(None)
    with pytest.raises(RuntimeError, match="only after its last block"):
        _ = forward.result


def test_close_ends_code_that_catches_the_exit(split):
    ids = random_tokens(split.model, 1, 4)
    caught = []

    def stubborn(model):
        try:
            model(ids)
        except BaseException as error:
            caught.append(type(error))
            return model(ids)

    before = live_greenlets()
    forward = split.run(stubborn)
    forward.close()
    assert caught == [greenlet.GreenletExit]
    assert live_greenlets() == before


def test_an_error_of_the_model_comes_out_with_its_traceback_and_harms_nothing(split):
    ids = random_tokens(split.model, 1, 4)

    def fails(model):
        model(ids)
        raise ArithmeticError("in the model")

    forward = split.run(fails)
    with pytest.raises(ArithmeticError, match="in the model") as caught:
        finish(forward)
    assert caught.traceback[-1].name == "fails"
    assert forward.block is None
    assert torch.is_grad_enabled()
    torch.testing.assert_close(split.own_logits(ids), untouched_logits(random_model(), ids), **TOLERANCE)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            torch.ones(3, 4, dtype=torch.bool),
            r"a bool tensor of shape \(4, 4\) or None, got torch.bool of shape \(3, 4\)",
        ),
        (torch.ones(4, 4), r"or None, got torch.float32 of shape \(4, 4\)"),
        ([True], r"or None, got \[True\]"),
    ],
)
def test_a_wrong_selection_leaves_the_forward_as_it_was(split, selection, message):
    ids = random_tokens(split.model, 1, 4)
    forward = split.forward(ids)
    block = forward.block
    with pytest.raises(ValueError, match=message):
        forward.resume(selection)
    assert forward.block is block
    finish(forward)
    assert torch.equal(forward.result.logits, split.own_logits(ids))


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.zeros(4, dtype=torch.long), None, r"int64 of shape \(N, J\), got torch.int64 of shape \(4,\)"),
        (torch.zeros(1, 4), None, r"int64 of shape \(N, J\), got torch.float32"),
        (torch.zeros(1, 65, dtype=torch.long), None, "context is 64 tokens, got 65"),
        (torch.full((1, 4), 96), None, r"must lie in \[0, 96\), got 96 to 96"),
        (torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 3), r"shape of token_ids, \(1, 4\), got \(1, 3\)"),
    ],
)
def test_wrong_tokens_are_one_sentence(split, ids, mask, message):
    with pytest.raises(ValueError, match=message):
        split.forward(ids, mask)


def in_another_thread(function, *args):
    errors = []

    def run():
        try:
            function(*args)
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return errors


def test_another_thread_cannot_resume_but_may_let_go(split):
    forward = split.forward(random_tokens(split.model, 1, 4))
    only_its_own = ["a paused forward pass can be resumed only by the thread that started it"]
    assert in_another_thread(forward.resume, None) == only_its_own
    forward.resume(None)
    before = live_greenlets()
    assert in_another_thread(forward.close) == []
    with pytest.raises(RuntimeError, match="has ended"):
        forward.resume(None)
    del forward
    split.forward(random_tokens(split.model, 1, 4)).close()
    assert live_greenlets() == before - 1


@pytest.mark.parametrize("grad", [True, False])
def test_what_another_thread_lets_go_of_leaves_no_mode_behind(split, grad):
    forward = split.forward(random_tokens(split.model, 1, 4))
    with torch.set_grad_enabled(grad):
        in_another_thread(forward.close)
        del forward
        for _ in range(3):
            split.forward(random_tokens(split.model, 1, 4)).close()
            assert torch.is_grad_enabled() == grad


def test_the_code_of_the_documentation_runs(request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)
    text = (request.config.rootpath / "docs" / "splitting.md").read_text(encoding="utf-8")
    scope = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), scope)
    assert scope["logits"].isfinite().all()
    expected = load_model("tiny").own_logits(scope["token_ids"])
    torch.testing.assert_close(scope["split"].own_logits(scope["token_ids"]), expected, rtol=0, atol=1e-4)


def test_a_forward_can_be_resumed_from_within_another(split):
    """The blocks go to whoever resumes, not to whoever started."""
    ids = random_tokens(split.model, 1, 4)
    outer = split.forward(ids)

    def nested(model):
        finish(outer)
        return model(ids).logits

    forward = split.run(nested)
    finish(forward)
    assert torch.equal(forward.result, outer.result.logits)


@pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy, pickle.dumps])
def test_neither_a_paused_forward_nor_an_unnamed_model_can_be_copied(split, copy_of):
    with pytest.raises(TypeError, match="replay the selections"):
        copy_of(split.forward(random_tokens(split.model, 1, 4)))
    with pytest.raises(TypeError, match="load it by name"):
        copy_of(split)


def test_a_split_model_saves_and_loads_as_before(split, tmp_path):
    untouched = random_model()
    assert list(split.model.state_dict()) == list(untouched.state_dict())
    split.model.save_pretrained(tmp_path)
    again = type(untouched).from_pretrained(tmp_path).eval()
    assert again.config._experts_implementation == "grouped_mm"
    ids = random_tokens(untouched, 1, 6)
    torch.testing.assert_close(untouched_logits(again, ids), untouched_logits(untouched, ids), **TOLERANCE)


def test_a_model_built_from_a_split_models_configuration_routes_by_itself(split):
    other = type(split.model)(split.model.config).eval()
    other.load_state_dict(split.model.state_dict())
    ids = random_tokens(other, 1, 6)
    forward = split.run(lambda model: other(ids).logits)
    assert forward.block is None
    assert torch.equal(forward.result, untouched_logits(other, ids))
    torch.testing.assert_close(forward.result, split.own_logits(ids), **TOLERANCE)

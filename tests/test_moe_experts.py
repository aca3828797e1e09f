"""The experts of this process: every strategy, layout and selection gives the same sum."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from moe_models import ARCHITECTURES, random_model

from wdmoe_env.moe.runner import STRATEGIES, choose_strategy, expert_widths, order_weights, run_expert, run_experts


def plain_sum(experts, hidden_states, selection, weights):
    """The definition, read plainly: one expert, one weighted add at a time."""
    outputs = torch.zeros_like(hidden_states)
    for expert in range(selection.shape[1]):
        tokens = selection[:, expert].nonzero().flatten()
        if len(tokens):
            weighted = run_expert(experts, expert, hidden_states[tokens]) * weights[tokens, expert, None]
            outputs = outputs.index_add(0, tokens, weighted.to(outputs.dtype))
    return outputs


def experts_of(architecture):
    model = random_model(architecture).requires_grad_(False)
    return [module for module in model.modules() if hasattr(module, "is_concatenated")][-1]


def random_input(experts, tokens=37, density=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden_states = torch.randn(tokens, expert_widths(experts)[0], generator=generator)
    selection = torch.rand(tokens, experts.num_experts, generator=generator) < density
    return hidden_states, selection, torch.rand(selection.shape, generator=generator)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_expert_is_the_stock_module_with_that_expert_alone(architecture):
    """The stock forward, with every token sent to one expert at weight 1, is the independent reference."""
    experts = experts_of(architecture)
    hidden_states, _, _ = random_input(experts)
    for expert in range(experts.num_experts):
        index = torch.full((len(hidden_states), 1), expert)
        expected = experts(hidden_states, index, torch.ones(index.shape))
        torch.testing.assert_close(run_expert(experts, expert, hidden_states), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("strategy", list(STRATEGIES))
@pytest.mark.parametrize("density", [0.0, 0.1, 0.4, 1.0])
def test_every_strategy_is_the_weighted_sum(architecture, strategy, density):
    experts = experts_of(architecture)
    hidden_states, selection, weights = random_input(experts, density=density)
    outputs = torch.stack([run_expert(experts, e, hidden_states) for e in range(experts.num_experts)], dim=1)
    expected = (outputs * (weights * selection)[..., None]).sum(dim=1)
    result = run_experts(experts, hidden_states, selection, weights, strategy)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert (result[~selection.any(dim=1)] == 0).all()


@pytest.mark.parametrize("change", ["gate", "activation"])
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_a_gate_or_activation_of_its_own_is_used(change, strategy):
    experts = experts_of("mixtral")
    hidden_states, selection, weights = random_input(experts)
    usual = run_experts(experts, hidden_states, selection, weights, strategy)
    if change == "gate":
        experts.__class__ = type("Own", (type(experts),), {"_apply_gate": lambda self, hidden: hidden.chunk(2, -1)[1]})
    else:
        experts.act_fn = torch.nn.Tanh()
    result = run_experts(experts, hidden_states, selection, weights, strategy)
    expected = plain_sum(experts, hidden_states, selection, weights)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert (result - usual).abs().max() > 1e-3


@pytest.mark.parametrize("strategy", list(STRATEGIES))
@pytest.mark.parametrize("tokens", [1, 37])
def test_each_row_gets_its_own_experts_at_its_own_weights(strategy, tokens):
    """Row by row against one expert on one token, so that rows that change places cannot cancel out."""
    experts = experts_of("mixtral")
    hidden_states, selection, weights = random_input(experts, tokens=tokens)
    result = run_experts(experts, hidden_states, selection, weights, strategy)
    for row in range(tokens):
        expected = torch.zeros_like(hidden_states[row])
        for expert in selection[row].nonzero().flatten().tolist():
            expected += weights[row, expert] * run_expert(experts, expert, hidden_states[row : row + 1])[0]
        torch.testing.assert_close(result[row], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_an_expert_runs_on_exactly_the_tokens_sent_to_it(strategy):
    """Seen at the activation, the one place that every strategy passes with the rows of the experts."""
    experts = experts_of("mixtral")
    hidden_states, selection, weights = random_input(experts)
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, inputs):
            seen.append(inputs)
            return torch.nn.functional.silu(inputs)

    experts.act_fn = Spy()
    run_experts(experts, hidden_states, selection, weights, strategy)
    gates = [
        torch.nn.functional.linear(hidden_states[selection[:, expert]], experts.gate_up_proj[expert]).chunk(2, -1)[0]
        for expert in range(experts.num_experts)
    ]
    torch.testing.assert_close(torch.cat(seen), torch.cat(gates), rtol=0, atol=1e-5)


def test_weights_outside_the_selection_are_not_read():
    experts = experts_of("mixtral")
    hidden_states, selection, weights = random_input(experts)
    for strategy in STRATEGIES:
        expected = run_experts(experts, hidden_states, selection, weights, strategy)
        poisoned = weights.masked_fill(~selection, float("nan"))
        assert torch.equal(run_experts(experts, hidden_states, selection, poisoned, strategy), expected)


def test_the_strategy_depends_on_what_a_layer_puts_out_and_on_the_operands(monkeypatch):
    experts = experts_of("mixtral")
    few, _, _ = random_input(experts, tokens=16)
    many = few.new_empty(2**18 // expert_widths(experts)[1] + 1, few.shape[1])
    assert choose_strategy(experts, few) == "grouped"
    assert choose_strategy(experts, many) == "slices"
    assert choose_strategy(experts, few.double()) == "slices"
    monkeypatch.delattr(torch.nn.functional, "grouped_mm", raising=False)
    assert choose_strategy(experts, few) == "slices"


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), "grouped"), ((9, 0), "grouped"), ((7, 5), "slices")])
@pytest.mark.parametrize("tokens", [16, 2048])
def test_a_gpu_that_has_the_grouped_product_uses_it_at_any_size(capability, expected, tokens, monkeypatch):
    class OnGpu:
        is_cpu, is_cuda, device, dtype = False, True, torch.device("cuda"), torch.float32
        __len__ = lambda self: tokens  # noqa: E731

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_strategy(experts_of("mixtral"), OnGpu()) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_the_order_of_the_weights_changes_neither_values_nor_sums(architecture, strategy):
    model = random_model(architecture).requires_grad_(False)
    blocks = [module for module in model.modules() if hasattr(module, "is_concatenated")]
    hidden_states, selection, weights = random_input(blocks[-1])
    expected = plain_sum(blocks[-1], hidden_states, selection, weights)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    order_weights(model, blocks)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    result = run_experts(blocks[-1], hidden_states, selection, weights, strategy)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert blocks[-1].is_transposed or blocks[-1].down_proj.transpose(-2, -1).is_contiguous()


@pytest.mark.parametrize("change", ["half", "meta"])
def test_other_weights_stay_as_they_are(change):
    model = random_model().to(torch.float16 if change == "half" else "meta").requires_grad_(False)
    blocks = [module for module in model.modules() if hasattr(module, "is_concatenated")]
    order_weights(model, blocks)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_the_model_stays_as_its_owner_made_it():
    """No module gets a forward of its own, and the weights stay tied."""
    model = random_model().requires_grad_(False)
    model.lm_head.weight = model.model.embed_tokens.weight
    order_weights(model, [])
    assert not [module for module in model.modules() if "forward" in vars(module)]
    assert model.lm_head.weight is model.model.embed_tokens.weight


@torch.no_grad()
@pytest.mark.parametrize("strategy", ["slices", "grouped"])
def test_strategies_agree_in_bfloat16_within_its_rounding(strategy):
    experts = experts_of("mixtral")
    hidden_states, selection, weights = random_input(experts)
    expected = plain_sum(experts, hidden_states, selection, weights)
    result = run_experts(experts.bfloat16(), hidden_states.bfloat16(), selection, weights.bfloat16(), strategy)
    assert (result - expected).norm() < 3 * torch.finfo(torch.bfloat16).eps * expected.norm()


@pytest.mark.parametrize(("width", "inner"), [(30, 48), (32, 46), (31, 31)])
def test_widths_that_torch_cannot_group_are_served(width, inner):
    experts = experts_of("mixtral")
    generator = torch.Generator().manual_seed(0)
    experts.gate_up_proj.data = torch.randn(4, 2 * inner, width, generator=generator) * width**-0.5
    experts.down_proj.data = torch.randn(4, width, inner, generator=generator) * inner**-0.5
    hidden_states, selection, weights = random_input(experts, tokens=5)
    torch.testing.assert_close(
        run_experts(experts, hidden_states, selection, weights),
        plain_sum(experts, hidden_states, selection, weights),
        rtol=0,
        atol=1e-5,
    )


def test_gradients_pass_through_the_experts():
    experts = experts_of("mixtral")
    hidden_states, selection, weights = random_input(experts)
    gradients = []
    for run in (plain_sum, *(partial(run_experts, strategy=name) for name in STRATEGIES)):
        inputs, scales = hidden_states.clone().requires_grad_(), weights.clone().requires_grad_()
        run(experts, inputs, selection, scales).square().sum().backward()
        gradients.append((inputs.grad, scales.grad))
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-4)

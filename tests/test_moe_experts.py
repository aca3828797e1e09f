"""The seam that runs experts: every strategy, layout and selection gives the same sum."""

from __future__ import annotations

import pytest
import torch
from moe_models import ARCHITECTURES, random_model

from wdmoe_env.moe import experts as experts_module
from wdmoe_env.moe import packing
from wdmoe_env.moe.experts import STRATEGIES, choose_strategy, expert_widths, run_expert, run_experts
from wdmoe_env.moe.packing import pack_linear_layers


def experts_of(architecture):
    model = random_model(architecture).half().float().requires_grad_(False)  # weights that every strategy takes
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
    result = STRATEGIES[strategy](experts, hidden_states, selection, weights)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert (result[~selection.any(dim=1)] == 0).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_activation_is_the_stock_one_in_any_mode(architecture):
    experts = experts_of(architecture)
    size = expert_widths(experts)[1] * (1 + experts.has_gate)
    hidden = torch.randn(7, size, generator=torch.Generator().manual_seed(0))
    untouched, expected = hidden.clone(), experts._apply_gate(hidden) if experts.has_gate else experts.act_fn(hidden)
    with torch.enable_grad():
        assert torch.equal(experts_module._activated(experts, hidden), expected)
        assert torch.equal(hidden, untouched), "a derivative may need it"
    with torch.inference_mode():
        torch.testing.assert_close(experts_module._activated(experts, hidden.clone()), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", ["gate", "activation"])
def test_a_gate_or_activation_of_its_own_is_used(change):
    experts = experts_of("mixtral")
    hidden = torch.randn(7, 2 * expert_widths(experts)[1], generator=torch.Generator().manual_seed(0))
    gate, up = hidden.chunk(2, dim=-1)
    if change == "gate":
        experts.__class__ = type("Own", (type(experts),), {"_apply_gate": lambda self, hidden: hidden.chunk(2, -1)[1]})
        expected = up
    else:
        experts.act_fn = torch.nn.Tanh()
        expected = torch.tanh(gate) * up
    with torch.inference_mode():
        assert torch.equal(experts_module._activated(experts, hidden.clone()), expected)


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_an_expert_runs_on_exactly_the_tokens_sent_to_it(strategy):
    """Seen at the activation, the one place that every strategy passes with the rows of the experts."""
    experts = experts_of("mixtral")
    hidden_states, selection, weights = random_input(experts)
    rows = []

    class Spy(torch.nn.Module):
        def forward(self, inputs):
            rows.append(len(inputs))
            return torch.nn.functional.silu(inputs)

    experts.act_fn = Spy()
    STRATEGIES[strategy](experts, hidden_states, selection, weights)
    assert sum(rows) == selection.sum()


def test_weights_outside_the_selection_are_not_read():
    experts = experts_of("mixtral")
    hidden_states, selection, weights = random_input(experts)
    for strategy in STRATEGIES.values():
        expected = strategy(experts, hidden_states, selection, weights)
        poisoned = weights.masked_fill(~selection, float("nan"))
        assert torch.equal(strategy(experts, hidden_states, selection, poisoned), expected)


@torch.no_grad()
def test_the_strategy_depends_on_the_number_of_tokens_and_on_what_torch_can_do_with_the_weights(monkeypatch):
    experts = experts_of("mixtral")
    few, _, _ = random_input(experts, tokens=16)
    many, _, _ = random_input(experts, tokens=2048)
    assert choose_strategy(experts, few) == "packed"
    assert choose_strategy(experts, many) == "packed_slices"
    monkeypatch.setattr(experts_module, "has_one_thread_product", lambda: False)
    assert choose_strategy(experts, few) == "packed_slices"
    with torch.enable_grad():
        assert choose_strategy(experts, few) == "grouped"
        assert choose_strategy(experts, many) == "slices"
    experts.down_proj[0, 0, 0] = 1 / 3  # no longer exact in half precision
    assert choose_strategy(experts, few) == "grouped"
    assert choose_strategy(experts, many) == "onednn"
    assert choose_strategy(experts, few.double()) == "slices"
    assert choose_strategy(experts.double(), few.double()) == "slices"


@torch.no_grad()
def test_packed_weights_follow_the_parameters():
    experts = experts_of("gpt_oss")
    hidden_states, selection, weights = random_input(experts)
    STRATEGIES["packed"](experts, hidden_states, selection, weights)
    experts.gate_up_proj.mul_(2.0)
    experts.down_proj_bias.add_(1.0)
    expected = STRATEGIES["loop"](experts, hidden_states, selection, weights)
    result = STRATEGIES["packed"](experts, hidden_states, selection, weights)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    experts.gate_up_proj[0, 0, 0] = 1e-9
    with pytest.raises(ValueError, match="exact in half precision"):
        STRATEGIES["packed"](experts, hidden_states, selection, weights)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("one_thread", [True, False])
@pytest.mark.parametrize(("rows", "features", "outputs"), [(40, 128, 256), (3, 8, 8)])
def test_a_packed_linear_layer_is_the_layer_and_follows_its_parameters(
    bias, one_thread, rows, features, outputs, monkeypatch
):
    """By either product, of which a later torch may have one alone."""
    if not one_thread:
        monkeypatch.setattr(packing, "has_one_thread_product", lambda: False)
    layer = torch.nn.Linear(features, outputs, bias=bias).half().float().requires_grad_(False)
    model = torch.nn.Sequential(layer)
    inputs = torch.randn(2, rows, features, generator=torch.Generator().manual_seed(0))
    names = list(model.state_dict())
    pack_linear_layers(model)
    for scale in (1.0, 2.0, 1 / 3):  # the last leaves half precision
        layer.weight.mul_(scale)
        expected = torch.nn.functional.linear(inputs, layer.weight, layer.bias)
        torch.testing.assert_close(model(inputs), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.double()(inputs.double()), expected.double(), rtol=0, atol=1e-5)
        model.float()
    assert list(model.state_dict()) == names


def test_a_packed_linear_layer_has_gradients():
    layer = torch.nn.Linear(128, 256).half().float()
    pack_linear_layers(layer)
    inputs = torch.randn(64, 128, requires_grad=True)
    layer(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, layer.weight.sum(dim=0).expand(64, -1), rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("strategy", ["slices", "grouped"])
def test_strategies_agree_in_bfloat16_within_its_rounding(strategy):
    experts = experts_of("mixtral")
    hidden_states, selection, weights = random_input(experts)
    expected = STRATEGIES["loop"](experts, hidden_states, selection, weights)
    result = STRATEGIES[strategy](experts.bfloat16(), hidden_states.bfloat16(), selection, weights.bfloat16())
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
        STRATEGIES["loop"](experts, hidden_states, selection, weights),
        rtol=0,
        atol=1e-5,
    )


def test_gradients_pass_through_the_experts():
    """By the strategies that are chosen where gradients are wanted."""
    experts = experts_of("mixtral")
    hidden_states, selection, weights = random_input(experts)
    gradients = []
    for strategy in ("loop", "slices", "grouped"):
        inputs, scales = hidden_states.clone().requires_grad_(), weights.clone().requires_grad_()
        STRATEGIES[strategy](experts, inputs, selection, scales).square().sum().backward()
        gradients.append((inputs.grad, scales.grad))
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-4)

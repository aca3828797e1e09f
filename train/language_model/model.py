"""The model, and the functions that make it fast to train on one CPU thread."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, MixtralConfig, MixtralForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from train.language_model.recipe import Recipe


def build(recipe: Recipe, vocabulary: int, device: torch.device) -> Any:
    """Return a randomly initialised model that is ready to train.

    The initial weights come from ``recipe.seed`` alone; torch's own random state is left as it was.
    """
    config = MixtralConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.expert_hidden,
        num_hidden_layers=recipe.blocks,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        num_local_experts=recipe.experts,
        num_experts_per_tok=recipe.experts_per_token,
        max_position_embeddings=recipe.positions,
        router_aux_loss_coef=recipe.balance,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = MixtralForCausalLM(config)
    return prepare(model, device)


def prepare(model: Any, device: torch.device) -> Any:
    """Put a model on its device, with the functions that are fastest there."""
    model.to(device)
    if device.type == "cpu":
        ALL_EXPERTS_FUNCTIONS.register("train_slices", slices_experts)
        AttentionInterface.register("train_causal", causal_attention)
        model.set_experts_implementation("train_slices")
        model.set_attn_implementation("train_causal")
    return model


def loss(model: Any, tokens: Tensor, targets: Tensor, rows: int = 128) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy in nats per token, and the load-balance loss.

    Args:
        model: A Mixtral causal language model.
        tokens: Token ids, (batch, sequence).
        targets: The ids that follow, (batch, sequence).
        rows: Logit rows that exist at one time.
    """
    output = model.model(input_ids=tokens, output_router_logits=True, use_cache=False)
    hidden, weight = output.last_hidden_state.flatten(0, 1), model.lm_head.weight
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    cross_entropy: Tensor = ChunkedCrossEntropy.apply(hidden, weight, targets.flatten(), rows)  # type: ignore[no-untyped-call]
    balance = torch.stack([load_balance(logits, model.config.num_experts_per_tok) for logits in output.router_logits])
    return cross_entropy, balance.sum()


def load_balance(router_logits: Tensor, experts_per_token: int) -> Tensor:
    """Return E times the sum over experts of (share of assignments) x (mean gate probability).

    It is 1 for even loads (Fedus et al., Switch Transformers, arXiv 2101.03961). It is
    taken per block, because the sum over blocks that transformers offers lets loads be
    uneven in every block as long as they are even on average.
    """
    probs = router_logits.float().softmax(-1)
    chosen = probs.topk(experts_per_token, dim=-1).indices
    share = torch.bincount(chosen.flatten(), minlength=probs.shape[-1]) / chosen.numel()
    return probs.shape[-1] * (share * probs.mean(0)).sum()


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of a linear layer's logits, a few rows at a time.

    The logits of a whole batch are the largest arrays of a small model. Rows that fit
    in the cache, with the gradient taken at once, are several times faster on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
        """Return the loss; keep the gradients of ``hidden`` (T, H) and ``weight`` (V, H)."""
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, len(targets), rows):
            part, target = hidden[start : start + rows], targets[start : start + rows, None]
            logits = (part @ weight.T).float()
            logits -= logits.amax(1, keepdim=True)
            picked = logits.gather(1, target)
            norm = logits.exp_().sum(1, keepdim=True)
            total += (norm.log() - picked).sum()
            logits.mul_(1 / (norm * len(targets)))
            logits.scatter_add_(1, target, torch.full_like(norm, -1 / len(targets)))
            grad_logits = logits.to(hidden.dtype)
            grad_hidden[start : start + rows] = grad_logits @ weight
            grad_weight += grad_logits.T @ part
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total / len(targets)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Scale the kept gradients."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0], grad_weight * grads[0], None, None


def slices_experts(experts: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Run every expert on its tokens: sort the (token, expert) pairs once, then one slice an expert.

    Args:
        experts: The fused experts of a Mixtral block.
        hidden: (T, H).
        top_k_index: (T, k).
        top_k_weights: (T, k).
    """
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    flat = top_k_index.flatten()
    order = flat.argsort(stable=True)
    token = order // top_k_index.shape[1]
    counts = torch.bincount(flat, minlength=len(experts.gate_up_proj)).tolist()
    outputs = []
    for expert, part in enumerate(torch.split(hidden.index_select(0, token), counts)):
        gate, up = functional.linear(part, experts.gate_up_proj[expert]).chunk(2, dim=-1)
        outputs.append(functional.linear(functional.silu(gate) * up, experts.down_proj[expert]))
    weighted = torch.cat(outputs) * top_k_weights.flatten()[order, None]
    return torch.zeros_like(hidden, dtype=weighted.dtype).index_add(0, token, weighted)


def causal_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attend to earlier positions of unpadded windows, entirely in the input's precision.

    The scores of a short window are small, and this is about twice as fast on a CPU as
    ``scaled_dot_product_attention`` with its gradient. Shapes: (batch, heads, sequence, width).
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    future = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).triu(1)
    scores = (query * scaling @ key.transpose(-1, -2)).masked_fill_(future, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2), None

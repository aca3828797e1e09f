"""Gate scores and combination weights of any architecture.

Architectures differ in the score of an expert (softmax, sigmoid, ...), in whether the chosen scores are
renormalised, and in a final scale. One rule covers them: with the score s and the sum W of the model's own
weights of a token, a selection q is weighted by

    w' = s q / sum(s q) x W

(design section 6), and where q is the model's own choice its own weights are used verbatim.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

GateScore = Callable[[Tensor], Tensor]


def _softmax(logits: Tensor) -> Tensor:
    # Over the first axis torch works on many tokens at once: 6 us in place of 39 for 256 tokens of 8 experts.
    return logits.T.softmax(dim=0).T.contiguous()


def _sqrt_softplus(logits: Tensor) -> Tensor:
    return functional.softplus(logits).sqrt()


def _identity(probs: Tensor) -> Tensor:
    return probs  # some routers hand out probabilities in place of logits


GATE_SCORES: dict[str, GateScore] = {
    "softmax": _softmax,
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": _sqrt_softplus,
    "probabilities": _identity,
}

_LARGEST_MISFIT = 0.01  # above what rounding to bfloat16 brings, below any other rule


@dataclass(frozen=True, eq=False)
class RelaxedSelection:
    """A selection that a gradient is wanted for.

    Attributes:
        values: (T, E) float; above 1/2 stands for chosen.
        candidates: (T, E) bool, pairs that might have been chosen: their experts run too, so that the gradient can say
            what each would have brought.
        usable: (T, E) bool, experts that are there; ``None`` is all.
    """

    values: Tensor
    candidates: Tensor
    usable: Tensor | None = None


class OwnRouting(NamedTuple):
    """The model's own routing in one block.

    Attributes:
        top_k_index: (T, k) chosen experts.
        top_k_weights: (T, k) their weights.
        num_experts: E.
    """

    top_k_index: Tensor
    top_k_weights: Tensor
    num_experts: int

    def routed(self) -> Tensor:
        """The own choice as a (T, E) bool matrix."""
        mask = self.top_k_index.new_zeros((len(self.top_k_index), self.num_experts), dtype=torch.bool)
        return mask.scatter_(1, self.top_k_index, True)

    def weights(self) -> Tensor:
        """The own weights as a (T, E) matrix, zero where not chosen."""
        dense = self.top_k_weights.new_zeros((len(self.top_k_index), self.num_experts))
        # Adding, because a router that reads its choice from a table may name an expert twice.
        return dense.scatter_add_(1, self.top_k_index, self.top_k_weights)


def combination_weights(own: OwnRouting, gate_probs: Tensor, selection: Tensor) -> Tensor:
    """Weights (T, E) of the outputs of a selection; see the module's docstring.

    Args:
        own: the model's own routing.
        gate_probs: (T, E) scores s of all experts.
        selection: (T, E) bool q.
    """
    own_weights = own.weights()
    scores = gate_probs * selection
    total = scores.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    rescaled = scores / total * own_weights.sum(dim=-1, keepdim=True)
    unchanged = (selection == own.routed()).all(dim=-1, keepdim=True)
    return torch.where(unchanged, own_weights, rescaled.to(own_weights.dtype))


def relaxed_weights(own: OwnRouting, gate_probs: Tensor, values: Tensor, usable: Tensor | None = None) -> Tensor:
    """``combination_weights`` (T, E) of the selection that ``values`` stand for, with a gradient.

    The derivative by a value is the difference that its pair makes, chosen against not, the others being as they are:
    the weights are not linear in a selection, and their slope at either end is wrong by up to the ratio of two scores.
    A token without any expert has its most probable one, as in the environment.

    Args:
        own: the model's own routing.
        gate_probs: (T, E) scores s of all experts.
        values: (T, E) 0 or 1, with a gradient.
        usable: (T, E) bool, experts that are there; ``None`` is all. A token whose experts are all away has no weight.
    """
    chosen = values.detach() > 0.5
    pair = torch.eye(values.shape[-1], dtype=torch.bool, device=values.device)
    scored = gate_probs if usable is None else gate_probs.where(usable, -1.0)
    best = functional.one_hot(scored.argmax(dim=-1), values.shape[-1]).bool()[:, None]
    best = best if usable is None else best & usable[:, None]
    least = torch.finfo(gate_probs.dtype).tiny
    total = own.weights().sum(dim=-1)[:, None, None]

    def mended(selection: Tensor) -> Tensor:
        return selection | best & ~selection.any(dim=-1, keepdim=True)

    def weights(selection: Tensor) -> Tensor:
        scores = gate_probs[:, None] * mended(selection)
        return scores / scores.sum(dim=-1, keepdim=True).clamp_min(least) * total

    difference = weights(chosen[:, None] | pair) - weights(chosen[:, None] & ~pair)
    change = ((values - values.detach())[..., None] * difference).sum(dim=1)
    forward = combination_weights(own, gate_probs, mended(chosen[:, None])[:, 0])
    return forward + change.to(forward.dtype)


def fit_gate_score(samples: Sequence[tuple[Tensor, OwnRouting]]) -> GateScore:
    """The score to which the model's own weights are proportional, found by looking at some tokens.

    The first of ``GATE_SCORES`` wins a tie. So a model that sends each token to one expert with weight 1, whose
    weights fit every score, counts as softmax. Where none fits, as with PhiMoE's two masked softmaxes, softmax is
    taken with a warning; the model's own choice keeps its own weights in any case.

    Args:
        samples: per block the router's logits (T, E) float32 and the own routing of the same tokens.
    """
    misfits = [mean(_misfit(score, *sample) for sample in samples) for score in GATE_SCORES.values()]
    best = min(misfits)
    if best > _LARGEST_MISFIT:
        warnings.warn("the gate weights follow no known score; other selections are weighted by softmax", stacklevel=2)
        return _softmax
    return list(GATE_SCORES.values())[misfits.index(best)]


def _misfit(score: GateScore, logits: Tensor, own: OwnRouting) -> float:
    """Mean distance between the own weights and the chosen scores, both normalised per token."""
    weights = own.top_k_weights.float()
    chosen = score(logits).gather(1, own.top_k_index)
    distance = weights / weights.sum(dim=-1, keepdim=True) - chosen / chosen.sum(dim=-1, keepdim=True)
    return float(distance.abs().nan_to_num(nan=1.0).mean())

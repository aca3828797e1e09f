"""What it costs to take experts away from the tokens that were routed to them, or to send tokens to wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.statistics import Interval, PairedBootstrap
from eval.suite import plan_items
from train.language_model.held_out import HeldOut, token_losses
from train.language_model.packed_suite import right_items
from wdmoe_env.moe.hook import BlockInput, ExpertChooser
from wdmoe_env.moe.runner import run_experts
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.text.suite import SuiteWindows

Items = NDArray[np.int64]

SENSITIVITY_ITEMS = 1000

OWN = "own routing"
DROPPED = "second expert dropped"
WRONG = "a wrong expert answers with the second's weight"
WRONG_RENORMALISED = "a wrong expert in the second's place, weights renormalised"


def first_expert(block: BlockInput) -> Tensor:
    """Each token's most probable expert alone; the environment gives it the whole weight."""
    return one_hot(block.gate_probs.masked_fill(~block.routed, -1))


def first_expert_in(number: int) -> ExpertChooser:
    """``first_expert`` in one block, own routing in the others."""
    return lambda block: first_expert(block) if block.index == number else None


def first_and_wrong(generator: torch.Generator) -> ExpertChooser:
    """The most probable expert and a random one that was not routed, weighted by their gate probabilities."""
    return lambda block: first_expert(block) | unrouted_expert(block.routed, generator)


def wrong_runner(generator: torch.Generator) -> Callable[..., Tensor]:
    """An expert runner in which a random expert that was not routed answers with the weight of the second."""

    def run(experts: object, hidden_states: Tensor, selection: Tensor, weights: Tensor) -> Tensor:
        first = one_hot(weights.masked_fill(~selection, -1))
        wrong = unrouted_expert(selection, generator)
        second_weight = (weights * (selection & ~first)).sum(dim=-1, keepdim=True)
        return run_experts(experts, hidden_states, first | wrong, weights * first + second_weight * wrong)

    return run


def one_hot(scores: Tensor) -> Tensor:
    """The largest of each row of scores (T, E), as bool."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.argmax(dim=-1, keepdim=True), True)


def unrouted_expert(routed: Tensor, generator: torch.Generator) -> Tensor:
    """One of the other experts of each row of routed (T, E), evenly drawn, as bool."""
    return one_hot(torch.rand(routed.shape, generator=generator).to(routed.device).masked_fill(routed, -1))


@dataclass(frozen=True)
class Effect:
    """What a change of the routing does, against another routing on the same tokens and items.

    Attributes:
        change: What is changed.
        against: What it is compared with.
        nats: Added loss per held-out token; the bootstrap draws windows.
        points: Added accuracy on the suite, in points of 100; the bootstrap draws items.
    """

    change: str
    against: str
    nats: Interval
    points: Interval


@dataclass(frozen=True)
class Outcome:
    """What a routing gives.

    Attributes:
        nats: (windows,) summed over each window.
        right: (M,) whether each item is answered.
    """

    nats: NDArray[np.float64]
    right: NDArray[np.bool_]


class Bench:
    """Runs changed routings on the same held-out windows and items, and compares them.

    Args:
        text: The windows.
        suite: The suite.
        seed: Of the draw of items and of the resamples.
    """

    def __init__(self, text: HeldOut, suite: SuiteWindows, seed: int = 0) -> None:
        self.text, self.suite = text, suite
        self.all_items = np.arange(len(suite.items))
        self.some_items, _ = plan_items(suite.items, min(SENSITIVITY_ITEMS, len(suite.items)), seed)
        self._tokens = text.real.sum(axis=1).astype(np.float64)
        generator = np.random.default_rng(seed)
        self._windows = PairedBootstrap(len(self._tokens), generator)
        self._items = {
            len(items): PairedBootstrap(len(items), generator) for items in (self.all_items, self.some_items)
        }

    def outcome(
        self, model: SplitModel, policy: ExpertChooser | None, label: str, items: Items | None = None
    ) -> Outcome:
        """Run the windows, and all items or those given."""
        items = self.all_items if items is None else items
        nats = token_losses(model, self.text, policy, label).sum(axis=1)
        return Outcome(nats, right_items(model, self.suite, items, policy, label))

    def effect(self, change: str, changed: Outcome, against: str, other: Outcome) -> Effect:
        """Compare two outcomes on the same items."""
        gained = 100.0 * (changed.right.astype(np.float64) - other.right)
        return Effect(
            change,
            against,
            self._windows.ratio_of_means(changed.nats - other.nats, self._tokens),
            self._items[len(gained)].mean(gained),
        )


def ablate(
    bench: Bench, model: SplitModel, answering_wrongly: SplitModel, own: Outcome, dropped: Outcome
) -> list[Effect]:
    """Compare dropping the second expert with putting a wrong one in its place.

    Args:
        bench: Where to run.
        model: The split model.
        answering_wrongly: The same weights with ``wrong_runner``.
        own: What own routing gives.
        dropped: What ``first_expert`` gives.
    """
    wrong = bench.outcome(answering_wrongly, None, WRONG)
    renormalised = bench.outcome(model, first_and_wrong(torch.Generator().manual_seed(0)), WRONG_RENORMALISED)
    return [
        bench.effect(DROPPED, dropped, OWN, own),
        bench.effect(WRONG, wrong, OWN, own),
        bench.effect(WRONG_RENORMALISED, renormalised, OWN, own),
        bench.effect(WRONG, wrong, DROPPED, dropped),
        bench.effect(WRONG_RENORMALISED, renormalised, DROPPED, dropped),
    ]


def sensitivity(bench: Bench, model: SplitModel, own: Outcome) -> list[Effect]:
    """Drop the second expert in one block at a time; the suite is sampled."""
    own = Outcome(own.nats, own.right[bench.some_items])
    effects = []
    for block in range(model.num_blocks):
        name = f"{DROPPED} in block {block}"
        outcome = bench.outcome(model, first_expert_in(block), name, bench.some_items)
        effects.append(bench.effect(name, outcome, OWN, own))
    return effects

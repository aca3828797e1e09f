"""What the network looks at: an observation, the pairs to decide on, and what a draft of the decision costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wdmoe_env.observations import decode_observation
from wdmoe_env.physics.latency import reading_s, sum_over_tokens
from wdmoe_env.policies.columns import (
    BEST,
    Columns,
    columns_of_devices,
    columns_of_devices_in,
    columns_of_pairs,
    columns_of_pairs_in,
    columns_of_serving,
    work_ms,
)
from wdmoe_env.policies.draft import Draft, balanced_shares, first_drafts, priced
from wdmoe_env.policies.pairs import Pairs

ObservationTensors = dict[str, Tensor]

ALONE = (0.0, 1.0, 0.0, 0.0)
"""The queue that a policy of a serving cell sees where there is none: one request, which runs."""


@dataclass(frozen=True, slots=True)
class Features:
    """What is known of an observation, given a draft of the selection.

    Attributes:
        observation: entries (N, ...).
        candidates: (N, J, E) bool, pairs that the actor decides on, M in all.
        best: (N, J, E) bool, each token's most probable expert, which is used where no other is.
        pairs: the candidates as a list.
        own: prices at the model's own routing.
        draft: prices at the draft.
        pair_columns: those that the draft does not change.
        device_columns: likewise, before and behind the draft's.
    """

    observation: ObservationTensors
    candidates: Tensor
    best: Tensor
    pairs: Pairs
    own: Draft
    draft: Draft
    pair_columns: Columns
    device_columns: tuple[Columns, Columns]

    @classmethod
    def of(cls, observation: ObservationTensors, extra_experts: int = 0) -> Self:
        """Features at the first draft, near the best weight-to-latency ratio.

        Args:
            observation: entries (N, ...).
            extra_experts: of each token, so many of its most probable experts beside its routed ones are candidates.
        """
        probs, routed = observation["gate_probs"], observation["routed"]
        chosen = routed > 0.5
        best = chosen & torch.zeros_like(chosen).scatter(-1, (probs * routed).argmax(-1, keepdim=True), True)
        block = decode_observation({name: value.cpu().numpy() for name, value in observation.items()})
        usable = torch.from_numpy(block.usable).to(chosen.device)
        others = probs * (1 - routed) * usable
        candidates = (chosen | _most_probable(others, extra_experts) if extra_experts else chosen) & usable
        pairs = Pairs.of(block, candidates.cpu().numpy())
        own, first = first_drafts(pairs)
        pair_columns = columns_of_pairs(pairs, best.cpu().numpy(), own) + columns_of_pairs_in(pairs, first)
        before, behind = columns_of_devices(pairs, own)
        before += columns_of_devices_in(pairs, own, first)
        return cls(observation, candidates, best, pairs, own, first, pair_columns, (before, behind))

    def redrafted(self, used: Tensor) -> Self:
        """Features at a draft of one's own, (M,) from 0 to 1; a token's best expert makes up for what is short of 1."""
        own = used.detach().cpu().numpy().astype(np.float64)
        short = np.maximum(1.0 - self.pairs.of_token(own), 0.0)
        return replace(self, draft=priced(self.pairs, np.maximum(own, self.pair_columns[BEST] * short)))

    def of_pairs(self) -> Tensor:
        """(M, PAIR_FEATURES): the token, its weights, the expert's price, and one against the other."""
        return self._stacked([*self.pair_columns, *columns_of_pairs_in(self.pairs, self.draft)])

    def of_devices(self) -> Tensor:
        """(N, U, DEVICE_FEATURES): what a device is asked for by the own routing and the drafts, and at what price."""
        before, behind = self.device_columns
        return self._stacked([*before, *columns_of_devices_in(self.pairs, self.own, self.draft), *behind])

    def of_serving(self, count: int) -> Tensor:
        """(M, count): the first columns of the queue, the row's phase, and sizes; see ``columns_of_serving``."""
        rows = self.candidates.shape[:2]
        queue = self.observation.get("queue", torch.tensor(ALONE).expand(rows[0], -1)).cpu().numpy()
        phase = self.observation.get("row_phase", torch.zeros(rows)).cpu().numpy()
        return self._stacked(columns_of_serving(self.pairs, self.own, queue, phase)[:count])

    def work_ms(self) -> Tensor:
        """(N, U) latency of each device under the model's own routing at equal shares."""
        return self._tensor(work_ms(self.pairs, self.own).astype(np.float32))

    def reading_ms(self, selection: Tensor) -> Tensor | float:
        """(N, U) what reading weights takes beyond computing under a selection (N, J, E); 0 where none are read."""
        links = self.pairs.block.links
        if links.weights_s is None:
            return 0.0
        reading = reading_s(links, sum_over_tokens(selection.cpu().numpy() > 0.5))
        return self._tensor((1e3 * reading).astype(np.float32))

    def balanced_shares(self, selection: Tensor) -> Tensor:
        """(N, U) shares near the optimum for a selection (N, J, E)."""
        return self._tensor(balanced_shares(self.pairs.block, selection.cpu().numpy() > 0.5).astype(np.float32))

    @property
    def num_rows(self) -> int:
        """J."""
        return self.candidates.shape[1]

    @property
    def num_tokens(self) -> int:
        """N x J, padding included."""
        return self.candidates.shape[0] * self.candidates.shape[1]

    @property
    def token(self) -> Tensor:
        """(M,) into (N, J), the token of each pair."""
        return self._tensor(self.pairs.token)

    def at_device(self, values: Tensor) -> Tensor:
        """(M, F) of values (N, U, F) of the devices."""
        return values.flatten(0, 1).index_select(0, self._tensor(self.pairs.device))

    def at(self, values: Tensor) -> Tensor:
        """(M,) of values (N, J, E)."""
        return values.flatten().index_select(0, self._tensor(self.pairs.index))

    def spread(self, values: Tensor) -> Tensor:
        """(N, J, E) with values (M,) at the candidates, 0 elsewhere."""
        empty = values.new_zeros(self.candidates.numel())
        return empty.index_copy(0, self._tensor(self.pairs.index), values).view_as(self.candidates)

    def per_episode(self, values: Tensor) -> Tensor:
        """(N, ...) sums of values (M, ...)."""
        empty = values.new_zeros(len(self.candidates), *values.shape[1:])
        return empty.index_add(0, self._tensor(self.pairs.episode), values)

    def _stacked(self, columns: Columns) -> Tensor:
        return self._tensor(np.stack(columns, axis=-1, dtype=np.float32))

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self.best.device)


def _most_probable(probs: Tensor, count: int) -> Tensor:
    """Marks (N, J, E) the ``count`` largest probabilities of each token."""
    index = probs.topk(min(count, probs.shape[-1]), dim=-1).indices
    return torch.zeros_like(probs).scatter(-1, index, 1.0) > 0.5

"""What the network looks at as plain tensors, so that a learner can keep those of many passes and join them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from wdmoe_env.policies.features import Features, ObservationTensors


@dataclass(frozen=True, slots=True)
class HiddenRows:
    """Hidden states of tokens at one block, and pairs of these tokens.

    Attributes:
        block: number of the block.
        hidden: (T, H) of the tokens that have a pair.
        token: (M,) into (T,).
        expert: (M,) number of each pair's expert.
    """

    block: int
    hidden: Tensor
    token: Tensor
    expert: Tensor


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the network looks at, of M pairs in N blocks of one number.

    Attributes:
        num_rows: J.
        pairs: (M, F) figures of each pair.
        devices: (N, U, D) figures of each device.
        device: (M,) into (N, U).
        token: (M,) into (N, J).
        serving: (M, S) of the queue; S is 0 where the network sees none.
        rows: what the reader of hidden states reads, where there is one.
    """

    num_rows: int
    pairs: Tensor
    devices: Tensor
    device: Tensor
    token: Tensor
    serving: Tensor
    rows: HiddenRows | None

    @classmethod
    def of(cls, seen: Features, serving_features: int, num_blocks: int | None) -> Self:
        """Inputs of features.

        Args:
            seen: of N blocks of one number.
            serving_features: S.
            num_blocks: I of the reader of hidden states; ``None`` where there is none.
        """
        rows = None
        if num_blocks is not None:
            ((_, rows),) = hidden_rows(seen.observation, seen.candidates, num_blocks)
        pairs, devices = seen.of_pairs(), seen.of_devices()
        serving = seen.of_serving(serving_features) if serving_features else pairs[:, :0]
        return cls(seen.num_rows, pairs, devices, torch.from_numpy(seen.pairs.device), seen.token, serving, rows)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Inputs of one number of a block, one behind the other."""
        devices, tokens, hidden = 0, 0, 0
        device, token, places = [], [], []
        for part in parts:
            device.append(part.device + devices)
            token.append(part.token + tokens)
            devices += part.devices.shape[0] * part.devices.shape[1]
            tokens += part.num_tokens
            if part.rows is not None:
                places.append(part.rows.token + hidden)
                hidden += len(part.rows.hidden)
        read = [part.rows for part in parts if part.rows is not None]
        rows = None
        if read:
            states, experts = torch.cat([one.hidden for one in read]), torch.cat([one.expert for one in read])
            rows = HiddenRows(read[0].block, states, torch.cat(places), experts)
        pairs, whole_devices, serving = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("pairs", "devices", "serving")
        )
        return cls(parts[0].num_rows, pairs, whole_devices, torch.cat(device), torch.cat(token), serving, rows)

    @property
    def num_tokens(self) -> int:
        """N x J, padding included."""
        return self.devices.shape[0] * self.num_rows

    def of_pairs(self) -> Tensor:
        """(M, F)."""
        return self.pairs

    def of_devices(self) -> Tensor:
        """(N, U, D)."""
        return self.devices

    def of_serving(self, count: int) -> Tensor:
        """(M, count)."""
        return self.serving[:, :count]

    def at_device(self, values: Tensor) -> Tensor:
        """(M, F) of values (N, U, F) of the devices."""
        return values.flatten(0, 1).index_select(0, self.device)


def hidden_rows(
    observation: ObservationTensors, candidates: Tensor, num_blocks: int
) -> Iterator[tuple[Tensor, HiddenRows]]:
    """For each number of a block among N blocks: which of the M pairs are there, and what there is to read.

    Args:
        observation: entries (N, ...), with hidden states.
        candidates: (N, J, E) bool, M pairs in the order of ``nonzero``.
        num_blocks: I.
    """
    block = (observation["block"][:, 0] * num_blocks).round().long().clamp_max(num_blocks - 1)
    episode, token, expert = candidates.nonzero(as_tuple=True)
    flat, hidden = episode * candidates.shape[1] + token, observation["hidden_states"].flatten(0, 1)
    for index in sorted(set(block.tolist())):
        pairs = (block == index)[episode].nonzero()[:, 0]
        tokens, place = torch.unique_consecutive(flat[pairs], return_inverse=True)
        yield pairs, HiddenRows(index, hidden[tokens], place, expert[pairs])

"""Placements of the experts under limits of memory: greedy plus exchange, and two simpler ones to set beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from wdmoe_env.deploy.problem import PlacementProblem, Table
from wdmoe_env.physics.latency import Bool

LEAST_GAIN = 1e-9
MOST_ROUNDS = 10
Progress = Callable[[int], object]
"""Told how many experts have been looked at since it was last called."""


def in_order(problem: PlacementProblem) -> Table | None:
    """The default: experts spread evenly in the order of their numbers; ``None`` where that does not fit."""
    blocks, _, _, experts = problem.routed.shape
    row = np.arange(experts) * problem.num_devices // experts
    table = np.broadcast_to(row, (blocks, experts))
    return table if (_held(table, problem) <= problem.capacity).all() else None


def round_robin(problem: PlacementProblem) -> Table:
    """Load-balanced round robin: experts by popularity are dealt out in turns, forth and back, whatever the device."""
    return _dealt(problem, np.arange(problem.num_devices), even=True)


def popularity_first(problem: PlacementProblem) -> Table:
    """Popularity greedy: the most popular experts go to the fastest device until it has its part, and so on."""
    time_s = problem.compute_s if problem.weights_s is None else np.maximum(problem.compute_s, problem.weights_s)
    return _dealt(problem, np.argsort(time_s, kind="stable"), even=False)


def greedy(problem: PlacementProblem, progress: Progress = lambda seen: None) -> Table:
    """By popularity, each expert to the device with room on which it raises the expected latency least.

    Args:
        problem: routing and devices.
        progress: told of each expert.
    """
    blocks, _, _, experts = problem.routed.shape
    table, placed = np.zeros((blocks, experts), dtype=np.int64), np.zeros((blocks, experts), dtype=bool)
    room, devices = problem.capacity.copy(), np.arange(problem.num_devices)
    for number in np.argsort(-problem.popularity.ravel(), kind="stable"):
        block, expert = divmod(int(number), experts)
        left = int((~placed).sum())
        idle = room == problem.capacity
        # The last experts go to the devices that have none yet.
        allowed = devices[(room > 0) & (idle if idle.sum() >= left else True)]
        placed[block, expert] = True
        tries = np.repeat(table[block][None], len(allowed), axis=0)
        tries[:, expert] = allowed
        best = allowed[problem.block_latency_s(block, tries, placed[block]).argmin()]
        table[block, expert] = best
        room[best] -= 1
        progress(1)
    return table


def exchange(problem: PlacementProblem, table: Table, progress: Progress = lambda seen: None) -> Table:
    """Move an expert to a device with room, or let two change places, while that lowers the expected latency.

    Args:
        problem: routing and devices.
        table: (I, E) to begin with; it fits.
        progress: told of each expert.

    Returns:
        (I, E); no single move and no exchange of two experts of a block lowers its latency by more than a billionth,
        or ``MOST_ROUNDS`` rounds over all experts have been made.
    """
    table = table.copy()
    now = np.array([problem.block_latency_s(block, row[None])[0] for block, row in enumerate(table)])
    for _ in range(MOST_ROUNDS):
        better = False
        for block, expert in np.ndindex(table.shape):
            tries = np.array(list(_neighbours(problem, table, block, expert)))
            progress(1)
            if not len(tries):
                continue
            latency = problem.block_latency_s(block, tries)
            if latency.min() < now[block] * (1.0 - LEAST_GAIN):
                table[block], now[block], better = tries[latency.argmin()], latency.min(), True
        if not better:
            break
    return table


def _neighbours(problem: PlacementProblem, table: Table, block: int, expert: int) -> Iterator[Table]:
    """Rows (E,) in which one expert of a block is elsewhere."""
    row, held = table[block], _held(table, problem)
    here = row[expert]
    if held[here] > 1:
        for device in np.flatnonzero(held < problem.capacity):
            if device != here:
                moved = row.copy()
                moved[expert] = device
                yield moved
    for other in np.flatnonzero(row != here):
        if other > expert:  # the same two come again in the other order
            changed = row.copy()
            changed[[expert, other]] = row[[other, expert]]
            yield changed


def _held(table: Table, problem: PlacementProblem) -> Table:
    """Experts of all blocks that each device holds, (U,)."""
    return np.bincount(table.ravel(), minlength=problem.num_devices)


def _dealt(problem: PlacementProblem, order: Table, even: bool) -> Table:
    """Experts by popularity, dealt to the devices in some order (U,): in turns, or part by part; no more than fit.

    Where memory is short, an expert goes to the next device of the order that has room.
    """
    blocks, _, _, experts = problem.routed.shape
    room, table = problem.capacity.copy(), np.zeros((blocks, experts), dtype=np.int64)
    devices = len(order)
    for block, popularity in enumerate(problem.popularity):
        for rank, expert in enumerate(np.argsort(-popularity, kind="stable")):
            turn, seat = divmod(rank, devices)
            place = (seat if turn % 2 == 0 else devices - 1 - seat) if even else rank * devices // experts
            there = np.roll(order, -place)
            table[block, expert] = device = there[_with_room(room[there])]
            room[device] -= 1
    return table


def _with_room(room: Table) -> int:
    """The first device (U,) that has room."""
    found: Bool = room > 0
    return int(found.argmax())

"""Batches run to their end, here and in a forked child."""

from __future__ import annotations

import multiprocessing

from wdmoe_env.moe.lockstep import LockStep


def run_to_the_end(model, batch):
    """Scores of a whole batch, token ids, mask and targets, under the model's own routing."""
    passes = LockStep(model, *batch)
    while passes.blocks:
        passes.resume(None)
    return passes.scores()


def exit_code_of_fork(function, *args):
    """Exit code of a forked child that calls a function, ``None`` if it has not ended within a minute."""
    child = multiprocessing.get_context("fork").Process(target=function, args=args)
    child.start()
    child.join(timeout=60)
    return child.exitcode

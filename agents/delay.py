"""What a millisecond of a block costs where requests wait: how many of them it delays.

A cell serves without rest while anybody is there. So a block that takes a little longer delays the end of every request
that ends after it, until the cell is next empty and its clock jumps to an arrival: the sum of all times in the system
grows by the number of these requests, each by the same time. That is the derivative of what came about, exactly, with
arrivals and the passes that requests take part in as they were (infinitesimal perturbation analysis, Ho and Cao 1983).
It leaves out that a later end may let an arrival into an earlier pass.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.physics.latency import Float


def requests_behind(begin_s: Float, end_s: Float, finish_s: Float) -> NDArray[np.int64]:
    """Requests (P,) that end with a pass or after it, before the cell is next empty.

    Args:
        begin_s: (P,) clock at the beginning of each pass of a cell.
        end_s: (P,) clock at its end.
        finish_s: (R,) clock when each request ended: that of the end of a pass.
    """
    empty = np.append(begin_s[1:] > end_s[:-1], True)  # behind these passes the clock jumps, or nothing comes
    last = np.flatnonzero(empty)
    until_s = end_s[last[np.searchsorted(last, np.arange(len(end_s)))]]
    order = np.sort(finish_s)
    return np.searchsorted(order, until_s, side="right") - np.searchsorted(order, end_s, side="left")


def expected_behind(queue: Float, to_come: Float, behind: Float) -> Float:
    """The same as the queue foretells it (n,), by least squares over n passes: without the chance of later arrivals.

    Args:
        queue: (n, 4) of the observation when the pass began.
        to_come: (n,) requests that had not arrived then.
        behind: (n,) what came about.
    """
    here = queue[:, 0] + queue[:, 1]
    columns = np.stack([np.ones_like(here), here, queue[:, 0], to_come, here * to_come], axis=-1)
    found, *_ = np.linalg.lstsq(columns, behind, rcond=None)
    return np.maximum(columns @ found, 1.0)

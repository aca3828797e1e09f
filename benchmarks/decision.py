"""Time that a policy takes to decide one block of one episode, beside the paper's rule with SciPy's SLSQP in it."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np

from benchmarks.reference import slsqp_shares
from benchmarks.table import Row, Settings
from benchmarks.timing import Timed, clocked, in_turn
from wdmoe_env.optimize.bandwidth import BandwidthSolution
from wdmoe_env.optimize.validate import check_links
from wdmoe_env.physics.latency import BlockLinks, Load, block_latency_s, device_latency_s
from wdmoe_env.policies import make_policy, trained_names
from wdmoe_env.policies.features import ALONE

RULES = ("vanilla", "vanilla-optimal", "wdmoe:0.9", "wdmoe", "marginal-price", "fractional")
SECTION = "decision, one block, N = 1"
PAPERS = "wdmoe:0.9 by SLSQP"


def rows(settings: Settings) -> list[Row]:
    """Milliseconds of ``predict``, and the trained policies' over those of the paper's rule with SLSQP."""
    env = gym.make("wdmoe_env:WDMoE-v0", split="test", observe_hidden_states=True).unwrapped
    observation, _ = env.reset(seed=0)
    # The queue of a request that is alone, which some look at.
    observation |= {"queue": np.array(ALONE, np.float32), "row_phase": np.zeros(len(observation["token_mask"]))}
    policies = {name: make_policy(name, env) for name in (*RULES, *trained_names())}
    timed: dict[str, Timed] = {name: clocked(partial(policy.predict, observation)) for name, policy in policies.items()}
    paper = make_policy("wdmoe:0.9", env)

    def with_slsqp() -> None:
        with patch("wdmoe_env.optimize.problem.solve_min_max", slsqp_bandwidth):
            paper.predict(observation)

    taken = in_turn(timed | {PAPERS: clocked(with_slsqp)}, settings.seconds(10.0))
    env.close()
    found = [Row(SECTION, name, 1e3 * seconds, "ms") for name, seconds in taken.items()]
    slowest = max((taken[name] for name in trained_names()), default=np.nan)
    return [*found, Row(SECTION, f"slowest trained policy over {PAPERS}", slowest / taken[PAPERS], "", "<= 1")]


def slsqp_bandwidth(links: BlockLinks, load: Load, min_share: float) -> BandwidthSolution:
    """What ``solve_min_max`` gives without a least share, by SLSQP, one instance after the other."""
    batch, _ = check_links(links)
    pairs: list[Any] = [(links.row(n), load.row(n)) for n in range(batch)]
    shares = np.stack([slsqp_shares(*pair) for pair in pairs])
    return BandwidthSolution(shares, block_latency_s(device_latency_s(links, load, shares)))

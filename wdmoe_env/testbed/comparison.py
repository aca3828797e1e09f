"""The same episodes simulated and measured, for several policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from wdmoe_env.config import EnvConfig
from wdmoe_env.evaluation import Episodes, Measurements, Runner, plan_episodes, play
from wdmoe_env.physics.latency import Float
from wdmoe_env.policies.named import named
from wdmoe_env.policies.policy import Policy
from wdmoe_env.testbed.records import BlockRecord
from wdmoe_env.testbed.station import TestbedRunner
from wdmoe_env.vector_env import WDMoEVectorEnv


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """What n episodes came to under one policy.

    Attributes:
        policy: its name.
        simulated_ms: (n, I) latency of each block by the simulator, ms.
        measured_ms: (n, I) by the clock, over the time scale, ms.
        unserved_pairs: (n,) pairs that no device served.
        added_nll: (n,) NLL less that of the own routing, nats per token.
    """

    policy: str
    simulated_ms: Float
    measured_ms: Float
    unserved_pairs: Float
    added_nll: Float


@dataclass(slots=True)
class Comparison:
    """A testbed and the policies that run on it.

    Attributes:
        config: of the environment; its runner is a testbed's.
        policies: their names.
        seed: of episodes and policies.
        records: what became of each block at a pace, in order.
        runner: the base station.

    Raises:
        ValueError, ConnectionError: a policy, a setting or a device is not as it should be.
    """

    config: EnvConfig
    policies: Sequence[str]
    seed: int
    records: list[BlockRecord] = field(init=False, default_factory=list)
    runner: TestbedRunner = field(init=False)
    _runner: Runner = field(init=False)

    def __post_init__(self) -> None:
        """Load the model and the policies, and connect."""
        self._runner = Runner(named(list(self.policies)), self.config, 1, self.seed)
        station = self._runner.environment(1).simulator.runner
        if not isinstance(station, TestbedRunner):
            raise ValueError(f"expected the runner of a testbed, got {self.config.runner!r}")
        self.runner = station
        station.listeners.append(self._keep)

    def run(self, episodes: int, progress: bool = True) -> list[Compared]:
        """Run every policy on the same episodes.

        Args:
            episodes: how many.
            progress: whether to show a bar.
        """
        planned = plan_episodes(episodes, len(self._runner.source.windows), self.seed)
        found = self._runner.run(planned, _blocks, "episode", progress)
        return [
            Compared(policy, values["simulated"], values["measured"], values["unserved_pairs"], values["added_nll"])
            for policy, values in found
        ]

    def close(self) -> None:
        """Let go of the devices."""
        self.runner.listeners.remove(self._keep)
        self._runner.environment(1).close()
        self.runner.close()

    def _keep(self, record: BlockRecord) -> None:
        if record.paced:
            self.records.append(record)


def _blocks(env: WDMoEVectorEnv, policy: Policy, episodes: Episodes) -> Measurements:
    """What both say of each block, and what was lost."""
    blocks, _ = play(env, policy, episodes)
    return {
        "simulated": np.stack([info["simulated_latency_ms"] for info in blocks], axis=1),
        "measured": np.stack([info["block_latency_ms"] for info in blocks], axis=1),
        "unserved_pairs": np.sum([info["unserved_pairs"] for info in blocks], axis=0),
        "added_nll": np.asarray(blocks[-1]["nll"] - blocks[-1]["reference_nll"]),
    }

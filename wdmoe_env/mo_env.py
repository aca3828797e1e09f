"""``WDMoE-MO-v0``: latency and quality as a vector, for multi-objective learners such as those of MO-Gymnasium."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from wdmoe_env.config import EnvConfig
from wdmoe_env.env import WDMoEEnv
from wdmoe_env.observations import Observation
from wdmoe_env.physics.latency import Float
from wdmoe_env.process import Info


class WDMoEMultiObjectiveEnv(WDMoEEnv):
    """``WDMoEEnv`` whose reward is a float64 vector (2,), see there for all else.

    | Index | Each step                             | At the last step also                        | Unit |
    |-------|---------------------------------------|----------------------------------------------|------|
    | 0     | -t / t_vanilla, at most 0             |                                              | -    |
    | 1     | 0                                     | NLL of the model's own routing minus the NLL | nats |

    The weights ``[1, quality_weight]`` give the reward ``"latency_quality"`` of ``WDMoE-v0``.

    With ``energy=True`` there is a third component in every step, minus the energy that a token takes in the block, in
    J; the weights ``[1, quality_weight, energy_weight]`` give ``"latency_quality_energy"``.

    Args:
        config: the configuration or its dict; its reward is not used.
        render_mode: as of ``WDMoEEnv``.
        **keywords: fields of ``EnvConfig`` but ``reward``, ``quality_weight`` and ``energy_weight``.

    Attributes:
        reward_space: where MO-Gymnasium looks for the objectives.

    Raises:
        TypeError: a keyword that weighs the objectives.
    """

    def __init__(
        self,
        config: EnvConfig | Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        **keywords: Any,
    ) -> None:
        weighing = {"reward", "quality_weight", "energy_weight"} & set(keywords)
        if weighing:
            raise TypeError(f"expected no {min(weighing)}: the reward is a vector, which the learner weighs")
        super().__init__(config, render_mode, **keywords)
        most = np.array([0.0, np.inf, 0.0] if self.config.has_energy else [0.0, np.inf])
        self.reward_space = spaces.Box(-np.inf, most, dtype=np.float64)

    def step(self, action: Any) -> tuple[Observation, Float, bool, bool, Info]:  # type: ignore[override]
        """Run the block under an action; see ``WDMoEEnv.step``. The reward is (2,), or (3,) with the energy."""
        observation, _, terminated, truncated, info = super().step(action)
        terms = info["reward_terms"]
        lost = [terms[name] for name in ("latency_ratio", "added_nll", "energy_per_token_j") if name in terms]
        return observation, -np.array(lost), terminated, truncated, info

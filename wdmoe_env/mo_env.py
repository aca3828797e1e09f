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

    Args:
        config: the configuration or its dict; its reward is not used.
        render_mode: as of ``WDMoEEnv``.
        **keywords: fields of ``EnvConfig`` but ``reward`` and ``quality_weight``.

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
        weighing = {"reward", "quality_weight"} & set(keywords)
        if weighing:
            raise TypeError(f"expected no {min(weighing)}: the reward is a vector, which the learner weighs")
        super().__init__(config, render_mode, **keywords)
        self.reward_space = spaces.Box(-np.inf, np.array([0.0, np.inf]), dtype=np.float64)

    def step(self, action: Any) -> tuple[Observation, Float, bool, bool, Info]:  # type: ignore[override]
        """Run the block under an action; see ``WDMoEEnv.step``. The reward is (2,)."""
        observation, _, terminated, truncated, info = super().step(action)
        terms = info["reward_terms"]
        return observation, np.array([-terms["latency_ratio"], -terms["added_nll"]]), terminated, truncated, info

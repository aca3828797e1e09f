"""``WDMoE-Serve-v0``: a cell that serves requests, one episode at a time and natively batched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from wdmoe_env.actions import Decided, rows_of
from wdmoe_env.checks import check_options, check_seed
from wdmoe_env.config import EnvConfig
from wdmoe_env.env import WDMoEEnv, only, single
from wdmoe_env.observations import Observation
from wdmoe_env.process import Info, in_turn
from wdmoe_env.serving.process import ServingProcess, serving_config
from wdmoe_env.serving.rollout import PassRollout
from wdmoe_env.serving.simulator import Episode
from wdmoe_env.vector_env import Cohort, Outcome, WDMoEVectorEnv
from wdmoe_env.vector_info import merge, spread


class WDMoEServeEnv(WDMoEEnv):
    """A cell that serves requests: what a block costs is waited for by all who are in the system.

    Requests arrive, wait in one queue, and take one of S slots. A pass carries the next rows of all running requests:
    a prompt in chunks of at most C tokens, one token of a request that generates. Its J = S x C rows are those of
    ``WDMoEEnv``, whose actions, observations and rules hold here, and row s x C + c is token c of slot s. One step is
    one block of one pass. Time goes on by each block's latency, and the channel with it. A dropped expert stays in the
    cache of its request, and so in all its later tokens.

    Further entries of the observation:

    | Key         | Shape | Meaning                                                                            |
    |-------------|-------|------------------------------------------------------------------------------------|
    | `queue`     | (4,)  | requests that wait; that run; age of the oldest in ms; arrivals in the last second |
    | `row_phase` | (J,)  | 1 where a row is a token of an answer, 0 for a prompt and at padding               |

    Rewards: `"serving"` (default) is -`time_in_system_ms` / `latency_scale_ms` - `quality_weight` x `added_nll`, and
    `"serving_divergence"` has `divergence` in place of `added_nll`, which carries less noise; those of ``WDMoEEnv`` and
    functions of the terms can be had too. Terms are those of a block there, and `time_in_system_ms`, whose sum over an
    episode is the time in the system of all its requests, and `added_nll` and `divergence`, whose sums are those of the
    requests. `divergence` is there under `"serving_divergence"` alone, since the comparison takes time.

    Terminated when all R requests have been served, truncated at ``horizon_s``. Then info holds, one entry a request in
    the order of arrival, `request_e2e_ms`, `request_ttft_ms`, `request_tpot_ms`, `request_queue_ms` and
    `request_added_nll`, (R,), NaN where one did not finish, `request_system_ms` (R,), the time that each was in the
    system, finished or not, and more; see ``wdmoe_env.serving.metrics``.

    Args:
        config: the configuration or its dict.
        render_mode: as of ``WDMoEEnv``.
        **keywords: fields of ``EnvConfig``; ``serving`` holds those of ``ServingConfig``.

    Raises:
        ValueError, TypeError: a setting is wrong.
    """

    _process: ServingProcess
    _rollout: PassRollout | None  # type: ignore[assignment]

    def __init__(
        self,
        config: EnvConfig | Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(config, render_mode, **keywords)
        self._cache = self._process.cache(1)

    def _process_of(self, config: EnvConfig | Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> ServingProcess:
        return ServingProcess(serving_config(config, keywords))

    @in_turn
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Begin an episode.

        Args:
            seed: seeds the environment's generator; ``None`` goes on with it.
            options: none is known.

        Returns:
            The observation of the first block, and info without an entry.

        Raises:
            ValueError, TypeError: an option, or no seed.
            RuntimeError: another thread is in ``reset`` or ``step``.
        """
        check_options(options, ())
        gym.Env.reset(self, seed=check_seed(seed))
        self._end_episode()
        self._rollout = self._begin_pass(self._process.simulator.begin(self.np_random))
        if self.renderer is not None:
            self.renderer.begin(self._rollout)
        return only(self._process.observation(self._rollout)), {}

    def _begin_pass(self, episode: Episode) -> PassRollout:
        return self._process.begin_pass(self._cache, [episode], np.zeros(1, dtype=np.int64))

    def _run_block(self, rollout: PassRollout, decided: Decided) -> tuple[Observation, float, bool, bool, Info]:  # type: ignore[override]
        block = rollout.block
        transition = self._process.step(rollout, decided)
        if self.renderer is not None:
            if rollout.blocks_done == 1:
                self.renderer.begin(rollout)
            self.renderer.add(block, transition.info)
        info, seen = dict(transition.info), rollout
        if transition.ended[0]:
            info.update(self._process.figures(rollout.episodes))
            observation = self._process.last_observation(rollout.episodes)
        else:
            if rollout.done:
                self._rollout = seen = self._begin_pass(rollout.episodes[0])
            observation = self._process.observation(seen)
        ends = bool(transition.terminated[0]), bool(transition.truncated[0])
        return only(observation), float(transition.reward[0]), *ends, single(info)


class WDMoEServeVectorEnv(WDMoEVectorEnv):
    """N cells of one configuration, whose passes run as one batch; see ``WDMoEServeEnv``.

    Cells whose passes begin at the same step share a forward pass. Under ``SAME_STEP`` that is all of them at every
    step. Under the other modes a cell that begins again a step later than the others stays a step behind them, so that
    there are as many batches as blocks of a pass at most.

    Args:
        num_envs: N.
        autoreset_mode: as of ``WDMoEVectorEnv``.
        config: the configuration or its dict.
        render_mode: as of ``WDMoEVectorEnv``.
        max_episode_steps: as of ``WDMoEVectorEnv``.
        **keywords: fields of ``EnvConfig``; ``serving`` holds those of ``ServingConfig``.

    Raises:
        ValueError, TypeError: a setting is wrong.
    """

    _process: ServingProcess

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        config: EnvConfig | Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(num_envs, autoreset_mode, config, render_mode, max_episode_steps, **keywords)
        self._cache = self._process.cache(self.num_envs)
        self._episodes: list[Episode | None] = [None] * self.num_envs
        self._between: list[int] = []
        self._steps = np.zeros(self.num_envs, dtype=np.int64)

    def _process_of(self, config: EnvConfig | Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> ServingProcess:
        return ServingProcess(serving_config(config, keywords))

    def _begin(self, rows: NDArray[np.int64], windows: NDArray[np.int64] | None) -> Info:
        """Start episodes in the cells ``rows``, and passes of all cells that stand between two."""
        if windows is not None:
            raise ValueError("expected no option 'window': requests draw their texts themselves")
        leaving = np.zeros(self.num_envs, dtype=bool)
        leaving[rows] = True
        self._leave(leaving)
        for n in rows:
            self._episodes[n] = self._process.simulator.begin(self._generators[n])
        self._steps[rows] = 0
        self._between += rows.tolist()
        for cohort in self._form():
            if self.renderer is not None:
                self.renderer.begin(cohort.rollout, cohort.rows.tolist())
        return {}

    def _leave(self, leaving: NDArray[np.bool_]) -> None:
        """Take cells (N,) out of the passes that they are in; the others of such a pass run it again up to there."""
        kept = []
        for cohort in self._cohorts:
            stays = ~leaving[cohort.rows]
            if not stays.any():
                cohort.rollout.close()
                continue
            if not stays.all():
                cohort.rollout.keep(stays)  # type: ignore[attr-defined]
                cohort.rows, cohort.live = cohort.rows[stays], cohort.live[stays]
            kept.append(cohort)
        self._cohorts = kept

    def _form(self) -> Sequence[Cohort]:
        """Begin one pass of all cells that stand between two, and write what they see."""
        if not self._between:
            return ()
        rows, self._between = np.unique(np.array(self._between, dtype=np.int64)), []
        episodes = [episode for episode in (self._episodes[n] for n in rows) if episode is not None]
        rollout: Any = self._process.begin_pass(self._cache, episodes, rows)
        cohort = Cohort(rollout, rows, np.ones(len(rows), dtype=bool))
        self._cohorts.append(cohort)
        self._write(rows, self._process.observation(rollout))
        return (cohort,)

    def _run_block(
        self, decided: Decided, waiting: NDArray[np.int64]
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Info]:
        self._between = []  # what an exception left there is lost
        stepped = super()._run_block(decided, waiting)
        if not self._between:
            return stepped
        self._form()
        return self._copied(), *stepped[1:]

    def _step_cohort(self, cohort: Cohort, decided: Decided, outcome: Outcome) -> None:
        """Step the cells of a pass and write what came out; those whose episodes go on stand between two passes."""
        rollout: Any = cohort.rollout
        rows = cohort.rows
        block = rollout.block
        transition = self._process.step(rollout, decided if len(rows) == self.num_envs else rows_of(decided, rows))
        if self.renderer is not None:
            if rollout.blocks_done == 1:
                self.renderer.begin(rollout, rows.tolist())
            self.renderer.add(block, transition.info, int(rows[0]))
        self._steps[rows] += 1
        late = self._steps[rows] >= self._most_steps
        outcome.rewards[rows] = transition.reward
        outcome.terminated[rows] = transition.terminated
        outcome.truncated[rows] = transition.truncated | late
        ended = transition.ended | late
        merge(outcome.info, spread(transition.info, rows, self.num_envs))
        over = [rollout.episodes[n] for n in np.flatnonzero(ended)]
        if over:
            merge(outcome.info, spread(self._process.figures(over), rows[ended], self.num_envs))
        self._go_on(cohort, rollout, ended, over)

    def _go_on(self, cohort: Cohort, rollout: PassRollout, ended: NDArray[np.bool_], over: list[Episode]) -> None:
        """Write what the cells of a stepped pass see, and let those leave whose episodes are over."""
        rows = cohort.rows
        if rollout.done:
            self._drop([cohort])
            self._between += rows[~ended].tolist()
            if over:
                self._write(rows[ended], self._process.last_observation(over))
            return
        self._write(rows, self._process.observation(rollout))
        if over:
            leaving = np.zeros(self.num_envs, dtype=bool)
            leaving[rows[ended]] = True
            self._leave(leaving)

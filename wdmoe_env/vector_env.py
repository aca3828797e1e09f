"""``WDMoE-v0`` natively batched: N windows through one forward pass, one pause per block for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array
from numpy.typing import NDArray

from wdmoe_env.actions import BandwidthPart, Decided, ExpertsPart, rows_of
from wdmoe_env.checks import check_integer, check_options, check_seed, items_of, plain, plain_array, shown
from wdmoe_env.config import EnvConfig
from wdmoe_env.observations import Observation
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.process import DecisionProcess, Info, Observed, Seen, Turn, in_turn, window_config
from wdmoe_env.rendering import BATCH_RENDER_MODES, RENDER_FPS, Picture, Renderer
from wdmoe_env.rollout.rollout import Rollout
from wdmoe_env.vector_info import merge, split_rows, spread


@dataclass(slots=True, eq=False)
class Cohort:
    """Environments whose episodes began together and therefore pause at the same block.

    Attributes:
        rollout: their episodes.
        rows: (n,) the environment of each episode.
        live: (n,) False where the environment has been reset since and left the cohort.
    """

    rollout: Rollout
    rows: NDArray[np.int64]
    live: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a step led to, written row by row.

    Attributes:
        rewards: (N,).
        terminated: (N,) whether the last block has run.
        truncated: (N,) whether ``max_episode_steps`` blocks have run.
        info: in Gymnasium's protocol.
    """

    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    info: Info

    @classmethod
    def empty(cls, num_envs: int) -> Outcome:
        """Of no environment yet."""
        return cls(np.zeros(num_envs), np.zeros(num_envs, dtype=bool), np.zeros(num_envs, dtype=bool), {})


class WDMoEVectorEnv(VectorEnv[Observation, Any, NDArray[Any]]):
    """N environments of one configuration; see ``WDMoEEnv`` for spaces, rewards and info.

    Environment n behaves as a single one with the n-th seed would, up to the rounding of a batched forward pass.

    Args:
        num_envs: N.
        autoreset_mode: ``NEXT_STEP`` (the step after the last one resets and ignores the action),
            ``SAME_STEP`` (the last step resets; ``info["final_obs"]`` and ``info["final_info"]`` hold the end), or
            ``DISABLED`` (call ``reset(options={"reset_mask": mask})``).
        config: the configuration or its dict.
        render_mode: ``None``, ``"rgb_array"`` or ``"ansi"``, see ``render``.
        max_episode_steps: episodes are truncated after so many steps, as by ``gym.make``; ``None`` and -1 set no limit.
        **keywords: fields of ``EnvConfig``.

    Raises:
        ValueError: ``num_envs`` below 1, an unknown mode, or a limit or a field out of its range.
        TypeError: an unknown keyword; the message names the nearest fields.
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        config: EnvConfig | Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **keywords: Any,
    ) -> None:
        self._cohorts: list[Cohort] = []  # first: older Gymnasiums close what could not be made too
        self.num_envs = check_integer("num_envs", num_envs, at_least=1)
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata: dict[str, Any] = {
            "render_modes": list(BATCH_RENDER_MODES),
            "render_fps": RENDER_FPS,
            "autoreset_mode": self.autoreset_mode,
        }
        self.render_mode = render_mode
        self.renderer = None if render_mode is None else _renderer(render_mode, self.num_envs)
        self._most_steps = _most_steps(max_episode_steps)
        self._process = self._process_of(config, keywords)
        self.config = self._process.config
        self.simulator = self._process.simulator
        self.codec = self._process.codec
        self.single_observation_space = self._process.observation_space
        self.single_action_space = self.codec.space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._generators: list[np.random.Generator] = []
        self._seeds: list[int] = []
        self._started = False
        self._turn = Turn()
        self._observation: Any = create_empty_array(self.single_observation_space, self.num_envs, np.zeros)

    def _process_of(self, config: EnvConfig | Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> Any:
        """Spaces, codec and step of the environment; what serves requests has others."""
        return DecisionProcess(window_config(config, keywords))

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of each environment."""
        self._seed(None)
        return tuple(self._generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each environment's generator."""
        self._seed(None)
        return tuple(self._seeds)

    @in_turn
    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, Info]:
        """Begin an episode in every environment, or in those of a mask.

        Args:
            seed: s gives environment n the seed s + n; a sequence gives each its own; ``None`` goes on.
            options: ``{"reset_mask": (N,) bool}`` resets some; ``{"window": (N,) indices}`` names windows.

        Raises:
            ValueError, TypeError: a mask, seeds or windows of another shape or type.
            RuntimeError: another thread is in ``reset`` or ``step``.
        """
        chosen = check_options(options, ("reset_mask", "window"))
        mask = _reset_mask(chosen.get("reset_mask"), self.num_envs)
        self._seed(seed, mask)
        rows = np.nonzero(mask)[0]
        windows = chosen.get("window")
        if windows is not None:
            windows = plain_array("window", windows)
            if windows.shape != (self.num_envs,):
                raise ValueError(f"expected {self.num_envs} windows, one per environment, got {shown(windows)}")
            windows = windows[rows]
        info = self._begin(rows, windows)
        self._started = True
        return self._copied(), info

    @in_turn
    def step(self, actions: Any) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Info]:
        """Run one block in every environment, and reset according to the autoreset mode.

        Whatever is raised once a block has run, by a function as reward say, ends the episodes whose block has run in
        this call. The others can go on. Another thread than that of ``reset`` may step; the blocks that have run are
        then run again, once for each change of thread.

        Args:
            actions: a batch of N, see ``encode_action``.

        Returns:
            Observation with entries (N, ...), rewards (N,), terminated (N,), truncated (N,), and info.

        Raises:
            gymnasium.error.ResetNeeded: an environment's episode has ended and nothing resets it.
            ValueError, TypeError: not a batch of actions, and the episodes can go on; or not rewards, where the reward
                is a function, and they cannot.
            RuntimeError: another thread is in ``reset`` or ``step``; the episodes can go on.
        """
        waiting = self._waiting()
        if waiting.size and (not self._started or self.autoreset_mode != AutoresetMode.NEXT_STEP):
            raise gym.error.ResetNeeded(f"expected reset() before step(): no episode in environments {waiting[:8]}")
        decided = self.codec.decode(actions, (self.num_envs,))
        before = [(cohort, cohort.rollout.blocks_done) for cohort in self._cohorts]
        try:
            return self._run_block(decided, waiting)
        except BaseException:  # what those blocks led to is lost, and they cannot be run again
            self._drop([cohort for cohort, done in before if cohort.rollout.blocks_done > done])
            raise

    def _run_block(
        self, decided: Decided, waiting: NDArray[np.int64]
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Info]:
        """Step all cohorts, and begin episodes where they wait for one or end in the mode ``SAME_STEP``."""
        outcome = Outcome.empty(self.num_envs)
        for cohort in list(self._cohorts):
            self._step_cohort(cohort, decided, outcome)
        info, ended = outcome.info, outcome.terminated | outcome.truncated
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            info = self._reset_ended(np.nonzero(ended)[0], info)
        if waiting.size:
            merge(info, self._begin(waiting, None))
        return self._copied(), outcome.rewards, outcome.terminated, outcome.truncated, info

    def render(self) -> tuple[Picture | str, ...] | None:
        """The block of the last step of each environment, or the first before it. Nothing is drawn before this call.

        Returns:
            N pictures (720, 1120, 3) uint8 under ``rgb_array``, N texts under ``ansi``; ``None`` without a render mode.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
            ImportError: Pillow, of the extra ``render``, is not installed.
        """
        return None if self.renderer is None else cast("tuple[Picture | str, ...]", self.renderer.render())

    @property
    def num_blocks(self) -> int:
        """I, steps of an episode."""
        return self.simulator.sizes.num_blocks

    def encode_action(self, selection: Bool | None = None, shares: Float | None = None, **others: Any) -> Any:
        """Actions of selections (..., J, E), shares (..., U) and others; see ``ActionCodec.encode``."""
        return self.codec.encode(selection, shares, **others)

    def decode_action(self, action: Any) -> tuple[Any, ...]:
        """Selections (N, J, E) and shares (N, U) of actions, and bits where they decide them."""
        decided = self.codec.decode(action, self.codec.batch_of(action))
        others = [value for name, value in decided.items() if name not in (ExpertsPart.name, BandwidthPart.name)]
        return decided.get(ExpertsPart.name), decided.get(BandwidthPart.name), *others

    def close_extras(self, **kwargs: Any) -> None:
        """End all episodes."""
        for cohort in self._cohorts:
            cohort.rollout.close()
        self._cohorts = []
        self._started = False

    def _seed(self, seed: int | Sequence[int | None] | None, mask: NDArray[np.bool_] | None = None) -> None:
        """Give the masked environments new generators where seeds came, and all of them one at the start."""
        seeds = _seeds(seed, self.num_envs)
        if not self._generators:
            drawn = [seeding.np_random(one) for one in seeds]
            self._generators, self._seeds = [pair[0] for pair in drawn], [pair[1] for pair in drawn]
            return
        for n, one in enumerate(seeds):
            if one is not None and (mask is None or mask[n]):
                self._generators[n], self._seeds[n] = seeding.np_random(one)

    def _waiting(self) -> NDArray[np.int64]:
        """Environments without an episode under way."""
        waiting = np.ones(self.num_envs, dtype=bool)
        for cohort in self._cohorts:
            waiting[cohort.rows[cohort.live]] = False
        return waiting.nonzero()[0]

    def _begin(self, rows: NDArray[np.int64], windows: NDArray[np.int64] | None) -> Info:
        """Start episodes in the environments ``rows``, which leave their cohorts, and write the first observations."""
        rollout = self.simulator.start([self._generators[n] for n in rows], windows)
        going = np.ones(self.num_envs, dtype=bool)
        going[rows] = False
        for cohort in self._cohorts:
            cohort.live &= going[cohort.rows]
        self._drop([cohort for cohort in self._cohorts if not cohort.live.any()])
        self._cohorts.append(Cohort(rollout, rows, np.ones(len(rows), dtype=bool)))
        self._write(rows, self._process.observe(rollout.block))
        if self.renderer is not None:
            self.renderer.begin(rollout, rows.tolist())
        return spread({"window": rollout.windows.copy()}, rows, self.num_envs)

    def _step_cohort(self, cohort: Cohort, decided: Decided, outcome: Outcome) -> None:
        """Step one cohort and write what came out for its live rows."""
        taken = decided if len(cohort.rows) == self.num_envs else rows_of(decided, cohort.rows)
        rows = cohort.rows[cohort.live]
        transition = self._process.step(cohort.rollout, taken, self._seen(rows))
        truncated = cohort.rollout.blocks_done >= self._most_steps
        if len(rows) < len(cohort.rows):
            transition = transition.rows(cohort.live)
        outcome.rewards[rows] = transition.reward
        outcome.terminated[rows] = transition.terminated
        outcome.truncated[rows] = truncated
        self._write(rows, transition.observation)
        merge(outcome.info, spread(transition.info, rows, self.num_envs))
        if transition.terminated or truncated:
            self._drop([cohort])

    def _reset_ended(self, rows: NDArray[np.int64], info: Info) -> Info:
        """Reset the environments ``rows`` within this step; what ended moves to ``final_*``."""
        ended = np.zeros(self.num_envs, dtype=bool)
        ended[rows] = True
        final_obs = np.full(self.num_envs, None, dtype=object)
        for n in rows:
            final_obs[n] = _copy_of_row(self._observation, n)
        final_info, going = split_rows(info, ended)
        going.update(
            {
                "final_obs": final_obs,
                "_final_obs": ended,
                "final_info": final_info,
                "_final_info": ended.copy(),
            }
        )
        merge(going, self._begin(rows, None))
        return going

    def _drop(self, cohorts: list[Cohort]) -> None:
        for cohort in cohorts:
            cohort.rollout.close()
        self._cohorts = [cohort for cohort in self._cohorts if cohort not in cohorts]

    def _seen(self, rows: NDArray[np.int64]) -> Seen | None:
        """What tells the renderer, if there is one, of a block of the environments ``rows``."""
        renderer = self.renderer
        return None if renderer is None else lambda block, info: renderer.add(block, info, int(rows[0]))

    def _write(self, rows: NDArray[np.int64], observation: Observed) -> None:
        if len(rows) == self.num_envs:
            self._observation = observation
        elif isinstance(observation, dict):
            for name, value in observation.items():
                self._observation[name][rows] = value
        else:
            self._observation[rows] = observation

    def _copied(self) -> Any:
        if isinstance(self._observation, dict):
            return {name: value.copy() for name, value in self._observation.items()}
        return self._observation.copy()


def _copy_of_row(observation: Observed, n: int) -> Any:
    if isinstance(observation, dict):
        return {name: value[n].copy() for name, value in observation.items()}
    return observation[n].copy()


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """The mode of a member, its name or its value."""
    if isinstance(mode, AutoresetMode):
        return mode
    mode = plain(mode)
    for member in AutoresetMode:
        if isinstance(mode, str) and mode in (member.name, member.value):
            return member
    names = ", ".join(member.name for member in AutoresetMode)
    raise ValueError(f"autoreset_mode must be one of {names}, got {shown(mode)}")


def _seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """The seed of each environment: s + n of one number s, or those of a sequence."""
    several = items_of(seed)
    if several is None:
        first = check_seed(seed)
        return [None if first is None else first + n for n in range(num_envs)]
    if len(several) != num_envs:
        raise ValueError(f"expected {num_envs} seeds, one per environment, got {len(several)}")
    return [check_seed(one) for one in several]


def _renderer(mode: str, num_envs: int) -> Renderer:
    if mode not in BATCH_RENDER_MODES:
        expected = f"render_mode must be None or one of {', '.join(BATCH_RENDER_MODES)} on the batched environment"
        hint = "; a window shows a single environment, of gymnasium.make" if mode == "human" else ""
        raise ValueError(f"{expected}, got {mode!r}{hint}")
    return Renderer(mode, num_envs)


def _most_steps(max_episode_steps: int | None) -> float:
    """Steps of an episode at most; ``None`` and -1 are no limit, as in ``gym.make``."""
    if max_episode_steps is None or max_episode_steps == -1:
        return math.inf
    return check_integer("max_episode_steps", max_episode_steps, at_least=1)


def _reset_mask(mask: Any, num_envs: int) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(num_envs, dtype=bool)
    chosen = plain_array("reset_mask", mask)
    if chosen.dtype != np.bool_ or chosen.shape != (num_envs,) or not chosen.any():
        raise ValueError(f"reset_mask must be a bool array ({num_envs},) with at least one True, got {shown(mask)}")
    return chosen

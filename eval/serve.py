"""Policies compared on cells that serve requests: the same arrivals, texts and channels for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from eval.members import Setting, is_file, member, settings_of
from eval.plan import MOST_EPISODES, RunConfig
from eval.provenance import (
    beside_hashes,
    channel_hashes,
    file_hash,
    located_environment,
    located_policies,
    machine,
    model_hash,
    policy_hashes,
    text_hashes,
    versions,
)
from eval.serve_parts import Parts
from eval.serve_statistics import ENERGY, OF_CELLS, OF_REQUESTS, REFERENCE, Run, summarize
from eval.serve_timeline import Timeline
from eval.statistics import Summary
from wdmoe_env.checks import check_integer
from wdmoe_env.config import EnvConfig
from wdmoe_env.policies.registry import make_policy, reads_hidden_states
from wdmoe_env.serving.play import AT_ONCE, play
from wdmoe_env.serving.process import ServingProcess, serving_config
from wdmoe_env.serving_config import ServingConfig, arrivals_of

EPISODES = 64
SHOWN = 2
"""Policies whose first cell is drawn: the reference, and the first one that was asked for."""
POLICIES = (
    *(f"wdmoe:{threshold}" for threshold in (0.5, 0.6, 0.7, 0.8, 0.9)),
    *(f"marginal-price:{price}" for price in (0.2, 0.3, 0.5, 0.7, 1.0)),
    "queue-price",
    "load-price",
    "wdmoe-queue",
    *(f"straight-through-{weight}" for weight in (30, 10, 4)),
)
"""Those of an evaluation that names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePlan(RunConfig):
    """An evaluation on cells that serve requests; ``REFERENCE`` is put first where it is missing.

    Attributes:
        environment: with requests, see ``wdmoe_env.serving.process.serving_config``.
        batch_size: cells in one forward pass, at most.
        episodes: cells, each with requests and a channel of its own. The first n of more are those of n.
        loads: arrivals in units of what own routing with optimal shares sustains; none is that of the environment.
    """

    FIRST: ClassVar[str] = REFERENCE

    batch_size: int = AT_ONCE
    episodes: int = EPISODES
    loads: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check every field, and put the reference in."""
        RunConfig.__post_init__(self)
        check_integer("episodes", self.episodes, at_least=1, at_most=MOST_EPISODES)
        if self.environment.serving is None:
            raise ValueError("expected an environment with requests to serve, got one without serving")
        loads = tuple(dict.fromkeys(self.loads)) or (self.environment.serving.load,)
        object.__setattr__(self, "loads", loads)
        for load in loads:
            self.at(load)

    def at(self, load: float) -> EnvConfig:
        """The environment at a load."""
        serving = self.environment.serving or ServingConfig()
        return replace(self.environment, serving=replace(serving, load=load))

    @property
    def seeds(self) -> list[int]:
        """Of each episode."""
        return np.random.default_rng(self.seed).integers(2**31, size=self.episodes).tolist()


def measure(
    policies: Sequence[str], config: EnvConfig, episodes: int, seed: int, batch_size: int = AT_ONCE
) -> dict[str, Run]:
    """What each policy measured.

    Args:
        policies: names or files.
        config: of the environment, with both decisions in the action.
        episodes: cells, each with requests and a channel of its own.
        seed: of the cells.
        batch_size: cells in one forward pass, at most.

    Raises:
        ValueError: a policy or a setting is wrong.
    """
    plan = ServePlan(policies=tuple(policies), environment=config, episodes=episodes, seed=seed, batch_size=batch_size)
    return ServeEvaluation(plan).run(policies=tuple(dict.fromkeys(policies)))[plan.loads[0]]


class ServeEvaluation:
    """An evaluation of serving whose model and policies are loaded and checked, and that can run.

    Args:
        plan: what to evaluate.

    Attributes:
        plan: as given.
        sha256: hashes of what was loaded.
        settings: of the plan's files, those with two training seeds or more.
        timelines: of ``SHOWN`` policies at the first load, what their first cell did; filled by ``run``.

    Raises:
        ValueError, TypeError, OSError: a policy, a setting or a file is wrong.
    """

    def __init__(self, plan: ServePlan) -> None:
        hidden = any(reads_hidden_states(plan.located(policy)) for policy in plan.policies)
        self.plan, self._hidden = plan, hidden or plan.environment.observe_hidden_states
        self._processes = {load: self._process(load) for load in plan.loads}
        process = self._processes[plan.loads[0]]
        for policy in plan.policies:
            make_policy(plan.located(policy), process)
        self.sha256 = hashes(plan, process)
        files = [replace(member(plan.located(one)), policy=one) for one in plan.policies if is_file(one)]
        self.settings = [one for one in settings_of(files) if len(one.policies) > 1]
        self.timelines: dict[str, Timeline] = {}

    def _process(self, load: float) -> ServingProcess:
        return ServingProcess(replace(self.plan.at(load), observe_hidden_states=self._hidden))

    def run(self, parts: Parts | None = None, policies: Sequence[str] | None = None) -> dict[float, dict[str, Run]]:
        """Run every policy at every load.

        Args:
            parts: of an earlier run that was killed: what is there is not run again, and what is measured goes there.
            policies: some of the plan's; ``None`` is all.

        Returns:
            What was measured, by load and policy.
        """
        chosen = self.plan.policies if policies is None else tuple(policies)
        return {load: {policy: self._run(load, policy, parts, chosen) for policy in chosen} for load in self.plan.loads}

    def _run(self, load: float, policy: str, parts: Parts | None, chosen: Sequence[str]) -> Run:
        plan = self.plan
        watched = load == plan.loads[0] and policy in chosen[:SHOWN]
        found = None if parts is None else parts.read(load, policy)
        if found is None:
            found = self._measure(load, policy, watched)
            if parts is not None:
                parts.write(load, policy, *found)
        run, timeline = found
        if watched and timeline is not None:
            self.timelines[policy] = timeline
        return run

    def _measure(self, load: float, policy: str, watched: bool) -> tuple[Run, Timeline | None]:
        plan, process = self.plan, self._processes[load]
        timeline = Timeline() if watched else None
        made = make_policy(plan.located(policy), process, plan.seed)
        with tqdm(total=plan.episodes, desc=f"{policy} at load {load:g}", unit="cell") as bar:
            seen: Callable[..., None] | None = None if timeline is None else timeline.add
            played = play(process, made, plan.seeds, plan.batch_size, bar.update, seen)
        if timeline is not None:
            timeline.end(played.figures)
        requests = {name: played.figures[name] for name in OF_REQUESTS}
        cells = {name: played.figures[name] for name in (*OF_CELLS, ENERGY) if name in played.figures}
        return Run(requests, cells, played.decision_ms), timeline


def hashes(plan: ServePlan, process: ServingProcess) -> dict[str, str]:
    """SHA-256 of the model, of the policies' files, of one's own texts, and of the traces of channel and arrivals."""
    environment = plan.environment
    model = environment.model
    weights = {f"the model {model}": model_hash(process.simulator.source.model), **beside_hashes(model)}
    files = channel_hashes(environment.channel.source) | text_hashes(environment.split)
    kind, argument = arrivals_of((environment.serving or ServingConfig()).arrivals)
    if kind == "trace":
        files[f"the arrivals {argument}"] = file_hash(Path(argument).expanduser())
    return weights | policy_hashes(plan) | files


def plan_of(options: Any, settings: Mapping[str, Any]) -> ServePlan:
    """The plan of ``python -m eval --serve``: flags before ``--config``, that before the defaults.

    Args:
        options: of the command line.
        settings: of ``--config``.

    Raises:
        ValueError, TypeError: a setting is wrong, or a flag is not of serving.
    """
    for name in ("suite", "suite_items", "domains", "transfer", "num_tokens", "testbed", "resample"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} does not go with --serve")
    flags = {"model": options.model, "split": options.split}
    given = {"split": "test", **settings, **{name: value for name, value in flags.items() if value is not None}}
    environment = with_located_arrivals(located_environment(serving_config(given, {}, EnvConfig)))
    policies = tuple(options.policies or POLICIES)
    return ServePlan(
        policies=policies,
        files=located_policies(policies),
        environment=environment,
        seed=options.seed,
        batch_size=AT_ONCE if options.batch_size is None else options.batch_size,
        episodes=EPISODES if options.episodes is None else options.episodes,
        loads=tuple(options.load or ()),
    )


def with_located_arrivals(environment: EnvConfig) -> EnvConfig:
    """An environment whose trace of arrivals is named by an absolute path, where there is one."""
    serving = environment.serving or ServingConfig()
    kind, argument = arrivals_of(serving.arrivals)
    if kind != "trace":
        return environment
    located = f"trace:{Path(argument).expanduser().absolute()}"
    return replace(environment, serving=replace(serving, arrivals=located))


def summary_of(evaluation: ServeEvaluation, runs: Mapping[float, Mapping[str, Run]], command: str) -> Summary:
    """What ``results.json`` holds.

    Args:
        evaluation: that has run.
        runs: by load and policy.
        command: what made it, for the reader.
    """
    made = {"command": command, "versions": versions(), "machine": machine()}
    return {
        "config": evaluation.plan.to_dict(),
        "sha256": evaluation.sha256,
        "made_by": made,
        **statistics(runs, evaluation.plan.seed, evaluation.settings),
        "timelines": {policy: one.to_dict() for policy, one in evaluation.timelines.items()},
    }


def statistics(runs: Mapping[float, Mapping[str, Run]], seed: int, settings: Sequence[Setting] = ()) -> Summary:
    """Statistics at every load under ``loads``, and those of the first one beside.

    Args:
        runs: by load and policy.
        seed: of the resamples.
        settings: whose training seeds have a row of means; each has two or more.
    """
    at: list[Summary] = [{"load": load, **summarize(one, seed, settings)} for load, one in runs.items()]
    return {"policies": at[0]["policies"], "matched_quality": at[0]["matched_quality"], "loads": at}

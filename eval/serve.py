"""Policies compared on cells that serve requests: the same arrivals, texts and channels for each.

Every figure is one of requests. Those of one cell wait for each other, and those of one document lose alike, so that a
resample draws cells and documents, both with replacement, and a request counts as often as its cell times as often as
its document (the pigeonhole bootstrap, Owen 2007). All policies have the same resamples.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eval.matched import is_within, latency_at, mixture_at
from eval.provenance import located_environment, machine, versions
from eval.statistics import Float, Interval, Summary, interquartile_mean, interval_of, multiplicities
from wdmoe_env.checks import check_integer
from wdmoe_env.config import EnvConfig
from wdmoe_env.evaluation import check_decision
from wdmoe_env.policies.registry import make_policy, reads_hidden_states
from wdmoe_env.serving.process import serving_config
from wdmoe_env.serving_config import ServingConfig

REFERENCE = "vanilla-optimal"
"""What a load is given in terms of: the model's own routing at optimal shares."""

RESAMPLES = 2_000
AT_ONCE = 16
"""Cells in one forward pass, at most."""

OF_REQUESTS = (
    "request_e2e_ms",
    "request_ttft_ms",
    "request_tpot_ms",
    "request_queue_ms",
    "request_system_ms",
    "request_added_nll",
    "request_added_nll_prompt",
    "request_added_nll_answer",
    "request_prompt",
    "request_answer",
    "request_document",
    "request_arrival_ms",
)
OF_CELLS = ("goodput_hz", "queue_share", "tokens_per_s", "duration_ms", "capacity_hz", "unfinished")
OPTIMIZER = "wdmoe:"
POLICIES = (
    *(f"wdmoe:{threshold}" for threshold in (0.5, 0.6, 0.7, 0.8, 0.9)),
    *(f"marginal-price:{price}" for price in (0.2, 0.3, 0.5, 0.7, 1.0)),
    "queue-price",
    "load-price",
    "wdmoe-queue",
    *(f"straight-through-{weight}" for weight in (30, 10, 4)),
)
"""Those of an evaluation that names none."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one policy measured on n cells of R requests.

    Attributes:
        requests: figures by name, each (n, R).
        cells: figures by name, each (n,).
        decision_ms: wall time of a decision per cell.
    """

    requests: Mapping[str, Float]
    cells: Mapping[str, Float]
    decision_ms: float


def measure(policies: Sequence[str], config: EnvConfig, episodes: int, seed: int) -> dict[str, Run]:
    """What each policy measured.

    Args:
        policies: names or files.
        config: of the environment, with both decisions in the action.
        episodes: cells, each with requests and a channel of its own; made a multiple of those that run at once.
        seed: of the cells.

    Raises:
        ValueError: a policy or a setting is wrong.
    """
    at_once = min(AT_ONCE, episodes)
    if any(map(reads_hidden_states, policies)):
        config = replace(config, observe_hidden_states=True)
    env: Any = gym.make_vec(
        "wdmoe_env:WDMoE-Serve-v0", num_envs=at_once, autoreset_mode="SAME_STEP", config=config
    ).unwrapped
    made = {name: make_policy(name, env, seed) for name in policies}
    seeds = np.random.default_rng(seed).integers(2**31, size=at_once).tolist()
    rounds = -(-episodes // at_once)
    return {
        name: _play(env, policy, seeds, rounds, tqdm(total=at_once * rounds, desc=name, unit="cell"))
        for name, policy in made.items()
    }


def _play(env: Any, policy: Any, seeds: list[int], rounds: int, bar: Any) -> Run:
    """Each of N cells runs as many episodes; the k-th of a cell is the same under every policy."""
    observation, _ = env.reset(seed=seeds)
    state, start = None, np.ones(env.num_envs, dtype=bool)
    ended = np.zeros(env.num_envs, dtype=np.int64)
    found: dict[str, dict[tuple[int, int], Any]] = {name: {} for name in (*OF_REQUESTS, *OF_CELLS)}
    decision_s, decisions = 0.0, 0
    while (ended < rounds).any():
        began = time.perf_counter()
        actions, state = policy.predict(observation, state=state, episode_start=start, deterministic=True)
        decision_s, decisions = decision_s + time.perf_counter() - began, decisions + env.num_envs
        observation, _, terminated, truncated, info = env.step(actions)
        start = terminated | truncated
        for n in np.flatnonzero(start & (ended < rounds)):
            for name, values in found.items():
                values[int(ended[n]), int(n)] = info["final_info"][name][n]
            bar.update()
        ended += start
    bar.close()
    figures = {name: np.array([values[key] for key in sorted(values)]) for name, values in found.items()}
    requests = {name: figures[name] for name in OF_REQUESTS}
    return Run(requests, {name: figures[name] for name in OF_CELLS}, 1e3 * decision_s / decisions)


class Resamples:
    """How often each request counts: as it is, and in every resample.

    Args:
        documents: (n, R) document of each request.
        generator: draws the resamples.
        resamples: B.
    """

    def __init__(self, documents: NDArray[Any], generator: np.random.Generator, resamples: int = RESAMPLES) -> None:
        count = len(documents)
        names, document = np.unique(documents, return_inverse=True)
        self.cells = np.concatenate([np.ones((1, count)), multiplicities(resamples, count, generator)])
        of_documents = np.concatenate([np.ones((1, len(names))), multiplicities(resamples, len(names), generator)])
        cell = np.repeat(np.arange(count), documents.shape[1])
        self.requests = (self.cells[:, cell] * of_documents[:, document.ravel()]).astype(np.float32)
        self.requests[~self.requests.any(axis=1)] = 1.0  # of a few cells: none of the documents that were drawn

    def means(self, values: Float) -> Float:
        """Means (1 + B,) of values (n, R) of requests; those that are NaN do not count."""
        flat = values.ravel()
        known = np.isfinite(flat)
        weights = self.requests[:, known]
        return np.asarray((weights @ flat[known]) / weights.sum(axis=1), dtype=np.float64)

    def quantiles(self, values: Float, share: float) -> Float:
        """Quantiles (1 + B,) of values (n, R) of requests."""
        flat = values.ravel()
        known = np.flatnonzero(np.isfinite(flat))
        order = known[np.argsort(flat[known], kind="stable")]
        below = np.cumsum(self.requests[:, order], axis=1)
        at = (below >= share * below[:, -1:]).argmax(axis=1)
        return np.asarray(flat[order][at], dtype=np.float64)

    def of_cells(self, values: Float) -> Float:
        """Means (1 + B,) of values (n,) of cells."""
        return np.asarray(self.cells @ values / self.cells.sum(axis=1), dtype=np.float64)


def _interval(values: Float) -> Interval:
    return interval_of(float(values[0]), values[1:])


def summarize(runs: Mapping[str, Run], seed: int) -> Summary:
    """Statistics of each policy, each ``{"mean", "low", "high"}``, and mean and p95 of E2E at equal added NLL.

    Args:
        runs: of the policies, ``REFERENCE`` among them.
        seed: of the resamples.
    """
    reference = runs[REFERENCE]
    documents = reference.requests["request_document"]
    resamples = Resamples(documents, np.random.default_rng(seed))
    points = {name: _points(run, resamples) for name, run in runs.items()}
    policies = []
    for name, run in runs.items():
        statistics = {key: asdict(_interval(values)) for key, values in points[name].items()}
        statistics["e2e_ratio_iqm"] = asdict(_ratio_of_cells(run, reference, resamples))
        policies.append({"policy": name, **statistics, "decision_ms": run.decision_ms})
    return {"policies": policies, "matched_quality": matched(points)}


def _points(run: Run, resamples: Resamples) -> dict[str, Float]:
    """Values (1 + B,) of each figure."""
    of_requests = {name.removeprefix("request_"): values for name, values in run.requests.items()}
    means = ("e2e_ms", "ttft_ms", "tpot_ms", "queue_ms", "added_nll", "added_nll_prompt", "added_nll_answer")
    found = {name: resamples.means(of_requests[name]) for name in means}
    for name in ("e2e_ms", "ttft_ms", "tpot_ms"):
        for percent in (50, 95, 99):
            found[f"{name}_p{percent}"] = resamples.quantiles(of_requests[name], percent / 100)
    found |= {name: resamples.of_cells(run.cells[name].astype(np.float64)) for name in OF_CELLS}
    return found


def _ratio_of_cells(run: Run, reference: Run, resamples: Resamples) -> Interval:
    """Interquartile mean of each cell's mean E2E over the reference's on the same arrivals, texts and channel."""
    own, other = (np.nanmean(one.requests["request_e2e_ms"], axis=1) for one in (run, reference))
    return _interval(interquartile_mean(own / other, resamples.cells))


def matched(points: Mapping[str, Mapping[str, Float]]) -> list[Summary]:
    """For each threshold of the paper's rule and each other family: E2E at equal added NLL over the rule's.

    A family is a name without its number, so that ``straight-through-30`` and ``-10`` are one. Its front runs from own
    routing to its fastest policy, by mixtures of two policies, as in ``eval.matched``.

    Args:
        points: of each policy its figures, each (1 + B,).
    """
    families: dict[str, list[str]] = {}
    for name in points:
        families.setdefault(family_of(name), []).append(name)
    own = family_of(REFERENCE)
    rows = []
    for rule in [name for name in points if name.startswith(OPTIMIZER)]:
        for family, members in families.items():
            if family not in (own, family_of(rule)):
                rows += [_against(points, rule, family, [REFERENCE, *members], key) for key in ("e2e_ms", "e2e_ms_p95")]
    return rows


def family_of(policy: str) -> str:
    """Name of a policy without the number that sets it."""
    name = policy.partition(":")[0]
    head, _, tail = name.rpartition("-")
    return head if head and tail.isdigit() else name


def _against(
    points: Mapping[str, Mapping[str, Float]], rule: str, family: str, members: list[str], key: str
) -> Summary:
    added = np.stack([points[name]["added_nll"] for name in members], axis=1)
    time_ms = np.stack([points[name][key] for name in members], axis=1)
    at, reference = points[rule]["added_nll"], points[rule][key]
    ratio = latency_at(added, time_ms, at) / reference
    row: Summary = {
        "reference": rule,
        "family": family,
        "figure": key,
        "added_nll": float(at[0]),
        "reference_ms": float(reference[0]),
    }
    outside = not is_within(added[:1], time_ms[:1], at[:1])[0] or np.isinf(ratio).mean() > 0.05
    if outside or not np.isfinite(ratio[0]):
        return row | {"ratio": None, "mixture": None}
    mixture = mixture_at(added[0], time_ms[0], float(at[0]))
    named = {"first": members[mixture.first], "second": members[mixture.second], "share_of_second": mixture.share}
    finite = np.where(np.isfinite(ratio), ratio, np.nanmax(ratio[np.isfinite(ratio)]))
    return row | {"ratio": asdict(_interval(finite)), "mixture": named}


def config_of(options: Any, settings: Mapping[str, Any]) -> EnvConfig:
    """The environment of ``python -m eval --serve``: flags before ``--config``, that before the defaults.

    Args:
        options: of the command line.
        settings: of ``--config``.

    Raises:
        ValueError, TypeError: a setting is wrong, or a flag is not of serving.
    """
    for name in ("suite", "suite_items", "domains", "transfer", "num_tokens"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} does not go with --serve")
    flags = {"model": options.model, "split": options.split}
    given = {"split": "test", **settings, **{name: value for name, value in flags.items() if value is not None}}
    config = serving_config(given, {}, EnvConfig)
    check_decision(config)
    return located_environment(config)


def run(options: Any, settings: Mapping[str, Any], command: str) -> tuple[Summary, dict[float, dict[str, Run]]]:
    """Measure every policy at every load.

    Args:
        options: of the command line.
        settings: of ``--config``.
        command: what made it, for the reader.

    Returns:
        What ``results.json`` holds, and the runs by load and policy.

    Raises:
        ValueError, TypeError: a policy or a setting is wrong.
    """
    config = config_of(options, settings)
    serving = config.serving or ServingConfig()
    names = list(dict.fromkeys([REFERENCE, *(options.policies or POLICIES)]))
    episodes = check_integer("episodes", 64 if options.episodes is None else options.episodes, at_least=1)
    loads = list(dict.fromkeys(options.load or [serving.load]))
    configs = {load: replace(config, serving=replace(serving, load=load)) for load in loads}
    runs = {load: measure(names, one, episodes, options.seed) for load, one in configs.items()}
    at = [{"load": load, **summarize(one, options.seed)} for load, one in runs.items()]
    made = {"command": command, "versions": versions(), "machine": machine()}
    described = {"policies": names, "environment": config.to_dict(), "episodes": episodes, "seed": options.seed}
    summary = {"config": described | {"loads": loads}, "made_by": made, **at[0], "loads": at}
    return summary, runs

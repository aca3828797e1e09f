"""Statistics of cells that serve requests: paired intervals, and E2E at equal added NLL.

Every figure is one of requests. Requests of one cell wait for each other, and those of one document lose alike. So a
resample draws cells and documents, both with replacement. A request counts as often as its cell was drawn, times as
often as its document (the pigeonhole bootstrap, Owen 2007). All policies have the same resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.matched import Mixture, is_within, latency_at, mixture_at
from eval.members import Setting
from eval.statistics import Float, Interval, Summary, interquartile_mean, interval_of, multiplicities

REFERENCE = "vanilla-optimal"
"""What a load is given in terms of: the model's own routing at optimal shares."""

RESAMPLES = 2_000
OPTIMIZER = "wdmoe:"
E2E, TAIL, GOODPUT = "e2e_ms", "e2e_ms_p95", "goodput_hz"
TAIL_SHARE = 0.95
MOST_OUTSIDE = 0.05
"""Part of the resamples that may lie left of a front, where its E2E is infinite; above it there is no ratio."""

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
ENERGY = "joules_per_token"
"""Of cells too, where energy is counted."""


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
        if not known.any():
            return np.full(len(self.requests), np.nan)
        weights = self.requests[:, known]
        return np.asarray((weights @ flat[known]) / weights.sum(axis=1), dtype=np.float64)

    def quantiles(self, values: Float, share: float) -> Float:
        """Quantiles (1 + B,) of values (n, R) of requests."""
        return self.mixed_quantiles(((values, np.ones(1)),), share)

    def mixed_quantiles(self, parts: Sequence[tuple[Float, Float]], share: float) -> Float:
        """Quantiles (1 + B,) of requests of which some policies serve a part each.

        Args:
            parts: of each policy its values (n, R), and its part (1 + B,) or (1,) of the episodes.
            share: which quantile, from 0 to 1.
        """
        flat = np.concatenate([values.ravel() for values, _ in parts])
        count = len(parts[0][0].ravel())
        known = np.flatnonzero(np.isfinite(flat))
        if not known.size:
            return np.full(len(self.requests), np.nan)
        order = known[np.argsort(flat[known], kind="stable")]
        part = np.stack([np.broadcast_to(one, len(self.requests)) for _, one in parts], axis=1).astype(np.float32)
        below = np.cumsum(self.requests[:, order % count] * part[:, order // count], axis=1, dtype=np.float64)
        at = (below >= share * below[:, -1:]).argmax(axis=1)
        return np.asarray(flat[order][at], dtype=np.float64)

    def of_cells(self, values: Float) -> Float:
        """Means (1 + B,) of values (n,) of cells."""
        return np.asarray(self.cells @ values / self.cells.sum(axis=1), dtype=np.float64)


def _interval(values: Float) -> Interval:
    return interval_of(float(values[0]), values[1:])


def summarize(runs: Mapping[str, Run], seed: int, settings: Sequence[Setting] = ()) -> Summary:
    """Statistics of each policy, each ``{"mean", "low", "high"}``, and mean and p95 of E2E at equal added NLL.

    Args:
        runs: of the policies, ``REFERENCE`` among them.
        seed: of the resamples.
        settings: whose training seeds have a row of means; each has two or more.
    """
    reference, generator = runs[REFERENCE], np.random.default_rng(seed)
    resamples = Resamples(reference.requests["request_document"], generator)
    points = {name: _points(run, resamples) for name, run in runs.items()}
    policies = []
    for name, run in runs.items():
        statistics = {key: asdict(_interval(values)) for key, values in points[name].items()}
        statistics["e2e_ratio_iqm"] = asdict(_ratio_of_cells(run, reference, resamples))
        policies.append({"policy": name, **statistics, "decision_ms": run.decision_ms})
    fronts = Fronts(points, runs, resamples)
    trained = [fronts.of_training_seeds(setting, generator) for setting in settings]
    return {"policies": policies, "matched_quality": fronts.rows(), "training_seeds": trained}


def _points(run: Run, resamples: Resamples) -> dict[str, Float]:
    """Values (1 + B,) of each figure."""
    of_requests = {name.removeprefix("request_"): values for name, values in run.requests.items()}
    means = (E2E, "ttft_ms", "tpot_ms", "queue_ms", "added_nll", "added_nll_prompt", "added_nll_answer")
    found = {name: resamples.means(of_requests[name]) for name in means}
    for name in (E2E, "ttft_ms", "tpot_ms"):
        for percent in (50, 95, 99):
            found[f"{name}_p{percent}"] = resamples.quantiles(of_requests[name], percent / 100)
    return found | {name: resamples.of_cells(values.astype(np.float64)) for name, values in run.cells.items()}


def _ratio_of_cells(run: Run, reference: Run, resamples: Resamples) -> Interval:
    """Interquartile mean of each cell's mean E2E over the reference's on the same arrivals, texts and channel."""
    own, other = (np.nanmean(one.requests["request_e2e_ms"], axis=1) for one in (run, reference))
    return _interval(interquartile_mean(own / other, resamples.cells))


def family_of(policy: str) -> str:
    """Name of a policy without the number that sets it."""
    name = policy.partition(":")[0]
    head, _, tail = name.rpartition("-")
    return head if head and tail.replace(".", "", 1).isdigit() else name


class Fronts:
    """Fronts of families in the plane of added NLL and E2E, and what stands on them at the quality of another policy.

    A family is a name without its number, so that ``straight-through-30`` and ``-10`` are one. Its front runs from own
    routing to its fastest policy, by mixtures of two policies, as in ``eval.matched``: before each episode it is drawn
    which of the two runs. The mean of a mixture is the mixture of the means. Its p95 is that of the requests of both
    together, each with its part.

    Args:
        points: of each policy its figures, each (1 + B,).
        runs: of each policy.
        resamples: of the requests.
    """

    def __init__(
        self, points: Mapping[str, Mapping[str, Float]], runs: Mapping[str, Run], resamples: Resamples
    ) -> None:
        self._points, self._runs, self._resamples = points, runs, resamples
        self._families: dict[str, list[str]] = {}
        for name in points:
            self._families.setdefault(family_of(name), []).append(name)
        self._families.pop(family_of(REFERENCE), None)
        self._rule = family_of(OPTIMIZER)

    def rows(self) -> list[Summary]:
        """E2E at equal added NLL, mean and p95: each family's over a threshold of the rule's, and the other way round.

        Where ``reference`` is a threshold of the paper's rule, ``ratio`` is the E2E of the family's front at that
        threshold's added NLL, over the threshold's. Where it is another policy, ``family`` is the rule, and ``ratio``
        is that policy's E2E over that of the rule's front at the policy's added NLL. Both are below 1 where the family
        is faster than the rule. ``ratio`` is ``None`` where the added NLL lies outside the front.
        """
        found = []
        for rule in self._families.get(self._rule, []):
            for family in self._families:
                if family != self._rule:
                    found += self._against(rule, family)
        for family, members in self._families.items():
            if family != self._rule and self._rule in self._families:
                found += [row for one in members for row in self._against(one, self._rule)]
        return found

    def of_training_seeds(self, setting: Setting, generator: np.random.Generator) -> Summary:
        """Means over the training seeds of a setting; every resample draws seeds anew too.

        Args:
            setting: of S policies.
            generator: draws the seeds.

        Returns:
            Intervals by figure: E2E, its p95, goodput and added NLL, and under ``ratios`` the first three over those of
            the rule's front, each policy at its own added NLL. A ratio is ``None`` where that of one seed is not known.
        """
        seeds, resamples = len(setting.policies), len(self._resamples.requests) - 1
        drawn = np.concatenate([np.arange(seeds)[None], generator.integers(seeds, size=(resamples, seeds))])

        def over_seeds(values: Sequence[Float]) -> Summary:
            return asdict(_interval(np.take_along_axis(np.stack(values, axis=1), drawn, axis=1).mean(axis=1)))

        points = [self._points[one] for one in setting.policies]
        row: Summary = {"setting": setting.name, "policies": list(setting.policies), "seeds": list(setting.seeds)}
        row |= {key: over_seeds([own[key] for own in points]) for key in (E2E, TAIL, GOODPUT, "added_nll")}
        ratios: dict[str, Summary | None] = dict.fromkeys((E2E, TAIL, GOODPUT))
        fronts = [self._front_at(one, self._rule) for one in setting.policies]
        known = [found[0] for found in fronts if found is not None]
        if len(known) == seeds:
            for key in ratios:
                of_seeds = zip(known, points, strict=True)
                ratios[key] = over_seeds([self._ratios(front[key], own[key], inverted=True) for front, own in of_seeds])
        return row | {"ratios": ratios}

    def _against(self, reference: str, family: str) -> list[Summary]:
        own = self._points[reference]
        rows: list[Summary] = [
            {"reference": reference, "family": family, "added_nll": float(own["added_nll"][0])}
            | {"figure": key, "reference_value": float(own[key][0])}
            for key in (E2E, TAIL, GOODPUT)
        ]
        found = self._front_at(reference, family)
        if found is None:
            return [row | {"front_value": None, "ratio": None, "mixture": None} for row in rows]
        front, mixture = found
        for row in rows:
            key = row["figure"]
            ratio = _interval(self._ratios(front[key], own[key], inverted=family == self._rule))
            row.update({"front_value": float(front[key][0]), "ratio": asdict(ratio), "mixture": mixture})
        return rows

    def _front_at(self, reference: str, family: str) -> tuple[dict[str, Float], Summary] | None:
        """Figures (1 + B,) of a family's front at the added NLL of a policy, and what is mixed.

        ``None`` where the policy lies outside the front, or no policy of the family was run.
        """
        if family not in self._families:
            return None
        members = [REFERENCE, *self._families[family]]
        added = np.stack([self._points[name]["added_nll"] for name in members], axis=1)
        mean_ms = np.stack([self._points[name][E2E] for name in members], axis=1)
        own = self._points[reference]
        on_front = latency_at(added, mean_ms, own["added_nll"])
        outside = not is_within(added[:1], mean_ms[:1], own["added_nll"][:1])[0]
        if outside or not np.isfinite(on_front[0]) or np.isinf(on_front).mean() > MOST_OUTSIDE:
            return None
        mixture = mixture_at(added[0], mean_ms[0], float(own["added_nll"][0]))
        first, second = members[mixture.first], members[mixture.second]
        share = self._shares(mixture, added, own["added_nll"])
        goodput = [self._points[name][GOODPUT] for name in (first, second)]
        front = {
            E2E: on_front,
            TAIL: self._tail((first, second), share),
            GOODPUT: (1.0 - share) * goodput[0] + share * goodput[1],
        }
        return front, {"first": first, "second": second, "share_of_second": mixture.share}

    def _ratios(self, front: Float, own: Float, inverted: bool) -> Float:
        """Front over a policy's own (1 + B,), or inverted; a resample without a front has the most extreme ratio known.

        Args:
            front: (1 + B,) infinite where the front does not reach the policy's added NLL.
            own: (1 + B,) of the policy.
            inverted: whether the policy's own stands above the front.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = own / front if inverted else front / own
        known = np.isfinite(front) & np.isfinite(ratio)
        if not known.any():
            return np.full_like(ratio, np.nan)
        return np.where(known, ratio, (np.min if inverted else np.max)(ratio[known]))

    def _shares(self, mixture: Mixture, added: Float, at: Float) -> Float:
        """The second policy's part (1 + B,) of the episodes, which gives the wanted added NLL in every resample."""
        low, high = added[:, mixture.first], added[:, mixture.second]
        share = np.divide(at - low, high - low, out=np.full_like(at, mixture.share), where=high > low)
        return np.clip(share, 0.0, 1.0)

    def _tail(self, names: tuple[str, str], share: Float) -> Float:
        """p95 (1 + B,) of E2E where the second of two policies runs a part (1 + B,) of the episodes."""
        both = [self._runs[name].requests["request_e2e_ms"] for name in names]
        return self._resamples.mixed_quantiles(((both[0], 1.0 - share), (both[1], share)), TAIL_SHARE)

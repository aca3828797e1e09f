"""Latency at matched quality: how fast a family is where it adds as much NLL as a reference does.

A family's settings are points of mean added NLL and mean latency. One may draw at random before every episode which of
two policies to run, and so reach every point of the line between them. A family's front may therefore be interpolated
linearly, and only the lower convex hull of the points counts. At its left end stands the model's own routing at optimal
shares, which adds no NLL; its right end is the fastest setting. Beyond the ends nothing was measured, and nothing is
claimed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from eval.members import Setting
from eval.statistics import Float, Summary, interval_of
from eval.study import OPTIMIZER, Study


@dataclass(frozen=True, slots=True)
class Mixture:
    """Which two points of a front to draw from to meet a quality.

    Attributes:
        first: number of the point that adds less.
        second: number of the other; the same where one point suffices.
        share: of episodes that the second one runs.
    """

    first: int
    second: int
    share: float


def latency_at(added: Float, latency: Float, at: Float) -> Float:
    """Latency (R,) of fronts of K points at an added NLL.

    Left of a front it is infinite: that quality is not reached. Right of it, it is that of the fastest point, which
    is what the front surely gives there.

    Args:
        added: (R, K) mean added NLL of each point.
        latency: (R, K) mean latency.
        at: (R,) added NLL.
    """
    at = np.minimum(at, _of_fastest(added, latency))
    return _mixed(added, latency, at).min(axis=(1, 2))


def mixture_at(added: Float, latency: Float, at: float) -> Mixture:
    """The two points (K,) whose mixture has the least latency at an added NLL within the front."""
    mixed = _mixed(added[None], latency[None], np.array([at]))[0]
    first, second = np.unravel_index(mixed.argmin(), mixed.shape)
    gap = added[second] - added[first]
    return Mixture(int(first), int(second), float((at - added[first]) / gap) if gap > 0 else 0.0)


def is_within(added: Float, latency: Float, at: Float) -> NDArray[np.bool_]:
    """Whether an added NLL (R,) lies between the ends of fronts of points (R, K)."""
    return (added.min(axis=1) <= at) & (at <= _of_fastest(added, latency))


def _mixed(added: Float, latency: Float, at: Float) -> Float:
    """(R, K, K): latency at an added NLL between the first point and the second, infinite where it is not between."""
    first, second, wanted = added[:, :, None], added[:, None, :], at[:, None, None]
    gap = second - first
    share = np.divide(wanted - first, gap, out=np.zeros_like(gap), where=gap > 0)
    between = (first <= wanted) & (wanted <= second)
    mixed = latency[:, :, None] + share * (latency[:, None, :] - latency[:, :, None])
    return np.where(between, mixed, np.inf)


def _of_fastest(added: Float, latency: Float) -> Float:
    """Added NLL (R,) of the fastest point; of equally fast ones, of the best."""
    fastest = latency == latency.min(axis=1, keepdims=True)
    return np.where(fastest, added, np.inf).min(axis=1)


REFERENCE_FAMILIES = (OPTIMIZER, "marginal-price")
# Own routing, which adds no NLL, as fast as it was evaluated: the left end of every front.
OWN_ROUTING = ("vanilla-optimal", "wdmoe-bandwidth", "vanilla")
# Part of the resamples that may lie left of a front, where its latency is infinite; above it the interval would be.
MOST_OUTSIDE = 0.01


def matched_quality(study: Study) -> list[Summary]:
    """For each threshold of ``wdmoe`` and each price, and each family that has a front, the latency at equal added NLL.

    ``latency_ratio`` is to the reference's mean latency; every resample draws seeds and episodes anew and
    recomputes the front and the reference's point. It is ``None``, and so is all that follows from it, where the
    reference's added NLL lies outside the family's front, and ``outside`` says how. ``mixture`` says which two settings
    to draw from.
    """
    references = [one for family in REFERENCE_FAMILIES for one in study.thresholds(family)]
    fronts = {family: Front(study, members) for family, members in _with_a_front(study).items()}
    return [
        front.against(reference, family)
        for reference in references
        for family, front in fronts.items()
        if family != reference.family
    ]


def _with_a_front(study: Study) -> dict[str, list[Setting]]:
    """Learned families, and those with two settings or more, each with own routing before its settings."""
    own = next(found for name in OWN_ROUTING if (found := study.find(name)))
    families: dict[str, list[Setting]] = {}
    for setting in study.settings:
        families.setdefault(setting.family, []).append(setting)
    return {family: [own, *members] for family, members in families.items() if len(members) > 1 or members[0].learned}


class Front:
    """The points of a family, on the episodes themselves and on every resample.

    Args:
        study: of the evaluation.
        settings: K of them.
    """

    def __init__(self, study: Study, settings: list[Setting]) -> None:
        self._study = study
        self._settings = settings
        self._added, self._latency = (_points(study, settings, metric) for metric in ("added_nll", "latency_ms"))

    def against(self, reference: Setting, family: str) -> Summary:
        """The row of a reference."""
        added, latency = (_points(self._study, [reference], metric)[:, 0] for metric in ("added_nll", "latency_ms"))
        at_equal_quality = latency_at(self._added, self._latency, added)
        outside = self._outside(added[0], at_equal_quality)
        fastest = int(self._latency[0].argmin())
        row = {
            "reference": reference.name,
            "family": family,
            "added_nll": float(added[0]),
            "reference_latency_ms": float(latency[0]),
            "fastest": self._settings[fastest].name,
            "fastest_added_nll": float(self._added[0, fastest]),
            "fastest_latency_ms": float(self._latency[0, fastest]),
        }
        if outside:
            return row | {"outside": outside, "latency_ms": None, "latency_ratio": None, "mixture": None}
        ratio = at_equal_quality / latency
        return row | {
            "outside": None,
            "latency_ms": float(at_equal_quality[0]),
            "latency_ratio": asdict(interval_of(ratio[0], ratio[1:])),
            "mixture": self._named(mixture_at(self._added[0], self._latency[0], float(added[0]))),
        }

    def _outside(self, added: float, at_equal_quality: Float) -> str | None:
        """In what way the added NLL of a reference lies outside the front; ``None`` if it does not."""
        if np.isinf(at_equal_quality[0]):
            return "left"
        if not is_within(self._added[:1], self._latency[:1], np.array([added]))[0]:
            return "right"
        return "noise" if np.isinf(at_equal_quality).mean() > MOST_OUTSIDE else None

    def _named(self, mixture: Mixture) -> Summary:
        """Names and shares of a mixture."""
        first, second = (self._settings[at].name for at in (mixture.first, mixture.second))
        return {"first": first, "second": second, "share_of_second": mixture.share}


def _points(study: Study, settings: list[Setting], metric: str) -> Float:
    """Means (1 + R, K): on the episodes themselves, then on every resample."""
    runs = [(setting, study.runs(setting, metric)) for setting in settings]
    columns = [np.append(values.mean(), study.bootstrap.resampled_means(one, values)) for one, values in runs]
    return np.stack(columns, axis=1)

"""Latency at matched quality: how fast a family is where it adds as much NLL as a reference does."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from eval.fronts import Mixture, is_within, latency_at, mixture_at
from eval.members import Setting
from eval.statistics import Float, interval_of
from eval.study import OPTIMIZER, Study
from eval.summary import Summary

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

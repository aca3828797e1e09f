"""Performance profiles: the share of runs, a training seed on an episode each, whose score is above a level."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from eval.members import Setting
from eval.statistics import Float
from eval.study import CEILING, OPTIMIZER, Study
from eval.summary import Summary

RULES = ("vanilla-optimal", OPTIMIZER, "marginal-price", CEILING, "top1")
# Added NLL, nats per token, up to which a setting may stand for its family in the profile of latency.
QUALITY_BUDGET = 0.02
NUM_LEVELS = 41
# Part of all runs that lies beyond either end of the levels.
TAIL = 0.01


@dataclass(frozen=True, slots=True)
class Score:
    """What is ranked.

    Attributes:
        name: of the score.
        metric: measured one, which is divided by that of ``vanilla`` on the same episode, or divides it.
        inverse: whether it divides.
        budget: most mean added NLL.
    """

    name: str
    metric: str
    inverse: bool
    budget: float


SCORES = (
    Score("WLR over that of vanilla", "wlr", False, np.inf),
    Score(f"vanilla's latency over it, at most {QUALITY_BUDGET:g} nats added", "latency_ms", True, QUALITY_BUDGET),
)


def performance_profiles(study: Study) -> list[Summary]:
    """For each score its levels, and of each family's best setting the shares above them with 95 % bands.

    A family is represented by its setting of greatest mean score among those within the score's budget.
    """
    return [_profile(study, score) for score in SCORES]


def _profile(study: Study, score: Score) -> Summary:
    def runs(setting: Setting) -> Float:
        ratio = study.runs(setting, score.metric) / study.runs(study.reference, score.metric)
        return 1.0 / ratio if score.inverse else ratio

    chosen = {setting: runs(setting) for setting in _representatives(study, score, runs)}
    everything = np.concatenate([values.ravel() for values in chosen.values()]) if chosen else np.ones(1)
    least, most = np.quantile(everything, [TAIL, 1.0 - TAIL])
    levels = np.linspace(least, most, NUM_LEVELS)
    curves = []
    for setting, values in chosen.items():
        bands = study.bootstrap.shares_above(setting, values, levels)
        named = {side: band.tolist() for side, band in zip(("share", "low", "high"), bands, strict=True)}
        curves.append({"name": setting.name, "family": setting.family, "learned": setting.learned, **named})
    return {"score": score.name, "levels": levels.tolist(), "curves": curves}


def _representatives(study: Study, score: Score, runs: Callable[[Setting], Float]) -> Iterator[Setting]:
    within = [one for one in study.settings if study.runs(one, "added_nll").mean() <= score.budget]
    for family in dict.fromkeys(one.family for one in within if one.learned or one.family in RULES):
        members = [one for one in within if one.family == family]
        yield max(members, key=lambda one: float(runs(one).mean()))

"""Statistics over training seeds and episodes together: what a leaderboard and performance profiles say of settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from eval.members import Setting, settings_of
from eval.results import Results
from eval.statistics import Float, Interval, SeededBootstrap, Summary, interval_of
from wdmoe_env.evaluation import REFERENCE
from wdmoe_env.metrics import METRICS, result_metrics

# The analytical optimizer, which a learned policy's WLR is compared with at its best threshold.
OPTIMIZER = "wdmoe"
CEILING = "fractional"
# Says nothing that the added NLL does not say better: it depends on the windows first of all.
NOT_COMPARED = "nll"


class Study:
    """The settings of an evaluation, and their resamples.

    Args:
        results: what was measured.

    Attributes:
        settings: by family and value.
        bootstrap: shared by all statistics.
        num_episodes: n, that every policy ran.
    """

    def __init__(self, results: Results) -> None:
        self._measurements = results.measurements
        self.settings = settings_of(results.members)
        self.num_episodes = len(results.units())
        generator = np.random.default_rng(results.config.seed)
        self.bootstrap = SeededBootstrap(self.settings, self.num_episodes, generator, clusters=results.clusters)

    def runs(self, setting: Setting, metric: str) -> Float:
        """What the policies of a setting measured, (S, n)."""
        return np.stack([self._measurements[policy][metric] for policy in setting.policies]).astype(np.float64)

    def find(self, name: str) -> Setting | None:
        """The setting of a name."""
        return next((one for one in self.settings if one.name == name), None)

    @property
    def reference(self) -> Setting:
        """The setting that all ratios are to."""
        return next(one for one in self.settings if REFERENCE in one.policies)

    def thresholds(self, family: str) -> list[Setting]:
        """Settings of a rule that were given a number."""
        return [one for one in self.settings if one.family == family and one.value is not None and not one.learned]

    def of_greatest_mean(self, settings: list[Setting], metric: str) -> Setting | None:
        """The setting of greatest mean; of none, ``None``."""
        return max(settings, key=lambda one: float(self.runs(one, metric).mean()), default=None)

    def mean(self, setting: Setting, metric: str) -> Interval:
        """Mean of a metric."""
        return self.bootstrap.mean(setting, self.runs(setting, metric))

    def ratio_of_means(self, setting: Setting, reference: Setting, metric: str) -> Interval:
        """Mean of a metric over that of another setting on the same episodes."""
        sides = [(one, self.runs(one, metric)) for one in (setting, reference)]
        (own, own_resampled), (other, other_resampled) = (
            (runs.mean(), self.bootstrap.resampled_means(one, runs)) for one, runs in sides
        )
        return interval_of(own / other, own_resampled / other_resampled)

    def iqm_of_ratio(self, setting: Setting, reference: Setting, metric: str) -> Interval:
        """Interquartile mean, over seeds and episodes, of a metric over the reference's mean on the same episode."""
        ratio = self.runs(setting, metric) / self.runs(reference, metric).mean(axis=0)
        return self.bootstrap.interquartile_mean(setting, ratio)


def setting_summaries(study: Study) -> list[Summary]:
    """For each setting a dict of statistics, with intervals as ``{"mean", "low", "high"}``.

    ``iqm`` holds interquartile means of ratios on the same episode: latency and WLR to ``vanilla``'s, WLR to that of
    the best threshold of ``wdmoe`` and to that of ``fractional``, where these were evaluated.
    """
    return [_summary(study, setting) for setting in study.settings]


def _summary(study: Study, setting: Setting) -> Summary:
    accuracy = study.runs(setting, "next_token_accuracy") - study.runs(study.reference, "next_token_accuracy")
    intervals = {name: study.mean(setting, name) for name in _compared()} | {
        "latency_ratio_to_vanilla": study.ratio_of_means(setting, study.reference, "latency_ms"),
        "accuracy_points_to_vanilla": study.bootstrap.mean(setting, 100.0 * accuracy),
    }
    return {
        **described(setting),
        **{name: asdict(interval) for name, interval in intervals.items()},
        "decision_ms": float(study.runs(setting, "decision_ms").mean()),
        "iqm": {name: asdict(interval) for name, interval in _interquartile_means(study, setting).items()},
    }


def _compared() -> list[str]:
    """Names of the results by which settings are better or worse."""
    return [metric.name for metric in result_metrics() if metric.better and metric.name != NOT_COMPARED]


def described(setting: Setting) -> Summary:
    """What a row says of its setting."""
    return {
        "name": setting.name,
        "family": setting.family,
        "setting": setting.setting,
        "learned": setting.learned,
        "policies": list(setting.policies),
        "seeds": list(setting.seeds),
    }


def _interquartile_means(study: Study, setting: Setting) -> dict[str, Interval]:
    references = {
        "wlr_ratio_to_vanilla": study.reference,
        "wlr_ratio_to_best_wdmoe": study.of_greatest_mean(study.thresholds(OPTIMIZER), "wlr"),
        "wlr_ratio_to_fractional": study.find(CEILING),
    }
    return {"latency_ratio_to_vanilla": study.iqm_of_ratio(setting, study.reference, "latency_ms")} | {
        name: study.iqm_of_ratio(setting, reference, "wlr") for name, reference in references.items() if reference
    }


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
        metric: measured one, which is divided by that of ``vanilla`` on the same episode, or divides it where lower is
            better.
        budget: most mean added NLL.
    """

    name: str
    metric: str
    budget: float


SCORES = (
    Score("WLR over that of vanilla", "wlr", np.inf),
    Score(f"vanilla's latency over it, at most {QUALITY_BUDGET:g} nats added", "latency_ms", QUALITY_BUDGET),
)


def performance_profiles(study: Study) -> list[Summary]:
    """For each score its levels, and of each family's best setting the shares above them with 95 % bands.

    A family is represented by its setting of greatest mean score among those within the score's budget.
    """
    return [_profile(study, score) for score in SCORES]


def _profile(study: Study, score: Score) -> Summary:
    def runs(setting: Setting) -> Float:
        ratio = study.runs(setting, score.metric) / study.runs(study.reference, score.metric)
        return 1.0 / ratio if METRICS[score.metric].better == "lower" else ratio

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

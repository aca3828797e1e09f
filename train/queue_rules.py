"""Choose the two numbers of each rule that sees the queue, on training episodes: ``python -m train.rules --serve``.

A rule has a setting where nobody is in the system, and a slope by which it sharpens with those who are. For each slope
of a grid a few settings are played, at load 0.95 and under each set of devices that is named. The slope that is taken
has the least mean E2E at the added NLL of ``wdmoe:0.8``, by mixtures of own routing and its settings as in
``eval.matched``, over the E2E of ``wdmoe:0.8`` itself, in the mean over the sets of devices. The bare rule's setting is
that of the slope's settings whose added NLL is nearest to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.matched import latency_at
from wdmoe_env.policies.policy import Policy, RulePolicy
from wdmoe_env.policies.queue import LoadPrice, QueuePolicy, QueuePrice, QueueThreshold
from wdmoe_env.policies.rules import vanilla_optimal, wdmoe
from wdmoe_env.serving.play import play
from wdmoe_env.serving.process import ServingProcess, serving_config

MATCHED = 0.8
"""Threshold of the paper's rule at whose added NLL rules are compared."""
CELL: dict[str, Any] = {"load": 0.95}
"""Settings of the cells' requests."""
PRESENT, ARRIVALS_HZ = 4.0, 12.0
"""Requests in the system, and arrivals in a second, at which settings of all slopes meet; about their means."""

Make = Callable[[float, float], Any]
"""From a setting and a slope to a rule."""


@dataclass(frozen=True, slots=True)
class Family:
    """A rule and its grid.

    Attributes:
        name: of the policy.
        make: the rule of a setting and a slope.
        slopes: to try; 0 does not see the queue.
        levels: what the rule comes to at ``usual``.
        setting: the setting that comes to a level, of the level and 1 + slope x usual.
        usual: what the slope is multiplied with, about its mean.
    """

    name: str
    make: Make
    slopes: tuple[float, ...]
    levels: tuple[float, ...]
    setting: Callable[[float, float], float]
    usual: float

    def points(self) -> Iterator[tuple[float, float]]:
        """Slopes and settings of the grid."""
        for slope in self.slopes:
            for level in self.levels:
                yield slope, round(self.setting(level, 1.0 + slope * self.usual), 4)


def _price(level: float, sharpened: float) -> float:
    return level / sharpened


def _threshold(level: float, sharpened: float) -> float:
    return max(1.0 - (1.0 - level) * sharpened, 0.0)


PRICES = (0.5, 1.2)
FAMILIES = (
    Family("queue-price", QueuePrice, (0.0, 0.1, 0.5, 2.0), PRICES, _price, PRESENT),
    Family("load-price", LoadPrice, (0.1, 0.5, 2.0), PRICES, _price, ARRIVALS_HZ),
    Family("wdmoe-queue", QueueThreshold, (0.0, 0.05, 0.2, 0.6), (0.75, 0.88), _threshold, PRESENT),
)
"""A slope of 0 makes ``load-price`` the same rule as ``queue-price``."""


def process_of(devices: str, model: str) -> ServingProcess:
    """A cell that serves requests about training texts.

    Args:
        devices: name of a set of devices.
        model: of the environment.
    """
    settings = {"model": model, "split": "train", "devices": devices, "serving": CELL}
    return ServingProcess(serving_config(settings, {}))


def search(model: str, devices: Sequence[str], episodes: int, seed: int) -> None:
    """Play the grid and print what it chooses.

    Args:
        model: of the environment.
        devices: names of sets of devices.
        episodes: cells for each point of the grid and set of devices.
        seed: of the cells.
    """
    processes = {name: process_of(name, model) for name in dict.fromkeys(devices)}
    seeds = np.random.default_rng(seed).integers(2**31, size=episodes).tolist()
    count = 2 + sum(len(list(one.points())) for one in FAMILIES)
    print(f"{'':32}{'devices':10}{'e2e_ms':>8}{'added_nll':>11}", flush=True)
    with tqdm(total=count * episodes * len(processes), unit="cell") as bar:

        def measured(label: str, make: Callable[[Any], Policy]) -> dict[str, tuple[float, float]]:
            """Added NLL and mean E2E by set of devices; prints them."""
            found = {}
            for name, process in processes.items():
                figures = play(process, make(process.codec), seeds, ended=bar.update).figures
                added, e2e_ms = (float(figures[f"request_{name}"].mean()) for name in ("added_nll", "e2e_ms"))
                print(f"{label:32}{name:10}{e2e_ms:8.1f}{added:11.4f}", flush=True)
                found[name] = added, e2e_ms
            return found

        own = measured("vanilla-optimal", partial(RulePolicy, vanilla_optimal))
        rule = measured(f"wdmoe:{MATCHED:g}", partial(RulePolicy, partial(wdmoe, threshold=MATCHED)))
        for family in FAMILIES:
            points: dict[float, dict[float, Mapping[str, tuple[float, float]]]] = {}
            for slope, setting in family.points():
                label = f"{family.name}:{setting:g}, slope {slope:g}"
                make = partial(QueuePolicy, family.make(setting, slope))
                points.setdefault(slope, {})[setting] = measured(label, make)
            choose(family.name, points, own, rule)


def choose(
    name: str,
    points: Mapping[float, Mapping[float, Mapping[str, tuple[float, float]]]],
    own: Mapping[str, tuple[float, float]],
    rule: Mapping[str, tuple[float, float]],
) -> tuple[float, float]:
    """The slope of least E2E at the rule's added NLL, and the setting nearest to that quality; prints both.

    Args:
        name: of the family.
        points: by slope, setting and set of devices the added NLL and the mean E2E in ms.
        own: of own routing at optimal shares, by set of devices.
        rule: of the paper's rule likewise.
    """
    ratios = {slope: _ratio(settings, own, rule) for slope, settings in points.items()}
    for slope, ratio in ratios.items():
        print(f"{name}, slope {slope:g}: E2E over that of wdmoe:{MATCHED:g} at its added NLL {ratio:.3f}")
    slope = min(ratios, key=lambda one: ratios[one])
    distance = {
        setting: np.mean([abs(found[devices][0] - rule[devices][0]) for devices in rule])
        for setting, found in points[slope].items()
    }
    setting = min(distance, key=lambda one: float(distance[one]))
    print(f"{name}: slope = {slope:g}, setting = {setting:g}", flush=True)
    return slope, setting


def _ratio(
    settings: Mapping[float, Mapping[str, tuple[float, float]]],
    own: Mapping[str, tuple[float, float]],
    rule: Mapping[str, tuple[float, float]],
) -> float:
    """E2E of a slope's front over the rule's, at the rule's added NLL, in the mean over sets of devices."""
    ratios = []
    for devices, (at, e2e_ms) in rule.items():
        found = [own[devices], *(one[devices] for one in settings.values())]
        added, times = (np.array([one[part] for one in found])[None] for part in (0, 1))
        ratios.append(float(latency_at(added, times, np.array([at]))[0]) / e2e_ms)
    return float(np.mean(ratios))

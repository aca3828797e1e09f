"""``python -m eval.behaviour``: what policies drop where requests are served, and when.

    python -m eval.behaviour --policies straight-through-10 queue-price --devices paper --load 0.95 --out runs/behaviour

Every policy serves the same cells. The model's own routing chooses pairs of token and expert, and the policy keeps a
share of them. That share is told by the number of requests in the system, for tokens of prompts and of answers. It is
told too by the link of the expert's device: by its rank, where 1 is the one with the least latency for a token at equal
shares, and by that latency over the median device's. Of an agent that sets a price for a pass, such as
``serve-paper-price``, the mean price is told by the requests in the system and by the slowest link.
``behaviour.json`` has all these and what each is a mean of, ``behaviour.png`` is a picture of them.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from eval.members import short_names
from eval.serve import ServePlan
from wdmoe_env.checks import check_integer
from wdmoe_env.command import end_with, mistakes_in_one_sentence
from wdmoe_env.config import DEVICE_SETS, EnvConfig
from wdmoe_env.policies import make_policy, reads_hidden_states
from wdmoe_env.policies.policy import Policy, State
from wdmoe_env.policies.stock import PassPricePolicy
from wdmoe_env.serving.play import play
from wdmoe_env.serving.process import ServingProcess, serving_config
from wdmoe_env.serving_config import ServingConfig
from wdmoe_env.writing import check_folder, write_files

PHASES = ("prompt", "answer")
SYSTEM = (1, 2, 3, 4, 6, 8)
"""Least number of requests in the system of each bin."""
LINK = (0.0, 0.95, 1.05, 1.25, 1.5, 2.0, 3.0)
"""Least latency of each bin of links, over that of the median device."""
PANELS = (
    ("tokens of prompts", "requests in the system", 0),
    ("tokens of answers", "requests in the system", 0),
    ("all tokens", "rank of the device, 1 is the fastest", 0),
    ("all tokens", "latency of the link over the median", 25),
    ("price of a millisecond", "requests in the system", 0),
    ("price of a millisecond", "latency of the slowest link over the median", 25),
)
"""Of each part of the picture its title, its label, and by how many degrees the names of its bins are turned.

The last two parts are there where a policy sets prices.
"""
FEW = 100
"""Pairs, or passes, below which a mean is not drawn: a few tokens say nothing."""


class Watched:
    """A policy whose choices are counted.

    Args:
        policy: what acts.
        codec: of its actions.
        devices: U.

    Attributes:
        by_system: (2, phases, bins) routed pairs, and those of them that were kept.
        by_rank: (2, U) likewise, by the rank of the device.
        by_link: (2, bins) likewise, by the latency of its link.
        used: pairs that ran: all, and those of experts that were not routed.
        prices: by name, (2, bins) passes and the sum of their prices; stays 0 where the policy sets none.
    """

    def __init__(self, policy: Policy, codec: Any, devices: int) -> None:
        self._policy, self._codec = policy, codec
        self.by_system = np.zeros((2, len(PHASES), len(SYSTEM)))
        self.by_rank = np.zeros((2, devices))
        self.by_link = np.zeros((2, len(LINK)))
        self.used = np.zeros(2)
        self.prices = {"by_system": np.zeros((2, len(SYSTEM))), "by_link": np.zeros((2, len(LINK)))}

    def predict(
        self, observation: Any, state: State = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Any, State]:
        """The policy's, see ``wdmoe_env.policies.policy.Policy``."""
        actions, state = self._policy.predict(observation, state, episode_start, deterministic)
        system = _places(SYSTEM, observation["queue"][:, :2].sum(axis=-1))
        latency = observation["unit_latency"] / np.median(observation["unit_latency"], axis=-1, keepdims=True)
        selection = self._codec.decode(actions, (len(system),))["experts"]
        self._count_pairs(observation, selection, system, latency)
        if isinstance(self._policy, PassPricePolicy) and state is not None:
            self._count_prices(state[0].mean(axis=-1), observation["block"][:, 0] == 0.0, system, latency)
        return actions, state

    def _count_pairs(
        self, observation: Any, selection: NDArray[np.bool_], system: NDArray[np.int64], latency: NDArray[Any]
    ) -> None:
        """Count the pairs of n cells, whose links have latencies (n, U)."""
        routed = observation["routed"] > 0
        used = selection & (observation["token_mask"] > 0)[..., None]
        phase = observation["row_phase"].astype(np.int64)
        device = observation["placement"].argmax(axis=-1)  # of each expert
        rank = np.take_along_axis(np.argsort(np.argsort(latency, axis=-1), axis=-1), device, axis=-1)
        link = _places(LINK, np.take_along_axis(latency, device, axis=-1))
        for number, pairs in enumerate((routed, routed & used)):
            np.add.at(self.by_system[number], (phase, system[:, None]), pairs.sum(axis=-1))
            np.add.at(self.by_rank[number], rank, pairs.sum(axis=1))
            np.add.at(self.by_link[number], link, pairs.sum(axis=1))
        self.used += [used.sum(), (used & ~routed).sum()]

    def _count_prices(
        self, price: NDArray[Any], begins: NDArray[np.bool_], system: NDArray[np.int64], latency: NDArray[Any]
    ) -> None:
        """Count the prices (n,) of those passes that begin."""
        for name, places in (("by_system", system), ("by_link", _places(LINK, latency.max(axis=-1)))):
            for number, values in enumerate((np.ones_like(price), price)):
                np.add.at(self.prices[name][number], places[begins], values[begins])

    def told(self) -> dict[str, Any]:
        """Means and counts, as JSON has them; ``prices`` is ``None`` where the policy sets none."""
        systems = [str(SYSTEM[0]), *(_span(first, last - 1) for first, last in pairwise(SYSTEM[1:]))]
        bins = {
            "by_system": [*systems, f"{SYSTEM[-1]} and more"],
            "by_link": [*(_span(first, last) for first, last in pairwise(LINK)), f"{LINK[-1]:g} and more"],
        }
        prices = {name: _means(sums, bins[name], "mean", "passes") for name, sums in self.prices.items()}
        return {
            "by_system": {
                phase: _means(self.by_system[:, number], bins["by_system"], "kept", "pairs")
                for number, phase in enumerate(PHASES)
            },
            "by_rank": _means(self.by_rank, [str(1 + rank) for rank in range(self.by_rank.shape[1])], "kept", "pairs"),
            "by_link": _means(self.by_link, bins["by_link"], "kept", "pairs"),
            "other_experts": float(self.used[1] / max(self.used[0], 1.0)),
            "prices": prices if self.prices["by_system"].any() else None,
        }


def _places(least: Sequence[float], values: Any) -> NDArray[np.int64]:
    """The bin of each value, by the least value of each bin; what is below the first is in it."""
    return np.maximum(np.searchsorted(least, values, side="right") - 1, 0)


def _means(sums: NDArray[np.float64], bins: list[str], mean: str, count: str) -> dict[str, Any]:
    """Of counts and sums (2, bins) the means, with names for the bins, the means and the counts."""
    return {"bins": bins, mean: (sums[1] / np.maximum(sums[0], 1.0)).tolist(), count: sums[0].astype(int).tolist()}


def _span(first: float, last: float) -> str:
    return f"{first:g}" if first == last else f"{first:g} to {last:g}"


def watch(policies: Sequence[str], config: EnvConfig, episodes: int, seed: int) -> dict[str, dict[str, Any]]:
    """What each policy keeps and drops.

    Args:
        policies: names and files as ``make_policy`` takes them.
        config: of cells that serve requests, with both decisions in the action.
        episodes: cells.
        seed: of the cells, as in an evaluation.

    Raises:
        ValueError, TypeError: a policy, a setting or a file is wrong.
    """
    hidden = any(map(reads_hidden_states, policies))
    environment = replace(config, observe_hidden_states=hidden)
    plan = ServePlan(policies=tuple(policies), environment=environment, episodes=episodes, seed=seed)
    process = ServingProcess(environment)
    made = {name: make_policy(name, process, seed) for name in policies}
    found = {}
    for name, policy in made.items():
        watched = Watched(policy, process.codec, process.simulator.sizes.num_devices)
        with tqdm(total=episodes, desc=name, unit="cell") as bar:
            play(process, watched, plan.seeds, ended=bar.update)
        found[name] = watched.told()
    return found


def picture(found: dict[str, dict[str, Any]]) -> bytes:
    """A PNG: the share of routed pairs that is kept, and the prices of those policies that set one for a pass."""
    priced = any(told["prices"] for told in found.values())
    figure = Figure(figsize=(11 if priced else 7.5, 7.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(2, 3 if priced else 2)
    kept, of_prices = every.flat[:4], every.flat[4:]
    names = short_names(tuple(found))
    for number, (policy, told) in enumerate(found.items()):
        style = {"color": f"C{number}", "marker": "o", "markersize": 3.5, "label": names[policy]}
        shares = (*told["by_system"].values(), told["by_rank"], told["by_link"])
        for axes, share in zip(kept, shares, strict=True):
            axes.plot(share["bins"], _known(share["kept"], share["pairs"]), **style)
        for axes, price in zip(of_prices, (told["prices"] or {}).values(), strict=False):
            axes.plot(price["bins"], _known(price["mean"], price["passes"]), **style)
    for axes, (title, label, degrees) in zip(every.flat, PANELS, strict=False):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(label)
        axes.tick_params(axis="x", labelsize=8, labelrotation=degrees)
        axes.grid(alpha=0.2)
    for axes in kept:
        axes.set_ylim(0, 1.02)
    for axes in every[:, 0]:
        axes.set_ylabel("routed pairs kept")
    for axes in of_prices:
        axes.set_ylim(bottom=0)
        axes.set_ylabel("gate weight per ms")
    kept[2].legend(fontsize=8, loc="lower left")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _known(means: list[float], counts: list[int]) -> list[float]:
    return [mean if count >= FEW else np.nan for mean, count in zip(means, counts, strict=True)]


@mistakes_in_one_sentence("python -m eval.behaviour")
def main(argv: Sequence[str] | None = None) -> int:
    """Watch, write and draw; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.behaviour", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", nargs="+", required=True, help="names, or files of trained policies")
    parser.add_argument("--devices", choices=tuple(DEVICE_SETS), default="boards", help="set of devices (boards)")
    parser.add_argument("--load", type=float, default=0.95, help="arrivals over what own routing sustains (0.95)")
    parser.add_argument("--model", default="tiny", help="model (tiny)")
    parser.add_argument("--split", default="test", help="texts (test)")
    parser.add_argument("--episodes", type=int, default=32, help="cells (32)")
    parser.add_argument("--requests", type=int, default=ServingConfig().requests, help="of a cell (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the cells (0)")
    parser.add_argument("--out", type=Path, required=True, help="folder of behaviour.json and behaviour.png")
    chosen = parser.parse_args(argv)
    check_integer("episodes", chosen.episodes, at_least=1)
    check_folder(chosen.out)
    settings = {"model": chosen.model, "split": chosen.split, "devices": chosen.devices}
    config = serving_config({**settings, "serving": {"load": chosen.load, "requests": chosen.requests}}, {}, EnvConfig)
    found = watch(tuple(dict.fromkeys(chosen.policies)), config, chosen.episodes, chosen.seed)
    text = json.dumps(found, indent=1) + "\n"
    write_files(chosen.out, {"behaviour.json": text.encode(), "behaviour.png": picture(found)})
    return 0


if __name__ == "__main__":
    end_with("python -m eval.behaviour", main)

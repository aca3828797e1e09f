"""``python -m eval.behaviour``: what policies drop where requests are served, and when.

    python -m eval.behaviour --policies straight-through-10 queue-price --devices paper --load 0.95 --out runs/behaviour

Every policy serves the same cells. The model's own routing chooses pairs of token and expert, and the policy keeps a
share of them. That share is told by the number of requests in the system, for tokens of prompts and of answers. It is
told too by the rank of the expert's device: 1 is the one with the least latency for a token at equal shares.
``behaviour.json`` has the shares and how many pairs each is of, ``behaviour.png`` is a picture of them.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from dataclasses import replace
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
from wdmoe_env.serving.play import play
from wdmoe_env.serving.process import ServingProcess, serving_config
from wdmoe_env.serving_config import ServingConfig
from wdmoe_env.writing import check_folder, write_files

PHASES = ("prompt", "answer")
SYSTEM = (1, 2, 3, 4, 6, 8)
"""Least number of requests in the system of each bin."""
FEW = 100
"""Pairs below which a share is not drawn: a few tokens say nothing."""


class Watched:
    """A policy whose choices are counted.

    Args:
        policy: what acts.
        codec: of its actions.
        devices: U.

    Attributes:
        by_system: (2, phases, bins) routed pairs, and those of them that were kept.
        by_rank: (2, U) likewise, by the rank of the device.
        used: pairs that ran: all, and those of experts that were not routed.
    """

    def __init__(self, policy: Policy, codec: Any, devices: int) -> None:
        self._policy, self._codec = policy, codec
        self.by_system = np.zeros((2, len(PHASES), len(SYSTEM)))
        self.by_rank = np.zeros((2, devices))
        self.used = np.zeros(2)

    def predict(
        self, observation: Any, state: State = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Any, State]:
        """The policy's, see ``wdmoe_env.policies.policy.Policy``."""
        actions, state = self._policy.predict(observation, state, episode_start, deterministic)
        self._count(observation, self._codec.decode(actions, (len(observation["queue"]),))["experts"])
        return actions, state

    def _count(self, observation: Any, selection: NDArray[np.bool_]) -> None:
        routed = observation["routed"] > 0
        filled = observation["token_mask"] > 0
        used = selection & filled[..., None]
        here = observation["queue"][:, :2].sum(axis=-1)
        system = np.searchsorted(SYSTEM, here, side="right") - 1
        phase = observation["row_phase"].astype(np.int64)
        rank = np.argsort(np.argsort(observation["unit_latency"], axis=-1), axis=-1)  # (n, U)
        rank_of_expert = np.take_along_axis(rank, observation["placement"].argmax(axis=-1), axis=-1)
        for number, pairs in enumerate((routed, routed & used)):
            np.add.at(self.by_system[number], (phase, np.maximum(system, 0)[:, None]), pairs.sum(axis=-1))
            np.add.at(self.by_rank[number], rank_of_expert, pairs.sum(axis=1))
        self.used += [used.sum(), (used & ~routed).sum()]

    def told(self) -> dict[str, Any]:
        """Shares and counts, as JSON has them."""
        return {
            "by_system": {
                phase: _shares(self.by_system[:, number], [_bin(place) for place in range(len(SYSTEM))])
                for number, phase in enumerate(PHASES)
            },
            "by_rank": _shares(self.by_rank, [str(1 + rank) for rank in range(self.by_rank.shape[1])]),
            "other_experts": float(self.used[1] / max(self.used[0], 1.0)),
        }


def _shares(pairs: NDArray[np.float64], names: list[str]) -> dict[str, Any]:
    whole, kept = pairs
    shares = (kept / np.maximum(whole, 1.0)).tolist()
    return {"bins": names, "kept": shares, "pairs": whole.astype(np.int64).tolist()}


def _bin(place: int) -> str:
    first = SYSTEM[place]
    if place + 1 == len(SYSTEM):
        return f"{first} and more"
    last = SYSTEM[place + 1] - 1
    return str(first) if first == last else f"{first} to {last}"


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
    """A PNG: the share of routed pairs that is kept, by requests in the system and by rank of the device."""
    figure = Figure(figsize=(11, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, sharey=True)
    names = short_names(tuple(found))
    for number, (policy, told) in enumerate(found.items()):
        style = {"color": f"C{number}", "marker": "o", "markersize": 3.5, "label": names[policy]}
        for axes, shares in (
            (left, told["by_system"]["prompt"]),
            (middle, told["by_system"]["answer"]),
            (right, told["by_rank"]),
        ):
            kept = [
                share if pairs >= FEW else np.nan for share, pairs in zip(shares["kept"], shares["pairs"], strict=True)
            ]
            axes.plot(shares["bins"], kept, **style)
    for axes, title, label in (
        (left, "tokens of prompts", "requests in the system"),
        (middle, "tokens of answers", "requests in the system"),
        (right, "all tokens", "rank of the device, 1 is the fastest"),
    ):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(label)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(alpha=0.2)
    left.set_ylabel("routed pairs kept")
    left.set_ylim(0, 1.02)
    right.legend(fontsize=8, loc="lower left")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


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

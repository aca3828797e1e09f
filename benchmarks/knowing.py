"""``python -m benchmarks.knowing windows``: what a selection reaches that knows the text to come.

    python -m benchmarks.knowing windows --episodes 512 --policies ppo-10 straight-through-10 --out runs/knowing/windows
    python -m benchmarks.knowing requests --episodes 64 --policies serve-paper-1.5 --out runs/knowing/requests

A policy chooses before a block what its tokens go without. What that does to the text shows later, also in tokens that
are not there yet. This selection is told the damage of each pair of token and expert beforehand, and takes the
marginal-price rule with damages in place of gate weights. So it says how much a better guess could still bring. It is
no strict bound: damages are added up, as if the pairs that are left out did not touch each other.

Tables have latency, or mean E2E, divergence and added NLL, and the latency over that of ``wdmoe:THRESHOLD`` at equal
divergence and at equal added NLL. ``OUT.json`` holds the same.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eval.matched import is_within, latency_at
from eval.tables import markdown
from wdmoe_env.checks import check_integer
from wdmoe_env.command import end_with, mistakes_in_one_sentence
from wdmoe_env.config import DEVICE_SETS
from wdmoe_env.evaluation import plan_episodes
from wdmoe_env.moe.hook import BlockInput
from wdmoe_env.moe.routing import RelaxedSelection
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.observations import decode_observation
from wdmoe_env.optimize.problem import BlockProblem
from wdmoe_env.optimize.selection import marginal_price_selection
from wdmoe_env.physics.latency import Float
from wdmoe_env.policies.policy import StatelessPolicy
from wdmoe_env.policies.registry import make_policy
from wdmoe_env.serving.play import play
from wdmoe_env.serving.process import ServingProcess, serving_config
from wdmoe_env.serving.rollout import PassRollout
from wdmoe_env.writing import check_file, write_whole

OWN = "vanilla-optimal"
FRONT = ("wdmoe:0.7", "wdmoe:0.8", "wdmoe:0.9", "wdmoe:0.95", "wdmoe:0.97")
PRICES = {"windows": (0.02, 0.04, 0.08, 0.16, 0.32), "requests": (0.02, 0.04, 0.08)}
"""Nats, the sum over a text, that a millisecond is worth; where requests wait, to each that is in the system."""
TEXTS_AT_ONCE = 32
DAMAGES = "damages"


@mistakes_in_one_sentence("python -m benchmarks.knowing")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("face", choices=tuple(PRICES))
    parser.add_argument("--policies", nargs="*", default=[], help="names or files to set beside it")
    parser.add_argument("--devices", choices=tuple(DEVICE_SETS), default="paper")
    parser.add_argument("--load", type=float, default=0.95, help="of requests")
    parser.add_argument("--episodes", type=int, default=64, help="windows, or cells")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes and of the texts drawn")
    parser.add_argument("--split", default="test")
    parser.add_argument("--draws", type=int, default=48, help="texts by which a damage is told")
    parser.add_argument("--out", type=Path, required=True)
    words = sys.argv[1:] if argv is None else list(argv)
    chosen = parser.parse_args(words)
    for name in ("episodes", "draws"):
        check_integer(name, getattr(chosen, name), at_least=1)
    check_file(chosen.out.with_suffix(".json"))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    face = Windows(chosen) if chosen.face == "windows" else Requests(chosen)
    knowing = {f"knowing:{price:g}": Knowing(face.env.codec, price) for price in PRICES[chosen.face]}
    points = {name: face.measured(policy) for name, policy in (face.policies | knowing).items()}
    rows = [{"policy": name, **asdict(point), **ratios(point, points)} for name, point in points.items()]
    command = shlex.join(["python", "-m", "benchmarks.knowing", *words])
    write_whole(chosen.out.with_suffix(".json"), json.dumps({"command": command, "rows": rows}, indent=1).encode())
    print(markdown([list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]))
    return 0


@dataclass(frozen=True, slots=True)
class Point:
    """Means of a policy over the episodes.

    Attributes:
        latency_ms: of a window, or E2E of a request.
        divergence: of the predictions from those of the own routing, nats a token.
        added_nll: nats a token.
    """

    latency_ms: float
    divergence: float
    added_nll: float


def ratios(point: Point, points: dict[str, Point]) -> dict[str, float]:
    """Latency over that of ``wdmoe`` at equal divergence and at equal added NLL; NaN where no setting loses as much."""
    front = [points[name] for name in (OWN, *FRONT)]
    latency = np.array([[one.latency_ms for one in front]])
    found = {}
    for name in ("divergence", "added_nll"):
        lost, at = np.array([[getattr(one, name) for one in front]]), np.array([getattr(point, name)])
        within = bool(is_within(lost, latency, at)[0])
        found[f"at_equal_{name}"] = point.latency_ms / latency_at(lost, latency, at)[0] if within else np.nan
    return found


def pair_damages(model: SplitModel, token_ids: Tensor, scored: Tensor, draws: int, generator: torch.Generator) -> Float:
    """What each routed pair adds to the divergence of its text by being left out alone, to second order.

    Let d be the slope of a text's log-likelihood along what the pair makes of difference to its block. Where the text
    is drawn from the model's own predictions, the mean of d^2 / 2 is half the quadratic form of the Fisher information
    (Amari, Natural gradient works efficiently in learning, 1998, section 2), which the divergence begins with.

    Args:
        model: the split model.
        token_ids: (N, L) int64.
        scored: (N, L) bool, tokens whose predictions count.
        draws: texts over which the mean is taken.
        generator: of the texts.

    Returns:
        (N, I, L, E) nats, the sum over the tokens of a text; 0 where a pair is not routed.
    """
    own: list[Tensor] = []

    def look(block: BlockInput) -> RelaxedSelection:
        own.append(block.routed.float().requires_grad_())
        return RelaxedSelection(own[-1], block.routed)

    log_probs = model.logits_under(look, token_ids).float().log_softmax(-1)
    cumulated = log_probs.detach().exp().cumsum(-1)
    damages = torch.zeros(len(own), *own[0].shape)
    for _ in range(draws):
        below = torch.rand(*token_ids.shape, 1, generator=generator)
        text = (cumulated < below).sum(-1).clamp_max(log_probs.shape[-1] - 1)
        likelihood = (log_probs.gather(-1, text[..., None])[..., 0] * scored).sum()
        slopes = torch.autograd.grad(likelihood, own, retain_graph=True)
        damages += torch.stack(slopes).square() / (2.0 * draws)
    damages *= torch.stack(own).detach()
    return damages.view(len(own), *token_ids.shape, -1).transpose(0, 1).double().numpy()


def damages_of(model: SplitModel, token_ids: Tensor, scored: Tensor, draws: int, seed: int) -> Float:
    """Damages (N, I, L, E) of texts (N, L), some texts at once, with a bar; see ``pair_damages``."""
    generator = torch.Generator().manual_seed(seed)
    parts = list(zip(token_ids.split(TEXTS_AT_ONCE), scored.split(TEXTS_AT_ONCE), strict=True))
    bar = tqdm(parts, desc="damages", unit=f"{TEXTS_AT_ONCE} texts")
    return np.concatenate([pair_damages(model, *part, draws, generator) for part in bar])


class Knowing(StatelessPolicy):
    """The marginal-price rule on damages that the observation holds.

    Args:
        codec: of the environment.
        price: nats that a millisecond is worth, to each request in the system where there are any.
    """

    def __init__(self, codec: Any, price: float) -> None:
        super().__init__(codec)
        self.price = price

    def actions(self, batch: dict[str, Any], deterministic: bool) -> Any:
        """Actions of N observations; see ``StatelessPolicy.actions``."""
        block = decode_observation(batch)
        waiting = batch["queue"][:, :2].sum(-1) if "queue" in batch else np.ones(len(block.index))
        price = self.price * np.asarray(waiting, dtype=np.float64)
        decision = marginal_price_selection(BlockProblem(block.links, batch[DAMAGES], block.routed, None, price))
        return self.codec.encode(decision.selection, decision.shares)


class Windows:
    """``WDMoE-v0`` on some windows, whose damages are found once.

    Args:
        chosen: of the command line.
    """

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.env: Any = gym.make_vec(
            "wdmoe_env:WDMoE-v0",
            num_envs=chosen.episodes,
            autoreset_mode="DISABLED",
            split=chosen.split,
            devices=chosen.devices,
            reward=minus_divergence,
            token_terms=True,
            observe_hidden_states=True,
        ).unwrapped
        self.policies = {name: make_policy(name, self.env) for name in (OWN, *FRONT, *chosen.policies)}
        source = self.env.simulator.source
        self.episodes = plan_episodes(chosen.episodes, len(source.windows), chosen.seed)
        token_ids, mask, _ = source.tokens(self.episodes.windows)
        self.damages = damages_of(source.model, token_ids, mask.bool(), chosen.draws, chosen.seed)
        self.own_nll = self.env.simulator.reference_nll(self.episodes.windows)

    def measured(self, policy: Any) -> Point:
        """Means of a policy."""
        observation, _ = self.env.reset(seed=self.episodes.seeds.tolist(), options={"window": self.episodes.windows})
        latency_ms, divergence = 0.0, 0.0
        for number in range(self.damages.shape[1]):
            actions, _ = policy.predict({**observation, DAMAGES: self.damages[:, number]})
            observation, reward, _, _, info = self.env.step(actions)
            latency_ms, divergence = latency_ms + info["block_latency_ms"].mean(), divergence - reward.mean()
        return Point(float(latency_ms), float(divergence), float((info["nll"] - self.own_nll).mean()))


def minus_divergence(terms: Any) -> Any:
    """Rewards (N,): less the divergence, nats a token."""
    return -terms["divergence"]


class Requests:
    """``WDMoE-Serve-v0`` on some cells, the damages of whose requests are found once.

    Args:
        chosen: of the command line.
    """

    def __init__(self, chosen: argparse.Namespace) -> None:
        settings = {
            "split": chosen.split,
            "devices": chosen.devices,
            "serving": {"load": chosen.load},
            "reward": "serving_divergence",
            "quality_weight": 1.0,
            "observe_hidden_states": True,
        }
        self.env = _TellingProcess(serving_config(settings, {}))
        self.policies = {name: make_policy(name, self.env) for name in (OWN, *FRONT, *chosen.policies)}
        self.seeds = np.random.default_rng(chosen.seed).integers(2**31, size=chosen.episodes).tolist()
        simulator = self.env.simulator
        requests = [simulator.begin(gym.utils.seeding.np_random(seed)[0]).cell.requests for seed in self.seeds]
        windows = np.concatenate([one.window for one in requests])
        rows = np.concatenate([one.rows for one in requests])
        token_ids = torch.from_numpy(simulator.texts.windows.token_ids[windows])
        scored = torch.arange(token_ids.shape[1]) < torch.from_numpy(rows)[:, None]
        found = damages_of(simulator.source.model, token_ids, scored, chosen.draws, chosen.seed)
        keys = zip(windows.tolist(), rows.tolist(), strict=True)
        self.env.damages.update(zip(keys, found, strict=True))

    def measured(self, policy: Any) -> Point:
        """Means of a policy."""
        with tqdm(total=len(self.seeds), unit="cell", leave=False) as bar:
            played = play(self.env, policy, self.seeds, ended=bar.update)
        e2e_ms, lost = (played.figures[f"request_{name}"] for name in ("e2e_ms", "added_nll"))
        # The reward is less the times in the system, in s, and less the divergence of each request.
        divergence = (-played.returns - 1e-3 * e2e_ms.sum(-1)) / e2e_ms.shape[-1]
        return Point(float(e2e_ms.mean()), float(divergence.mean()), float(lost.mean()))


class _TellingProcess(ServingProcess):
    """Serving whose observation holds the damages of the block's pairs."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.damages: dict[tuple[int, int], Any] = {}

    def observation(self, rollout: PassRollout) -> Any:
        """What the cells of a pass see, with the damages (n, J, E) of the routed pairs."""
        request, place = rollout.row_texts
        damages = np.zeros(rollout.block.routed.shape)
        for cell, row in zip(*np.nonzero(place >= 0), strict=True):
            of_cell, number = rollout.episodes[cell].cell.requests, request[cell, row]
            text = self.damages[int(of_cell.window[number]), int(of_cell.rows[number])]
            damages[cell, row] = text[rollout.blocks_done, place[cell, row]]
        return {**super().observation(rollout), DAMAGES: damages}


def _shown(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str) else f"{value:.4g}"


if __name__ == "__main__":
    end_with("python -m benchmarks.knowing", main)

"""``python -m train.curves``: learning curves of runs as JSON, and a picture of them against the returns of rules.

    python -m train.curves --runs runs/ppo runs/sb3-ppo --rules vanilla-optimal --json curves.json --out curves.png
    python -m train.curves --json docs/results/curves.json --out docs/learning-curves.png    # draws what is there

Returns of runs are those of their own draws on training windows, those of rules on ``--episodes`` training windows.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.arguments import Arguments
from train.environment import make_env
from train.folder import read_record
from wdmoe_env.checks import check_integer
from wdmoe_env.command import end_with, say_mistake
from wdmoe_env.policies import make_policy
from wdmoe_env.reading import read_json, read_text
from wdmoe_env.writing import check_file, write_whole

RETURNS = ("train/return", "rollout/ep_rew_mean")
"""Columns that hold the mean return, of the trainers of this package and of Stable-Baselines3."""
STEPS = ("time/total_timesteps",)
BATCH = 64
SMOOTHED = 5
SEED = 1_000_003

Curves = dict[str, Any]
"""``{"reward", "quality_weight", "curves": [{"name", "blocks", "return"}], "rules": {NAME: RETURN}}``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Read runs or JSON, and draw; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m train.curves", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="+", type=Path, default=[], metavar="DIR", help="run folders of one reward")
    parser.add_argument("--rules", nargs="*", default=["vanilla-optimal"], help="rules to draw lines of")
    parser.add_argument("--episodes", type=int, default=256, help="training windows of each rule (256)")
    parser.add_argument("--json", type=Path, required=True, help="curves: written from --runs, else read")
    parser.add_argument("--out", type=Path, help="picture, a PNG")
    chosen = parser.parse_args(argv)
    try:
        check_integer("episodes", chosen.episodes, at_least=1)
        for path in filter(None, (chosen.json, chosen.out)):
            check_file(path)
        found = gathered(chosen.runs, chosen.rules, chosen.episodes) if chosen.runs else read_json(chosen.json)
        if chosen.runs:
            write_whole(chosen.json, (json.dumps(found, indent=1) + "\n").encode())
        if chosen.out:
            write_whole(chosen.out, picture(found))
    except (ValueError, TypeError, OSError, KeyError) as error:
        return say_mistake("python -m train.curves", error)
    return 0


def gathered(runs: Sequence[Path], rules: Sequence[str], episodes: int) -> Curves:
    """Curves of runs, and returns of rules under the reward of the first.

    Raises:
        ValueError: a run without a curve, or of another reward.
    """
    records = [read_record(run) for run in runs]
    told = {(record.get("reward"), record.get("quality_weight")) for record in records}
    if len(told) > 1:
        raise ValueError(f"expected runs of one reward and weight, got {sorted(map(str, told))}")
    ((reward, weight),) = told
    first = records[0]
    arguments = Arguments(
        model=first["model"], num_tokens=first["num_tokens"], reward=str(reward), quality_weight=float(weight or 0.0)
    )
    curves = [curve(run, record) for run, record in zip(runs, records, strict=True)]
    returns = {name: rule_return(arguments, name, episodes) for name in rules}
    return {"reward": reward, "quality_weight": weight, "curves": curves, "rules": returns}


def curve(run: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The curve of a run, over the files of its resumptions.

    Raises:
        ValueError: it has none.
    """
    points: dict[int, float] = {}
    for path in sorted(run.glob("progress*.csv")):
        for row in csv.DictReader(io.StringIO(read_text(path))):
            steps, value = (next((row[name] for name in names if row.get(name)), "") for names in (STEPS, RETURNS))
            if steps and value:
                points[int(float(steps))] = float(value)
    if not points:
        raise ValueError(f"expected a curve in {run}, but no file progress*.csv there holds a return")
    name = f"{record['algorithm']} {record['settings']}".strip() if record.get("settings") else record["algorithm"]
    blocks = sorted(points)
    return {"name": name, "seed": record["seed"], "blocks": blocks, "return": [points[at] for at in blocks]}


def rule_return(arguments: Arguments, name: str, episodes: int) -> float:
    """Mean return of a rule on training windows."""
    env = make_env(arguments, BATCH)
    actor, returns = make_policy(name, env), []
    for batch in range(-(-episodes // BATCH)):
        observation, _ = env.reset(seed=SEED + batch * BATCH)
        total = np.zeros(BATCH)
        for _ in range(env.unwrapped.simulator.sizes.num_blocks):
            observation, reward, *_ = env.step(actor.predict(observation)[0])
            total += reward
        returns.append(total)
    env.close()
    return float(np.concatenate(returns)[:episodes].mean())


def smooth(values: Sequence[float]) -> list[float]:
    """The running mean over ``SMOOTHED`` points, over fewer at the beginning."""
    return [float(np.mean(values[max(0, at + 1 - SMOOTHED) : at + 1])) for at in range(len(values))]


def picture(found: Curves) -> bytes:
    """A PNG of curves, thin as they are and thick as running means; one colour a name, rules as broken lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = list(dict.fromkeys(one["name"] for one in found["curves"]))
    for one in found["curves"]:
        first = one is next(other for other in found["curves"] if other["name"] == one["name"])
        colour = f"C{names.index(one['name'])}"
        axes.plot(one["blocks"], one["return"], color=colour, lw=0.8, alpha=0.35)
        axes.plot(one["blocks"], smooth(one["return"]), color=colour, lw=1.6, label=one["name"] if first else None)
    for number, (name, value) in enumerate(found["rules"].items()):
        axes.axhline(value, color="0.35", lw=1, ls=("--", ":", "-.")[number % 3], label=name)
    axes.set_xlabel("blocks (environment steps)")
    axes.set_ylabel(f"mean return, {found['reward']}, weight {found['quality_weight']:g}")
    axes.set_xscale("log")
    values = [*found["rules"].values(), *(value for one in found["curves"] for value in smooth(one["return"]))]
    best = max(values)
    worst = min([*found["rules"].values(), best])
    span = max(best - worst, 0.1)
    axes.set_ylim(worst - 0.5 * span, best + 0.2 * span)  # stock runs may lie far below
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.2)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


if __name__ == "__main__":
    end_with("python -m train.curves", main)

"""The search behind ``hyperparameters.yml``: short runs over a grid, scored on episodes that they were not trained on.

    python -m train.search --algorithm straight-through --hidden-states --reward latency_quality --timesteps 19200 \
        --grid learning_rate=1e-3,2e-3,4e-3 entropy_weight=0,0.002 --out runs/search

Episodes come from the training split, with seeds of their own: nothing here looks at held-out text. ``search.csv`` has
a row for each run; a search that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from eval.tables import csv_text
from train.__main__ import add_arguments
from train.agent import TRAINERS, settings_of
from train.arguments import Arguments, parsed_value
from train.environment import make_env
from wdmoe_env.command import end_with, mistakes_in_one_sentence
from wdmoe_env.policies import make_policy
from wdmoe_env.writing import held_folder, write_whole

SCORE_SEED = 1_000_003
SCORE_BATCHES = 8
SCORE_BATCH = 64


@mistakes_in_one_sentence("python -m train.search")
def main(argv: Sequence[str] | None = None) -> int:
    """Search; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m train.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--grid", nargs="+", required=True, metavar="NAME=A,B", help="settings and their values")
    chosen = vars(parser.parse_args(argv))
    grid = dict(parsed(entry) for entry in chosen.pop("grid"))
    with held_folder(Path(chosen["out"])):
        rows = list(search(Arguments(**chosen), grid))
    print(text_of(sorted(rows, key=lambda row: -float(row["return"]))))
    return 0


def parsed(entry: str) -> tuple[str, list[Any]]:
    """``"name=1,2"`` as a name and values.

    Raises:
        ValueError: another form.
    """
    name, equals, values = entry.partition("=")
    if not name or not equals or not values:
        raise ValueError(f"expected an entry of the grid such as learning_rate=1e-3,2e-3, got {entry!r}")
    return name, [parsed_value(value) for value in values.split(",")]


def search(arguments: Arguments, grid: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Train and score every point of a grid; a point whose policy is there is only scored.

    Args:
        arguments: of every run but its folder.
        grid: values of each setting.

    Raises:
        ValueError, TypeError, OSError: an unknown setting, or what ``train.agent.train`` raises.
    """
    arguments.check()
    settings = settings_of(arguments)
    unknown = sorted(set(grid) - set(settings))
    if unknown:
        raise ValueError(f"expected settings of {', '.join(settings)}, got {unknown[0]!r}")
    rows = []
    for values in product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        out = Path(arguments.out, "-".join(f"{name}={value}" for name, value in point.items()))
        here = dataclasses.replace(arguments, out=str(out), resume=(out / "checkpoint.safetensors").is_file())
        path = out / "policy.safetensors"
        if not path.is_file():
            with held_folder(out):
                TRAINERS[here.algorithm](here, settings | point)
        mean, error = score(here, path)
        rows.append({**point, "return": f"{mean:.4f}", "standard_error": f"{error:.4f}"})
        write_whole(Path(arguments.out, "search.csv"), text_of(rows).encode())
        yield rows[-1]


def score(arguments: Arguments, policy: Path) -> tuple[float, float]:
    """Mean return of a policy's modes on training windows under new channels, and its standard error."""
    env = make_env(arguments, SCORE_BATCH)
    actor, returns = make_policy(str(policy), env), []
    for batch in range(SCORE_BATCHES):
        observation, _ = env.reset(seed=SCORE_SEED + batch * SCORE_BATCH)
        total = np.zeros(SCORE_BATCH)
        for _ in range(env.unwrapped.simulator.sizes.num_blocks):
            observation, reward, *_ = env.step(actor.predict(observation)[0])
            total += reward
        returns.append(total)
    env.close()
    every = np.concatenate(returns)
    return float(every.mean()), float(every.std(ddof=1) / len(every) ** 0.5)


def text_of(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV."""
    return csv_text(list(rows[0]) if rows else [], rows)


if __name__ == "__main__":
    end_with("python -m train.search", main)

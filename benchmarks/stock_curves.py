"""``python -m benchmarks.stock_curves``: what stock PPO comes to as it learns, beside rules at equal quality.

    python -m benchmarks.stock_curves --cards runs/stock/*.json --json curves.json --out curves.png
    python -m benchmarks.stock_curves --json curves.json --out curves.png    # draws what is there

A card is what ``python -m benchmarks.stock`` writes. The picture has one panel for each environment. A line shows the
latency, or mean E2E, over what a family of rules needs at the same added NLL; below 1 the learner is ahead.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.stock import FACES, FRONTS, env_id
from wdmoe_env.command import end_with, say_mistake
from wdmoe_env.reading import read_json
from wdmoe_env.writing import check_file, write_whole

Curves = dict[str, list[dict[str, float | None]]]
"""By environment the points of ``benchmarks.stock``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Read cards or JSON, and draw; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stock_curves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cards", nargs="+", type=Path, default=[], metavar="FILE", help="cards of benchmarks.stock")
    parser.add_argument("--json", type=Path, required=True, help="curves: written from --cards, else read")
    parser.add_argument("--out", type=Path, required=True, help="picture, a PNG")
    chosen = parser.parse_args(argv)
    try:
        for path in (chosen.json, chosen.out):
            check_file(path)
        found = gathered(chosen.cards) if chosen.cards else read_json(chosen.json)
        if chosen.cards:
            write_whole(chosen.json, (json.dumps(found, indent=1) + "\n").encode())
        write_whole(chosen.out, picture(found))
    except KeyError as error:
        said = f"expected curves of benchmarks.stock in {chosen.json}, got an entry or point {error}, or one without it"
        return say_mistake("python -m benchmarks.stock_curves", ValueError(said))
    except (ValueError, TypeError, AttributeError, OSError) as error:
        return say_mistake("python -m benchmarks.stock_curves", error)
    return 0


def gathered(cards: Sequence[Path]) -> Curves:
    """The curves of cards, by the environment that each names.

    Raises:
        ValueError: a card that ``benchmarks.stock`` did not write, or two of one environment.
    """
    faces = {env_id(face): face for face in FACES}
    found: Curves = {}
    for path in cards:
        card = read_json(path)
        face = faces.get(str(card.get("env_id")))
        if face is None or not card.get("curve"):
            raise ValueError(f"expected a card of benchmarks.stock with a curve in {path}, but it is none")
        if face in found:
            raise ValueError(f"expected one card of each environment, got a second one of {face}: {path}")
        found[face] = card["curve"]
    return found


def picture(found: Curves) -> bytes:
    """A PNG with a panel for each environment."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(found), 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (face, points) in zip(panels, found.items(), strict=True):
        for rule in FRONTS:
            told = [one for one in points if one[f"against_{rule}"] is not None]
            seconds, ratios = ([one[name] for one in told] for name in ("processor_s", f"against_{rule}"))
            axes.plot(seconds, ratios, marker="o", ms=4, lw=1.4, label=f"over {rule}")
        axes.axhline(1.0, color="0.35", lw=1, ls="--")
        axes.set_title(env_id(face), fontsize=10)
        axes.set_xlabel("processor time of learning, s")
        axes.grid(alpha=0.2)
    figure.axes[0].set_ylabel("latency over a rule's at equal added NLL")
    figure.axes[0].legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


if __name__ == "__main__":
    end_with("python -m benchmarks.stock_curves", main)

"""What few bits on the link bring beside selection: ``python -m benchmarks.precision``.

On the same test windows and channels: the own routing at optimal shares, the paper's rule and the marginal price with
16, 8 and 4 bits for all messages, and the rule that decides bits too. Prints latency and added NLL of each, with
bootstrap intervals over episodes, and then the latency of each family at the quality of a reference. A front may be
interpolated by drawing between two settings, see ``eval.matched``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from eval.matched import latency_at
from wdmoe_env.evaluation import evaluate
from wdmoe_env.physics.latency import Float

OWN = "vanilla-optimal"
WDMOE = ("wdmoe:0.8", "wdmoe:0.9")
PRICES = ("0.7", "1", "1.5")
FIXED = (OWN, *WDMOE, *(f"marginal-price:{price}" for price in PRICES))
DECIDED = ("marginal-price-bits:1", "marginal-price-bits:1.5")
REFERENCES = WDMOE
RESAMPLES = 2000

Points = dict[tuple[str, str], tuple[Float, Float]]
"""(bits, policy) to added NLL (n,) in nats and latency (n,) in ms of each episode."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--bandwidth-mhz", type=float, default=100.0)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(argv)
    config = {"split": "test", "channel": {"bandwidth_hz": 1e6 * options.bandwidth_mhz}}
    points = measured(config, options.episodes, options.seed, options.processes)
    draws = np.random.default_rng(0).integers(options.episodes, size=(RESAMPLES, options.episodes))
    print_points(points, draws)
    print()
    print_matched(points, draws)


def measured(config: Mapping[str, Any], episodes: int, seed: int, processes: int) -> Points:
    """All settings on the same episodes."""
    runs = [(f"by {one}", {"decide_bits": one}, [policy]) for one in ("device", "token") for policy in DECIDED]
    runs += [(str(bits), {"deployment": {"link_bits": bits}}, [*FIXED]) for bits in (16, 8, 4)]
    nll, latency_ms = {}, {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(evaluate, some, {**config, **own}, episodes, seed, progress=False) for _, own, some in runs]
        for (bits, _, policies), job in zip(runs, jobs, strict=True):
            for policy in policies:
                found = job.result().measurements[policy]
                nll[bits, policy], latency_ms[bits, policy] = found["nll"], found["latency_ms"]
    whole = nll["16", OWN]
    return {setting: (nll[setting] - whole, latency_ms[setting]) for setting in nll}


def print_points(points: Points, draws: Any) -> None:
    """Latency and added NLL of every setting."""
    reference = points["16", OWN][1]
    print("| policy | bits | latency, ms | ratio to own routing at 16 bits | added NLL, nats |")
    print("|---|---|---:|---|---:|")
    for (bits, policy), (added, latency) in points.items():
        ratio = interval(latency[draws].mean(1) / reference[draws].mean(1), latency.mean() / reference.mean())
        low, high = np.percentile(added[draws].mean(1), (2.5, 97.5))
        nll = f"{added.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
        print(f"| `{policy}` | {bits} | {latency.mean():.1f} | {ratio} | {nll} |")


def print_matched(points: Points, draws: Any) -> None:
    """Latency of each family at the quality that a reference has at 16 bits, over the reference's latency."""
    decided = [("8", OWN), *(("by device", policy) for policy in DECIDED)]
    families = {
        "bits alone: own routing": [(bits, OWN) for bits in ("16", "8", "4")],
        "selection alone: `marginal-price`, 16 bits": family("16"),
        "both: `marginal-price`, 8 bits": family("8"),
        "both: `marginal-price`, 4 bits": family("4"),
        "both: `wdmoe`, 8 bits": [("8", OWN), *(("8", policy) for policy in WDMOE)],
        "both, bits decided: `marginal-price-bits`": decided,
    }
    print(f"| at the quality of, 16 bits | {' | '.join(f'`{name}`' for name in REFERENCES)} |")
    print(f"|---|{'---|' * len(REFERENCES)}")
    rows = np.vstack([np.arange(draws.shape[1])[None], draws])
    for name, members in families.items():
        cells = []
        for reference in REFERENCES:
            at, base = (values[rows].mean(1) for values in points["16", reference])
            added, latency = (
                np.stack([points[one][which][rows].mean(1) for one in members], axis=1) for which in (0, 1)
            )
            ratio = latency_at(added, latency, at) / base
            cells.append(interval(ratio[1:], ratio[0]) if np.isfinite(ratio[0]) else "not reached")
        print(f"| {name} | {' | '.join(cells)} |")


def family(bits: str) -> list[tuple[str, str]]:
    """The front of the marginal price at a number of bits for all."""
    return [(bits, OWN), *((bits, f"marginal-price:{price}") for price in PRICES)]


def interval(values: Float, middle: float) -> str:
    """A figure with its 95 % interval of resamples (R,)."""
    low, high = np.percentile(values, (2.5, 97.5), method="nearest")  # some may be infinite
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()

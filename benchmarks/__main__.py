"""``python -m benchmarks``: measure, print one table, and save it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks import decision, growth, ppo, serving, solver, step
from benchmarks.table import Row, Settings, machine, markdown, save
from benchmarks.timing import on_threads
from wdmoe_env.writing import held_folder

SECTIONS = {
    "step": step.rows,
    "serving": serving.rows,
    "solver": solver.rows,
    "decision": decision.rows,
    "ppo": ppo.rows,
    "growth": growth.rows,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about a minute; rough figures")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to run")
    parser.add_argument("--device", default="cpu", help="torch device of the section step; the others run on the CPU")
    parser.add_argument("--steps", type=int, default=1_000_000, help="environment steps of the memory run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of results.md and results.json")
    chosen = parser.parse_args(arguments)
    with ExitStack() as held:
        try:
            held.enter_context(held_folder(chosen.out))
        except (ValueError, OSError) as error:
            parser.error(str(error))
        measure(chosen.only, Settings(chosen.quick, chosen.device, chosen.steps), chosen.out)
    return 0


def measure(sections: Sequence[str], settings: Settings, out: Path) -> None:
    """Measure sections, save after each what there is, and print the table."""
    rows: list[Row] = []
    note = machine() + (", quick" if settings.quick else "")
    for name in sections:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        with on_threads(torch.get_num_threads() if name == "step" else 1):  # which measures both
            rows += SECTIONS[name](settings)
        save(out, rows, note)
    if not torch.cuda.is_available():
        rows.append(Row("CUDA", "step over a block of the plain forward", None))
    print(f"{note}\n\n{markdown(rows)}")
    save(out, rows, note)


if __name__ == "__main__":
    sys.exit(main())

"""The results folder: all of it or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eval.plots import plot_pareto
from eval.report import markdown_report
from eval.results import Results
from eval.summary import Summary

FILES = ("results.csv", "results.json", "report.md", "pareto.png")


def check_folder(out: Path, overwrite: bool) -> None:
    """Check that results may go to ``out``, without touching it.

    Raises:
        ValueError: not a folder, not empty, or nothing can be written there.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"expected a folder for the results, got the file {out}")
    held = sorted(path.name for path in out.iterdir()) if out.exists() else []
    foreign = [name for name in held if name not in FILES]
    if foreign:
        raise ValueError(f"expected a new folder or an empty one for the results, but {out} holds {foreign[0]}")
    if held and not overwrite:
        raise ValueError(
            f"expected a new folder for the results, but {out} holds earlier ones (--overwrite replaces them)"
        )
    parent = next(path for path in out.absolute().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"expected a place for the results that can be written to, got {out}")


@contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place at the end, or vanishes if the body fails."""
    place = out.absolute()
    part, old = (place.with_name(f".{place.name}.{os.getpid()}.{state}") for state in ("part", "old"))
    part.mkdir(parents=True)
    try:
        yield part
        if out.exists():
            out.rename(old)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def write_results(results: Results, summary: Summary, out: Path) -> None:
    """Write the files of a results folder.

    Args:
        results: what was measured.
        summary: the content of ``results.json``.
        out: the folder, checked by ``check_folder``.
    """
    with replaced_folder(out) as part:
        (part / "results.csv").write_text(results.csv(), encoding="utf-8")
        (part / "results.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        (part / "report.md").write_text(markdown_report(summary), encoding="utf-8")
        plot_pareto(summary["policies"], part / "pareto.png")

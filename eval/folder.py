"""The results folder: all of it or nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eval.kinds import KINDS, LEADERBOARD, PAGE, REPORT, Kind
from eval.leaderboard import leaderboard_csv
from eval.results import Results
from eval.summary import Summary


def check_folder(out: Path, overwrite: bool) -> None:
    """Check that results may go to ``out``, without touching it.

    Raises:
        ValueError: not a folder, not empty, or nothing can be written there.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"expected a folder for the results, got the file {out}")
    held = sorted(path.name for path in out.iterdir()) if out.exists() else []
    foreign = [name for name in held if name != PAGE and not any(name in kind.files for kind in KINDS)]
    if foreign:
        raise ValueError(f"expected a new folder or an empty one for the results, but {out} holds {foreign[0]}")
    if held and not overwrite:
        raise ValueError(
            f"expected a new folder for the results, but {out} holds earlier ones (--overwrite replaces them)"
        )
    parent = next(path for path in out.absolute().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"expected a place for the results that can be written to, got {out}")


def json_text(summary: Summary) -> str:
    """Indented JSON, but a list of numbers on one line."""
    text = json.dumps(summary, indent=2, allow_nan=False)  # NaN is not JSON
    # A line break never stands within a string of JSON, so that only lists are met.
    return re.sub(r"\[\n\s+([-+.\deE,\s]*?)\n\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


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


def write_results(kind: Kind, results: Results, summary: Summary, out: Path) -> None:
    """Write the files of a results folder.

    Args:
        kind: of the evaluation.
        results: what was measured.
        summary: the content of the JSON.
        out: the folder, checked by ``check_folder``.
    """
    with replaced_folder(out) as part:
        (part / f"{kind.stem}.csv").write_text(results.csv(), encoding="utf-8")
        (part / f"{kind.stem}.json").write_text(json_text(summary), encoding="utf-8")
        (part / LEADERBOARD).write_text(leaderboard_csv(summary["settings"]), encoding="utf-8")
        (part / REPORT).write_text(kind.report(summary), encoding="utf-8")
        for name, draw in kind.pictures.items():
            draw(summary, part / name)

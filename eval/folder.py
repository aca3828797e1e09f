"""The results folder: all of it or nothing, and nothing lost that somebody else put there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from eval.kinds import KINDS, LEADERBOARD, PAGE, REPORT, Kind
from eval.results import Results
from eval.statistics import Summary
from eval.tables import leaderboard_csv
from wdmoe_env.writing import check_file, check_folder, held_folder, is_temporary, write_files

UNPLACED = "new-results"
"""Folder within that for results whose places were taken while they were made."""


@dataclass(frozen=True, slots=True)
class ResultsFolder:
    """A folder that results may go to.

    Attributes:
        path: the folder itself, without links.
        told: as it was named.
        earlier: names of the files that the results replace.
    """

    path: Path
    told: Path
    earlier: frozenset[str]


@contextmanager
def results_folder(out: Path, overwrite: bool) -> Iterator[ResultsFolder]:
    """Hold a folder for results, tried before the work: no other run can write there until the body ends.

    Raises:
        ValueError: not a folder, one that holds something else, earlier results without ``overwrite``, or another run
            holds it.
        OSError: nothing can be written there.
    """
    check_folder(out)
    earlier_results(out, overwrite)  # before anything is made in it
    with held_folder(out) as path:
        yield ResultsFolder(path, out, earlier_results(out, overwrite))


def earlier_results(out: Path, overwrite: bool) -> frozenset[str]:
    """Names of the files of earlier results in a folder, that new ones replace.

    Raises:
        ValueError: the folder holds something else, or it holds earlier results and they are not to be replaced.
    """
    held = sorted(path.name for path in out.iterdir() if not is_temporary(path.name)) if out.exists() else []
    foreign = [name for name in held if name != PAGE and not any(name in kind.files for kind in KINDS)]
    if foreign:
        raise ValueError(f"expected a new folder or an empty one for the results, but {out} holds {foreign[0]}")
    if held and not overwrite:
        raise ValueError(
            f"expected a new folder for the results, but {out} holds earlier ones (--overwrite replaces them)"
        )
    for name in held:
        check_file(out / name)
    return frozenset(held)


def json_text(summary: Summary) -> str:
    """Indented JSON, but a list of numbers on one line."""
    text = json.dumps(summary, indent=2, allow_nan=False)  # NaN is not JSON
    # A line break never stands within a string of JSON, so that only lists are met.
    return re.sub(r"\[\n\s+([-+.\deE,\s]*?)\n\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def write_results(kind: Kind, results: Results, summary: Summary, folder: ResultsFolder) -> None:
    """Write the files of a results folder, in the place of earlier ones.

    Args:
        kind: of the evaluation.
        results: what was measured.
        summary: the content of the JSON.
        folder: held since before the evaluation.

    Raises:
        ValueError: files of the same names have appeared in the folder meanwhile: they stay, and the results lie in a
            new folder beside them.
        OSError: they cannot be written; earlier results are unchanged.
    """
    files = {
        f"{kind.stem}.csv": results.csv().encode(),
        LEADERBOARD: leaderboard_csv(summary["settings"]).encode(),
        REPORT: kind.report(summary).encode(),
        **kind.draw(summary),
        f"{kind.stem}.json": json_text(summary).encode(),
    }
    taken = [name for name in files if name not in folder.earlier and os.path.lexists(folder.path / name)]
    if taken:
        beside = _free(folder.path / UNPLACED)
        write_files(beside, files)
        raise ValueError(
            f"{taken[0]} appeared in {folder.told} while the evaluation ran: it stays, and the results are in {beside}"
        )
    write_files(folder.path, files)
    for name in folder.earlier - files.keys():
        (folder.path / name).unlink(missing_ok=True)


def _free(path: Path) -> Path:
    """The path, or the first of it with a number that nothing has."""
    names = (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in count(1))
    return next(name for name in names if not name.exists())

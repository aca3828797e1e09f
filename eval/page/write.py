"""From results folders to the page."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from eval.kinds import EPISODES
from eval.page.accuracy import matched_points
from eval.page.html import Markup, tag
from eval.page.sections import made_section, suite_sections, transfer_section, windows_sections
from eval.replay import SavedResults, read_results
from eval.shape import SHOWN, check_shape
from eval.transfer import CONDITIONS
from eval.transfer import TABLE as TRANSFER
from wdmoe_env.reading import shown
from wdmoe_env.writing import write_whole

TITLE = "WDMoE: policies compared"
LEAD = "Expert selection and bandwidth for a mixture of experts on wireless devices: latency against quality."
# No script runs and nothing is fetched, whatever a name or a file says.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
NEEDED = {"results": ("settings", "matched_quality", "profiles", "breakdowns"), "suite": ("settings",)}


def write_page(folders: Sequence[Path], out: Path) -> None:
    """Write one HTML page that shows results folders, without scripts or anything from elsewhere.

    Args:
        folders: of evaluations on windows of text and on the suite, and of transfers, in the order they are shown.
        out: the page.

    Raises:
        ValueError: not a results folder, one of an earlier version, or one whose parts do not fit together.
    """
    transfers = [folder for folder in folders if (folder / TRANSFER).is_file()]
    saved = [(str(folder), _readable(folder)) for folder in folders if folder not in transfers]
    conditions = [_conditions(folder) for folder in transfers]
    try:
        text = page(saved, conditions)
    except (LookupError, ValueError, ArithmeticError) as error:  # each part has its shape: a name or a length is odd
        where, what = ", ".join(map(shown, folders)), f"{type(error).__name__}: {error}"
        raise ValueError(f"expected results whose parts fit together in {where}; drawing them met {what}") from error
    write_whole(out, text.encode())


def page(saved: Sequence[tuple[str, SavedResults]], transfers: Sequence[dict[str, SavedResults]] = ()) -> str:
    """The page's text.

    Args:
        saved: name and content of each results folder.
        transfers: of each transfer the path of every condition's folder, and its content.
    """
    suites = [results for _, results in saved if results.kind is not EPISODES]
    parts = []
    for _, results in saved:
        if results.kind is EPISODES:
            rows = results.summary["matched_quality"]
            points = {key: row for suite in suites for key, row in matched_points(rows, suite).items()}
            parts.append(windows_sections(results.summary, points))
        else:
            parts.append(suite_sections(results.summary))
    for moved in transfers:
        parts.append(transfer_section({Path(path).name: results.summary for path, results in moved.items()}))
    shown = [*saved, *(item for moved in transfers for item in moved.items())]
    made = made_section([(name, results.summary) for name, results in shown])
    body = tag("body", tag("h1", TITLE), tag("p", LEAD, class_="lead"), parts, made)
    return f'<!doctype html>\n<html lang="en">\n{_head()}\n{body}\n</html>\n'


def _head() -> Markup:
    style = (resources.files("eval.page") / "page.css").read_text(encoding="utf-8")
    return Markup(
        '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"{tag('title', TITLE)}{tag('style', Markup(style))}</head>"
    )


def _conditions(folder: Path) -> dict[str, SavedResults]:
    """Of a transfer the path of every condition's folder, and its content, in the order of the table."""
    names = [name for name in CONDITIONS if (folder / name).is_dir()]
    return {str(folder / name): _readable(folder / name) for name in names}


def _readable(folder: Path) -> SavedResults:
    results = read_results(folder)
    missing = [key for key in NEEDED[results.kind.stem] if key not in results.summary]
    if missing:
        raise ValueError(f"expected results of this version in {shown(folder)}, got some without {', '.join(missing)}")
    try:
        check_shape(results.summary, SHOWN[results.kind.stem], "the results")
    except ValueError as error:
        raise ValueError(f"expected {shown(folder)} as an evaluation wrote it: {error}") from None
    return results

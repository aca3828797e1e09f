"""From results folders to the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import numpy as np

from eval.kinds import WINDOWS
from eval.members import Setting
from eval.page.html import Markup, tag
from eval.page.sections import made_section, suite_sections, transfer_section, windows_sections
from eval.page.serving import serving_sections
from eval.replay import SavedResults, read_results
from eval.serve_replay import SavedServing, is_serving, read_serving
from eval.shape import SHOWN, check_shape
from eval.statistics import Float, SeededBootstrap, Summary, interval_of
from eval.transfer import CONDITIONS
from eval.transfer import TABLE as TRANSFER
from wdmoe_env.reading import shown_path
from wdmoe_env.writing import write_whole

TITLE = "WDMoE: policies compared"
LEAD = "Expert selection and bandwidth for a mixture of experts on wireless devices: latency against quality."
# No script runs and nothing is fetched, whatever a name or a file says.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
NEEDED = {"results": ("settings", "matched_quality", "profiles", "breakdowns"), "suite": ("settings",)}


def write_page(folders: Sequence[Path], out: Path) -> None:
    """Write one HTML page that shows results folders, without scripts or anything from elsewhere.

    Args:
        folders: of evaluations on windows of text, on the suite and of serving, and of transfers, in the order they are
            shown.
        out: the page.

    Raises:
        ValueError: not a results folder, one of an earlier version, or one whose parts do not fit together.
    """
    transfers = [folder for folder in folders if (folder / TRANSFER).is_file()]
    served = [folder for folder in folders if folder not in transfers and is_serving(folder)]
    others = [folder for folder in folders if folder not in transfers and folder not in served]
    saved = [(str(folder), _readable(folder)) for folder in others]
    serving = [(str(folder), read_serving(folder)) for folder in served]
    conditions = [_conditions(folder) for folder in transfers]
    try:
        text = page(saved, conditions, serving)
    except (LookupError, ValueError, ArithmeticError, TypeError) as error:  # a name, a length or a type is odd
        where, what = ", ".join(map(shown_path, folders)), f"{type(error).__name__}: {error}"
        raise ValueError(f"expected results whose parts fit together in {where}; drawing them met {what}") from error
    write_whole(out, text.encode())


def page(
    saved: Sequence[tuple[str, SavedResults]],
    transfers: Sequence[dict[str, SavedResults]] = (),
    serving: Sequence[tuple[str, SavedServing]] = (),
) -> str:
    """The page's text.

    Args:
        saved: name and content of each results folder.
        transfers: of each transfer the path of every condition's folder, and its content.
        serving: name and content of each results folder of serving.
    """
    suites = [results for _, results in saved if results.kind is not WINDOWS]
    parts = []
    for _, results in saved:
        if results.kind is WINDOWS:
            rows = results.summary["matched_quality"]
            points = {key: row for suite in suites for key, row in matched_points(rows, suite).items()}
            parts.append(windows_sections(results.summary, points))
        else:
            parts.append(suite_sections(results.summary))
    for moved in transfers:
        parts.append(transfer_section({Path(path).name: results.summary for path, results in moved.items()}))
    parts += [serving_sections(results.summary) for _, results in serving]
    shown = [*saved, *(item for moved in transfers for item in moved.items())]
    summaries = [(name, results.summary) for name, results in shown]
    made = made_section([*summaries, *((name, results.summary) for name, results in serving)])
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
        raise ValueError(
            f"expected results of this version in {shown_path(folder)}, got some without {', '.join(missing)}"
        )
    try:
        check_shape(results.summary, SHOWN[results.kind.stem], "the results")
    except ValueError as error:
        raise ValueError(f"expected {shown_path(folder)} as an evaluation wrote it: {error}") from None
    return results


def matched_points(rows: list[Summary], suite: SavedResults) -> dict[tuple[str, str], Summary]:
    """For reference and family the accuracy of the family's mixture minus that of the reference, percentage points.

    Which two settings are mixed, and how, follows from the windows of text and stands fixed; seeds and items are
    resampled, the same items on both sides. Rows whose settings the suite lacks are left out.

    Args:
        rows: of ``matched_quality``.
        suite: results on the suite.
    """
    settings = {row["name"]: _setting(row) for row in suite.statistics["settings"]}
    correct = _correct(suite)
    num_items = len(next(iter(correct.values())))
    bootstrap = SeededBootstrap(list(settings.values()), num_items, np.random.default_rng(suite.config.seed))
    means = {name: _means(bootstrap, setting, correct) for name, setting in settings.items()}
    points = {}
    for row in rows:
        mixture = row["mixture"]
        if mixture and {mixture["first"], mixture["second"], row["reference"]} <= means.keys():
            share = mixture["share_of_second"]
            mixed = (1.0 - share) * means[mixture["first"]] + share * means[mixture["second"]]
            difference = 100.0 * (mixed - means[row["reference"]])
            points[row["reference"], row["family"]] = asdict(interval_of(difference[0], difference[1:]))
    return points


def _setting(row: Summary) -> Setting:
    return Setting(row["family"], row["setting"], None, row["learned"], tuple(row["policies"]), tuple(row["seeds"]))


def _correct(suite: SavedResults) -> dict[str, Float]:
    """Of each policy whether it answered each item rightly."""
    correct: dict[str, list[float]] = {}
    for row in suite.rows:
        correct.setdefault(row["policy"], []).append(float(row["correct"]))
    return {policy: np.array(values) for policy, values in correct.items()}


def _means(bootstrap: SeededBootstrap, setting: Setting, correct: Mapping[str, Float]) -> Float:
    """Accuracy on the items themselves, then on every resample, (1 + R,)."""
    runs = np.stack([correct[policy] for policy in setting.policies])
    return np.append(runs.mean(), bootstrap.resampled_means(setting, runs))

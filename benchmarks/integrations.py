"""``python -m benchmarks.integrations``: run the pages of ``docs/integrations`` and write the table of their index."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from benchmarks.pages import INDEX, Outcome, Page, install_wheel, pages
from wdmoe_env.writing import write_whole

HEADER = (
    "library",
    "version",
    "Gymnasium",
    "id string",
    "steps",
    "before",
    "after",
    "`vanilla`",
    "best fixed",
    "you add",
)
RULE = ("---", "---", "---", "---", "---:", "---:", "---:", "---:", "---:", "---")
_TABLE = re.compile(r"(<!-- table -->\n).*?(<!-- end -->)", flags=re.DOTALL)
_ROW = re.compile(r"^\| \[.*?\]\(([\w-]+)\.md\) .*$", flags=re.MULTILINE)


def main(arguments: list[str] | None = None) -> int:
    """Run the pages asked for, against the wheel; rows of the others stay as they are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.integrations", description=__doc__)
    parser.add_argument("names", nargs="*", help="pages to run, such as rllib; all of them by default")
    chosen = parser.parse_args(arguments)
    index = INDEX.read_text(encoding="utf-8")
    rows = {found[1]: found[0] for found in _ROW.finditer(index)}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        site = install_wheel(Path(folder))
        for page in pages():
            if chosen.names and page.name not in chosen.names:
                continue
            try:
                rows[page.name] = measured(page, site, Path(folder, page.name))
            except RuntimeError as error:
                failed += 1
                print(error, file=sys.stderr)
                continue
            print(rows[page.name], flush=True)
            write_whole(INDEX, with_table(index, [rows[one] for one in sorted(rows)]).encode())
    return int(failed > 0)


def measured(page: Page, site: Path, folder: Path) -> str:
    """The row of a page, run in a new folder.

    Raises:
        RuntimeError: its library is not installed, or its program failed.
    """
    if page.missing:
        raise RuntimeError(f"{page.name}.md not run: {page.missing}")
    folder.mkdir()
    return row(page, Outcome.of(page.run(site, folder)))


def row(page: Page, outcome: Outcome | None) -> str:
    """A line of the table; a page whose program trains nothing has no returns."""
    figures = ["", "", "", "", ""]
    if outcome is not None:
        returns = (outcome.before, outcome.after, outcome.vanilla, outcome.best_fixed)
        figures = [f"{outcome.steps:,}", *("" if one is None else f"{one:.2f}" for one in returns)]
    library, env_id = f"[{page.title}]({page.name}.md)", f"`{page.env_id}`" if page.env_id else ""
    return _line(library, page.version, metadata.version("gymnasium"), env_id, *figures, page.addition)


def with_table(index: str, rows: list[str]) -> str:
    """The index with these rows between its markers."""
    table = "\n".join([_line(*HEADER), _line(*RULE), *rows])
    return _TABLE.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", index)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())

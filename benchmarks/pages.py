"""The pages of ``docs/integrations`` as programs: read, run against the wheel in an empty folder, and understood.

A page names its extra as ``pip install 'wdmoe-env[EXTRA]'``, says what its user adds in a paragraph that begins with
``**You add:**``, and holds one ``python`` block. A program that trains prints as its last line
``return: before 1.234, after 2.345, vanilla 1.876; 4096 steps``, and on ``WDMoE-Price-v0`` and ``WDMoE-Token-v0``
behind vanilla ``, best fixed 2.123``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "integrations"
INDEX = FOLDER / "index.md"
# Against a program that hangs; the slowest takes well under a minute alone.
PATIENCE_S = 600

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_RETURN = re.compile(
    rf"return: before {_NUMBER}, after {_NUMBER}, vanilla {_NUMBER}(?:, best fixed {_NUMBER})?; (\d+) steps"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Mean returns of 32 episodes that a program printed.

    Attributes:
        before: of the policy before it was trained.
        after: after it.
        vanilla: of the model's own routing at equal shares; at optimal ones where the action holds no shares.
        steps: environment steps of the training.
        best_fixed: of the best fixed rule; ``None`` where the page compares with none.
    """

    before: float
    after: float
    vanilla: float
    steps: int
    best_fixed: float | None = None

    @classmethod
    def of(cls, printed: str) -> Outcome | None:
        """The outcome on the last line, or ``None`` where it is something else."""
        found = _RETURN.fullmatch(printed.strip().rpartition("\n")[2])
        if found is None:
            return None
        best_fixed = None if found[4] is None else float(found[4])
        return cls(float(found[1]), float(found[2]), float(found[3]), int(found[5]), best_fixed)


@dataclass(frozen=True, slots=True)
class Page:
    """One page.

    Attributes:
        name: of its file.
        text: Markdown.
    """

    name: str
    text: str

    @property
    def title(self) -> str:
        """Its heading."""
        return self.text.partition("\n")[0].removeprefix("# ")

    @property
    def program(self) -> str:
        """Its Python block, empty where it has none."""
        found = re.search(r"```python\n(.*?)```", self.text, flags=re.DOTALL)
        return found[1] if found else ""

    @property
    def env_id(self) -> str:
        """The id string that the program uses first."""
        return self._first(r"((?:wdmoe_env:)?WDMoE-(?:\w+-)?v\d+)\b", self.program)

    @property
    def addition(self) -> str:
        """What a user adds, in a sentence."""
        return self._first(r"^\*\*You add:\*\* (.*?)(?:\n\n|\Z)", self.text).partition(". ")[0].removesuffix(".")

    @property
    def extra(self) -> str:
        """The extra that brings the library, empty where none is needed."""
        return self._first(r"wdmoe-env\[([\w-]+)\]", self.text)

    @property
    def requirements(self) -> list[str]:
        """Distributions of the extra, the library first."""
        declared = map(Requirement, metadata.requires("wdmoe-env") or [])
        return [one.name for one in declared if one.marker and one.marker.evaluate({"extra": self.extra})]

    @property
    def missing(self) -> str:
        """How to install what is missing, empty where nothing is."""
        return "" if all(map(_version, self.requirements)) else f"pip install 'wdmoe-env[{self.extra}]'"

    @property
    def version(self) -> str:
        """The installed version of the library, empty where the page needs none."""
        return _version(self.requirements[0]) if self.requirements else ""

    @staticmethod
    def _first(pattern: str, text: str) -> str:
        found = re.search(pattern, text, flags=re.DOTALL | re.MULTILINE)
        return " ".join(found[1].split()) if found else ""

    def run(self, site: Path, folder: Path) -> str:
        """What the program prints, run in an empty folder by a Python that sees the wheel and no checkout.

        Args:
            site: where the wheel is installed.
            folder: an empty folder.

        Raises:
            RuntimeError: it failed; the message ends as what it printed does.
        """
        (folder / "program.py").write_text(self.program, encoding="utf-8")
        finished = subprocess.run(
            [sys.executable, "program.py"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        if finished.returncode:
            raise RuntimeError(f"{self.name}.md failed\n{finished.stdout[-2000:]}\n{finished.stderr[-6000:]}")
        return finished.stdout


def pages() -> list[Page]:
    """All pages but the index, by name."""
    files = sorted(set(FOLDER.glob("*.md")) - {INDEX})
    return [Page(file.stem, file.read_text(encoding="utf-8")) for file in files]


def install_wheel(folder: Path) -> Path:
    """Build the wheel, install it alone, and give the folder that holds it.

    Args:
        folder: an empty folder.

    Raises:
        RuntimeError: Python would not import the package from there.
    """
    source, site, elsewhere = folder / "source", folder / "site", folder / "elsewhere"
    for made in (source, elsewhere):
        made.mkdir()
    # A copy of what the build needs: building in place would leave folders behind.
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "wdmoe_env", source / "wdmoe_env", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True)
    where = subprocess.run(
        [sys.executable, "-c", "import wdmoe_env; print(wdmoe_env.__file__)"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if where != str(site / "wdmoe_env" / "__init__.py"):
        raise RuntimeError(f"expected the package from {site}, got {where}")
    return site


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""

"""Rows of the table, and how it is printed and saved."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from wdmoe_env.writing import write_files


@dataclass(frozen=True, slots=True)
class Settings:
    """How much to measure.

    Attributes:
        quick: a minute in all, to see that everything runs; the figures are rough.
        device: torch device on which the model runs in the section "step".
        steps: environment steps of the memory run.
    """

    quick: bool = False
    device: str = "cpu"
    steps: int = 1_000_000

    def seconds(self, whole: float) -> float:
        """Time to spend on a measurement that takes ``whole`` seconds in full."""
        return min(whole, 0.2) if self.quick else whole


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        section: part of the table.
        name: what was measured.
        value: the figure, ``None`` where it was not measured.
        unit: its unit; empty for a ratio.
        target: what it should be, such as ``"<= 1.1"``; empty where the figure stands for itself.
    """

    section: str
    name: str
    value: float | None
    unit: str = ""
    target: str = ""

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, or nothing where there is no target or no figure."""
        if not self.target or self.value is None:
            return ""
        sign, bound = self.target.split()
        met = (
            self.value <= float(bound.replace(",", "")) if sign == "<=" else self.value >= float(bound.replace(",", ""))
        )
        return "met" if met else "missed"

    @property
    def figure(self) -> str:
        """The value in three significant digits."""
        if self.value is None:
            return "not measured"
        return f"{self.value:,.0f}" if abs(self.value) >= 100 else f"{self.value:.3g}"


def machine() -> str:
    """The machine and the libraries, in words."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{os.cpu_count()} CPUs ({processor()}), {torch.get_num_threads()} torch thread(s), {gpu}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def processor() -> str:
    """The processor, on Linux with the family and model that tell its generation."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    parts = {"": "model name", " family ": "cpu family", " model ": "model"}
    return f"{platform.machine()}, " + "".join(word + facts[name] for word, name in parts.items() if name in facts)


def markdown(rows: Sequence[Row]) -> str:
    """The aligned table."""
    cells = [("section", "measured", "value", "unit", "target", "")]
    cells += [(row.section, row.name, row.figure, row.unit, row.target, row.verdict) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(6)]
    lines = [_line(line, widths) for line in cells]
    rule = ["-" * width for width in widths]
    rule[2] = rule[2][:-1] + ":"
    return "\n".join([lines[0], _line(rule, widths), *lines[1:]]) + "\n"


def save(folder: Path, rows: Sequence[Row], note: str) -> None:
    """Write ``results.md`` and ``results.json``."""
    text = f"# Results\n\n{note}\n\n{markdown(rows)}"
    results = {"machine": note, "rows": [{**asdict(row), "verdict": row.verdict} for row in rows]}
    described = json.dumps(results, indent=1) + "\n"
    write_files(folder, {"results.md": text.encode(), "results.json": described.encode()})


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if n == 2 else cell.ljust(width)
        for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"

"""What is measured of an evaluation that is under way, so that a run that was killed goes on where it was.

A part is one policy at one load: a JSON file beside the results to come, named by a hash of all that it follows from.
Numbers are written so that they read back exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eval.serve_statistics import Run
from eval.serve_timeline import Timeline, lists_of
from eval.statistics import Summary
from wdmoe_env.reading import read_json
from wdmoe_env.writing import write_whole

PREFIX, SUFFIX = "part-", ".json"
WHOLE = ("request_prompt", "request_answer", "request_document", "unfinished")
"""Figures that are whole numbers."""


class Parts:
    """The parts of an evaluation in its folder.

    Args:
        folder: of the results.
        plan: of the evaluation, as its ``to_dict`` gives it.
        sha256: of what the plan names.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], sha256: Mapping[str, str]) -> None:
        self._folder, self._sha256 = folder, dict(sha256)
        left_out = ("policies", "loads", "files")  # a part stands, whatever others run beside it
        self._plan = {name: value for name, value in plan.items() if name not in left_out}
        self._policies, self._loads = tuple(plan["policies"]), tuple(plan["loads"])

    def _path(self, load: float, policy: str) -> Path:
        inputs = {name: digest for name, digest in self._sha256.items() if " policy " not in name}
        own = {name: digest for name, digest in self._sha256.items() if name.endswith(f" policy {policy}")}
        whole = {"plan": self._plan, "sha256": inputs | own, "load": load, "policy": policy}
        digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{PREFIX}{digest[:24]}{SUFFIX}"

    @property
    def paths(self) -> frozenset[Path]:
        """Where all parts of the evaluation would lie."""
        return frozenset(self._path(load, policy) for load in self._loads for policy in self._policies)

    def read(self, load: float, policy: str) -> tuple[Run, Timeline | None] | None:
        """A part, ``None`` where it is not there.

        Raises:
            ValueError: the file is no such part.
            OSError: it cannot be read.
        """
        path = self._path(load, policy)
        if not path.is_file():
            return None
        part = read_json(path)
        try:
            run = Run(_arrays(part["requests"]), _arrays(part["cells"]), float(part["decision_ms"]))
            return run, None if part["timeline"] is None else Timeline.from_dict(part["timeline"])
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"expected {path.name} as an evaluation wrote it: {error}") from None

    def write(self, load: float, policy: str, run: Run, timeline: Timeline | None) -> None:
        """Write a part.

        Raises:
            OSError: it cannot be written.
        """
        part: Summary = {name: _lists(getattr(run, name)) for name in ("requests", "cells")}
        part |= {"decision_ms": run.decision_ms, "timeline": None if timeline is None else timeline.to_dict()}
        write_whole(self._path(load, policy), json.dumps(part, allow_nan=False).encode())

    def remove(self) -> None:
        """Remove all parts: the results stand."""
        for path in self.paths:
            path.unlink(missing_ok=True)


def _lists(figures: Mapping[str, Any]) -> Summary:
    return {name: lists_of(values) for name, values in figures.items()}


def _arrays(figures: Mapping[str, Any]) -> dict[str, Any]:
    whole = {True: np.int64, False: np.float64}
    return {name: np.array(values, dtype=np.float64).astype(whole[name in WHOLE]) for name, values in figures.items()}

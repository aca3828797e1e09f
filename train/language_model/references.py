"""The file of ``wdmoe_env.references``: ``python -m train.language_model.references``, some minutes on one core."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_LZMA, ZipFile, ZipInfo

import numpy as np

from wdmoe_env.command import end_with
from wdmoe_env.config import EnvConfig
from wdmoe_env.episodes import EpisodeSource, load_episodes
from wdmoe_env.physics.latency import Float
from wdmoe_env.references import FILE, MODEL, byte_planes, reference_key

AT_ONCE = 32


def compute(source: EpisodeSource) -> Float:
    """NLL (M,) of the model's own routing on all windows of a source, computed and not looked up."""
    own = EpisodeSource(source.model, source.windows)
    rows = np.arange(len(source.windows))
    return np.concatenate([own.reference_nll(rows[first : first + AT_ONCE]) for first in rows[::AT_ONCE]])


def write(path: Path, values: Mapping[str, Float]) -> None:
    """Write values (M,) by name, as byte planes packed with LZMA, which ``numpy.load`` unpacks."""
    with ZipFile(path, "w") as packed:
        for name, nll in values.items():
            content = io.BytesIO()
            np.save(content, byte_planes(nll))
            packed.writestr(ZipInfo(f"{name}.npy"), content.getvalue(), ZIP_LZMA)


def main() -> None:
    """Compute the values of both splits at the default length, and write them."""
    length = EnvConfig().num_tokens
    sources = [load_episodes(MODEL, length, split, "cpu") for split in ("train", "test")]
    values: dict[str, Any] = {reference_key(source.windows): compute(source) for source in sources}
    path = Path(str(FILE))
    write(path, values)
    print(f"{path.name}: {sum(map(len, values.values()))} windows, {path.stat().st_size} bytes")


if __name__ == "__main__":
    end_with("python -m train.language_model.references", main)

"""NLL of the model's own routing on the windows that ship, so that a first visit to one costs no second forward pass.

The file belongs to one model and one text. It is looked up by the hashes of both, so that after a change of either the
values are computed as for any other model. ``python -m train.language_model.references`` makes it.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.text.windows import TokenWindows

FILE = resources.files("wdmoe_env") / "assets" / "references.npz"
MODEL = "tiny"


def reference_key(windows: TokenWindows) -> str:
    """Name of the values of the shipped model on some windows: hashes of both contents, wherever the files lie."""
    text = hashlib.sha256()
    for array in (windows.token_ids, windows.targets, windows.mask):
        text.update(f"{array.shape}{array.dtype.str}".encode())
        text.update(np.ascontiguousarray(array).data)
    return f"{_model_hash()}-{text.hexdigest()}"


def shipped_references(model: str, device: str, dtype: str, windows: TokenWindows) -> NDArray[np.float64] | None:
    """NLL (M,) of the model's own routing on all windows, nats per token; ``None`` where none ship.

    Args:
        model: its name; those that are no name of the shipped one have none.
        device: torch device of the model.
        dtype: type of its weights.
        windows: M windows.
    """
    if (model, device, dtype) != (MODEL, "cpu", "float32") or not FILE.is_file():
        return None
    with FILE.open("rb") as file, np.load(file, allow_pickle=False) as values:
        key = reference_key(windows)
        return of_planes(values[key]) if key in values.files else None


def byte_planes(nll: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Bytes (8, M) of values (M,): first the lowest byte of each, at last the highest, in which neighbours are alike.

    So they pack into five eighths. What is left is the means' own: sums of 32 float32 numbers have some 40 random bits.
    """
    return np.ascontiguousarray(nll.astype("<f8").view(np.uint8).reshape(-1, 8).T)


def of_planes(planes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Values (M,) in nats of their byte planes (8, M)."""
    return np.ascontiguousarray(planes.T).view("<f8")[:, 0].astype(np.float64)


@cache
def _model_hash() -> str:
    """Of the weights and the configuration of the shipped model; some 20 ms, once in a process."""
    folder, found = resources.files("wdmoe_env") / "assets" / MODEL, hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        found.update((folder / name).read_bytes())
    return found.hexdigest()

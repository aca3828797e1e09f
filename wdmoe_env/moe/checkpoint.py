"""What the safetensors files of a folder say of their tensors, read from their headers before the weights."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open

from wdmoe_env.reading import read_json, shown_path

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
_OF_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(.+)")


def tensor_files(folder: Path) -> dict[str, str]:
    """The file of each tensor of a folder, by the tensor's name.

    Raises:
        ValueError: no ``model.safetensors`` and no index, or an index that cannot be read.
        SafetensorError: a damaged file.
    """
    index = folder / INDEX
    if index.is_file():
        files = read_json(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise ValueError(f"expected a weight_map from tensors to names of files in {shown_path(index)}, got none")
        return files
    if (folder / WEIGHTS).is_file():
        with safe_open(str(folder / WEIGHTS), framework="pt") as file:
            return dict.fromkeys(file.keys(), WEIGHTS)
    raise ValueError(f"expected {WEIGHTS} or its index in {folder}, found neither")


def check_tensors(folder: Path) -> None:
    """Refuse weights that are no plain numbers, and blocks that lack a part of an expert.

    Transformers would read the former as if they were unscaled, and calls the latter a conversion error.

    Args:
        folder: of a checkpoint whose configuration tells of no quantisation.

    Raises:
        ValueError: a weight of another type than floating point, or a tensor or file that is missing.
        SafetensorError: a damaged file.
    """
    of_file = defaultdict(list)
    names = tensor_files(folder)
    _check_parts(folder, names)
    for name, file in names.items():
        of_file[file].append(name)
    for file, held in of_file.items():
        if not (folder / file).is_file():
            raise ValueError(f"the model {folder} lacks its file {file}, which {INDEX} names")
        _check_types(folder / file, held)


def _check_parts(folder: Path, names: Iterable[str]) -> None:
    """Refuse a block where one expert has a tensor that another expert lacks."""
    blocks: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for found in filter(None, map(_OF_EXPERT.fullmatch, names)):
        blocks[found[1]][found[3]].add(int(found[2]))
    for block, parts in blocks.items():
        everyone = set().union(*parts.values())
        for part, experts in parts.items():
            if experts != everyone:
                raise ValueError(f"the model {folder} lacks {block}.{min(everyone - experts)}.{part}")


def _check_types(path: Path, names: Iterable[str]) -> None:
    with safe_open(str(path), framework="pt") as file:
        held = set(file.keys())
        for name in names:
            if name not in held:
                raise ValueError(f"the model {path.parent} lacks {name}, which {INDEX} seeks in {path.name}")
            kind = file.get_slice(name).get_dtype()
            if kind not in _PLAIN and (".experts." in name or name.endswith(".weight")):
                raise ValueError(f"expected weights in float32, bfloat16 or float16 in {path}, but {name} is {kind}")

"""A trained model as the folder that ``from_pretrained`` reads."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors")
"""What ``from_pretrained`` reads."""


def export(model: Any, tokenizer_folder: Path, folder: Path) -> None:
    """Write configuration, float16 weights and tokenizer; each file appears whole.

    Args:
        model: The trained model; it stays as it is.
        tokenizer_folder: Holds ``tokenizer.json`` and ``tokenizer_config.json``.
        folder: The result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        half = type(model)(model.config)
        half.load_state_dict(model.state_dict())
        half.to(torch.float16).save_pretrained(partial)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer_folder / name, partial)
        for name in FILES:
            os.replace(Path(partial) / name, folder / name)

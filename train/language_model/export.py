"""A trained model as the folder that ``from_pretrained`` reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from wdmoe_env.writing import move_whole, working_folder

FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors")
"""What ``from_pretrained`` reads."""


def export(model: Any, tokenizer_folder: Path, folder: Path) -> None:
    """Write configuration, float16 weights and tokenizer; each file appears whole.

    Args:
        model: The trained model; it stays as it is.
        tokenizer_folder: Holds ``tokenizer.json`` and ``tokenizer_config.json``.
        folder: The result.
    """
    with working_folder(folder) as partial:
        half = type(model)(model.config)
        half.load_state_dict(model.state_dict())
        half.to(torch.float16).save_pretrained(partial)
        for name in FILES[:2]:
            shutil.copy(tokenizer_folder / name, partial)
        for name in FILES:
            move_whole(partial / name, folder / name)

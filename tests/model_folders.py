"""Folders of a small model with a tokenizer, and ways to spoil them."""

from __future__ import annotations

import json
import shutil
from importlib import resources

from safetensors.torch import load_file, save_file

from wdmoe_env.moe.zoo import load_model


def save_micro(path):
    """Save "micro" as a checkpoint with its tokenizer: 3 blocks of 8 experts, width 32, 4096 tokens."""
    load_model("micro").model.save_pretrained(path)
    tiny = resources.files("wdmoe_env") / "assets" / "tiny"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_text((tiny / name).read_text(encoding="utf-8"), encoding="utf-8")


def copy_of(folder, path):
    """A folder's copy, to be spoilt."""
    shutil.copytree(folder, path)
    return path


def edit_json(path, **changes):
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    """Save what ``change`` makes of the tensors, a dict by name."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def fill(part, value, index=...):
    """A change for ``edit_weights``: a value into the tensors whose names hold a part."""

    def change(tensors):
        named = [tensor for name, tensor in tensors.items() if part in name]
        assert named
        for tensor in named:
            tensor[index] = value
        return tensors

    return change


def scale(part, factor):
    """A change for ``edit_weights``: tensors whose names hold a part, times a factor."""
    return lambda tensors: {name: tensor * factor if part in name else tensor for name, tensor in tensors.items()}


def add_token(folder, text):
    """Give the tokenizer a token that the model has no embedding of."""
    path = folder / "tokenizer.json"
    tokens = json.loads(path.read_text())["added_tokens"]
    edit_json(path, added_tokens=[*tokens, tokens[0] | {"id": 4096, "content": text, "special": False}])

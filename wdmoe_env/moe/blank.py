"""A model without its weights: what a checkpoint's configuration says of its MoE blocks, at no cost in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import CONFIG_NAME

from wdmoe_env.checks import nearest
from wdmoe_env.moe.patches import check_served, patch_undecorated, served_experts
from wdmoe_env.moe.published import PUBLISHED

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""``organisation/name``, as the Hugging Face hub calls its models."""

Placement = Sequence[int] | Sequence[Sequence[int]]
"""Device of each expert: E numbers for all blocks, or I rows of E."""


@dataclass(frozen=True, eq=False)
class BlankModel:
    """A model on torch's meta device.

    Attributes:
        model: the transformers model.
        experts: names of its experts modules in order, one per block.
        num_experts: experts per block E.
    """

    model: Any
    experts: tuple[str, ...]
    num_experts: int

    def parameters(self, block: int) -> dict[str, Tensor]:
        """The fused parameters of a block, (E, ...) each, by their names in the experts module."""
        named = self.model.get_submodule(self.experts[block]).named_parameters()
        return {name: parameter for name, parameter in named if len(parameter) == self.num_experts}

    def placement_table(self, placement: Placement) -> NDArray[np.int64]:
        """Device of each expert in each block, (I, E).

        Args:
            placement: one row of E for all blocks, or I rows.

        Raises:
            ValueError: another shape.
        """
        table, full = np.asarray(placement), (len(self.experts), self.num_experts)
        if table.shape not in (full, full[1:]):
            raise ValueError(f"placement must have shape {full[1:]} or {full}, got {table.shape}")
        return np.broadcast_to(table, full)


def auto_class(config: Any) -> Any:
    """The class of transformers that makes a language model of a configuration, multimodal or not."""
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText


def read_config(path: str, known: Iterable[str] = PUBLISHED) -> Any:
    """The configuration of a folder or of a hub id.

    The hub is asked once whether it can be reached; where it cannot, the files that are here already have to do. So a
    machine without network waits for one answer, and not for the five tries of the hub's own library.

    Args:
        path: of the folder, or the hub id.
        known: names of models that a wrong one may have been meant for.

    Raises:
        ValueError: the path is neither, or there is no configuration that transformers knows.
    """
    is_folder = Path(path).is_dir()
    if not is_folder and not HUB_ID.fullmatch(path) and os.sep not in path:
        raise ValueError(unknown_model(path, known))
    try:
        here = is_folder or not hub_answers(path)
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=here)
    except Exception as error:  # whatever a folder of unknown content leads transformers to raise
        raise ValueError(no_model(path, error)) from error


def hub_answers(name: str) -> bool:
    """Whether the hub says anything of a hub id, also that there is no such model; it is asked once."""
    try:
        get_hf_file_metadata(hf_hub_url(name, CONFIG_NAME))
    except HfHubHTTPError as error:
        return error.response.status_code < 500
    except Exception:  # what the library raises without a network, or where the hub is not to be asked
        return False
    return True


def unknown_model(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is neither one of those known, nor a folder, nor a hub id."""
    return (
        f"unknown model {name!r}; the nearest known are {nearest(name, known)}; a folder of your own works too, and "
        "so does organisation/name of the Hugging Face hub"
    )


def no_model(path: str, error: Exception) -> str:
    """What to say of a folder or a hub id where transformers raised something, whatever it was."""
    tried = "" if Path(path).is_dir() else "there is no such folder here, and as a name on the Hugging Face hub: "
    return f"expected a transformers model in {path}, which cannot be loaded: {tried}{reason_of(error)}"


def reason_of(error: Exception) -> str:
    """An error's text on one line, cut where it is long."""
    return shorten(str(error) or type(error).__name__, 300, placeholder=" ...")


def blank_model(config: Any) -> BlankModel:
    """The model of a transformers configuration, without weights.

    Raises:
        ValueError: a model without MoE blocks that can be split.
    """
    with torch.device("meta"):
        model = auto_class(config).from_config(config)
    patch_undecorated(model)
    found = served_experts(model)
    check_served(model, len(found))
    return BlankModel(model, tuple(found), next(iter(found.values())).num_experts)

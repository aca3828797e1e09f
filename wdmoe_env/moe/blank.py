"""A model without its weights: what a checkpoint's configuration says of its MoE blocks, at no cost in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from wdmoe_env.moe.patches import check_served, patch_undecorated, served_experts

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


def read_config(path: str) -> Any:
    """The configuration of a folder or of a hub id.

    Raises:
        ValueError: there is none that transformers knows.
    """
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever a folder of unknown content leads transformers to raise
        raise ValueError(no_model(path, error)) from error


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

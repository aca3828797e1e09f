"""Names of models, and one process-wide cache of the models loaded.

Only safetensors and JSON are read; nothing in a model folder is run.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer as TokenizerFile
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM
from transformers.utils import CONFIG_NAME, cached_file, logging

from wdmoe_env.moe.blank import HUB_ID, auto_class, no_model, read_config, reason_of, unknown_model
from wdmoe_env.moe.checkpoint import INDEX, WEIGHTS, check_tensors
from wdmoe_env.moe.patches import served_experts
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.optional import optional

KNOWN_MODELS: tuple[str, ...] = ("tiny", "micro")
"""``tiny``: trained on real text, ships with the package. ``micro``: random, for tests."""

_TINY = Path(__file__).parents[1] / "assets" / "tiny"
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


def load_model(
    name: str,
    device: str = "cpu",
    dtype: str = "float32",
    device_map: str | Mapping[str, int | str] | None = None,
    experts: str = "local",
) -> SplitModel:
    """Load a split model, once per process for each set of arguments.

    Args:
        name: one of ``KNOWN_MODELS``, the folder of a transformers MoE model, or a hub id ``organisation/name``.
        device: as torch names it, such as ``"cpu"`` or ``"cuda:0"``.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device_map: in place of ``device``, as transformers takes it: ``"auto"``, or module names to devices.
        experts: ``"local"`` keeps the weights of the experts; ``"meta"`` lets go of them once they are read, so
            that they run only under a runner that holds some.

    Raises:
        FileNotFoundError: no such folder.
        ImportError: a ``device_map`` without accelerate.
        ValueError: an unknown name, a model that cannot be read, or one that cannot be split.
    """
    if experts not in ("local", "meta"):
        raise ValueError(f"experts must be 'local' or 'meta', got {experts!r}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"expected a device that torch can use here, got {device!r}") from error
    places = tuple(sorted(device_map.items())) if isinstance(device_map, Mapping) else device_map
    if places is not None:
        _check_device_map(name, device)
    return _load(name if name in KNOWN_MODELS else _source(name), str(torch.device(device)), dtype, places, experts)


def read_tokenizer(name: str) -> None:
    """Read the tokenizer of a model, which takes a moment where its weights may take minutes.

    Args:
        name: as of ``load_model``.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: an unknown name, no model, or a tokenizer that cannot be read.
    """
    path = str(_TINY) if name in KNOWN_MODELS else _source(name)
    read_config(path)  # first: a folder without a model is told so, not that it lacks a tokenizer
    _tokenizer(path).encode("")


def model_folder(name: str) -> Path | None:
    """Where the checkpoint of a model lies; ``None`` for "micro", which is made and not read.

    Args:
        name: as of ``load_model``; of a hub id the files have to be here already.

    Raises:
        FileNotFoundError, ValueError: no such folder or name.
    """
    if name == "micro":
        return None
    source = str(_TINY) if name in KNOWN_MODELS else _source(name)
    return Path(source) if Path(source).is_dir() else Path(cached_file(source, CONFIG_NAME)).parent


def _check_device_map(name: str, device: str) -> None:
    if name == "micro" or device != "cpu":
        raise ValueError(f"device_map takes the place of device, for a model of files, got {device!r} for {name!r}")
    with optional("accelerate", extra="accelerate"):
        import_module("accelerate")


def _source(name: str) -> str:
    """Absolute path of a folder, or a hub id.

    Raises:
        FileNotFoundError: what looks like a path is no folder.
        ValueError: neither a known name, nor a path, nor a hub id.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    if HUB_ID.fullmatch(name) and not folder.parent.is_dir():
        return name
    if os.sep in name or name.startswith((".", "~")) or folder.exists():
        raise FileNotFoundError(f"expected the folder of a model, found no folder {name!r}")
    raise ValueError(unknown_model(name, KNOWN_MODELS))


@cache
def _tokenizer(path: str) -> Tokenizer:
    return Tokenizer(path)


@cache
def _load(
    source: str, device: str, dtype: str, places: str | tuple[tuple[str, int | str], ...] | None, experts: str
) -> SplitModel:
    device_map = dict(places) if isinstance(places, tuple) else places
    rebuild = (load_model, (source, device, dtype, device_map, experts))
    path = str(_TINY) if source in KNOWN_MODELS else source
    model = _micro().to(_DTYPES[dtype]) if source == "micro" else _pretrained(path, _DTYPES[dtype], device_map)
    if experts == "meta":
        for module in served_experts(model).values():
            module.to("meta")
        for tensor in (*model.parameters(), *model.buffers()):
            if not tensor.is_meta:
                tensor.data = tensor.data.clone()  # one view of a file would keep all of the file in memory
    if device_map is None:
        model = _to(model, device)
    try:
        return SplitModel(model, _tokenizer(path), rebuild=rebuild)
    except ValueError as error:
        raise ValueError(f"cannot split the model {source}: {error}") from error


def _to(model: Any, device: str) -> Any:
    """The model with all its weights on a device; parts on the meta device have none and stay there."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_meta:
            tensor.data = tensor.data.to(device)
    return model


def _pretrained(path: str, dtype: torch.dtype, device_map: Any) -> Any:
    """A language model from a folder or the hub, whole or not at all."""
    config, local = read_config(path), Path(path).is_dir()
    try:
        if local:
            _check_files(Path(path), config)
        model, report = _from_transformers(path, config, dtype, device_map)
        if not local:  # its files are here now
            _check_files(Path(cached_file(path, CONFIG_NAME)).parent, config)
    except SafetensorError as error:
        raise ValueError(f"the weights of the model {path} are truncated or damaged: {error}") from error
    _check_report(path, report)
    return model


def _check_files(folder: Path, config: Any) -> None:
    """Look at the headers of the weights; a folder without any is left to transformers, which knows more names."""
    quantised = getattr(config, "quantization_config", None)  # transformers knows what to make of these
    if not quantised and any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        check_tensors(folder)


def _from_transformers(path: str, config: Any, dtype: torch.dtype, device_map: Any) -> tuple[Any, Mapping[str, Any]]:
    """The model, and what transformers tells of its loading."""
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):  # loading draws from the global generator
            model, report = auto_class(config).from_pretrained(
                path,
                dtype=dtype,
                device_map=device_map,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are refused by name afterwards
                output_loading_info=True,
            )
    except SafetensorError:
        raise
    except Exception as error:  # whatever a folder of unknown content leads transformers to raise
        if "CONVERSION" in str(error):  # points to a report that is not shown
            unfit = ValueError("its tensors cannot be put together to the weights that its config.json tells of")
            raise ValueError(no_model(path, unfit)) from error
        raise ValueError(no_model(path, error)) from error
    return model, report


def _check_report(path: str, report: Mapping[str, Any]) -> None:
    """Refuse a model some of whose weights transformers had to make up."""
    if report["mismatched_keys"]:
        name, got, wanted = min(report["mismatched_keys"])
        shapes = f"{tuple(wanted)} by its config.json, got {tuple(got)}"
        raise ValueError(f"the model {path} has weights of other shapes: expected {name} of shape {shapes}")
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(f"the model {path} lacks {len(missing)} of its weights, such as {missing[0]}")
    if report["unexpected_keys"]:
        unread = sorted(report["unexpected_keys"])
        warnings.warn(f"{len(unread)} tensors of the model {path} are not read, such as {unread[0]}", stacklevel=2)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers: no progress bar, and no table of what it found, which a message says in a sentence."""
    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _micro() -> Any:
    """A random Mixtral with the vocabulary of "tiny": 3 blocks, 8 experts, top-2.

    Each matrix keeps the scale of its input, and the gates are sharper, so that experts and gates matter.
    """
    tiny = json.loads((_TINY / "config.json").read_text(encoding="utf-8"))
    config = MixtralConfig(
        vocab_size=tiny["vocab_size"],
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = MixtralForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                gain = 2.0 if name.endswith("gate.weight") else 1.0
                parameter.normal_(0.0, gain * parameter.shape[-1] ** -0.5, generator=generator)
    return model


class Tokenizer:
    """Text to token ids, without special tokens; read when first used.

    Args:
        path: folder with ``tokenizer.json``, or whatever ``AutoTokenizer`` takes.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    @cached_property
    def _codec(self) -> tuple[Callable[[str], list[int]], Callable[[list[int]], str]]:
        file = Path(self._path) / "tokenizer.json"
        try:
            if file.is_file():
                from_file = TokenizerFile.from_file(str(file))
                size, decode = from_file.get_vocab_size(), from_file.decode
            else:
                tokenizer = AutoTokenizer.from_pretrained(self._path, trust_remote_code=False)
                size, decode = len(tokenizer), tokenizer.decode
        except Exception as error:  # tokenizers raises bare exceptions, transformers many kinds
            absent = Path(self._path).is_dir() and not file.is_file()
            none = "there is no tokenizer.json, and otherwise: " if absent else ""
            reason = f"{none}{reason_of(error)}"
            raise ValueError(f"expected a tokenizer in {self._path}, which cannot be loaded: {reason}") from error
        if not size:
            raise ValueError(f"expected a tokenizer in {self._path} that knows some tokens, got an empty vocabulary")
        if file.is_file():
            return lambda text: from_file.encode(text, add_special_tokens=False).ids, decode
        return lambda text: tokenizer.encode(text, add_special_tokens=False), decode

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self._codec[0](text)

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids."""
        return self._codec[1](token_ids)

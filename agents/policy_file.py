"""The file of a learned policy: weights in safetensors, the rest in JSON; loading one runs no code from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from agents.flat import perceptron
from agents.network import Architecture, TokenSharedNetwork
from wdmoe_env.config import DecisionKind
from wdmoe_env.writing import write_whole

FORMAT = "wdmoe-policy-2"
# Far above any sensible size of a network.
MOST_UNITS = 65_536
MOST_LAYERS = 16

Card = dict[str, Any]


def save_policy(path: Path, network: TokenSharedNetwork, decision: DecisionKind, card: Card) -> None:
    """Write ``path`` (.safetensors) and the JSON beside it.

    Args:
        path: of the weights.
        network: the actor and critic.
        decision: which halves it learned.
        card: what else the file should say: family, training arguments, results.
    """
    described = {"network": "token-shared", "decision": decision, **asdict(network.architecture), **card}
    _write(path, network, described)


def save_flat_policy(path: Path, layers: list[nn.Linear], card: Card) -> None:
    """Write a perceptron of these layers, which decides on experts and shares; see ``agents.flat``."""
    sizes = [layers[0].in_features, *(layer.out_features for layer in layers)]
    network = perceptron(sizes)
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    for target, source in zip(linear, layers, strict=True):
        target.load_state_dict(source.state_dict())
    _write(path, network, {"network": "flat", "decision": "joint", "layers": sizes, **card})


def _write(path: Path, network: nn.Module, described: Card) -> None:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    text = json.dumps({"format": FORMAT, **described}, indent=2) + "\n"
    write_whole(path.with_suffix(".json"), text.encode())
    write_whole(path.with_suffix(".safetensors"), save(weights))


def read_policy(spec: str) -> tuple[nn.Module, Card]:
    """The network of a file, and its card.

    Args:
        spec: path of the weights, of the JSON, or of both without suffix.

    Raises:
        ValueError: missing, truncated, or not a policy.
    """
    path = Path(spec)
    if path.suffix not in ("", ".safetensors", ".json"):
        raise ValueError(f"expected a policy file that ends in .safetensors or .json, got {spec}")
    weights_path, card_path = path.with_suffix(".safetensors"), path.with_suffix(".json")
    for part in (weights_path, card_path):
        if not part.is_file():
            raise ValueError(f"expected a policy file {part}, but there is none")
    card = read_card(card_path)
    # Without memory for its weights, until their shapes are known to be those of the file.
    with torch.device("meta"):
        network = NETWORKS[card["network"]](card, card_path)
    return _fill(network, weights_path).eval(), card


def read_card(path: Path) -> Card:
    """The JSON of a policy, checked.

    Raises:
        ValueError: not the JSON of a policy.
    """
    try:
        card = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        card = None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ValueError(f"expected the JSON of a policy (format {FORMAT!r}) in {path}, got something else")
    for name, known in (("decision", get_args(DecisionKind)), ("network", tuple(NETWORKS))):
        if card.get(name) not in known:
            raise ValueError(f"expected a {name} in {path}, one of {', '.join(known)}, got {card.get(name)!r}")
    return card


def _token_shared(card: Card, path: Path) -> nn.Module:
    sizes = {
        size.name: _size(card, size.name, path, least=int(size.name in ("width", "rounds")))
        for size in fields(Architecture)
    }
    return TokenSharedNetwork(Architecture(**sizes))


def _flat(card: Card, path: Path) -> nn.Module:
    layers = card.get("layers")
    if not isinstance(layers, list) or not 2 <= len(layers) <= MOST_LAYERS:
        raise ValueError(f"expected layers in {path}, 2 to {MOST_LAYERS} sizes, got {layers!r}")
    return perceptron([_size({"layers": size}, "layers", path, least=1) for size in layers])


NETWORKS: dict[str, Callable[[Card, Path], nn.Module]] = {"token-shared": _token_shared, "flat": _flat}


def _size(card: Card, name: str, path: Path, least: int) -> int:
    value = card.get(name)
    if type(value) is not int or not least <= value <= MOST_UNITS:
        raise ValueError(f"expected {name} in {path}, a whole number of {least} to {MOST_UNITS}, got {value!r}")
    return value


def _fill(network: nn.Module, path: Path) -> nn.Module:
    """Put the weights of a file into a network.

    Raises:
        ValueError: a file that is not one of safetensors, or holds other weights, or some that are not finite.
    """
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
            odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            if odd:
                raise RuntimeError(f"{odd[0]} has shape {found.get(odd[0])} in place of {expected.get(odd[0])}")
            network.load_state_dict({name: file.get_tensor(name).float() for name in expected}, assign=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"expected the weights of a policy in {path}, got a file that is not: {reason}") from None
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        raise ValueError(f"expected finite weights in {path}, got some that are not")
    return network

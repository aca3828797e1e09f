"""The file of a learned policy: weights in safetensors, the rest in JSON; loading one runs no code from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from reprlib import repr as brief
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from wdmoe_env.config import DecisionKind
from wdmoe_env.policies.card import Card, card_text, parse_card
from wdmoe_env.policies.flat import perceptron
from wdmoe_env.policies.network import BOUNDS, Architecture, TokenSharedNetwork
from wdmoe_env.policies.stock import tanh_perceptron
from wdmoe_env.writing import write_whole

FORMAT = "wdmoe-policy-2"
# Of a perceptron over a flattened observation: one of 1,024 tokens, 384 experts and 384 devices has a million numbers.
MOST_UNITS = 2**24
MOST_LAYERS = 16
# 8 GiB in float32. A policy that reads the hidden states of the largest models has about a billion.
MOST_WEIGHTS = 2**31
# Floating types of safetensors to which a torch module can be cast; a file holds float32 otherwise.
FLOATS = ("F32", "F64", "F16", "BF16")


def save_policy(path: Path, network: TokenSharedNetwork, decision: DecisionKind, card: Card) -> None:
    """Write ``path`` (.safetensors) and the JSON beside it.

    Args:
        path: of the weights.
        network: the actor and critic.
        decision: which halves it learned.
        card: what else the file should say: family, training arguments, results.

    Raises:
        ValueError: a weight is not finite, or the card could not be read again; nothing is written.
    """
    sizes = asdict(network.architecture)
    if not sizes["serving_features"]:  # a file of a policy of windows is what it was before there were any
        del sizes["serving_features"]
    described = {"network": "token-shared", "decision": decision, **sizes, **card}
    _write(path, network, described)


def save_flat_policy(path: Path, layers: list[nn.Linear], card: Card) -> None:
    """Write a perceptron of these layers, which decides on experts and shares; see ``wdmoe_env.policies.flat``.

    Raises:
        ValueError: see ``save_policy``.
    """
    sizes = [layers[0].in_features, *(layer.out_features for layer in layers)]
    network = perceptron(sizes)
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    for target, source in zip(linear, layers, strict=True):
        target.load_state_dict(source.state_dict())
    _write(path, network, {"network": "flat", "decision": "joint", "layers": sizes, **card})


def save_stock_policy(
    path: Path,
    kind: Literal["token", "price", "pass-price"],
    layers: list[nn.Linear],
    num_blocks: int,
    hidden_size: int,
    card: Card,
) -> None:
    """Write a perceptron that was learned on a token or a price environment; see ``wdmoe_env.policies.stock``.

    Args:
        path: of the weights.
        kind: which environment.
        layers: linear layers, tanh between them.
        num_blocks: I of the environment.
        hidden_size: H where hidden states are among the features, else 0.
        card: what else the file should say; a price policy's has ``price_per_ms``, the price of the action 0, and one
            of passes has ``slots`` too.

    Raises:
        ValueError: see ``save_policy``.
    """
    sizes = [layers[0].in_features, *(layer.out_features for layer in layers)]
    network = tanh_perceptron(sizes)
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    for target, source in zip(linear, layers, strict=True):
        target.load_state_dict(source.state_dict())
    said = {"decision": "selection", "layers": sizes, "num_blocks": num_blocks, "hidden_size": hidden_size}
    _write(path, network, {"network": kind, **said, **card})


def _write(path: Path, network: nn.Module, described: Card) -> None:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    _check_finite(weights, path)
    text = card_text({"format": FORMAT, **described}, path.with_suffix(".json"))
    # The card last: where a run is killed in between, it does not promise what the weights are not yet.
    write_whole(path.with_suffix(".safetensors"), save(weights))
    write_whole(path.with_suffix(".json"), text.encode())


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
    card = parse_card(path)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ValueError(f"expected the JSON of a policy (format {FORMAT!r}) in {path}, got something else")
    for name, known in (("decision", get_args(DecisionKind)), ("network", tuple(NETWORKS))):
        if card.get(name) not in known:
            raise ValueError(f"expected a {name} in {path}, one of {', '.join(known)}, got {brief(card.get(name))}")
    return card


def _token_shared(card: Card, path: Path) -> nn.Module:
    known = {"serving_features": 0, **card}
    sizes = {
        size.name: _size(known.get(size.name), size.name, path, *BOUNDS[size.name]) for size in fields(Architecture)
    }
    try:
        return TokenSharedNetwork(Architecture(**sizes))
    except ValueError as error:
        raise ValueError(f"{error} in {path}") from None


def _flat(card: Card, path: Path) -> nn.Module:
    if card["decision"] != "joint":
        raise ValueError(f"expected the decision joint of a flat network in {path}, got {card['decision']!r}")
    return perceptron(_layers(card, path))


def _token(card: Card, path: Path) -> nn.Module:
    _size(card.get("num_blocks"), "num_blocks", path, 1, MOST_UNITS)
    _size(card.get("hidden_size"), "hidden_size", path, 0, MOST_UNITS)
    if card["decision"] != "selection":
        raise ValueError(f"expected the decision selection in {path}, got {card['decision']!r}")
    return tanh_perceptron(_layers(card, path))


def _price(card: Card, path: Path) -> nn.Module:
    price = card.get("price_per_ms")
    if not isinstance(price, (int, float)) or isinstance(price, bool) or not 1e-9 <= price <= 1e9:
        raise ValueError(f"expected price_per_ms in {path}, a number of 1e-9 to 1e9, got {brief(price)}")
    return _token(card, path)


def _pass_price(card: Card, path: Path) -> nn.Module:
    _size(card.get("slots"), "slots", path, 1, MOST_UNITS)
    return _price(card, path)


def _layers(card: Card, path: Path) -> list[int]:
    layers = card.get("layers")
    if not isinstance(layers, list) or not 2 <= len(layers) <= MOST_LAYERS:
        raise ValueError(f"expected layers in {path}, 2 to {MOST_LAYERS} sizes, got {brief(layers)}")
    return [_size(size, "layers", path, 1, MOST_UNITS) for size in layers]


NETWORKS: dict[str, Callable[[Card, Path], nn.Module]] = {
    "token-shared": _token_shared,
    "flat": _flat,
    "token": _token,
    "price": _price,
    "pass-price": _pass_price,
}


def _size(value: Any, name: str, path: Path, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"expected {name} in {path}, a whole number of {least} to {most}, got {brief(value)}")
    return value


def _fill(network: nn.Module, path: Path) -> nn.Module:
    """Put the weights of a file into a network.

    Raises:
        ValueError: the file is no safetensors file, holds other weights, or holds weights that are not finite.
    """
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            _check_header({name: file.get_slice(name) for name in file.keys()}, expected)  # noqa: SIM118 (not a dict)
            network.load_state_dict({name: file.get_tensor(name).float() for name in expected}, assign=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"expected the weights of a policy in {path}, got a file that is not: {reason}") from None
    _check_finite(network.state_dict(), path)
    return network


def _check_header(found: dict[str, Any], expected: dict[str, list[int]]) -> None:
    """Compare what a file says that it holds with the shapes of a network, before any weight is read.

    Raises:
        RuntimeError: another weight, shape or type, or more weights than any policy has.
    """
    shapes = {name: part.get_shape() for name, part in found.items()}
    odd = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if odd:
        raise RuntimeError(f"{odd[0]} has shape {shapes.get(odd[0])} in place of {expected.get(odd[0])}")
    for name, part in found.items():
        if part.get_dtype() not in FLOATS:
            raise RuntimeError(f"{name} is of type {part.get_dtype()} in place of one of {', '.join(FLOATS)}")
    weights = sum(torch.Size(shape).numel() for shape in shapes.values())
    if weights > MOST_WEIGHTS:
        raise RuntimeError(f"it holds {weights} weights in place of at most {MOST_WEIGHTS}")


def _check_finite(weights: dict[str, torch.Tensor], path: Path) -> None:
    odd = next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None)
    if odd:
        raise ValueError(f"expected finite weights in {path}, got NaN or infinity in {odd}")

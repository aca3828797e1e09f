"""Learned policies as files: weights in safetensors, the rest in JSON; loading one runs no code from it."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from agents.distribution import ActionDistribution
from agents.files import write_whole
from agents.network import Architecture, TokenSharedNetwork
from agents.policy import Observation, State, batched, first
from agents.rules import with_optimal_shares
from wdmoe_env.actions import ActionCodec
from wdmoe_env.config import DecisionKind
from wdmoe_env.observations import Sizes, decode_observation

FORMAT = "wdmoe-policy-2"
# Far above any sensible size of a network.
MOST_UNITS = 65_536


class LearnedPolicy:
    """A token-shared network that acts; where it learned no shares, they are solved exactly.

    Args:
        network: the actor.
        decision: which halves it learned.
        codec: of the environment it acts in.
    """

    def __init__(self, network: TokenSharedNetwork, decision: DecisionKind, codec: ActionCodec) -> None:
        self.network = network
        self.decision = decision
        self.codec = codec
        sizes = Sizes(*codec.scores_shape, codec.num_devices, 0, 0)
        self._own = ActionCodec(sizes, decision, "box")

    def predict(
        self,
        observation: Observation,
        state: State = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, State]:
        """Actions of observations; see ``Policy``.

        Raises:
            ValueError: the policy reads hidden states, and the observation holds none.
        """
        batch, single = batched(observation)
        if self.network.architecture.hidden_size and "hidden_states" not in batch:
            raise ValueError(
                "expected an observation with hidden_states, which this policy reads, got one without: make the "
                "environment with observe_hidden_states=True"
            )
        tensors = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in batch.items()}
        with torch.no_grad():
            flat = ActionDistribution(self.network, tensors, self.decision).act(deterministic).numpy()
        decided = self._own.decode(flat, (len(flat),))
        block = decode_observation(batch)
        selection = block.routed if decided.selection is None else decided.selection & block.token_mask[..., None]
        shares = with_optimal_shares(block, selection)[1] if decided.shares is None else decided.shares
        actions = self.codec.encode(selection, shares)
        return (first(actions) if single else actions), state


def save_policy(path: Path, network: TokenSharedNetwork, decision: DecisionKind, card: dict[str, Any]) -> None:
    """Write ``path`` (.safetensors) and the JSON beside it.

    Args:
        path: of the weights.
        network: the actor and critic.
        decision: which halves it learned.
        card: what else the file should say: family, training arguments, results.
    """
    described = {"format": FORMAT, "decision": decision, **asdict(network.architecture), **card}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_whole(path.with_suffix(".json"), (json.dumps(described, indent=2) + "\n").encode())
    write_whole(path.with_suffix(".safetensors"), save(weights))


def load_policy(spec: str, codec: ActionCodec) -> LearnedPolicy:
    """The policy of a file.

    Args:
        spec: path of the weights, of the JSON, or of both without suffix.
        codec: of the environment it will act in.

    Raises:
        ValueError: missing, truncated, not a policy, or made for another number of experts.
    """
    path = Path(spec)
    if path.suffix not in ("", ".safetensors", ".json"):
        raise ValueError(f"expected a policy file that ends in .safetensors or .json, got {spec}")
    weights_path, card_path = path.with_suffix(".safetensors"), path.with_suffix(".json")
    for part in (weights_path, card_path):
        if not part.is_file():
            raise ValueError(f"expected a policy file {part}, but there is none")
    card = read_card(card_path)
    num_experts = codec.scores_shape[1]
    if card["num_experts"] not in (0, num_experts):
        raise ValueError(f"policy {spec} is for {card['num_experts']} experts, the environment has {num_experts}")
    architecture = Architecture(**{size.name: card[size.name] for size in fields(Architecture)})
    network = _read_network(weights_path, architecture)
    return LearnedPolicy(network.eval(), card["decision"], codec)


def _read_network(path: Path, architecture: Architecture) -> TokenSharedNetwork:
    """The network of an architecture with the weights of a file, whose shapes are looked at before any memory is taken.

    Raises:
        ValueError: a file that is not one of safetensors, or holds other weights, or some that are not finite.
    """
    with torch.device("meta"):
        network = TokenSharedNetwork(architecture)
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
            if found != expected:
                odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
                raise RuntimeError(f"{odd[0]} has shape {found.get(odd[0])} in place of {expected.get(odd[0])}")
            network.load_state_dict({name: file.get_tensor(name).float() for name in expected}, assign=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"expected the weights of a policy in {path}, got a file that is not: {reason}") from None
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        raise ValueError(f"expected finite weights in {path}, got some that are not")
    return network


def read_card(path: Path) -> dict[str, Any]:
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
    if card.get("decision") not in get_args(DecisionKind):
        raise ValueError(f"expected a decision of {', '.join(get_args(DecisionKind))} in {path}, got none of them")
    for size in fields(Architecture):
        value = card.get(size.name)
        if type(value) is not int or not (size.name == "width") <= value <= MOST_UNITS:
            raise ValueError(f"expected {size.name} in {path}, a whole number of at most {MOST_UNITS}, got {value!r}")
    return card

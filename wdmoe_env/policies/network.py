"""A token-shared actor and critic: one small network for every token-expert pair and one for every device.

No weight depends on the number of tokens or devices, nor on that of experts unless the actor reads hidden states. The
actor starts near the model's own routing and near shares that let all devices end together, so that learning begins
from ``vanilla``, not from noise.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from wdmoe_env.actions import LOGIT_SCALE
from wdmoe_env.observations import Sizes
from wdmoe_env.policies.columns import BEST, DEVICE_FEATURES, PAIR_FEATURES, ROUTED, SERVING_FEATURES, TINY
from wdmoe_env.policies.features import Features, ObservationTensors
from wdmoe_env.policies.inputs import HiddenRows, Inputs, hidden_rows

SHARE_FEATURES = 5
WORK_FEATURES = 2
# Log-odds of using a pair before any training: a routed expert 0.88, a token's best one 0.998, another one 0.007.
USE_ROUTED = 2.0
USE_BEST = 6.0
USE_OTHER = -5.0
# Standard deviation of share logits before any training: shares jitter by about 20 %.
INITIAL_LOG_STD = -3.0
# Logit of the busiest device's share: shares are relative, and noise has room below the bound of 1.
BUSIEST_LOGIT = 0.8
# Bounds of an architecture, least and most. What ships has a width of 64 and looks twice; the time of a decision grows
# with the square of the width and with the rounds. The other sizes are those of models.
MOST_OF_A_MODEL = 65_536
BOUNDS = {
    "width": (1, 1024),
    "extra_experts": (0, MOST_OF_A_MODEL),
    "hidden_size": (0, MOST_OF_A_MODEL),
    "num_blocks": (0, MOST_OF_A_MODEL),
    "num_experts": (0, MOST_OF_A_MODEL),
    "rounds": (1, 8),
    "serving_features": (0, SERVING_FEATURES),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of a network.

    Each has a bound, so that neither a setting nor a file can ask for a network that takes minutes to decide.

    Attributes:
        width: of the hidden layers.
        extra_experts: of each token, so many experts beside its routed ones that the actor may use.
        hidden_size: H of the model whose hidden states the actor reads; 0 where it reads none.
        num_blocks: I of that model, whose blocks are read each by weights of its own.
        num_experts: E of that model, likewise.
        rounds: looks that the actor takes; from the second on it sees the prices of its own last answer.
        serving_features: columns of the queue and of a row's phase that the actor sees, where requests are served; 0
            for none. Their weights begin at 0.

    Raises:
        ValueError: a size out of its bounds, or a reader of hidden states that is for no blocks or no experts.
    """

    width: int = 64
    extra_experts: int = 0
    hidden_size: int = 0
    num_blocks: int = 0
    num_experts: int = 0
    rounds: int = 2
    serving_features: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, (least, most) = getattr(self, field.name), BOUNDS[field.name]
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"expected {field.name} of a network, a whole number of {least} to {most}, got {value!r}"
                )
        if self.hidden_size and not (self.num_blocks and self.num_experts):
            raise ValueError(
                "expected num_blocks and num_experts of at least 1 for a network that reads hidden states, got "
                f"{self.num_blocks} and {self.num_experts}"
            )


def check_sizes(architecture: Architecture, sizes: Sizes, name: str) -> None:
    """Refuse a network that was made for another model than the environment's.

    Args:
        architecture: a size of 0 fits every model.
        sizes: of the environment; 0 stands for one that is not known.
        name: of what has this architecture, for the message.

    Raises:
        ValueError: it was.
    """
    for size, unit in (
        ("num_experts", "experts"),
        ("num_blocks", "blocks"),
        ("hidden_size", "numbers in a hidden state"),
    ):
        own, there = getattr(architecture, size), getattr(sizes, size)
        if own and there and own != there:
            raise ValueError(f"{name} is for {own} {unit}, the environment has {there}")


class HiddenStateReader(nn.Module):
    """What a token's hidden state says of each expert; every block and expert has weights of its own.

    Args:
        architecture: H, I and E.
        rank: of the projection of each expert.
    """

    def __init__(self, architecture: Architecture, rank: int = 8) -> None:
        super().__init__()
        blocks, experts, width = architecture.num_blocks, architecture.num_experts, architecture.width
        self.norm = nn.LayerNorm(architecture.hidden_size, elementwise_affine=False)
        scale = architecture.hidden_size**-0.5
        self.of_token = nn.Parameter(scale * torch.randn(blocks, architecture.hidden_size, width))
        self.of_expert = nn.Parameter(scale * torch.randn(blocks, experts, architecture.hidden_size, rank))
        self.out = nn.Parameter(rank**-0.5 * torch.randn(blocks, experts, rank, width))
        self.bias = nn.Parameter(torch.zeros(blocks, experts, width))

    def forward(self, observation: ObservationTensors, candidates: Tensor) -> Tensor:
        """(M, width) for the M candidate pairs, in the order of ``nonzero``."""
        read = observation["hidden_states"].new_empty(int(candidates.sum()), self.bias.shape[-1])
        for pairs, rows in hidden_rows(observation, candidates, len(self.bias)):
            read[pairs] = self.read(rows)
        return read

    def read(self, rows: HiddenRows) -> Tensor:
        """(m, width) for the pairs of tokens at one block."""
        inside, index = self.norm(rows.hidden), rows.block
        of_token = inside @ self.of_token[index]
        of_expert = torch.einsum("th,ehr,erw->tew", inside, self.of_expert[index], self.out[index])
        return of_token[rows.token] + of_expert[rows.token, rows.expert] + self.bias[index, rows.expert]


class TokenSharedNetwork(nn.Module):
    """Actor and critic.

    Args:
        architecture: sizes.
    """

    def __init__(self, architecture: Architecture | None = None) -> None:
        super().__init__()
        self.architecture = architecture or Architecture()
        width = self.architecture.width
        self.pair_in = nn.Linear(PAIR_FEATURES, width)
        self.device_in = _mlp(DEVICE_FEATURES, width, width)
        self.device_out = nn.Linear(3 * width, width)
        self.reader = HiddenStateReader(self.architecture) if self.architecture.hidden_size else None
        # No unit that saturates: the logits of a trained actor are far from where they start.
        self.pair_body = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.pair_head = _small(nn.Linear(width, 1))
        self.pair_line = _small(nn.Linear(PAIR_FEATURES, 1))
        self.start = nn.Parameter(torch.tensor([USE_OTHER, USE_ROUTED, USE_BEST]))
        self.share_net = nn.Sequential(_mlp(SHARE_FEATURES, width, width), _small(nn.Linear(width, 1)))
        self.log_std = nn.Parameter(torch.full((1,), INITIAL_LOG_STD))
        if self.architecture.serving_features:  # drawn from no generator: at 0 they change nothing
            self.serving_in = nn.Parameter(torch.zeros(width, self.architecture.serving_features))
            self.serving_line = nn.Parameter(torch.zeros(self.architecture.serving_features))
        self.value_net = nn.Sequential(_mlp(PAIR_FEATURES + WORK_FEATURES, width, width), nn.Linear(width, 1))

    def look(self, observation: ObservationTensors) -> tuple[Features, Tensor]:
        """Features at the actor's own draft, and log-odds (M,) of using each candidate."""
        seen, read = self._at_own_draft(observation)
        return seen, self.expert_logits(seen, read)

    def see(self, observation: ObservationTensors) -> Features:
        """Features at the actor's own draft."""
        return self._at_own_draft(observation)[0]

    def _at_own_draft(self, observation: ObservationTensors) -> tuple[Features, Tensor | None]:
        """Features, and what the reader says (M, width).

        The actor answers to the prices of its own last answer, so that tokens do not all flee to the same device.
        """
        seen = Features.of(observation, self.architecture.extra_experts)
        read = self.reader(observation, seen.candidates) if self.reader is not None else None
        with torch.no_grad():
            for _ in range(self.architecture.rounds - 1):
                seen = seen.redrafted(self.expert_logits(seen, read).sigmoid())
        return seen, read

    def expert_logits(self, seen: Features | Inputs, read: Tensor | None) -> Tensor:
        """Log-odds (M,) of using each candidate, given what the reader says of it.

        Raises:
            ValueError: one of them is not finite.
        """
        pairs = seen.of_pairs()
        rows = self.pair_in(pairs) + seen.at_device(self.device_context(seen))
        if read is not None:
            rows = rows + read
        line = self.pair_line(pairs)[..., 0]
        if self.architecture.serving_features:
            serving = seen.of_serving(self.architecture.serving_features)
            rows, line = rows + serving @ self.serving_in.T, line + serving @ self.serving_line
        kind = (pairs[:, ROUTED] + pairs[:, BEST]).long()
        logits: Tensor = self.start[kind] + (self.pair_head(self.pair_body(rows))[..., 0] + line)
        return check_outputs(logits, "log-odds")

    def inputs_of(self, seen: Features) -> Inputs:
        """What the network looks at, without what it was worked out from; of blocks of one number."""
        return Inputs.of(
            seen, self.architecture.serving_features, None if self.reader is None else len(self.reader.bias)
        )

    def logits_of(self, inputs: Inputs) -> Tensor:
        """Log-odds (M,) of inputs that were kept."""
        read = None if self.reader is None or inputs.rows is None else self.reader.read(inputs.rows)
        return self.expert_logits(inputs, read)

    def device_context(self, seen: Features | Inputs) -> Tensor:
        """(N, U, width): each device beside the mean and the most of all."""
        each = self.device_in(seen.of_devices())
        own, mean, most = torch.split(self.device_out.weight, each.shape[-1], dim=1)
        shared = each.mean(1) @ mean.T + each.amax(1) @ most.T + self.device_out.bias
        context: Tensor = each @ own.T + shared[:, None]
        return context

    def share_logits(self, seen: Features, selection: Tensor) -> tuple[Tensor, Tensor]:
        """Mean logits (N, U) of the shares for the selection (N, J, E) that they will serve, and who is loaded (N, U).

        The base is a share that grows with the latency of each device, a few rounds long; see ``balanced_shares``.

        Raises:
            ValueError: a logit is not finite.
        """
        observation = seen.observation
        per_token = selection.to(observation["placement"].dtype) @ observation["placement"]
        load = (per_token > 0).to(per_token.dtype).sum(1)
        compute_ms = per_token.sum(1) * observation["compute_latency"] + seen.reading_ms(selection)
        work = load * observation["unit_latency"] + compute_ms
        shares = seen.balanced_shares(selection)
        relative = (shares / shares.max(-1, keepdim=True).values.clamp_min(TINY)).clamp_min(TINY)
        base = (BUSIEST_LOGIT + relative.log() / LOGIT_SCALE).clamp_min(-BUSIEST_LOGIT)
        efficiency = observation["spectral_efficiency"] / 10.0
        columns = [
            base,
            efficiency[:, 0],
            efficiency[:, 1],
            compute_ms / work.clamp_min(TINY),
            load / load.sum(-1, keepdim=True).clamp_min(1.0),
        ]
        logits = base + self.share_net(torch.stack(columns, dim=-1))[..., 0]
        return check_outputs(logits, "share logits"), load > 0

    def value(self, seen: Features) -> Tensor:
        """State values (N,) from the mean features of the candidates and the devices' work."""
        pairs, work = seen.of_pairs(), seen.work_ms()
        pooled = seen.per_episode(pairs) / seen.candidates.sum((1, 2))[:, None].clamp_min(1)
        total = torch.stack([work.sum(-1), work.max(-1).values], dim=-1)
        values: Tensor = self.value_net(torch.cat([pooled, total.clamp_min(TINY).log()], dim=-1))[..., 0]
        return values


def check_outputs(values: Tensor, name: str) -> Tensor:
    """Values (N, ...) that a network hands out, as they are.

    Args:
        values: (N, ...) what to check.
        name: what a message calls them.

    Raises:
        ValueError: one of them is not finite: finite weights can overflow too.
    """
    if not values.isfinite().all():
        raise ValueError(
            f"the policy's {name} are NaN or infinite: its weights are too large, or not finite themselves"
        )
    return values


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, outputs), nn.SiLU())


def _small(layer: nn.Linear) -> nn.Linear:
    """A last layer that adds almost nothing before training."""
    nn.init.normal_(layer.weight, std=1e-2)
    nn.init.zeros_(layer.bias)
    return layer

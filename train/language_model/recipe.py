"""What is trained, and for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule of one training run.

    Attributes:
        hidden: Width of a hidden state.
        expert_hidden: Width inside an expert.
        blocks: Decoder layers, each with one MoE block.
        heads: Attention heads.
        key_value_heads: Heads of keys and values.
        experts: Experts per block.
        experts_per_token: Experts that each token uses.
        positions: Longest input that the configuration admits.
        sequence: Tokens per training window.
        batch: Windows per step.
        tokens: Tokens to train on; the schedule ends there.
        learning_rate: Its peak.
        warmup_steps: Steps of linear rise; a cosine to a twentieth of the peak follows.
        weight_decay: On matrices only.
        balance: Weight of the load-balance loss, summed over blocks.
        seed: Of the initial weights and the order of windows.
    """

    hidden: int = 128
    expert_hidden: int = 256
    blocks: int = 6
    heads: int = 4
    key_value_heads: int = 2
    experts: int = 8
    experts_per_token: int = 2
    positions: int = 256
    sequence: int = 256
    batch: int = 16
    tokens: int = 44_000_000
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    weight_decay: float = 0.1
    balance: float = 0.01
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return max(1, self.tokens // (self.sequence * self.batch))


PRESETS = {
    "tiny": Recipe(),
    "smoke": Recipe(
        hidden=32, expert_hidden=32, blocks=2, heads=2, sequence=32, batch=4, tokens=128 * 20, warmup_steps=5
    ),
}

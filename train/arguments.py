"""What a training run is told, and the settings of its algorithm."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wdmoe_env.checks import check_integer
from wdmoe_env.policies.columns import SERVING_FEATURES
from wdmoe_env.reading import read_text

ALGORITHMS = ("ppo", "straight-through", "sb3-ppo", "sac")
BACKENDS = ("sb3", "rllib")
HYPERPARAMETERS = Path(__file__).parent / "hyperparameters.yml"
MOST_TIMESTEPS = 10**12
CHECKPOINT = "checkpoint.safetensors"
"""In the folder of a run."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What to train; each field is a flag of ``python -m train``."""

    algorithm: str = field(default="ppo", metadata={"help": "ppo, straight-through, sb3-ppo or sac"})
    backend: str = field(default="sb3", metadata={"help": "what runs PPO: sb3 here, or rllib on one machine or many"})
    env_runners: int = field(default=2, metadata={"help": "processes that step environments, of rllib"})
    address: str = field(
        default="local", metadata={"help": "Ray cluster of rllib: local (starts one), auto, HOST:PORT"}
    )
    env_id: str = field(default="WDMoE-Selection-v0", metadata={"help": "environment id"})
    model: str = field(default="tiny", metadata={"help": "language model: tiny, micro, or a checkpoint folder"})
    reward: str = field(
        default="",
        metadata={"help": "wlr, wlr_device, latency_quality, latency_divergence or serving; wlr, or serving on Serve"},
    )
    quality_weight: float = field(default=10.0, metadata={"help": "cost of a nat of added NLL, where it is paid for"})
    devices: str = field(default="paper", metadata={"help": "set of devices: paper, or boards that read weights"})
    load: float = field(default=0.95, metadata={"help": "arrivals by what own routing sustains, on Serve"})
    serving: str = field(default="", metadata={"help": "further settings on Serve, NAME=VALUE with commas between"})
    num_tokens: int = field(default=32, metadata={"help": "tokens of a window"})
    hidden_states: bool = field(default=False, metadata={"help": "let the actor read the model's hidden states"})
    extra_experts: int = field(default=0, metadata={"help": "experts of a token beside its routed ones to choose from"})
    serving_features: int = field(
        default=SERVING_FEATURES,
        metadata={"help": "columns the actor sees on Serve: 4 of the queue, the phase, 2 of the pass; 0 for none"},
    )
    without_domains: str = field(default="", metadata={"help": "kinds of text to leave out, with commas between"})
    settings: str = field(default="", metadata={"help": "settings to change, NAME=VALUE with commas between"})
    start: str = field(default="", metadata={"help": "policy whose weights to start from: a file, or one that ships"})
    timesteps: int = field(
        default=100_000, metadata={"help": "environment steps (blocks), of all environments; requests on Serve"}
    )
    seed: int = field(default=0, metadata={"help": "seed of weights, episodes and actions"})
    out: str = field(default="runs/ppo", metadata={"help": "run folder: policy, curves, checkpoint, arguments"})
    checkpoint_every: int = field(default=10_240, metadata={"help": "environment steps between checkpoints"})
    resume: bool = field(default=False, metadata={"help": "go on from the checkpoint in the run folder"})
    progress: bool = field(default=True, metadata={"help": "show a progress bar"})

    def __post_init__(self) -> None:
        """Take the reward of the environment where none is named."""
        if not self.reward:
            object.__setattr__(self, "reward", "serving" if self.serves else "wlr")

    @property
    def serves(self) -> bool:
        """Whether the environment is one of requests."""
        return self.env_id.startswith("WDMoE-Serve-")

    def check(self) -> None:
        """Check what the environment will not.

        Raises:
            ValueError, TypeError: an argument is wrong.
        """
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {self.algorithm!r}")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if self.backend == "rllib" and (self.algorithm != "ppo" or self.without_domains):
            raise ValueError("backend rllib runs the algorithm ppo, and takes no without_domains")
        if self.serving and not self.serves:
            raise ValueError(f"serving goes with WDMoE-Serve-v0 or WDMoE-Serve-Selection-v0, got {self.env_id}")
        check_integer("env_runners", self.env_runners, at_least=1)
        check_integer("timesteps", self.timesteps, at_least=1)
        if self.timesteps > MOST_TIMESTEPS:
            raise ValueError(f"timesteps must be at most {MOST_TIMESTEPS:,}, years of training, got {self.timesteps}")
        check_integer("checkpoint_every", self.checkpoint_every, at_least=1)
        check_integer("extra_experts", self.extra_experts, at_least=0)
        check_integer("serving_features", self.serving_features, at_least=0, at_most=SERVING_FEATURES)
        check_integer("seed", self.seed, at_least=0)
        if self.seed >= 2**64:
            raise ValueError(f"seed must be below 2**64, what torch takes, got {self.seed}")


def hyperparameters(algorithm: str, env_id: str, reward: str) -> dict[str, Any]:
    """Settings of an algorithm for an environment id and a reward, from ``hyperparameters.yml``.

    Raises:
        ValueError: there are none; the known ones are listed.
    """
    table = yaml.safe_load(read_text(HYPERPARAMETERS))[algorithm]
    if env_id not in table:
        raise ValueError(f"env_id must be one of {', '.join(table)} for {algorithm}, got {env_id!r}")
    if reward not in table[env_id]:
        raise ValueError(f"reward must be one of {', '.join(table[env_id])} for {algorithm}, got {reward!r}")
    return dict(table[env_id][reward])


def parsed_settings(text: str, flag: str = "settings") -> dict[str, Any]:
    """Settings written as ``"credit=episode,rollouts=8"``.

    Args:
        text: as above.
        flag: what a message calls them.

    Raises:
        ValueError: another form.
    """
    changed = {}
    for entry in filter(None, text.split(",")):
        name, equals, value = entry.partition("=")
        if not name.strip() or not equals or not value.strip():
            such = "rollouts=8" if flag == "settings" else "requests=8"
            raise ValueError(f"{flag} must be NAME=VALUE with commas between, such as {such}, got {entry!r}")
        changed[name.strip()] = parsed_value(value.strip())
    return changed


def parsed_value(text: str) -> Any:
    """A number, a truth or a word, as YAML has it; but YAML takes 1e-3 for a word."""
    try:
        return float(text) if "e" in text.lower() and not text.isalpha() else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text

"""Short runs of `python -m train` for the tests of what they learn and of what they leave."""

from __future__ import annotations

import csv

import torch
from safetensors.torch import load_file

from train import agent
from train.__main__ import main

SMALL = {"num_envs": 8, "n_steps": 4, "batch_size": 16, "n_epochs": 2, "learning_rate": 3e-3, "gamma": 0.0}


def use_small_settings(monkeypatch):
    """Put a table of small settings in place of the shipped one."""
    real = agent.hyperparameters
    small = {
        "ppo": {"windows": 4, "rollouts": 2},
        "sb3-ppo": SMALL,
        "straight-through": {"batch_size": 4},
        "sac": {"num_envs": 4, "batch_size": 16, "buffer_size": 1000},
    }
    monkeypatch.setattr(agent, "hyperparameters", lambda *names: {**real(*names), **small[names[0]]})


def flags(out, *more):
    return ["--model", "micro", "--num-tokens", "8", "--no-progress", "--out", str(out), *more]


def stock(out, *more):
    return flags(out, "--algorithm", "sb3-ppo", *more)


def weights(out):
    return load_file(out / "policy.safetensors")


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def assert_weights(one, other, same):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one) == same


def gradient_flags(out, *more):
    return flags(out, "--algorithm", "straight-through", "--timesteps", "48", *more)


def assert_refused(arguments, sentence, capsys):
    """The command says in one sentence what is wrong, and exits with 2."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1

"""Environments and scenes for the tests of what is drawn and written."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from conftest import MICRO

from wdmoe_env.rendering import scene
from wdmoe_env.rendering.record import Episode, Outcome, Record, Text

# With fewer than three digits a figure would hide what it is there to show.
SHOWN_DIGITS = 3


def make(render_mode="rgb_array", **keywords):
    return gym.make("wdmoe_env:WDMoE-v0", render_mode=render_mode, **{**MICRO, **keywords})


def make_vec(render_mode="rgb_array", num_envs=2, **keywords):
    return gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=num_envs, render_mode=render_mode, **{**MICRO, **keywords})


def shows(text, value):
    """Whether a text is a number rounded to the digits that it has."""
    return text == f"{value:.{len(text.partition('.')[2])}f}"


def episode(env, seed=0):
    """Observation, info and scene of every block of an episode of random decisions."""
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    terminated = False
    while not terminated:
        following, _, terminated, _, info = env.step(env.action_space.sample())
        yield observation, info, env.unwrapped.renderer.scene()
        observation = following


def pictured(devices, experts, tokens, names=("jetson-orin-nx-16gb",), decided=True, known=True, ended=False, seed=0):
    """A scene of any size, drawn from a seed."""
    rng = np.random.default_rng(seed)
    distance_m = rng.uniform(20, 200, (3, devices)) if known else np.full((3, devices), np.nan)
    placement = np.eye(devices)[np.arange(experts) * devices // experts]
    gate_probs = rng.dirichlet(np.full(experts, 0.3), tokens)
    routed = gate_probs >= np.sort(gate_probs)[:, -2:-1]
    selection = routed ^ (rng.random(routed.shape) < 0.1)
    latency_ms = rng.uniform(1, 1234, devices)
    text = Text(3.2, 3.1, 0.453) if ended else None
    shares, load = rng.dirichlet(np.ones(devices)), (selection @ placement).sum(axis=0)
    outcome = Outcome(selection, shares, load, latency_ms, latency_ms.max(), 3.912, text)
    records = [
        Record(gate_probs, routed, rng.uniform(2, 22, (2, devices)), placement, outcome if decided else None)
        for _ in range(3 if decided else 1)
    ]
    words = tuple(f" word{token}"[: 3 + token % 4] for token in range(tokens))
    return scene.scene_of(
        Episode(
            "models/an-organisation/a-long-name-of-a-model",
            12345,
            3,
            tuple(names * devices)[:devices],
            distance_m,
            words,
        ),
        records,
    )

"""Point 5: speed and memory as sizes grow, and memory over a long run; each figure from a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from transformers import AutoConfig, MixtralForCausalLM

from benchmarks.step import TINY, vanilla_action
from benchmarks.table import Row, Settings

SAMPLES = 100
WARM_UP = 0.1  # of a long run, before memory counts: the allocator's pools fill
WINDOWS = 1024  # that a long run draws from

# Sizes of the random models; more devices than experts cannot be, so that U grows where E is 256.
SERIES: dict[str, tuple[tuple[int, ...], dict[str, int]]] = {
    "N": ((1, 4, 16, 64, 256, 1024), {}),
    "J": ((8, 32, 128, 512), {"N": 16}),
    "E": ((8, 16, 32, 64), {"N": 16, "inner": 64}),
    "U": ((4, 16, 64, 256), {"N": 16, "E": 256, "blocks": 2, "hidden": 32, "inner": 16}),
    "blocks": ((2, 4, 8, 16, 32), {"N": 16, "hidden": 64, "inner": 64}),
}
DEFAULTS = {"N": 64, "J": 32, "E": 8, "U": 8, "blocks": 6, "hidden": 128, "inner": 256}
LINEAR = {"N": "<= 1", "J": "<= 1", "E": "<= 1"}


def rows(settings: Settings) -> list[Row]:
    """All rows of the section."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("N", "E") if settings.quick else SERIES:
            sizes, fixed = SERIES[name]
            found += series(settings, Path(folder), name, sizes[:2] if settings.quick else sizes, fixed)
    return [*found, *long_run(settings)]


def series(settings: Settings, folder: Path, name: str, sizes: tuple[int, ...], fixed: dict[str, int]) -> list[Row]:
    """Speed and memory over one size, with the exponent of the time of a step of the whole batch."""
    section = f"growth in {name}"
    found, seconds = [], []
    for size in sizes:
        problem = {**DEFAULTS, **fixed, name: size, "seconds": settings.seconds(1.5)}
        measured = in_own_process({**problem, "model": str(random_model(folder, problem))})
        memory = "<= 2,048" if (name, size) == ("N", 1024) else ""
        found.append(Row(section, f"{name} = {size:,}", problem["N"] / measured["seconds"], "1/s"))
        found.append(Row(section, f"{name} = {size:,}, peak memory", measured["peak_mib"], "MiB", memory))
        seconds.append(measured["seconds"])
    exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    return [*found, Row(section, f"exponent of the time of a step in {name}", exponent, "", LINEAR.get(name, ""))]


def long_run(settings: Settings) -> list[Row]:
    """Memory over a long run of the model that ships, on windows short enough for a million steps."""
    steps = 2_000 if settings.quick else settings.steps
    measured = in_own_process({"N": 64, "J": 8, "steps": steps})
    section = f"memory over {steps:,} steps"
    return [
        Row(section, "at the end", measured["peak_mib"], "MiB"),
        Row(section, "drift", measured["drift_mib"], "MiB per million steps", "" if settings.quick else "<= 10"),
        Row(section, "environment steps", steps / measured["seconds"], "1/s"),
    ]


def random_model(folder: Path, sizes: dict[str, Any]) -> Path:
    """A random Mixtral of some sizes with the tokenizer of the one that ships, saved once."""
    path = folder / "-".join(str(sizes[name]) for name in ("E", "blocks", "hidden", "inner"))
    if not path.exists():
        config = AutoConfig.from_pretrained(
            TINY,
            num_local_experts=sizes["E"],
            num_hidden_layers=sizes["blocks"],
            hidden_size=sizes["hidden"],
            intermediate_size=sizes["inner"],
            max_position_embeddings=1024,
        )
        with torch.random.fork_rng():
            MixtralForCausalLM(config).half().save_pretrained(path)
        for file in TINY.glob("tokenizer*"):
            shutil.copy(file, path)
    return path


def in_own_process(problem: dict[str, Any]) -> dict[str, float]:
    """What this module prints for a problem, run as a program."""
    command = [sys.executable, "-m", "benchmarks.growth", json.dumps(problem)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    if done.returncode:
        raise RuntimeError(f"the measurement of {problem} failed: {done.stderr[-2000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(problem: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step of the whole batch, and peak memory."""
    env = make(problem, problem["model"], num_tokens=problem["J"], devices={"count": problem["U"]})
    env.reset(seed=0)
    actions = env.action_space.sample()
    # The same windows again and again, whose own routing is known after the first time.
    options = {"window": np.arange(problem["N"]) % len(env.simulator.source.windows)}
    taken: list[float] = []
    while sum(taken) < problem["seconds"] or len(taken) < 2:
        began = time.perf_counter()
        env.reset(options=options)
        for _ in range(env.num_blocks):
            env.step(actions)
        taken.append((time.perf_counter() - began) / env.num_blocks)
    return {"seconds": float(np.quantile(taken[1:], 0.25)), "peak_mib": peak_mib()}


def measure_long(problem: dict[str, Any]) -> dict[str, float]:
    """Seconds of a long run, and the slope of memory over it; the own routing of its windows is known before."""
    env = make(problem, "tiny", num_tokens=problem["J"])
    actions = vanilla_action(env, env.reset(seed=0)[0])
    env.simulator.source.reference_nll(np.arange(WINDOWS))
    generator = np.random.default_rng(0)
    rounds = problem["steps"] // env.num_envs
    done, memory = [], []
    began = time.perf_counter()
    for n in range(rounds):
        if n % env.num_blocks == 0:
            env.reset(options={"window": generator.integers(WINDOWS, size=env.num_envs)})
        env.step(actions)
        if n >= WARM_UP * rounds and n % max(1, rounds // SAMPLES) == 0:
            done.append(n * env.num_envs)
            memory.append(resident_mib())
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_mib": peak_mib(), "drift_mib": 1e6 * float(np.polyfit(done, memory, 1)[0])}


def make(problem: dict[str, Any], model: str, **keywords: Any) -> Any:
    """The batched environment of a problem."""
    return gym.make_vec(
        "wdmoe_env:WDMoE-v0", num_envs=problem["N"], autoreset_mode="DISABLED", model=model, split="test", **keywords
    )


def peak_mib() -> float:
    """Greatest resident memory of this process so far; what ``getrusage`` says includes that of its parent."""
    return _memory_mib("VmHWM")


def resident_mib() -> float:
    """Resident memory of this process now."""
    return _memory_mib("VmRSS")


def _memory_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(measure_long(asked) if "steps" in asked else measure(asked)))

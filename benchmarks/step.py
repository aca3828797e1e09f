"""Points 1, 2 and 6: a step beside the model's own forward, the batched environment beside others, and its profile."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv
from transformers import AutoModelForCausalLM

import wdmoe_env
from benchmarks.reference import ReferenceEnv
from benchmarks.table import Row, Settings
from benchmarks.timing import Timed, clocked, in_turn, on_threads, ratio_in_turn
from wdmoe_env import actions, process
from wdmoe_env.moe import lockstep, runner
from wdmoe_env.physics.channel import Channel
from wdmoe_env.rollout import rollout

TINY = Path(wdmoe_env.__file__).parent / "assets" / "tiny"
STOCK = ("eager", "grouped_mm")  # on a CPU "batched_mm" is many times slower than either, and upsets the caches
PARTS = {
    "experts": [(runner.LocalRunner, "run")],
    "output layer and scores": [(lockstep, "score_tokens")],
    "model without experts": [(lockstep.LockStep, "__init__"), (lockstep.LockStep, "resume")],
    "physics": [
        (Channel, "sample"),
        (rollout.Radio, "of"),
        (rollout, "measure"),
        (actions, "device_load"),
    ],
    "solver": [(actions, "min_max_bandwidth")],
    "codecs": [
        (actions.ActionCodec, "decode"),
        (actions, "repair_selection"),
        (process, "encode_observation"),
        (rollout.View, "block"),
    ],
}


def rows(settings: Settings) -> list[Row]:
    """All rows of the section."""
    targets = {1: "<= 1.10", 8: "<= 1", 64: "<= 1", 256: "<= 1"}
    sizes = (1, 8) if settings.quick else tuple(targets)
    stock = stock_models(settings.device)
    found: list[Row] = []
    for threads in sorted({1, torch.get_num_threads()}):
        with on_threads(threads):
            found += [row for size in sizes for row in overhead(settings, stock, size, targets[size])]
            found += throughput(settings, stock["eager"])
    with on_threads(1):
        found += boards(settings)
        found += [row for size in (sizes if settings.quick else (1, 64)) for row in profile(settings, size)]
    return found


def stock_models(device: str) -> dict[str, Any]:
    """The untouched model with each of transformers' ways to run experts."""
    return {
        name: AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, experts_implementation=name)
        .to(device)
        .eval()
        .requires_grad_(False)
        for name in (STOCK if device == "cpu" else (*STOCK, "batched_mm"))
    }


def make(num_envs: int, **keywords: Any) -> Any:
    """One environment, or a batched one that is reset by hand."""
    if num_envs == 1:
        return gym.make("wdmoe_env:WDMoE-v0", **keywords)
    return gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=num_envs, autoreset_mode="DISABLED", **keywords)


def vanilla_action(one: Any, observation: Any) -> Any:
    """The model's own routing at equal shares."""
    routed = observation["routed"] > 0
    devices = observation["compute_latency"].shape[-1]
    return one.encode_action(routed, np.full((*routed.shape[:-2], devices), 1.0 / devices))


def episode_seconds(
    one: Any, options: dict[str, Any] | None = None, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Time of one episode, its reset included, without what the policy takes."""
    plain = one.unwrapped
    began = clock()
    observation, _ = one.reset(options=options)
    taken = clock() - began
    for _ in range(plain.num_blocks):
        action = vanilla_action(plain, observation)
        began = clock()
        observation, *_ = one.step(action)
        taken += clock() - began
    return taken


def overhead(settings: Settings, stock: dict[str, Any], num_envs: int, target: str) -> list[Row]:
    """Time of a step over that of a block of the plain forward of the same windows, at its best."""
    one = make(num_envs, device=settings.device)
    one.reset(seed=0)
    source = one.unwrapped.simulator.source
    generator = np.random.default_rng(0)
    windows = np.zeros(num_envs, dtype=np.int64)
    inputs: dict[str, Any] = {}

    def step() -> float:
        windows[:] = generator.integers(len(source.windows), size=num_envs)
        source.reference_nll(windows)  # of the windows' own routing, once per window in a process
        token_ids, mask, _ = source.tokens(windows)
        attention_mask = None if mask.all() else mask.long().to(settings.device)  # as fast as a user can have it
        inputs.update(input_ids=token_ids.to(settings.device), attention_mask=attention_mask)
        return episode_seconds(one, {"window": int(windows[0]) if num_envs == 1 else windows.copy()})

    def plain(model: Any, mode: Any) -> None:
        with mode():
            model(**inputs, use_cache=False)
        if settings.device != "cpu":
            torch.cuda.synchronize()

    modes = {"the plain forward": torch.no_grad, "the plain forward in inference mode": torch.inference_mode}
    alternatives: dict[str, Timed] = {"step": step}
    for mode, context in modes.items():
        alternatives |= {f"{mode} ({name})": clocked(partial(plain, model, context)) for name, model in stock.items()}
    taken = in_turn(alternatives, settings.seconds(20.0))
    blocks = one.unwrapped.num_blocks
    one.close()
    section = f"step, N = {num_envs}, {_threads()}"
    found = [Row(section, "step", 1e3 * taken["step"] / blocks, "ms")]
    for mode in modes:
        best = min((f"{mode} ({name})" for name in stock), key=taken.__getitem__)
        found.append(Row(section, f"block of {best}", 1e3 * taken[best] / blocks, "ms"))
        wanted = target if mode == "the plain forward" else ""
        found.append(Row(section, f"step over a block of {mode}", taken["step"] / taken[best], "", wanted))
    return [*found, Row(section, "environment steps", num_envs * blocks / taken["step"], "1/s")]


def throughput(settings: Settings, stock: Any) -> list[Row]:
    """Environment steps per second of the batched environment over other ways to step many."""
    size = 8 if settings.quick else 64
    native = gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=size, autoreset_mode="DISABLED")
    native.reset(seed=0)
    source = native.simulator.source
    began = time.perf_counter()
    if not settings.quick:
        source.reference_nll(np.arange(len(source.windows)))
    whole_split = time.perf_counter() - began
    taken = in_turn(ways_to_step(native, size, stock), settings.seconds(60.0))
    rate = {name: native.num_blocks / seconds for name, seconds in taken.items()}
    section = f"throughput, N = {size}, {_threads()}"
    found = [Row(section, name, value, "1/s") for name, value in rate.items()]
    pairs = [
        ("native", "the single environment", ">= 6"),
        ("native", "SB3's DummyVecEnv", ">= 5"),
        ("native", "Gymnasium's SyncVectorEnv", ">= 5"),
        ("native, shares solved", "a straightforward implementation", ">= 20"),
    ]
    found += [Row(section, f"{a} over {b}", rate[a] / rate[b], "", target) for a, b, target in pairs]
    if not settings.quick:
        found.append(Row(section, "own routing of all windows, once in a process", whole_split, "s"))
    return found


def ways_to_step(native: Any, size: int, stock: Any) -> dict[str, Timed]:
    """Seconds of an episode of one environment in each way, the batched environment ``native`` first."""
    selection = gym.make_vec("wdmoe_env:WDMoE-Selection-v0", num_envs=size, autoreset_mode="DISABLED")
    single = make(1)
    dummy = DummyVecEnv([partial(make, 1) for _ in range(size)])
    sync = SyncVectorEnv([partial(make, 1) for _ in range(size)], autoreset_mode="Disabled")
    sync.num_blocks = dummy.num_blocks = native.num_blocks
    sync.encode_action = native.encode_action
    reference = ReferenceEnv(stock)
    single.reset(seed=0), dummy.seed(0), sync.reset(seed=0), selection.reset(seed=0)
    return {
        "native": lambda: episode_seconds(native) / size,
        "the single environment": lambda: episode_seconds(single),
        "Gymnasium's SyncVectorEnv": lambda: episode_seconds(sync) / size,
        "SB3's DummyVecEnv": lambda: dummy_seconds(dummy, native) / size,
        "native, shares solved": lambda: episode_seconds(selection) / size,
        "a straightforward implementation": clocked(lambda: reference_episode(reference, 0)),
    }


def boards(settings: Settings) -> list[Row]:
    """CPU time of a step whose devices read weights (5r) over one of the paper's, on the same windows in turn."""
    size = 8 if settings.quick else 64
    each = {name: make(size, device=settings.device, devices=name) for name in ("paper", "boards")}
    windows = np.arange(size)
    for one in each.values():
        one.reset(seed=0)
        one.unwrapped.simulator.source.reference_nll(windows)
    timed = {name: partial(episode_seconds, one, {"window": windows}, time.process_time) for name, one in each.items()}
    ratio = ratio_in_turn(timed["boards"], timed["paper"], settings.seconds(20.0))
    for one in each.values():
        one.close()
    return [Row(f"devices, N = {size}, {_threads()}", "step under boards over one under paper", ratio, "", "<= 1.10")]


def dummy_seconds(dummy: DummyVecEnv, native: Any) -> float:
    """Time of one episode under SB3's protocol, which resets within the last step."""
    observation, taken = dummy.reset(), 0.0
    for _ in range(native.num_blocks):
        action = vanilla_action(native, observation)
        began = time.perf_counter()
        observation, *_ = dummy.step(action)
        taken += time.perf_counter() - began
    return taken


def reference_episode(one: ReferenceEnv, seed: int) -> dict[str, float]:
    """Info at the end of an episode of the straightforward implementation, with the model's own routing."""
    selection: Any = one.reset(seed)
    done, info = False, {}
    while not done:
        selection, _, done, info = one.step(selection)
    return info


def profile(settings: Settings, num_envs: int) -> list[Row]:
    """Share of each part in the time of a step, with the shares solved."""
    name = "wdmoe_env:WDMoE-Selection-v0"
    one: Any = gym.make(name) if num_envs == 1 else gym.make_vec(name, num_envs=num_envs, autoreset_mode="DISABLED")
    one.reset(seed=0)
    windows = np.arange(num_envs)
    options = {"window": 0 if num_envs == 1 else windows}
    one.unwrapped.simulator.source.reference_nll(windows)
    episode_seconds(one, options)
    spent = dict.fromkeys(PARTS, 0.0)
    ends, total = time.perf_counter() + settings.seconds(8.0), 0.0
    with ExitStack() as stack:
        for part, places in PARTS.items():
            for holder, function in places:
                stack.enter_context(_clock(spent, part, holder, function))
        while time.perf_counter() < ends:
            total += episode_seconds(one, options)
    one.close()
    # Both run inside the model's forward pass.
    spent["model without experts"] -= spent["experts"] + spent["output layer and scores"]
    spent["Gymnasium and the rest"] = total - sum(spent.values())
    section = f"profile with the shares solved, N = {num_envs}"
    return [Row(section, part, 100.0 * seconds / total, "%") for part, seconds in spent.items()]


def _threads() -> str:
    threads = torch.get_num_threads()
    return "1 thread" if threads == 1 else f"{threads} threads"


def _clock(spent: dict[str, float], part: str, holder: Any, name: str) -> Any:
    """A patch that adds the time of a function to its part."""
    function: Callable[..., Any] = holder[name] if isinstance(holder, dict) else getattr(holder, name)

    def timed(*args: Any, **keywords: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **keywords)
        finally:
            spent[part] += time.perf_counter() - began

    if isinstance(holder, dict):
        return mock.patch.dict(holder, {name: timed})
    return mock.patch.object(holder, name, timed)

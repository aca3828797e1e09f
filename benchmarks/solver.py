"""Point 3: the solvers beside SciPy's SLSQP and a conic solver on the same instances, and beside the model."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np
import torch

from benchmarks.reference import slsqp_latency_s
from benchmarks.step import make, stock_models
from benchmarks.table import Row, Settings
from benchmarks.timing import Timed, clocked, in_turn
from wdmoe_env.config import ChannelConfig, DeploymentConfig, DeviceConfig
from wdmoe_env.moe.lockstep import own_scores
from wdmoe_env.observations import Block, decode_observation
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.optimize.joint import fractional_program, joint_optimize
from wdmoe_env.optimize.selection import marginal_price_selection
from wdmoe_env.physics.channel import Channel
from wdmoe_env.physics.compute import device_flops
from wdmoe_env.physics.latency import BlockLinks, Load, device_load
from wdmoe_env.policies.rules import STOPPING_GAIN, problem_of

PAIRS_PER_DEVICE = 8
BLOCK_BATCH = 64
JOINT = "joint_optimize, as the policy wdmoe"


def rows(settings: Settings) -> list[Row]:
    """All rows of the section."""
    batch = 64 if settings.quick else 4096
    return [*bandwidth(settings, batch), *growth_in_devices(settings), *beside_the_model(settings)]


def instances(batch: int, devices: int) -> tuple[BlockLinks, Load]:
    """Random blocks of the default channel and deployment; tokens thrown at the devices at random.

    Every device has a token: the conic program gives one without load a share that it cannot bring down to 0.
    """
    rng = np.random.default_rng(0)
    hardware, deployment, channel = DeviceConfig(count=devices), DeploymentConfig(), ChannelConfig()
    snr = Channel(channel, hardware, 1).sample(rng.spawn(batch)).full_band_snr[0]
    payload_s = np.full(batch, deployment.payload_bits / channel.bandwidth_hz)
    compute_s = np.broadcast_to(deployment.expert_flops / device_flops(hardware), (batch, devices))
    thrown = rng.multinomial((PAIRS_PER_DEVICE - 1) * devices, np.full(devices, 1.0 / devices), batch)
    tokens = 1.0 + thrown
    return BlockLinks(snr, payload_s, compute_s, np.eye(devices)), Load(tokens, tokens)


class ConicMinMax:
    """Min-max bandwidth for Clarabel, compiled once and given each instance as parameters.

    Latency is in ms; ``share log(1 + snr / share)`` is minus the relative entropy of share and share + snr.
    """

    def __init__(self, devices: int) -> None:
        self.share = cp.Variable(devices)
        rate = cp.Variable((2, devices))
        self.snr = cp.Parameter((2, devices), nonneg=True)
        self.radio_ms = cp.Parameter(devices, nonneg=True)
        self.compute_ms = cp.Parameter(devices, nonneg=True)
        constraints = [cp.sum(self.share) == 1]
        constraints += [rate[link] <= -cp.rel_entr(self.share, self.share + self.snr[link]) for link in range(2)]
        latency = self.compute_ms + cp.multiply(self.radio_ms, cp.inv_pos(rate[0]) + cp.inv_pos(rate[1]))
        self.problem = cp.Problem(cp.Minimize(cp.max(latency)), constraints)

    def latency_s(self, links: BlockLinks, load: Load) -> float:
        """Optimal block latency of a batch of one."""
        self.snr.value = links.full_band_snr[0]
        self.radio_ms.value = 1e3 * np.log(2.0) * load.tokens[0] * links.payload_s[0]
        self.compute_ms.value = 1e3 * load.experts[0] * links.compute_s[0]
        self.problem.solve(cp.CLARABEL)
        return 1e-3 * float(self.problem.value)


def bandwidth(settings: Settings, batch: int, devices: int = 8) -> list[Row]:
    """``min_max_bandwidth`` beside SLSQP and Clarabel: time per instance, and the gap."""
    links, load = instances(batch, devices)
    theirs = 8 if settings.quick else 256
    pairs = [(links.row(n), load.row(n)) for n in range(theirs)]
    conic = ConicMinMax(devices)
    conic.latency_s(*pairs[0])
    exact = min_max_bandwidth(links, load).latency_s[:theirs]
    began = time.perf_counter()
    by_slsqp = np.array([slsqp_latency_s(*pair) for pair in pairs])
    slsqp_s = (time.perf_counter() - began) / theirs
    began = time.perf_counter()
    by_conic = np.array([conic.latency_s(*pair) for pair in pairs])
    conic_s = (time.perf_counter() - began) / theirs
    ours = in_turn(
        {
            "one": clocked(lambda: [min_max_bandwidth(*pair) for pair in pairs[:32]]),
            "batch": clocked(lambda: min_max_bandwidth(links, load)),
        },
        settings.seconds(6.0),
    )
    one_s, batch_s = ours["one"] / len(pairs[:32]), ours["batch"] / batch
    section = f"min-max bandwidth, {devices} devices"
    solved = np.isfinite(by_slsqp)
    return [
        Row(section, "SLSQP", 1e3 * slsqp_s, "ms"),
        Row(section, "cvxpy and Clarabel, compiled", 1e3 * conic_s, "ms"),
        Row(section, "min_max_bandwidth, one instance", 1e3 * one_s, "ms"),
        Row(section, f"min_max_bandwidth, each of {batch:,}", 1e3 * batch_s, "ms"),
        Row(section, "speed over SLSQP, one instance", slsqp_s / one_s, "", ">= 30"),
        Row(section, f"speed over SLSQP, each of {batch:,}", slsqp_s / batch_s, "", ">= 2,000"),
        Row(section, "speed over Clarabel, one instance", conic_s / one_s),
        Row(section, f"speed over Clarabel, each of {batch:,}", conic_s / batch_s),
        Row(section, "greatest gap to Clarabel", float(np.abs(exact / by_conic - 1.0).max()), "", "<= 1e-6"),
        Row(section, "greatest excess of SLSQP over ours", float((by_slsqp[solved] / exact[solved] - 1.0).max())),
        Row(section, "instances on which SLSQP failed", 100.0 * float((~solved).mean()), "%"),
    ]


def growth_in_devices(settings: Settings) -> list[Row]:
    """Time of an instance against its number of devices, where each call works on as many devices in all."""
    sizes = (8, 32) if settings.quick else (8, 32, 128, 512, 1024)
    problems = {devices: instances(max(sizes) * 4 // devices, devices) for devices in sizes}
    alternatives: dict[str, Timed] = {
        str(devices): clocked(lambda problem=problem: min_max_bandwidth(*problem))  # type: ignore[misc]
        for devices, problem in problems.items()
    }
    taken = in_turn(alternatives, settings.seconds(6.0))
    per_instance = [taken[str(devices)] / len(problems[devices][0].payload_s) for devices in sizes]
    found = [
        Row("min-max bandwidth, growth", f"{devices} devices", 1e3 * seconds, "ms")
        for devices, seconds in zip(sizes, per_instance, strict=True)
    ]
    exponent = float(np.polyfit(np.log(sizes), np.log(per_instance), 1)[0])
    return [*found, Row("min-max bandwidth, growth", "exponent of time in devices", exponent, "", "<= 1.1")]


def beside_the_model(settings: Settings) -> list[Row]:
    """Every solver on one block of a batch of 64, beside the time that the model takes for that block.

    The model as transformers runs it, at its best, and as the environment does, which is faster.
    """
    batch = 8 if settings.quick else BLOCK_BATCH
    one = make(batch)
    block = decode_observation(one.reset(seed=0)[0])
    source = one.simulator.source
    tokens = source.tokens(np.arange(batch))
    stock = stock_models("cpu")

    def plain(model: Any) -> None:
        with torch.no_grad():
            model(input_ids=tokens[0], use_cache=False)

    solvers, models = _solvers(block), {name: clocked(partial(plain, model)) for name, model in stock.items()}
    split = clocked(lambda: own_scores(source.model, *tokens))
    taken = in_turn({"split": split, **models, **solvers}, settings.seconds(20.0))
    one.close()
    section = f"solvers, one block of {batch}"
    times = {
        "the plain forward": min(taken[name] for name in stock) / one.num_blocks,
        "the split model, with the scoring of the text": taken["split"] / one.num_blocks,
    }
    found = [Row(section, f"block of {name}", 1e3 * seconds, "ms") for name, seconds in times.items()]
    found += [Row(section, name, 1e3 * taken[name], "ms") for name in solvers]
    ratios = [Row(section, f"{JOINT}, over {name}", taken[JOINT] / s, "", "<= 1") for name, s in times.items()]
    return [*found, *ratios]


def _solvers(block: Block) -> dict[str, Timed]:
    links, load = block.links, device_load(block.routed, block.links)
    calls: dict[str, Any] = {
        "min_max_bandwidth": lambda: min_max_bandwidth(links, load),
        JOINT: lambda: joint_optimize(problem_of(block), stopping_gain=STOPPING_GAIN),
        "joint_optimize, fixed threshold": lambda: joint_optimize(problem_of(block), 0.9),
        "marginal_price_selection": lambda: marginal_price_selection(problem_of(block, 0.5)),
        "fractional_program": lambda: fractional_program(problem_of(block)),
    }
    return {name: clocked(call) for name, call in calls.items()}

"""Memory and placement: refused with the bytes, and found by greedy and exchange, against exhaustion and a bound."""

from __future__ import annotations

import itertools
import json

import gymnasium as gym
import numpy as np
import pytest

from benchmarks import random_olmoe
from wdmoe_env.config import DeploymentConfig, DeviceConfig, EnvConfig
from wdmoe_env.deploy.fit import check_memory, experts_that_fit, usable_memory_bytes
from wdmoe_env.deploy.placement import main
from wdmoe_env.deploy.problem import PlacementProblem
from wdmoe_env.deploy.search import exchange, greedy, in_order, popularity_first, round_robin
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.physics.latency import BlockLinks, device_load

MIXTRAL_BYTES = 3 * 4096 * 14336 * 2  # of an expert at 16 bits: 352,321,536


def random_problem(seed, blocks=2, windows=3, tokens=6, experts=4, devices=3, capacity=None, weights=False):
    """Top-2 routing whose experts differ in popularity, on devices that differ in radio and speed."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(blocks, windows, tokens, experts)) + rng.normal(size=(blocks, 1, 1, experts))
    routed = np.argsort(np.argsort(-scores, axis=-1), axis=-1) < 2
    return PlacementProblem(
        routed=routed,
        full_band_snr=10 ** rng.uniform(1, 4, (2, devices)),
        payload_s=6e-4,
        compute_s=rng.uniform(5e-5, 4e-4, devices),
        weights_s=rng.uniform(5e-4, 4e-3, devices) if weights else None,
        capacity=np.full(devices, blocks * experts) if capacity is None else np.array(capacity),
    )


def all_placements(problem):
    """Every table that fits and leaves no device empty."""
    blocks, _, _, experts = problem.routed.shape
    for flat in itertools.product(range(problem.num_devices), repeat=blocks * experts):
        held = np.bincount(flat, minlength=problem.num_devices)
        if held.min() > 0 and (held <= problem.capacity).all():
            yield np.array(flat).reshape(blocks, experts)


def fits(table, problem):
    held = np.bincount(table.ravel(), minlength=problem.num_devices)
    return held.min() > 0 and (held <= problem.capacity).all()


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("capacity", [None, (2, 2, 4)])
def test_the_search_against_exhaustion(weights, capacity):
    """One block of six experts on three devices, 540 placements: at most 3 % above the best, mostly there."""
    gaps = []
    for seed in range(6):
        room = capacity and (2, 2, 2)
        problem = random_problem(seed, blocks=1, experts=6 if room is None else 5, capacity=room, weights=weights)
        tables = np.array(list(all_placements(problem)))[:, 0]
        best = problem.block_latency_s(0, tables).min()
        found = exchange(problem, greedy(problem))
        assert fits(found, problem)
        assert problem.lower_bound_s() <= best * (1 + 1e-9)
        gaps.append(problem.latency_s(found) / best - 1)
    assert min(gaps) > -1e-9
    assert max(gaps) < 0.03
    assert np.median(gaps) < 1e-9


def test_latency_of_a_placement_is_that_of_its_blocks():
    problem = random_problem(1, weights=True)
    table = np.array([[0, 1, 2, 0], [2, 2, 1, 0]])
    expected = 0.0
    for block in range(2):
        for window in range(3):
            links = BlockLinks(
                problem.full_band_snr[None], [problem.payload_s], problem.compute_s[None], np.eye(3)[table[block]],
                weights_s=problem.weights_s[None],
            )  # fmt: skip
            load = device_load(problem.routed[block, window][None], links)
            expected += min_max_bandwidth(links, load).latency_s.item() / 3
    assert problem.latency_s(table) == pytest.approx(expected, rel=1e-10)


def test_the_bound_is_reached_where_devices_are_alike_and_loads_even():
    """Four equal devices, each of four experts used by two of eight tokens: by hand, 2 (radio(1/4) + compute)."""
    routed = np.eye(4, dtype=bool)[np.arange(8) % 4][None, None]
    problem = PlacementProblem(routed, np.full((2, 4), 100.0), 1e-3, np.full(4, 2e-4), None, np.full(4, 4))
    radio = 2 * 1e-3 / (0.25 * np.log2(401))
    assert problem.lower_bound_s() == pytest.approx(2 * (radio + 2e-4), rel=1e-6)
    assert problem.latency_s(np.arange(4)[None]) == pytest.approx(problem.lower_bound_s(), rel=1e-6)


def test_every_placement_keeps_to_the_memory_and_leaves_no_device_empty():
    for seed in range(4):
        problem = random_problem(seed, experts=8, devices=4, capacity=(9, 3, 3, 2))
        for make in (round_robin, popularity_first, greedy):
            assert (np.bincount(make(problem).ravel(), minlength=4) <= problem.capacity).all(), make
        assert in_order(problem) is None
        found = exchange(problem, greedy(problem))
        assert fits(found, problem)
        assert problem.latency_s(found) <= problem.latency_s(round_robin(problem)) * (1 + 1e-9)
    tight = random_problem(0, blocks=1, experts=4, devices=4, capacity=(9, 9, 9, 1))
    assert fits(greedy(tight), tight)


def test_too_little_memory_in_all_is_refused():
    with pytest.raises(ValueError, match=r"memory for 2 blocks of 4 experts .* with room for 7 in all and for 2 at"):
        random_problem(0, capacity=(3, 2, 2))


def test_memory_of_the_boards():
    """An Orin NX 8GB has 5.2e9 bytes for experts: 14 of Mixtral's at 16 bits, 52 at 4.5."""
    devices = DeviceConfig(count=1, profiles=("jetson-orin-nx-8gb",))
    room = usable_memory_bytes(devices)
    assert experts_that_fit(room, DeploymentConfig(), 6).tolist() == [14]
    assert experts_that_fit(room, DeploymentConfig(weight_bits=4.5), 6).tolist() == [52]
    assert experts_that_fit(room, DeploymentConfig(num_blocks=12), 6).tolist() == [7]
    check_memory(np.ones((14, 1, 1)), devices, DeploymentConfig())
    with pytest.raises(ValueError, match=r"has 5,200,000,000 bytes .* its 15 experts need 5,284,823,040"):
        check_memory(np.ones((15, 1, 1)), devices, DeploymentConfig())
    assert 15 * MIXTRAL_BYTES == 5_284_823_040


def test_a_placement_that_does_not_fit_is_refused_where_devices_read_weights(micro):
    """All three blocks on the smallest board but for what the others must hold."""
    placement = ((0, 1, 1, 1, 1, 1, 1, 1),) * 3
    boards = {"count": 2, "compute_model": "roofline", "profiles": ("jetson-agx-orin-64gb", "jetson-orin-nx-8gb")}
    with pytest.raises(ValueError, match=r"device 1 \(jetson-orin-nx-8gb\) has 5,200,000,000 bytes for experts"):
        gym.make("wdmoe_env:WDMoE-v0", **micro, placement=placement, devices=boards)
    gym.make("wdmoe_env:WDMoE-v0", **micro, placement=placement, devices=boards, deployment={"weight_bits": 8})
    gym.make("wdmoe_env:WDMoE-v0", **micro, placement=placement, devices=boards | {"compute_model": "flops"})


def test_the_blocks_of_the_deployed_model_count_in_memory(micro):
    """An eighth of Mixtral's 32 blocks of 8 experts takes 32 x 352,321,536 bytes of each of eight devices."""
    gym.make("wdmoe_env:WDMoE-v0", **micro, devices="boards")  # of three blocks
    sentence = r"device 3 .* has 5,200,000,000 .* need 11,274,289,152 .* 3 blocks stand for 32"
    with pytest.raises(ValueError, match=sentence):
        gym.make("wdmoe_env:WDMoE-v0", **micro, devices="boards", deployment={"num_blocks": 32})
    gym.make("wdmoe_env:WDMoE-v0", **micro, devices="boards", deployment={"num_blocks": 32, "weight_bits": 4.5})
    gym.make("wdmoe_env:WDMoE-v0", **micro, deployment={"num_blocks": 32})  # memory counts nothing there


def test_auto_is_a_placement_that_fits_and_comes_again(micro):
    boards = {"count": 2, "compute_model": "roofline", "profiles": ("jetson-agx-orin-64gb", "jetson-orin-nx-8gb")}
    env = gym.make("wdmoe_env:WDMoE-v0", **micro, placement="auto", devices=boards).unwrapped
    held = env.simulator.world.placement.sum(axis=(0, 1))
    assert held.sum() == 24
    assert 1 <= held[1] <= 14
    assert held[0] > held[1]
    again = gym.make("wdmoe_env:WDMoE-v0", config=env.config.to_dict()).unwrapped
    np.testing.assert_array_equal(again.simulator.world.placement, env.simulator.world.placement)
    with pytest.raises(ValueError, match="or 'auto', got 'best'"):
        EnvConfig(placement="best")


def test_the_command_finds_a_placement_and_writes_it(tmp_path, capsys):
    out = tmp_path / "found" / "placement.json"
    flags = ["--model", "micro", "--num-tokens", "8", "--devices", "3", "--windows", "4", "--usable-gb", "3.6"]
    assert main([*flags, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in text.splitlines()[2:]}
    assert float(rows["lower bound"]) <= float(rows["greedy and exchange"]) <= float(rows["greedy"])
    assert float(rows["greedy and exchange"]) <= min(float(rows["popularity greedy"]), float(rows["in order"]))
    settings = json.loads(out.read_text())
    assert np.bincount(np.ravel(settings["placement"])).max() <= 10  # 3.6e9 // 352,321,536
    gym.make("wdmoe_env:WDMoE-v0", model="micro", num_tokens=8, devices={"count": 3}, **settings)


def test_the_random_model_with_many_experts_can_be_placed(tmp_path, capsys):
    assert random_olmoe.main([str(tmp_path / "olmoe")]) == 0
    flags = ["--model", str(tmp_path / "olmoe"), "--num-tokens", "4", "--windows", "1", "--devices", "2"]
    assert main([*flags, "--usable-gb", "1000"]) == 0
    assert "| in order | " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--usable-gb", "1"], "expected memory for 3 blocks of 8 experts"),
        (["--usable-gb", "1", "2"], "--usable-gb takes one number above 0 or 8, got [1.0, 2.0]"),
        (["--windows", "0"], "--windows must be at least 1, got 0"),
        (["--devices", "0"], "count must be"),
        (["--config", "missing.json"], "missing.json"),
    ],
)
def test_mistakes_of_the_command_are_one_sentence(flags, sentence, capsys):
    assert main(["--model", "micro", "--num-tokens", "8", "--windows", "1", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert sentence in captured.err


def test_experts_are_read_whole_in_the_bound():
    """Two devices that read an expert in 1 and 3 ms, with room for 4 each, and links so fast that they do not count.

    Five experts end at 1, 2, 3, 3 and 4 ms. Were they read in parts, they would end at 5 / (1 + 1/3) = 3.75 ms.
    """
    routed = np.eye(5, dtype=bool)[None, None]
    problem = PlacementProblem(
        routed, np.full((2, 2), 1e6), 1e-12, np.full(2, 1e-9), np.array([1e-3, 3e-3]), np.array([4, 4])
    )
    assert problem.lower_bound_s() == pytest.approx(4e-3, rel=1e-6)
    best = min(problem.latency_s(table) for table in all_placements(problem))
    assert best == pytest.approx(4e-3, rel=1e-6)

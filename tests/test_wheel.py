"""The wheel holds the library alone, with its data, and works from another folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    source.mkdir()
    # A copy of what the build needs: building in place would leave folders behind.
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for package in ("wdmoe_env", "agents", "eval"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, capture_output=True, check=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_wdmoe_env_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"wdmoe_env"}
    for needed in (
        "py.typed",
        "assets/tiny/model.safetensors",
        "assets/tiny/tokenizer.json",
        "assets/text/test.jsonl.gz",
    ):
        assert f"wdmoe_env/{needed}" in names


LAZY = """
import sys
assert "torch" not in sys.modules
"""

LAZY = """
import sys

assert "torch" not in sys.modules, "importing the package loads torch"
"""

PROGRAM = '''
import wdmoe_env
from wdmoe_env.policies.rules import with_optimal_shares

def keep_heavy(block):
    """Use only the routed experts with at least 40 % of a token's gate weight."""
    return with_optimal_shares(block, block.routed & (block.weights >= 0.4))

results = wdmoe_env.evaluate(["wdmoe:0.9", "straight-through-10", keep_heavy], episodes=64)
for policy, measured in results.measurements.items():
    latency_ms, added_nll = measured["latency_ms"].mean(), measured["added_nll"].mean()
    print(f"{policy:20} {latency_ms:6.1f} ms {added_nll:+.4f} nats per token")
'''

POLICIES = """
import sys

import gymnasium as gym
from wdmoe_env.policies import make_policy, policy_names, trained_names

alone = gym.make("wdmoe_env:WDMoE-v0")
alone.reset(seed=0)
assert alone.step(alone.action_space.sample())[1] > 0
env = gym.make_vec("wdmoe_env:WDMoE-Serve-v0", num_envs=2, observe_hidden_states=True)  # some look at its queue
observation, _ = env.reset(seed=0)
for name in (*policy_names(), *trained_names(), "wdmoe:0.9"):
    make_policy(name, env).predict(observation)
print(sorted({name.partition(".")[0] for name in sys.modules} & {"agents", "train", "eval"}))
"""


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the wheel unpacked, as pip would install it."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def printed(code, site, folder):
    """What a program prints that sees the wheel in place of the checkout, run from an empty folder."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    run = subprocess.run(
        [sys.executable, "-c", f"import wdmoe_env; assert wdmoe_env.__file__.startswith({str(site)!r})\n{code}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_wheel_alone_compares_the_optimizer_a_learned_policy_and_a_rule_of_ones_own(site, tmp_path):
    program = LAZY + PROGRAM.replace("episodes=64", "episodes=8, progress=False")
    lines = printed(program, site, tmp_path).splitlines()
    rows = [re.fullmatch(r"(\S+) +(\S+) ms (\S+) nats per token", line).groups() for line in lines]
    names, latencies, added = zip(*rows, strict=True)
    assert names == ("vanilla", "wdmoe:0.9", "straight-through-10", "keep_heavy")
    vanilla, *others = map(float, latencies)
    assert all(0 < latency < vanilla for latency in others)
    assert float(added[0]) == 0
    assert all(-1 < float(one) < 1 for one in added)


def test_every_policy_that_ships_decides_from_the_wheel_alone_and_from_another_folder(site, tmp_path):
    assert printed(POLICIES, site, tmp_path) == "[]\n"

"""The wheel holds the library alone, with its data, and works from another folder."""

from __future__ import annotations

import os
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


def test_the_installed_wheel_makes_the_environment_from_another_folder(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import gymnasium as gym, wdmoe_env; print(wdmoe_env.__file__);"
        "env = gym.make('wdmoe_env:WDMoE-v0'); env.reset(seed=0); print(env.step(env.action_space.sample())[1] > 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [str(site / "wdmoe_env" / "__init__.py"), "True"]

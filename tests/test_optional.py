"""Optional dependencies: a missing one names its extra, and another version than was tested is one warning."""

from __future__ import annotations

import re
import warnings
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from wdmoe_env import optional
from wdmoe_env.optional import check_version


@pytest.fixture(autouse=True)
def _nothing_was_said():
    check_version.cache_clear()


def test_a_missing_dependency_names_the_extra_that_brings_it():
    expected = "expected no-such-library, got No module named 'no_such_library': pip install 'wdmoe-env[sb3]' brings it"
    with pytest.raises(ImportError, match=re.escape(expected)), optional.optional("no-such-library", extra="sb3"):
        import no_such_library  # noqa: F401


def test_a_version_outside_the_tested_range_is_said_once_and_goes_on(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda distribution: "1.0")
    expected = r"expected stable-baselines3<3,>=2\.9, which was tested, got 1\.0; going on"
    with pytest.warns(UserWarning, match=expected), optional.optional("stable-baselines3", extra="sb3"):
        import stable_baselines3  # noqa: F401
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with optional.optional("stable-baselines3", extra="sb3"):
            pass


@pytest.mark.parametrize("distribution", ["stable-baselines3", "no-such-library"])
def test_a_tested_version_and_an_unknown_one_pass_in_silence(distribution):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_version(distribution)


def test_every_library_has_an_extra_of_its_own_within_the_range_of_all():
    declared = [Requirement(text) for text in metadata.requires("wdmoe-env") or []]
    extras = set(metadata.metadata("wdmoe-env").get_all("Provides-Extra"))
    (together,) = (one for one in declared if one.name == "wdmoe-env" and "integrations" in str(one.marker))
    assert together.extras <= extras
    assert {
        "sb3",
        "sb3-contrib",
        "rl-zoo",
        "rllib",
        "torchrl",
        "tianshou",
        "skrl",
        "mo-gymnasium",
        "minari",
    } <= together.extras

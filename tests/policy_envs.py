"""The environment that tests of policies decide in, and its first observation."""

from __future__ import annotations

import pytest
from test_vector_env import make_vec


@pytest.fixture(scope="module")
def env():
    return make_vec(16, autoreset_mode="SAME_STEP").unwrapped


@pytest.fixture
def observation(env):
    return env.reset(seed=0)[0]

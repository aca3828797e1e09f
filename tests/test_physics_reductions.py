"""Products with ones are the reductions that they stand for."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from wdmoe_env.physics.latency import any_over_last, sum_over_tokens

SHAPES = array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=9)
NUMBERS = arrays(np.float64, SHAPES, elements=st.floats(-1e6, 1e6))
FLAGS = arrays(np.bool_, SHAPES)


@given(FLAGS)
def test_any(flags):
    found = any_over_last(flags)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, flags.any(axis=-1))


@given(NUMBERS)
def test_sums(values):
    np.testing.assert_allclose(sum_over_tokens(values), values.sum(axis=-2), rtol=1e-12, atol=1e-8)


@given(FLAGS)
def test_counts_are_exact(flags):
    np.testing.assert_array_equal(sum_over_tokens(flags), flags.sum(axis=-2))

"""The action codec and what the environment mends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wdmoe_env.actions import ActionCodec, enforce_min_share, repair_selection
from wdmoe_env.observations import Sizes

J, E, U = 3, 4, 4
SIZES = Sizes(num_tokens=J, num_experts=E, num_devices=U, num_blocks=2, hidden_size=5)
DECISIONS = ("joint", "selection", "bandwidth")

selections = arrays(np.bool_, (J, E))
# Ratios up to 1000 are within the codec's range of 2981.
positive_shares = arrays(np.float64, (U,), elements=st.floats(1e-3, 1.0)).map(lambda x: x / x.sum())


@pytest.mark.parametrize("action_type", ["box", "dict"])
@pytest.mark.parametrize("decision", DECISIONS)
@settings(deadline=None)
@given(selection=selections, shares=positive_shares)
def test_encode_then_decode_is_the_decision(action_type, decision, selection, shares):
    codec = ActionCodec(SIZES, decision, action_type)
    action = codec.encode(selection, shares)
    assert codec.space.contains(action)
    decoded = codec.decode(action)
    if decision == "bandwidth":
        assert decoded.selection is None
    else:
        np.testing.assert_array_equal(decoded.selection, selection)
    if decision == "selection":
        assert decoded.shares is None
    else:
        np.testing.assert_allclose(decoded.shares, shares, rtol=2e-6)


def test_a_share_of_zero_survives_the_flat_action():
    codec = ActionCodec(SIZES, "bandwidth", "box")
    shares = np.array([0.0, 0.25, 0.75, 0.0])
    np.testing.assert_allclose(codec.decode(codec.encode(shares=shares)).shares, shares, rtol=1e-6, atol=0)


def test_batched_codec_is_the_single_one_row_by_row():
    rng = np.random.default_rng(0)
    for action_type in ("box", "dict"):
        codec = ActionCodec(SIZES, "joint", action_type)
        selection, shares = rng.random((5, J, E)) > 0.5, rng.dirichlet(np.ones(U), size=5)
        batch = codec.decode(codec.encode(selection, shares), (5,))
        for n in range(5):
            one = codec.decode(codec.encode(selection[n], shares[n]))
            np.testing.assert_array_equal(batch.selection[n], one.selection)
            np.testing.assert_array_equal(batch.shares[n], one.shares)


def test_all_logits_at_the_lower_bound_are_equal_shares():
    codec = ActionCodec(SIZES, "bandwidth", "box")
    np.testing.assert_allclose(codec.decode(-np.ones(U)).shares, np.full(U, 1 / U))


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (np.zeros(3), ValueError, r"expected action of shape \(16,\), got \(3,\)"),
        (np.full(J * E + U, np.nan), ValueError, "without NaN or infinity, got 16 such values"),
    ],
)
def test_bad_flat_actions_are_one_clear_sentence(action, error, message):
    with pytest.raises(error, match=message):
        ActionCodec(SIZES, "joint", "box").decode(action)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bandwidth": np.array([0.5, -0.1, 0.3, 0.3])}, ValueError, "at least 0, got -0.1"),
        ({"bandwidth": np.zeros(U)}, ValueError, "expected bandwidth with at least one share above 0"),
        ({"experts": np.full((J, E), 2)}, ValueError, "experts of 0 or 1"),
        ({"experts": np.zeros((E, J))}, ValueError, r"expected experts of shape \(3, 4\), got \(4, 3\)"),
        ({"extra": 1}, TypeError, r"keys \['bandwidth', 'experts'\], got \['bandwidth', 'experts', 'extra'\]"),
    ],
)
def test_bad_dict_actions_are_one_clear_sentence(change, error, message):
    action = {"experts": np.ones((J, E)), "bandwidth": np.full(U, 1 / U), **change}
    with pytest.raises(error, match=message):
        ActionCodec(SIZES, "joint", "dict").decode(action)


def test_encoding_needs_every_half_that_the_action_holds():
    with pytest.raises(ValueError, match="expected a selection"):
        ActionCodec(SIZES, "selection", "box").encode(shares=np.full(U, 1 / U))
    with pytest.raises(ValueError, match="expected shares"):
        ActionCodec(SIZES, "bandwidth", "box").encode(selection=np.ones((J, E), dtype=bool))


@pytest.mark.parametrize(
    ("selection", "shares", "message"),
    [
        (np.ones((E + 1, J)), np.ones(U), r"expected selection of shape \(3, 4\), got \(5, 3\)"),
        (np.ones((J, E)), np.ones(U + 1), r"expected shares of shape \(4,\), got \(5,\)"),
        (np.ones((J, E)), np.zeros(U), "expected shares with at least one share above 0, got none"),
        (np.ones((J, E)), -np.ones(U), "expected shares of at least 0, got -1"),
        (np.full((J, E), 0.5), np.ones(U), "expected selection of 0 or 1"),
        (np.ones((2, J, E)), np.ones(U), r"expected shares of shape \(2, 4\), got \(4,\)"),
    ],
)
def test_decisions_that_are_none_are_refused_on_encoding(selection, shares, message):
    with pytest.raises(ValueError, match=message):
        ActionCodec(SIZES, "joint", "box").encode(selection, shares)


def test_the_batch_of_an_action_is_read_off_it():
    for action_type in ("box", "dict"):
        codec = ActionCodec(SIZES, "joint", action_type)
        action = codec.encode(np.ones((5, J, E), dtype=bool), np.ones((5, U)))
        assert codec.batch_of(action) == (5,)
    with pytest.raises(TypeError, match=r"keys \['bandwidth', 'experts'\], got \['foo'\]"):
        codec.batch_of({"foo": 1})


def test_repair_gives_the_most_probable_expert_and_clears_padding():
    probs = np.array([[[0.1, 0.6, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1], [0.0, 0.0, 0.0, 0.0]]])
    selection = np.array([[[0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]]], dtype=bool)
    mended, count = repair_selection(selection, probs, np.array([[True, True, False]]))
    np.testing.assert_array_equal(mended[0], [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    assert count.tolist() == [1]


@settings(deadline=None)
@given(
    shares=arrays(np.float64, (2, U), elements=st.floats(0.0, 1.0)).filter(lambda x: (x.sum(-1) > 0).all()),
    loaded=arrays(np.bool_, (2, U)),
    min_share=st.floats(1e-6, 1 / U),
)
def test_min_share_holds_for_loaded_devices_and_the_sum_stays_one(shares, loaded, min_share):
    shares = shares / shares.sum(-1, keepdims=True)
    floored = enforce_min_share(shares, loaded, min_share)
    np.testing.assert_allclose(floored.sum(-1), 1.0, rtol=1e-12)
    assert (floored[loaded] >= min_share * (1 - 1e-9)).all()
    untouched = (shares >= min_share) | ~loaded
    rows = untouched.all(axis=-1)
    np.testing.assert_allclose(floored[rows], shares[rows], rtol=1e-12)

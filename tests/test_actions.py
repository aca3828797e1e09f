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
DECISIONS = {"joint": ["experts", "bandwidth"], "selection": ["experts"], "bandwidth": ["bandwidth"]}

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
    assert list(decoded) == [part.name for part in codec.parts] == DECISIONS[decision]
    if "experts" in decoded:
        np.testing.assert_array_equal(decoded["experts"], selection)
    if "bandwidth" in decoded:
        np.testing.assert_allclose(decoded["bandwidth"], shares, rtol=2e-6)


def test_a_share_of_zero_survives_the_flat_action():
    codec = ActionCodec(SIZES, "bandwidth", "box")
    shares = np.array([0.0, 0.25, 0.75, 0.0])
    np.testing.assert_allclose(codec.decode(codec.encode(shares=shares))["bandwidth"], shares, rtol=1e-6, atol=0)


def test_batched_codec_is_the_single_one_row_by_row():
    rng = np.random.default_rng(0)
    for action_type in ("box", "dict"):
        codec = ActionCodec(SIZES, "joint", action_type)
        selection, shares = rng.random((5, J, E)) > 0.5, rng.dirichlet(np.ones(U), size=5)
        batch = codec.decode(codec.encode(selection, shares), (5,))
        for n in range(5):
            one = codec.decode(codec.encode(selection[n], shares[n]))
            np.testing.assert_array_equal(batch["experts"][n], one["experts"])
            np.testing.assert_array_equal(batch["bandwidth"][n], one["bandwidth"])


def test_all_logits_at_the_lower_bound_are_equal_shares():
    codec = ActionCodec(SIZES, "bandwidth", "box")
    np.testing.assert_allclose(codec.decode(-np.ones(U))["bandwidth"], np.full(U, 1 / U))


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
    with pytest.raises(ValueError, match=r"expected selection \(\.\.\., 3, 4\)"):
        ActionCodec(SIZES, "selection", "box").encode(shares=np.full(U, 1 / U))
    with pytest.raises(ValueError, match=r"expected shares \(\.\.\., 4\)"):
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


WHOLE = {"experts": np.ones((J, E)), "bandwidth": np.full(U, 0.25)}
FLAT = np.linspace(-1.0, 1.0, J * E + U)


def assert_decisions_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("of", [np.ndarray.tolist, np.asfortranarray, lambda a: a.astype(np.longdouble), list, tuple])
def test_an_action_of_any_real_kind_is_the_same_decision(of):
    box, parts = ActionCodec(SIZES, "joint", "box"), ActionCodec(SIZES, "joint", "dict")
    assert_decisions_equal(box.decode(of(FLAT)), box.decode(FLAT))
    given = {name: of(value) for name, value in WHOLE.items()}
    assert_decisions_equal(parts.decode(given), parts.decode(WHOLE))
    assert box.batch_of(of(FLAT)) == parts.batch_of(given) == ()
    np.testing.assert_array_equal(box.encode(of(WHOLE["experts"]), of(WHOLE["bandwidth"])), box.encode(*WHOLE.values()))
    integers = ActionCodec(SIZES, "joint", "dict").decode({"experts": np.ones((J, E), int), "bandwidth": [1, 2, 1, 0]})
    np.testing.assert_array_equal(integers["bandwidth"], [0.25, 0.5, 0.25, 0.0])


def test_one_action_is_a_batch_of_one():
    for action_type, action in (("box", FLAT), ("dict", WHOLE)):
        codec = ActionCodec(SIZES, "joint", action_type)
        batch = {name: value[None] for name, value in action.items()} if action_type == "dict" else action[None]
        assert_decisions_equal(codec.decode_one(action), codec.decode(batch, (1,)))


NO_ACTIONS = {
    "complex": (lambda a: a + 0j, TypeError, "{} must hold real numbers, got an array of dtype complex128"),
    "masked": (lambda a: np.ma.array(a, mask=a > 0), TypeError, "{} must be a plain array, got a masked one"),
    "object": (lambda a: a.astype(object), TypeError, "{} must hold real numbers, got an array of dtype object"),
    "strings": (lambda a: a.astype(str), TypeError, "{} must hold real numbers, got an array of dtype <U"),
    "nothing": (lambda a: None, TypeError, "{} must hold real numbers, got a value of type NoneType"),
    "ragged": (lambda a: [[1.0], [1.0, 0.0]], ValueError, "{} must be an array, got what NumPy makes none of"),
}


@pytest.mark.parametrize("kind", NO_ACTIONS)
def test_what_is_no_action_of_real_numbers_is_refused_by_name(kind):
    of, error, message = NO_ACTIONS[kind]
    box, parts = ActionCodec(SIZES, "joint", "box"), ActionCodec(SIZES, "joint", "dict")
    for read in (box.decode, box.decode_one, box.batch_of):
        with pytest.raises(error, match=message.format("action")):
            read(of(FLAT))
    for name in WHOLE:
        for read in (parts.decode, parts.decode_one):
            with pytest.raises(error, match=message.format(name)):
                read({**WHOLE, name: of(WHOLE[name])})
    if kind != "nothing":
        for name, given in (
            ("selection", (of(WHOLE["experts"]), np.ones(U))),
            ("shares", (WHOLE["experts"], of(np.ones(U)))),
        ):
            with pytest.raises(error, match=message.format(name)):
                box.encode(*given)


@pytest.mark.parametrize(
    ("action", "came"),
    [
        ({**WHOLE, 1: 2, None: 3}, r"\['bandwidth', 'experts', 1, None\]"),
        ({1: WHOLE["experts"], "bandwidth": WHOLE["bandwidth"]}, r"\['bandwidth', 1\]"),
        ({("experts",): 1, 2.5: 1}, r"\[\('experts',\), 2.5\]"),
        ({}, r"\[\]"),
        (FLAT, "ndarray"),
        (None, "NoneType"),
    ],
)
def test_keys_of_any_types_are_named(action, came):
    codec = ActionCodec(SIZES, "joint", "dict")
    for read in (codec.decode, codec.decode_one, codec.batch_of):
        with pytest.raises(TypeError, match=rf"keys \['bandwidth', 'experts'\], got {came}$"):
            read(action)


@pytest.mark.parametrize("shares", [np.full(U, 1e308), [0.0, 1.7e308, 1.7e308, 0.0]])
def test_shares_whose_sum_is_beyond_a_float_are_refused(shares):
    with pytest.raises(ValueError, match=r"expected bandwidth with a finite sum, got values up to 1\.?7?e\+308"):
        ActionCodec(SIZES, "joint", "dict").decode({**WHOLE, "bandwidth": shares})
    tiny = ActionCodec(SIZES, "joint", "dict").decode({**WHOLE, "bandwidth": np.full(U, 5e-324)})
    np.testing.assert_array_equal(tiny["bandwidth"], np.full(U, 0.25))

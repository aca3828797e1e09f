"""Gate weights and the two forms of the weight-to-latency ratio."""

from __future__ import annotations

import numpy as np
import pytest

from wdmoe_env.physics.latency import (
    device_weight_served,
    gate_weights,
    weight_served,
    wlr_device_per_ms,
    wlr_per_ms,
)

PROBS = np.array([[[0.5, 0.25, 0.15, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]])
ROUTED = np.array([[[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]], dtype=bool)


def test_routed_weights_of_a_token_sum_to_one():
    weights = gate_weights(PROBS, ROUTED)
    np.testing.assert_allclose(weights[0, 0], [2 / 3, 1 / 3, 0.2, 0.4 / 3])
    np.testing.assert_allclose(weights[0, 1], [1 / 7, 2 / 7, 3 / 7, 4 / 7])
    np.testing.assert_allclose(np.where(ROUTED, weights, 0).sum(axis=-1), [[1.0, 1.0, 0.0]])


def test_a_token_without_a_route_weighs_nothing():
    np.testing.assert_array_equal(gate_weights(PROBS, ROUTED)[0, 2], 0.0)


def test_scores_need_not_sum_to_one():
    np.testing.assert_allclose(gate_weights(7.0 * PROBS, ROUTED), gate_weights(PROBS, ROUTED))


def test_weight_served_counts_what_was_selected():
    weights = gate_weights(PROBS, ROUTED)
    assert weight_served(weights, ROUTED) == pytest.approx(2.0)
    unrouted = ROUTED.copy()
    unrouted[0, 1] = [True, False, True, False]
    assert weight_served(weights, unrouted) == pytest.approx(1.0 + 1 / 7 + 3 / 7)


def test_block_form_is_per_millisecond():
    np.testing.assert_allclose(wlr_per_ms(np.array([3.0, 2.0]), np.array([2e-3, 0.5e-3])), [1.5, 4.0])


def test_device_form_sums_over_loaded_devices():
    weights = gate_weights(PROBS, ROUTED)
    placement = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=float)
    selection = np.array([[[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]], dtype=bool)
    device_latency = np.array([[2e-3, 0.5e-3, 0.0]])
    # Device 0 serves weight 1 in 2 ms, device 1 serves 3/7 in 0.5 ms, device 2 nothing.
    assert wlr_device_per_ms(device_weight_served(weights, selection, placement), device_latency) == pytest.approx(
        0.5 + 6 / 7
    )
    # The block form divides all the weight by the slowest.
    assert wlr_per_ms(weight_served(weights, selection), np.array([2e-3])) == pytest.approx((1 + 3 / 7) / 2)


def test_forms_agree_where_one_device_serves_all():
    weights, selection = gate_weights(PROBS, ROUTED), np.zeros_like(ROUTED)
    selection[0, :, 0] = True
    placement = np.eye(4)
    device_latency = np.array([[4e-3, 0.0, 0.0, 0.0]])
    block = wlr_per_ms(weight_served(weights, selection), device_latency.max(axis=-1))
    np.testing.assert_allclose(
        wlr_device_per_ms(device_weight_served(weights, selection, placement), device_latency), block
    )


def test_a_starved_device_adds_nothing_to_the_device_form():
    weights = np.ones((1, 1, 2))
    selection = np.ones((1, 1, 2), dtype=bool)
    served = device_weight_served(weights, selection, np.eye(2))
    assert wlr_device_per_ms(served, np.array([[1e-3, np.inf]])) == pytest.approx(1.0)

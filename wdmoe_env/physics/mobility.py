"""Where the devices are: placed uniformly over the area of a ring, then still or moving from block to block."""

from __future__ import annotations

import numpy as np

from wdmoe_env.config import DeviceConfig
from wdmoe_env.physics.latency import Float


def initial_distances_m(devices: DeviceConfig, uniforms: Float) -> Float:
    """Distances (..., U) in metres from the base station in the first block.

    Args:
        devices: ring or fixed distances.
        uniforms: (..., U) in [0, 1), not read under fixed distances.
    """
    if devices.distances_m is not None:
        return np.broadcast_to(np.array(devices.distances_m), uniforms.shape)
    low, high = devices.distance_range_m
    # Area grows with the square of the radius, so its square is what is uniform.
    distances: Float = np.sqrt(low**2 + (high**2 - low**2) * uniforms)
    return distances


def initial_positions_m(devices: DeviceConfig, uniforms: Float) -> Float:
    """Positions in the first block, the base station in the origin.

    Args:
        devices: ring or fixed distances.
        uniforms: (..., 2, U) in [0, 1): distance and angle.

    Returns:
        (..., U, 2) metres.
    """
    radius = initial_distances_m(devices, uniforms[..., 0, :])
    angle = 2.0 * np.pi * uniforms[..., 1, :]
    return radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def ring_m(devices: DeviceConfig) -> tuple[float, float]:
    """Least and greatest distance of a moving device: ``distance_range_m``, widened to hold ``distances_m``."""
    distances = devices.distance_range_m + (devices.distances_m or ())
    return min(distances), max(distances)


def gauss_markov_positions_m(devices: DeviceConfig, start_m: Float, normals: Float, interval_s: float) -> Float:
    """Gauss-Markov mobility: v' = alpha v + sqrt(1 - alpha^2) w, with zero mean velocity.

    The velocity starts in its stationary law, a Gaussian in each coordinate whose root mean square speed is
    ``speed_mps``. A device that would leave the ring is mirrored at its edge, and so is its radial velocity.

    Args:
        devices: speed, memory alpha and ring.
        start_m: (..., U, 2) positions in the first block.
        normals: (I, ..., U, 2) standard normals; the first is the starting velocity.
        interval_s: time between two blocks.

    Returns:
        (I, ..., U, 2) metres.
    """
    low_m, high_m = ring_m(devices)
    std_mps = devices.speed_mps / np.sqrt(2.0)
    memory, innovation = devices.mobility_memory, np.sqrt(1.0 - devices.mobility_memory**2)
    positions = np.empty(normals.shape)
    positions[0], velocity = start_m, std_mps * normals[0]
    for block in range(1, len(normals)):
        moved = positions[block - 1] + interval_s * velocity
        positions[block], velocity = _reflect(moved, velocity, low_m, high_m)
        velocity = memory * velocity + innovation * std_mps * normals[block]
    return positions


def _reflect(position_m: Float, velocity_mps: Float, low_m: float, high_m: float) -> tuple[Float, Float]:
    """Mirror at the ring's edges what has crossed them; a step longer than the ring ends on an edge."""
    distance = np.linalg.norm(position_m, axis=-1, keepdims=True)
    outward = np.divide(position_m, distance, out=np.zeros_like(position_m), where=distance > 0)
    inside = np.where(distance < low_m, 2.0 * low_m - distance, distance)
    inside = np.clip(np.where(inside > high_m, 2.0 * high_m - inside, inside), low_m, high_m)
    radial = (velocity_mps * outward).sum(axis=-1, keepdims=True)
    turned = (distance < low_m) | (distance > high_m)
    return inside * outward, np.where(turned, velocity_mps - 2.0 * radial * outward, velocity_mps)

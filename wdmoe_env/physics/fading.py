"""Small-scale fading, constant within a block and correlated between blocks; design equation (2).

Every kind is built from independent real Gaussian processes over the blocks, each with Jakes' autocorrelation
J0(2 pi f_d k T) at a lag of k blocks. All blocks of an episode are drawn at once through a square root of the
correlation matrix, so the autocorrelation is exact at every lag and for every Doppler shift, zero included.
"""

from __future__ import annotations

import numpy as np

from wdmoe_env.config import ChannelConfig
from wdmoe_env.physics.latency import Float

_ASYMPTOTIC_FROM = 1000.0
# Of a component of unit variance. One that varies less in the first blocks is mostly rounding and predicts nothing.
_LEAST_VARIANCE = 1e-8


def bessel_j0(x: Float) -> Float:
    """Bessel function of the first kind of order zero, J0(x), within 1e-11, for ``x`` of any shape.

    Up to x = 1000 the mean of cos(x sin theta) over a period: the trapezoid rule converges exponentially on a
    periodic integrand. Beyond, Hankel's asymptotic expansion.
    """
    x = np.abs(np.asarray(x, dtype=np.float64))
    nodes = int(_ASYMPTOTIC_FROM) + 32
    sines = np.sin(np.pi * np.arange(nodes) / nodes)
    near = np.cos(np.minimum(x, _ASYMPTOTIC_FROM)[..., None] * sines).mean(axis=-1)
    far = np.maximum(x, _ASYMPTOTIC_FROM)
    phase = far - np.pi / 4.0
    in_phase, quadrature = 1.0 - 9.0 / (128.0 * far**2), 1.0 / (8.0 * far)
    asymptotic = np.sqrt(2.0 / (np.pi * far)) * (in_phase * np.cos(phase) + quadrature * np.sin(phase))
    return np.where(x <= _ASYMPTOTIC_FROM, near, asymptotic)


def jakes_autocorrelation(num_blocks: int, doppler_hz: float, interval_s: float) -> Float:
    """J0(2 pi f_d k T) at lags k = 0 .. I-1, of each Gaussian component of the gain; shape (I,)."""
    lags = np.arange(num_blocks, dtype=np.float64)
    return bessel_j0(2.0 * np.pi * doppler_hz * interval_s * lags)


def correlation_root(autocorrelation: Float) -> Float:
    """Symmetric square root of the Toeplitz matrix of an autocorrelation (I,); shape (I, I).

    A Cholesky factor would fail where the matrix is singular, which it is without Doppler shift.
    """
    lags = np.arange(autocorrelation.size)
    eigenvalues, vectors = np.linalg.eigh(autocorrelation[np.abs(lags[:, None] - lags)])
    return (vectors * np.sqrt(np.maximum(eigenvalues, 0.0))) @ vectors.T


def continued_root(autocorrelation: Float, num_blocks: int) -> Float:
    """Root (I', I + I') by which the first I of I' blocks are those of ``correlation_root`` and the others go on.

    Its product with I + I' standard normals has the autocorrelation, and its first I rows read the first I normals
    alone. The others are an independent draw of all I' blocks, corrected by what its first I blocks are off.

    Args:
        autocorrelation: (I',) at lags 0 .. I' - 1.
        num_blocks: I, at most I'.
    """
    first, whole = correlation_root(autocorrelation[:num_blocks]), correlation_root(autocorrelation)
    lags = np.arange(autocorrelation.size)
    to_first = autocorrelation[np.abs(lags[:, None] - lags[:num_blocks])]
    eigenvalues, vectors = np.linalg.eigh(to_first[:num_blocks])
    told = vectors[:, eigenvalues > _LEAST_VARIANCE]
    forecast = to_first @ told / eigenvalues[eigenvalues > _LEAST_VARIANCE] @ told.T
    root = np.concatenate([forecast @ first, whole - forecast @ whole[:num_blocks]], axis=1)
    root[:num_blocks] = np.concatenate([first, np.zeros_like(whole[:num_blocks])], axis=1)
    return root


def num_components(channel: ChannelConfig) -> int:
    """Real Gaussian processes that one link needs: 2 m for Nakagami, 2 for Rayleigh and Rician, 0 without fading."""
    if channel.fading == "none":
        return 0
    return round(2 * channel.nakagami_m) if channel.fading == "nakagami" else 2


def fading_power(channel: ChannelConfig, normals: Float, root: Float) -> Float:
    """Power gain of unit mean over the blocks.

    Rayleigh and Nakagami-m are the mean of 2 m squared Gaussians (m = 1 is Rayleigh). Rician adds a line of sight
    of constant phase: |sqrt(K / (K+1)) + s sqrt(1 / (K+1))|^2 with the Rayleigh gain s.

    Args:
        channel: fading kind and its parameters.
        normals: (C, X, ...) standard normals, C of ``num_components``.
        root: (I, X) from ``correlation_root``, where X is I, or from ``continued_root``.

    Returns:
        (I, ...) linear power; E = 1, E[g^2] = 1 + 1/m for Nakagami-m, (K^2 + 4K + 2) / (K + 1)^2 for Rician.
    """
    if channel.fading == "none":
        return np.ones((len(root), *normals.shape[2:]))
    components = np.einsum("ij,cj...->ci...", root, normals)
    if channel.fading == "rician":
        k_factor = 10.0 ** (channel.rician_k_db / 10.0)
        components = np.sqrt(1.0 / (k_factor + 1.0)) * components
        components[0] += np.sqrt(2.0 * k_factor / (k_factor + 1.0))
    return np.square(components).mean(axis=0)

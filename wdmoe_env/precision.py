"""Numbers that cross the link with few bits: design equation (11).

A message is the hidden state of one token, down to a device or back as its answer. With 8 or 4 bits each message has
one scale, its largest magnitude over the largest code (per-token absmax), and a signed whole number for each element.
The scale crosses too, as one float32. 16 bits round nothing, which is the setting of the WDMoE paper.

Everything here takes NumPy arrays and torch tensors, and gives the same numbers for both: the simulator rounds with
it, and a testbed can put its codes on a wire. Torch is not imported here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

LINK_BITS = (16, 8, 4)
"""Bits of an element that the link knows; the first rounds nothing."""

SCALE_BITS = 32
"""Bits of the scale of a message, a float32."""

Values: TypeAlias = Any
"""A NumPy array or a torch tensor of floating-point numbers, one message in each row."""


@dataclass(frozen=True, slots=True)
class Codes:
    """R messages as they cross the link.

    Attributes:
        packed: (R, H) int8 of 8 bits, or (R, ceil(H / 2)) uint8 of 4 bits, of which each holds two neighbours, the
            first in its lower half.
        scale: (R, 1) float32, what a code of 1 stands for.
        bits: 8 or 4.
        width: H.
    """

    packed: Values
    scale: Values
    bits: int
    width: int


def payload_bits(width: int, bits: int) -> int:
    """L of equation (5): bits of a message of ``width`` elements, in whole bytes, the scale included.

    Raises:
        ValueError: not a number of bits that the link knows.
    """
    check_bits(bits)
    return bits * width if bits == LINK_BITS[0] else 8 * -(-bits * width // 8) + SCALE_BITS


def check_bits(bits: Any) -> None:
    """Refuse bits that the link does not know.

    Raises:
        ValueError: they are not 16, 8 or 4.
    """
    if bits not in LINK_BITS:
        raise ValueError(f"expected 16, 8 or 4 bits of an element on the link, got {bits!r}")


def rounded(values: Values, bits: Any) -> Values:
    """What arrives of messages, of the type that they had.

    Args:
        values: (R, H).
        bits: 16, 8 or 4; or such numbers (R, 1) of each message, of the library of the values.

    Raises:
        ValueError: one number that is none of these.
    """
    if isinstance(bits, int):
        check_bits(bits)
        return values if bits == LINK_BITS[0] else _like(_restored(*_coded(values, _most(bits))), values)
    library = _library(values)
    most = library.where(bits == 4, _most(4), _most(8))
    return library.where(bits == LINK_BITS[0], values, _like(_restored(*_coded(values, most)), values))


def quantise(values: Values, bits: int) -> Codes:
    """The codes of messages (R, H), 8 or 4 bits of each element.

    Raises:
        ValueError: other bits.
    """
    if bits not in LINK_BITS[1:]:
        raise ValueError(f"expected 8 or 4 bits of an element to quantise to, got {bits!r}")
    codes, scale = _coded(values, _most(bits))
    whole = _as(codes, "int8")
    return Codes(whole if bits == 8 else _packed(whole), scale, bits, values.shape[-1])


def dequantise(codes: Codes) -> Values:
    """The messages (R, H) float32 that codes stand for: exactly what ``rounded`` gives for float32."""
    whole = codes.packed if codes.bits == 8 else _unpacked(codes.packed)[:, : codes.width]
    return _restored(_as(whole, "float32"), codes.scale)


def _most(bits: int) -> float:
    """The largest code, 127 or 7: the codes are symmetric about 0."""
    return float(2 ** (bits - 1) - 1)


def _coded(values: Values, most: Any) -> tuple[Values, Values]:
    """Codes (R, H), whole numbers in float32, and scales (R, 1); a message of zeros has the scale 0."""
    library, wide = _library(values), _as(values, "float32")
    scale = _as(library.amax(library.abs(wide), -1, keepdims=True) / most, "float32")
    codes = library.round(wide / library.where(scale > 0, scale, 1.0))
    return library.minimum(library.maximum(codes, _number(-most, wide)), _number(most, wide)), scale


def _restored(codes: Values, scale: Values) -> Values:
    return codes * scale


def _packed(codes: Values) -> Values:
    """Pairs of neighbours (R, ceil(H / 2)) uint8 of codes (R, H) int8 from -7 to 7."""
    library = _library(codes)
    nibbles = _as(codes, "uint8") & 15
    if codes.shape[-1] % 2:
        nibbles = library.concatenate([nibbles, library.zeros_like(nibbles[:, :1])], -1)
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4


def _unpacked(packed: Values) -> Values:
    """Codes (R, 2 x columns) int8 of ``_packed``."""
    nibbles = _library(packed).stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
    return (_as(nibbles, "int8") ^ 8) - 8  # the sign of a number of four bits


def _library(values: Values) -> Any:
    """NumPy or torch: the functions used here have the same names and arguments in both."""
    return np if isinstance(values, np.ndarray) else sys.modules["torch"]


def _as(values: Values, kind: str) -> Values:
    """The values as another type, by its name."""
    return values.astype(kind) if isinstance(values, np.ndarray) else values.to(getattr(_library(values), kind))


def _like(values: Values, model: Values) -> Values:
    return values.astype(model.dtype) if isinstance(values, np.ndarray) else values.to(model.dtype)


def _number(value: Any, model: Values) -> Values:
    """A bound as torch's ``minimum`` takes it: a tensor where the values are one."""
    return value if isinstance(model, np.ndarray) or not isinstance(value, float) else model.new_tensor(value)

"""The messages of the wire, whose source of truth is ``device.proto``, and tensors in them.

``device.binpb`` is the compiled form of that file, which Protocol Buffers reads at run time, so that neither code is
generated nor a build step is needed. After a change of ``device.proto``, in its folder::

    python -m grpc_tools.protoc -I. --descriptor_set_out=device.binpb device.proto
"""

from __future__ import annotations

import math
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wdmoe_env.optional import optional
from wdmoe_env.precision import Codes, dequantise, quantise

with optional("grpcio", extra="testbed"):
    import grpc as grpc
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PROTOCOL = 1
"""Version of the wire; base station and device refuse another."""

SERVICE = "wdmoe.testbed.v1.Device"

MOST_MESSAGE_BYTES = 64 * 2**20
"""Default bound of a message, in bytes."""

MOST_ROWS = 2**20

_DTYPES = {str(one).removeprefix("torch."): one for one in (torch.float32, torch.float16, torch.bfloat16, torch.int8)}
_BITS_OF = {"int8": 8, "int4": 4}


def _messages() -> dict[str, Any]:
    """The class of each message, by its name."""
    files = descriptor_pb2.FileDescriptorSet.FromString(
        (resources.files("wdmoe_env") / "testbed" / "device.binpb").read_bytes()
    )
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    package = pool.FindFileByName("device.proto")
    return {name: message_factory.GetMessageClass(found) for name, found in package.message_types_by_name.items()}


_CLASSES = _messages()
TensorMessage = _CLASSES["Tensor"]
DescribeRequest = _CLASSES["DescribeRequest"]
Description = _CLASSES["Description"]
HeldBlock = _CLASSES["HeldBlock"]
RunRequest = _CLASSES["RunRequest"]
RunReply = _CLASSES["RunReply"]
FILLER_OF_REQUEST: int = RunRequest.DESCRIPTOR.fields_by_name["filler"].number
FILLER_OF_REPLY: int = RunReply.DESCRIPTOR.fields_by_name["filler"].number

STATES: dict[str, int] = dict(Description.State.items())
"""States of a device by name: ``JOINING``, ``READY``, ``DRAINING``."""


def state_name(number: int) -> str:
    """What a state of the wire is called."""
    return next((name for name, value in STATES.items() if value == number), f"unknown ({number})")


def bytes_of(tensor: Tensor) -> bytes:
    """The numbers of a tensor (any shape) as they cross, row by row."""
    plain = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor  # numpy knows no bfloat16
    return plain.numpy(force=True).tobytes()


def zeros_field(number: int, count: int) -> bytes:
    """A field of bytes that are all zero, as Protocol Buffers writes it; nothing where there are none.

    A message and its fields may be written apart and put behind each other, which spares copies of what is long.

    Args:
        number: of the field.
        count: of the zeros.
    """
    if not count:
        return b""
    head = bytearray()
    for value in (8 * number + 2, count):  # a field of a length, and the length, both in groups of seven bits
        while value > 0x7F:
            head.append(value & 0x7F | 0x80)
            value >>= 7
        head.append(value)
    return bytes(head) + bytes(count)


def write_rows(rows: Tensor, bits: int = 16) -> Any:
    """The message of rows (R, H).

    Args:
        rows: (R, H) in float32, float16 or bfloat16.
        bits: of an element: 8 or 4 round to whole numbers with a scale for each row; 16 keeps the numbers as they are.
    """
    shape = tuple(rows.shape)
    if bits == 16 or not len(rows):
        return TensorMessage(data=bytes_of(rows), dtype=str(rows.dtype).removeprefix("torch."), shape=shape)
    codes = quantise(rows, bits)
    return TensorMessage(data=bytes_of(codes.packed), dtype=f"int{bits}", shape=shape, scale=bytes_of(codes.scale))


def read_rows(message: Any, width: int, dtype: torch.dtype, most_rows: int = MOST_ROWS) -> Tensor:
    """The rows (R, H) of a message, checked before anything of their size is made.

    Args:
        message: as ``write_rows`` makes it.
        width: H that is expected.
        dtype: of the result.
        most_rows: bound of R.

    Raises:
        ValueError: another type, shape or number of bytes than a message of such rows has, or numbers that are not
            finite.
    """
    shape = tuple(message.shape)
    if len(shape) != 2 or shape[1] != width or shape[0] > most_rows:
        raise ValueError(f"expected rows of shape (R, {width}) with R of at most {most_rows}, got {shape}")
    name, count = message.dtype, shape[0] * width
    packed = shape[0] * math.ceil(width / 2) if name == "int4" else count
    size = {"int4": 1}.get(name) or (_DTYPES[name].itemsize if name in _DTYPES else 0)
    scale_bytes = 4 * shape[0] if name in _BITS_OF and shape[0] else 0
    if not size or len(message.data) != size * packed or len(message.scale) != scale_bytes:
        raise ValueError(
            f"expected rows of shape {shape} as {', '.join((*_DTYPES, 'int4'))} with their bytes, got "
            f"{len(message.data)} bytes and {len(message.scale)} of scales as {name[:20]!r}"
        )
    if not shape[0]:
        return torch.zeros(shape, dtype=dtype)
    rows = _floats(message, shape).to(dtype)
    # By numpy, which has one function for it where torch runs five.
    if not np.isfinite((rows.float() if dtype == torch.bfloat16 else rows).numpy()).all():
        raise ValueError("expected finite numbers in the rows of a message, got others")
    return rows


def _floats(message: Any, shape: tuple[int, int]) -> Tensor:
    if message.dtype not in _BITS_OF:
        return torch.frombuffer(bytearray(message.data), dtype=_DTYPES[message.dtype]).view(shape)
    bits = _BITS_OF[message.dtype]
    kind = torch.int8 if bits == 8 else torch.uint8
    packed = torch.frombuffer(bytearray(message.data), dtype=kind).view(shape[0], -1)
    scale = torch.frombuffer(bytearray(message.scale), dtype=torch.float32).view(-1, 1)
    rows: Tensor = dequantise(Codes(packed, scale, bits, shape[1]))
    return rows

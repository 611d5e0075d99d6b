"""Arrays as members of a shard: the `.npy` form, written without pickle and read back checked."""

import io
import math
import tokenize
from functools import lru_cache

import numpy as np

# Before the data of an array of one axis, whatever its length: the form leaves room for a longer one.
HEADER_BYTES = 128


def encode_array(array: np.ndarray) -> bytes:
    """The `.npy` form (version 1.0, C order, little-endian), without pickle."""
    stream = io.BytesIO()
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(stream, little, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def decode_array(name: str, data: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A read-only view of a `.npy` member that must have this dtype and shape.

    Most members begin with the very header that `encode_array` writes: comparing its bytes takes a hundredth of the
    time of parsing. Another header is read before any allocation, so that a damaged shape costs no memory. Raises
    ValueError naming the member and both values.
    """
    header, little = _expected_header(dtype, shape)
    if data.startswith(header) and len(data) == len(header) + little.itemsize * math.prod(shape):
        return np.frombuffer(data, little, offset=len(header)).reshape(shape)
    return _parse_array(name, data, dtype, shape)


@lru_cache(maxsize=64)
def _expected_header(dtype: str, shape: tuple[int, ...]) -> tuple[bytes, np.dtype]:
    """All that comes before the data in what `encode_array` writes, and the dtype of the data."""
    stream, little = io.BytesIO(), np.dtype(dtype).newbyteorder("<")
    header = {"descr": np.lib.format.dtype_to_descr(little), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue(), little


def _parse_array(name: str, data: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("not version 1.0")
        found_shape, fortran, found_dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, SyntaxError, TypeError, tokenize.TokenError) as error:
        raise ValueError(f"{name}: not a .npy array ({str(error).splitlines()[0]})") from error
    wanted = np.dtype(dtype).newbyteorder("<")
    if fortran or found_dtype != wanted or found_shape != shape:
        raise ValueError(f"{name}: {found_dtype} {found_shape}, expected {wanted} {shape}")
    size = stream.tell() + wanted.itemsize * int(np.prod(shape))
    if len(data) != size:
        raise ValueError(f"{name}: {len(data)} bytes, its header says {size}")
    return np.frombuffer(data, wanted, offset=stream.tell()).reshape(shape)

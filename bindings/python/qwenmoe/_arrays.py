"""Token ids and logits as arrays: NumPy's where it is installed, else the standard library's."""
from __future__ import annotations

import ctypes
import operator
from typing import TYPE_CHECKING, Any, Iterable

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import numpy.typing

    #: float32; where NumPy is not installed, a memoryview of format "f".
    Floats = numpy.typing.NDArray[numpy.float32]

#: Token ids: a list, an array, anything of integers. Buffers of 32-bit integers are taken as they are.
Tokens = Iterable[int]


def int_array(tokens: Tokens) -> Any:
    """Token ids as an array of c_int32."""
    try:
        view = memoryview(tokens)  # type: ignore[arg-type]
    except TypeError:
        view = None
    if view is not None and view.format == "i" and view.ndim == 1 and view.contiguous:
        return (ctypes.c_int32 * len(view)).from_buffer_copy(view)
    ids = [operator.index(token) for token in tokens]
    for token in ids:
        if not -(2 ** 31) <= token < 2 ** 31:
            raise OverflowError(f"token id {token} does not fit 32 bits")
    return (ctypes.c_int32 * len(ids))(*ids)


def float_array(buffer: Any, *shape: int, writable: bool = True) -> Floats:
    """An array of this shape over a ctypes array of floats, which it keeps: no copy."""
    view = memoryview(buffer).cast("B").cast("f", shape)
    if not writable:
        view = view.toreadonly()
    return view if numpy is None else numpy.asarray(view)

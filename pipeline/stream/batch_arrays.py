"""Memory of batches, used again once nobody looks at a batch: fresh memory costs a page fault and zeroing for each 4
kB.

That is as much time as reading the crops of PCM takes. What comes back is a batch that no tensor, array or view refers
to, so whoever keeps a batch, or a part of it, keeps its content.
"""

import mmap
import weakref
from collections.abc import Mapping
from math import prod

import numpy as np

ALIGNMENT = 64  # bytes, a cache line

Form = tuple[tuple[int, ...], str]  # shape of one row, dtype


class BatchArrays:
    """Makes the arrays of batches, all arrays of a batch in one block of memory. Threads may drop batches at any time.

    Args:
        forms: shape of a row and dtype of each array.
    """

    def __init__(self, forms: Mapping[str, Form]) -> None:
        self._forms = forms
        self._free: list[mmap.mmap] = []  # append and pop are atomic

    def take(self, rows: int) -> dict[str, np.ndarray]:
        """Arrays of `rows` rows, of any content."""
        offsets, size = {}, 0
        for name, (shape, dtype) in self._forms.items():
            offsets[name] = size
            size += -(-rows * prod(shape) * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT
        block = self._take_block(size)
        # The base of all arrays, and of all views of them: it goes when the last of these does.
        whole = np.frombuffer(block, np.uint8)
        weakref.finalize(whole, self._free.append, block).atexit = False
        return {
            name: np.ndarray((rows, *shape), dtype, whole, offsets[name])
            for name, (shape, dtype) in self._forms.items()
        }

    def _take_block(self, size: int) -> mmap.mmap:
        while self._free:
            block = self._free.pop()
            if len(block) >= size:
                return block
        # Private, so that a process forked from this one keeps the content of the batches it has.
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

"""Byte ranges of a file as one file, for libraries that fail on the bytes around and between them."""

import io
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol


class ByteRanges(io.RawIOBase):
    """Bytes [start, stop) of a local file, one range after the other, read only.

    A read error looks like the end of the file, since a library written in C would lose an exception. The error is
    kept: call `check` at the end.

    Raises:
        OSError: as `open`.
    """

    def __init__(self, path: Path, ranges: Sequence[tuple[int, int]]):
        self._file = open(path, "rb", buffering=0)
        self._ranges = ranges
        # Where each range begins in this file, and the end of the last.
        self._places = list(accumulate((stop - start for start, stop in ranges), initial=0))
        self._place = 0
        self._failure: OSError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the writable buffer as far as the ranges go; the number of bytes read."""
        view, filled = memoryview(buffer).cast("B"), 0
        while filled < len(view) and self._place < self._places[-1]:
            number = bisect_right(self._places, self._place) - 1
            start, stop = self._ranges[number]
            start += self._place - self._places[number]
            data = self._read(min(len(view) - filled, stop - start), start)
            if not data:  # the file has become shorter
                break
            view[filled : filled + len(data)] = data
            filled += len(data)
            self._place += len(data)
        return filled

    def check(self) -> None:
        """Raise the OSError that ended the bytes too early, if one did."""
        if self._failure:
            raise self._failure

    def _read(self, count: int, position: int) -> bytes:
        try:
            return os.pread(self._file.fileno(), count, position)
        except OSError as error:
            self._failure = self._failure or error
            return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position relative to the start of all ranges, the current position, or their end."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._places[-1]}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def close(self) -> None:
        self._file.close()
        super().close()


class Seekable(Protocol):
    """What a header is read from: an open file, or ranges of one."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...


def read_at(file: Seekable, offset: int, count: int) -> bytes:
    """Up to `count` bytes from `offset` on."""
    file.seek(offset)
    return file.read(count)

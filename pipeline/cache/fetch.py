"""One object of a store to one file, by several requests at a time, each of them as patient as any read."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Executor, wait

from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.patience import Patience, ShortRead

RANGE_BYTES = 8 << 20  # of one request: what a request costs besides its bytes is then little


def fetch_object(location: str, size: int, target: int, threads: Executor, patience: Patience) -> str:
    """Write an object of `size` bytes to the open file `target` (a descriptor).

    Returns:
        Why the object cannot be the one that was meant, naming both sizes; empty when it can.

    Raises:
        OSError: it is missing or refused, or patience has ended; naming the object.
    """
    filesystem, path = files.open_filesystem(location)
    name = location.rsplit("/", 1)[-1]
    found = patience.read(name, lambda: filesystem.size(path))
    if found != size:
        return f"{found} bytes, the index says {size}"

    def fetch(start: int, end: int) -> None:
        content = patience.read(f"{name} at byte {start}", lambda: _read_range(filesystem.cat_file, path, start, end))
        os.pwrite(target, content, start)

    requests = [threads.submit(fetch, start, end) for start, end in _ranges(size)]
    done, rest = wait(requests, return_when=FIRST_EXCEPTION)
    for request in rest:
        request.cancel()
    wait(rest)
    try:
        for request in done:
            request.result()
    except ShortRead as error:
        return f"a range of it has {len(error.contents[0])} bytes, fewer than were asked for"
    return ""


def _ranges(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, RANGE_BYTES):
        yield start, min(start + RANGE_BYTES, size)


def _read_range(read: Callable[..., bytes], path: str, start: int, end: int) -> bytes:
    content = read(path, start=start, end=end)
    if len(content) != end - start:
        raise ShortRead([content])
    return content

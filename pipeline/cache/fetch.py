"""One object of a store to one file, by several requests at a time, each of them as patient as any read."""

from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Executor, wait

from mert_foundry.pipeline.cache.object_source import ObjectSource, open_source
from mert_foundry.pipeline.storage.patience import Patience, ShortRead

RANGE_BYTES = 8 << 20  # of one request: what a request costs besides its bytes is then little


def fetch_object(location: str, size: int, target: int, threads: Executor, patience: Patience) -> str:
    """Write an object of `size` bytes to the open file `target` (a descriptor).

    Returns:
        Why the object cannot be the one that was meant, naming both sizes; empty when it can.

    Raises:
        OSError: it is missing or refused, or patience has ended; naming the object.
    """
    name = location.rsplit("/", 1)[-1]
    source = open_source(location)
    found = patience.read(name, source.size)
    if found != size:
        return f"{found} bytes, the index says {size}"

    def fetch(start: int, end: int) -> None:
        if patience.has_ended:
            raise OSError(f"{name}: the stream is closed")
        patience.read(f"{name} at byte {start}", lambda: _copy_range(source, start, end, target))

    requests = [threads.submit(fetch, start, end) for start, end in _ranges(size)]
    done, rest = wait(requests, return_when=FIRST_EXCEPTION)
    for request in rest:
        request.cancel()
    wait(rest)  # nothing writes to the file any more
    try:
        for request in done:
            request.result()
    except ShortRead:
        return f"fewer than its {size} bytes come"
    return ""


def _ranges(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, RANGE_BYTES):
        yield start, min(start + RANGE_BYTES, size)


def _copy_range(source: ObjectSource, start: int, end: int, target: int) -> None:
    if source.copy_range(start, end, target) != end - start:
        raise ShortRead([])

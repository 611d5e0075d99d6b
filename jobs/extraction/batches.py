"""Windows of many lengths to batches of nearly equal length, prepared in a thread ahead of the model."""

from collections.abc import Iterator
from queue import Queue
from threading import Thread
from typing import NamedTuple, TypeVar

import numpy as np

from mert_foundry.model.features.windows import Window
from mert_foundry.pipeline.features.plan import TrackSpan

HELD_BATCHES = 16  # that windows are sorted over
MOST_PADDING = 1.1  # longest to shortest window of a batch
Item = TypeVar("Item")


class WindowAudio(NamedTuple):
    """A window to encode: audio int16 `[num_samples]`, or tokens uint16 `[num_frames]`."""

    span: TrackSpan
    window: Window
    audio: np.ndarray


def batches_of_like_length(windows: Iterator[WindowAudio], most_samples: int) -> Iterator[list[WindowAudio]]:
    """Batches of at most so many samples, or tokens, padding included, or of one window.

    Windows of exactly one length go together as soon as they fill a batch. The others wait until there are many of
    them; then they are sorted by length, so that neighbours need little padding. Depends on the windows alone.
    """
    waiting: dict[int, list[WindowAudio]] = {}
    held = 0
    for item in windows:
        length = len(item.audio)
        waiting.setdefault(length, []).append(item)
        held += length
        if length * (len(waiting[length]) + 1) > most_samples:
            held -= length * len(waiting[length])
            yield waiting.pop(length)
        if held > HELD_BATCHES * most_samples:
            yield from _neighbours(waiting, most_samples)
            waiting, held = {}, 0
    yield from _neighbours(waiting, most_samples)


def _neighbours(waiting: dict[int, list[WindowAudio]], most_samples: int) -> Iterator[list[WindowAudio]]:
    batch: list[WindowAudio] = []
    for length in sorted(waiting):
        for item in waiting[length]:
            if batch and ((len(batch) + 1) * length > most_samples or length > MOST_PADDING * len(batch[0].audio)):
                yield batch
                batch = []
            batch.append(item)
    if batch:
        yield batch


def padded(batch: list[WindowAudio]) -> tuple[np.ndarray, list[int]]:
    """`[B, T]` with zeros after the shorter windows, and the length of each."""
    lengths = [len(item.audio) for item in batch]
    audio = np.zeros((len(batch), max(lengths)), batch[0].audio.dtype)
    for row, item in zip(audio, batch):
        row[: len(item.audio)] = item.audio
    return audio, lengths


def made_ahead(items: Iterator[Item], most: int) -> Iterator[Item]:
    """The same items; a thread makes up to `most` of them in advance. An error is raised after the items before it."""
    queue: Queue[tuple[bool, Item | BaseException | None]] = Queue(most)
    stopped = False

    def make() -> None:
        try:
            for item in items:
                queue.put((False, item))
                if stopped:
                    return
            queue.put((True, None))
        except BaseException as error:
            queue.put((True, error))

    thread = Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            ended, item = queue.get()
            if isinstance(item, BaseException):
                raise item
            if ended:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped = True
        while thread.is_alive():
            if not queue.empty():
                queue.get()
            thread.join(0.01)

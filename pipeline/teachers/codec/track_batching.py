"""Tracks of any lengths side by side in the slots of a batch: each slot takes the next track when its own has ended."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, repeat
from typing import TypeVar

import numpy as np

from mert_foundry.pipeline.audio.blocks import recut

Item = TypeVar("Item")


@dataclass(frozen=True)
class Piece:
    """Samples `[n]` of a track, which is known by its number in the order of the tracks."""

    track: int
    samples: np.ndarray
    first: bool
    last: bool


def pieces_by_slot(
    tracks: Iterable[Iterable[np.ndarray]], slots: int, first: int, following: int
) -> list[Iterator[Piece]]:
    """For each slot the pieces of its tracks, one track after another; a track goes to the slot that first asks.

    A track's first piece has `first` samples, the others `following`, its last one what is left.
    """
    waiting = enumerate(tracks)
    return [_pieces(waiting, first, following) for _ in range(slots)]


def _pieces(waiting: Iterator[tuple[int, Iterable[np.ndarray]]], first: int, following: int) -> Iterator[Piece]:
    for number, blocks in waiting:
        pieces = recut(blocks, chain([first], repeat(following)))
        is_first, piece = True, next(pieces, None)
        while piece is not None:
            after = next(pieces, None)
            yield Piece(number, piece, first=is_first, last=after is None)
            is_first, piece = False, after


def in_order(items: Iterator[tuple[int, Item, bool]]) -> Iterator[Iterator[Item]]:
    """Part items of several tracks, (number, item, whether it is the track's last), into an iterator for each track.

    They come in the order of the numbers, without end; reading one reads on in `items`, and what belongs to tracks
    after it is held until they are read.
    """
    held: dict[int, deque[tuple[Item, bool]]] = defaultdict(deque)

    def of_track(number: int) -> Iterator[Item]:
        last = False
        while not last:
            while not held[number]:
                owner, item, ends = next(items)
                held[owner].append((item, ends))
            item, last = held[number].popleft()
            yield item
        del held[number]

    return map(of_track, count())

"""The order of examples: a pure function of (shard sizes, seed, epoch, window), computed as needed.

Over an epoch the shards of a split are permuted, cut into windows of W consecutive shards, and the
examples of each window are shuffled among themselves: a reader has at most W shards at work, and
every example comes exactly once. The stream is one epoch after another, so a position is one
integer, the number of examples consumed since the start. A batch that an epoch's tail does not
fill goes on with the next epoch: nothing is dropped.

Only one window is in memory: for 20 million examples in shards of 400 and W = 16 that is 6400
pairs. Permutations sort the raw output of PCG64 seeded by a SeedSequence; NumPy promises both to
stay as they are across versions (NEP 19), which it does not for `Generator.permutation`.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

ORDER_VERSION = 1  # raise it when the same inputs give another order


class Place(NamedTuple):
    """One example of the stream: its epoch, its shard's number in the split, its number there; which set of a mixture
    it is of.
    """

    epoch: int
    shard: int
    example: int
    set_number: int = 0


class SampleOrder:
    """The order over all epochs.

    Args:
        shard_sizes: examples of each shard of the split; 0 is allowed, but not for all.
        seed: any integer from 0.
        window: number of consecutive permuted shards whose examples are shuffled together.
    """

    def __init__(self, shard_sizes: Sequence[int], seed: int, window: int) -> None:
        if seed < 0 or window < 1:
            raise ValueError(f"seed {seed} must be at least 0 and shuffle window {window} at least 1")
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._seed = seed
        self._window = window
        self.epoch_size = int(self._sizes.sum())
        if not self.epoch_size:
            raise ValueError(f"no example in {len(self._sizes)} shards")
        self._windows_an_epoch = -(-len(self._sizes) // window)
        # Two of each: a batch may lie across a border. A third epoch: that in which a shard is needed again.
        self._epoch = lru_cache(maxsize=3)(self._permute_shards)
        self.window = lru_cache(maxsize=2)(self._shuffle_window)
        self._ranks = lru_cache(maxsize=3)(self._rank_shards)

    def take(self, start: int, count: int) -> list[Place]:
        """The examples at positions [start, start + count) of the stream."""
        places: list[Place] = []
        while len(places) < count:
            epoch, offset = divmod(start + len(places), self.epoch_size)
            _, starts = self._epoch(epoch)
            # The last window that starts at or before the offset: empty ones before it are passed over.
            number = int(np.searchsorted(starts, offset, side="right")) - 1
            rows = self.window(epoch, number)[offset - int(starts[number]) :]
            places += [Place(epoch, shard, example) for shard, example in rows[: count - len(places)].tolist()]
        return places

    def window_of(self, position: int) -> int:
        """The number of the window, counted over all epochs, of the example at a position of the stream."""
        epoch, offset = divmod(position, self.epoch_size)
        _, starts = self._epoch(epoch)
        return epoch * self._windows_an_epoch + int(np.searchsorted(starts, offset, side="right")) - 1

    def shards_of(self, window: int) -> list[int]:
        """The shards of a window, counted over all epochs, that have an example."""
        epoch, number = divmod(window, self._windows_an_epoch)
        shards, _ = self._epoch(epoch)
        members = shards[number * self._window : (number + 1) * self._window]
        return members[self._sizes[members] > 0].tolist()

    def next_window(self, shard: int, window: int) -> int:
        """The first window, from `window` on, that has a shard."""
        epoch = window // self._windows_an_epoch
        for candidate in (epoch, epoch + 1):
            found = candidate * self._windows_an_epoch + int(self._ranks(candidate)[shard]) // self._window
            if found >= window:
                return found
        raise AssertionError("every epoch has every shard")

    def is_permutation(self, epoch: int) -> bool:
        """Whether an epoch has every example exactly once, counted through all its windows."""
        starts = np.concatenate([[0], np.cumsum(self._sizes)])
        counts = np.zeros(self.epoch_size, np.int64)
        for number in range(self._windows_an_epoch):
            shards, examples = self.window(epoch, number).T
            if (examples >= self._sizes[shards]).any():
                return False
            np.add.at(counts, starts[shards] + examples, 1)
        return bool((counts == 1).all())

    def most_shards(self, examples: int) -> int:
        """How many shards the windows that a stretch of so many examples touches can have together, at most."""
        smallest = np.cumsum(np.sort(self._sizes))
        within, rest = divmod(examples, self.epoch_size)
        return len(self._sizes) * within + int(np.searchsorted(smallest, rest)) + 1 + 2 * self._window

    def _rank_shards(self, epoch: int) -> np.ndarray:
        """Where each shard stands in an epoch's order `[S]`."""
        return np.argsort(self._epoch(epoch)[0])

    def _permute_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's shards in order `[S]`, and the position in the epoch where each window starts `[W]`."""
        shards = _permutation(len(self._sizes), self._seed, epoch, 0)
        before = np.concatenate([[0], np.cumsum(self._sizes[shards])])
        return shards, before[: len(shards) : self._window]

    def _shuffle_window(self, epoch: int, number: int) -> np.ndarray:
        """Shard and example of window `number` of an epoch, in order: int64 `[n, 2]`."""
        shards, _ = self._epoch(epoch)
        members = shards[number * self._window : (number + 1) * self._window]
        pairs = np.concatenate([_numbered(shard, self._sizes[shard]) for shard in members])
        return pairs[_permutation(len(pairs), self._seed, epoch, 1, number)]


def _numbered(shard: int, size: int) -> np.ndarray:
    return np.stack([np.full(size, shard), np.arange(size)], axis=1)


def _permutation(count: int, *entropy: int) -> np.ndarray:
    """A permutation of `range(count)` that is a function of `entropy`; int64 `[count]`."""
    bits = np.random.PCG64(np.random.SeedSequence([ORDER_VERSION, *entropy])).random_raw(count)
    return np.argsort(bits, kind="stable")

"""The shards of a set that turn out to be corrupt in the store, for a stream that passes over them."""

import logging
from collections.abc import Sequence
from functools import lru_cache

from mert_foundry.pipeline.cache.shard_cache import ShardCache
from mert_foundry.pipeline.shards.index import ShardEntry


class BadShards:
    """The shards of a split that were found to be corrupt in the store so far.

    Args:
        shards: all shards of the split.
        cache: it verifies them; None: bad shards are not looked for.
        names: the bad shards that were found before.
        warns: whether this process logs a warning for each new one.
    """

    def __init__(
        self, shards: Sequence[ShardEntry], cache: ShardCache | None, names: Sequence[str], warns: bool
    ) -> None:
        self._shards = shards
        self._cache = cache
        self._warns = warns
        self.names = sorted(names)
        # This is asked for every example; once an epoch is enough, as a shard is read once an epoch.
        self.has = lru_cache(maxsize=1024)(self._find)

    @property
    def are_looked_for(self) -> bool:
        """Whether bad shards are looked for, so that their examples can be passed over."""
        return self._cache is not None

    def _find(self, epoch: int, shard: int) -> bool:
        """Whether a shard is corrupt in an epoch. Waits for it; raises OSError when the store fails."""
        assert self._cache is not None, "bad shards are looked for"
        fault = self._cache.find_fault(shard)
        name = self._shards[shard].name
        if fault and name not in self.names:
            self.names = sorted([*self.names, name])
            if self._warns:
                logging.getLogger(__name__).warning(
                    f"passed over with its {self._shards[shard].nsamples} examples: {fault};"
                    f" {len(self.names)} of {len(self._shards)} shards so far"
                )
        return bool(fault)

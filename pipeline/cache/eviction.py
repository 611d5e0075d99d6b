"""Which shards make room for another. The order of all uses is known, so the shard that is needed latest goes first.

That is Belady's rule (IBM Systems Journal 5, 1966), which no other beats in the number of fetches.
"""

from collections.abc import Mapping, Set
from typing import NamedTuple


class CachedShard(NamedTuple):
    """A shard in the folder: its bytes, and when it is needed next. A larger number is later, `math.inf` is never."""

    size: int
    next_use: float


def choose_evictions(
    cached: Mapping[str, CachedShard], in_use: Set[str], free: int, wanted: int, wanted_use: float
) -> list[str] | None:
    """The shards to delete so that `wanted` bytes fit; the one that is needed latest comes first.

    Args:
        cached: all shards in the folder, by name.
        in_use: shards that must stay.
        free: bytes that fit now; below 0 when the limit has become smaller.
        wanted: bytes of the shard to be fetched.
        wanted_use: when that shard is needed. Shards that are needed then or earlier stay.

    Returns:
        Names; none when the shard fits already, None when it would not fit even after every deletion that is allowed.
    """
    candidates = [name for name, shard in cached.items() if name not in in_use and shard.next_use > wanted_use]
    candidates.sort(key=lambda name: (-cached[name].next_use, name))
    chosen: list[str] = []
    while free < wanted:
        if len(chosen) == len(candidates):
            return None
        chosen.append(candidates[len(chosen)])
        free += cached[chosen[-1]].size
    return chosen

"""Which shards make room for another: those that are needed latest go first, as the order of all uses is known.

That is Belady's rule (IBM Systems Journal 5, 1966), which no other beats in the number of fetches.
"""

from collections.abc import Mapping, Set
from typing import NamedTuple


class Kept(NamedTuple):
    """A shard in the folder: its bytes, and when it is needed next; later is larger, `math.inf` is never."""

    size: int
    next_use: float


def choose_evictions(
    kept: Mapping[str, Kept], in_use: Set[str], free: int, wanted: int, wanted_use: float
) -> list[str] | None:
    """The shards to delete so that `wanted` bytes fit, that needed latest first.

    Args:
        kept: all shards in the folder by name.
        in_use: those that must stay.
        free: bytes that fit now; below 0 when the limit has become smaller.
        wanted: bytes of the shard to be fetched.
        wanted_use: when it is needed; what is needed then or earlier stays.

    Returns:
        Names, none when it fits as it is; None when it would not fit even without all that may go.
    """
    candidates = [name for name, shard in kept.items() if name not in in_use and shard.next_use > wanted_use]
    candidates.sort(key=lambda name: (-kept[name].next_use, name))
    chosen: list[str] = []
    while free < wanted:
        if len(chosen) == len(candidates):
            return None
        chosen.append(candidates[len(chosen)])
        free += kept[chosen[-1]].size
    return chosen

"""Which shards make room, compared with a simulation that looks the future up in the list of all uses."""

import math
from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from mert_foundry.pipeline.cache.eviction import CachedShard, choose_evictions
from mert_foundry.pipeline.stream.sample_order import SampleOrder


def next_use(uses: list[int], item: int, now: int) -> float:
    return next((time for time in range(now, len(uses)) if uses[time] == item), math.inf)


def run_policy(uses: list[int], sizes: list[int], limit: int) -> list[set[int]]:
    """What the cache holds after each use, when each is fetched as it is needed."""
    kept: set[int] = set()
    history = []
    for now, item in enumerate(uses):
        if item not in kept:
            shards = {str(other): CachedShard(sizes[other], next_use(uses, other, now)) for other in kept}
            evicted = choose_evictions(shards, set(), limit - sum(sizes[other] for other in kept), sizes[item], now)
            assert evicted is not None
            kept = kept - {int(name) for name in evicted} | {item}
        history.append(set(kept))
    return history


def run_naive(uses: list[int], sizes: list[int], limit: int) -> list[set[int]]:
    kept: list[int] = []
    history = []
    for now, item in enumerate(uses):
        if item not in kept:
            while sum(sizes[other] for other in kept) + sizes[item] > limit:
                later = [(next_use(uses, other, now), str(other), other) for other in kept]
                farthest = max(time for time, _, _ in later)
                kept.remove(min((name, other) for time, name, other in later if time == farthest)[1])
            kept.append(item)
        history.append(set(kept))
    return history


def count_least_recently_used(uses: list[int], places: int) -> int:
    kept: OrderedDict[int, None] = OrderedDict()
    fetches = 0
    for item in uses:
        fetches += item not in kept
        kept[item] = None
        kept.move_to_end(item)
        if len(kept) > places:
            kept.popitem(last=False)
    return fetches


uses_of = st.lists(st.integers(0, 7), min_size=1, max_size=60)


@given(uses_of, st.lists(st.integers(1, 9), min_size=8, max_size=8), st.integers(9, 40))
def test_what_stays_is_what_a_look_into_the_future_keeps_and_the_bound_holds(uses, sizes, limit):
    history = run_policy(uses, sizes, limit)
    assert history == run_naive(uses, sizes, limit)
    assert all(sum(sizes[item] for item in kept) <= limit for kept in history)


@given(uses_of, st.integers(1, 8))
def test_no_more_is_fetched_than_by_least_recently_used(uses, places):
    history = [set(), *run_policy(uses, [1] * 8, places)]
    fetches = sum(item not in before for item, before in zip(uses, history))
    assert fetches <= count_least_recently_used(uses, places)


@given(
    st.dictionaries(st.text("abcdef", min_size=1), st.tuples(st.integers(1, 9), st.integers(0, 20)), max_size=8),
    st.sets(st.text("abcdef", min_size=1)),
    st.integers(-5, 20),
    st.integers(0, 30),
    st.integers(0, 20),
)
def test_neither_what_is_in_use_nor_what_is_needed_sooner_goes(entries, in_use, free, wanted, use):
    kept = {name: CachedShard(*entry) for name, entry in entries.items()}
    may_go = {name for name, shard in kept.items() if name not in in_use and shard.next_use > use}
    evicted = choose_evictions(kept, in_use, free, wanted, use)
    if evicted is None:
        assert free + sum(kept[name].size for name in may_go) < wanted
        return
    assert set(evicted) <= may_go
    assert free + sum(kept[name].size for name in evicted) >= wanted
    stay = [kept[name].next_use for name in may_go - set(evicted)]
    assert not stay or not evicted or min(kept[name].next_use for name in evicted) >= max(stay)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12).filter(any),
    st.integers(0, 3),
    st.integers(1, 4),
    st.integers(0, 60),
    st.integers(1, 60),
)
def test_windows_hold_the_shards_of_the_examples(sizes, seed, window, start, count):
    order = SampleOrder(sizes, seed, window)
    windows = range(order.window_of(start), order.window_of(start + count - 1) + 1)
    for offset, place in enumerate(order.take(start, count)):
        number = order.window_of(start + offset)
        assert number in windows and place.shard in order.shards_of(number)
        later = order.next_window(place.shard, number + 1)
        assert order.next_window(place.shard, number) == number
        assert place.shard in order.shards_of(later)
        assert not any(place.shard in order.shards_of(between) for between in range(number + 1, later))
    at_work = {shard for number in windows for shard in order.shards_of(number)}
    assert len(at_work) <= order.most_shards(count)

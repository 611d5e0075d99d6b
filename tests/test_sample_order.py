"""The order: every example once an epoch, in any cut, lazily, and the same for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mert_foundry.pipeline.stream.sample_order import ORDER_VERSION, Place, SampleOrder

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)
SEEDS = st.integers(0, 2**63)


def all_examples(sizes):
    return [(shard, example) for shard, size in enumerate(sizes) for example in range(size)]


@settings(deadline=None)
@given(sizes=SIZES, seed=SEEDS, window=st.integers(1, 15), epoch=st.integers(0, 3))
def test_every_epoch_is_a_permutation(sizes, seed, window, epoch):
    order = SampleOrder(sizes, seed, window)
    places = order.take(epoch * order.epoch_size, order.epoch_size)
    assert {place.epoch for place in places} == {epoch}
    assert sorted((place.shard, place.example) for place in places) == all_examples(sizes)


@settings(deadline=None)
@given(sizes=SIZES, seed=SEEDS, window=st.integers(1, 15), data=st.data())
def test_any_cut_gives_the_same_stream(sizes, seed, window, data):
    order = SampleOrder(sizes, seed, window)
    length = 3 * order.epoch_size
    whole = order.take(0, length)
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=6)))
    edges = [0, *cuts, length]
    pieces = [SampleOrder(sizes, seed, window).take(a, b - a) for a, b in zip(edges, edges[1:], strict=False)]
    assert sum(pieces, []) == whole


@settings(deadline=None)
@given(sizes=SIZES, seed=SEEDS, window=st.integers(1, 15))
def test_a_window_of_shards_is_finished_before_the_next(sizes, seed, window):
    order = SampleOrder(sizes, seed, window)
    shards = [place.shard for place in order.take(0, order.epoch_size)]
    filled = [shard for shard, size in enumerate(sizes) if size]
    spans = [(shards.index(shard), order.epoch_size - shards[::-1].index(shard)) for shard in filled]
    # At any time, no more than a window of shards has been begun and not finished.
    for moment in range(order.epoch_size):
        assert sum(first <= moment < last for first, last in spans) <= window


@settings(deadline=None)
@given(sizes=SIZES, seed=SEEDS, window=st.integers(1, 15), data=st.data())
def test_counting_through_an_epoch_finds_an_example_that_took_the_place_of_another(sizes, seed, window, data):
    order = SampleOrder(sizes, seed, window)
    assert order.is_permutation(2)
    windows = {number: order.window(2, number).copy() for number in range(-(-len(sizes) // window))}
    rows = [(number, row) for number, rows in windows.items() for row in range(len(rows))]
    if len(rows) > 1:
        (number, row), (other, other_row) = data.draw(st.permutations(rows))[:2]
        windows[number][row] = windows[other][other_row]
        order.window = lambda _, number: windows[number]
        assert not order.is_permutation(2)


def test_epochs_and_seeds_differ():
    order = SampleOrder([20] * 10, seed=1, window=3)
    epochs = [[place[1:] for place in order.take(epoch * 200, 200)] for epoch in range(3)]
    other = [place[1:] for place in SampleOrder([20] * 10, seed=2, window=3).take(0, 200)]
    assert len({tuple(epoch) for epoch in [*epochs, other]}) == 4


def test_shuffles_within_the_window():
    """With one window over all shards, neighbours come from all over the set."""
    shards = np.array([place.shard for place in SampleOrder([100] * 10, seed=0, window=10).take(0, 1000)])
    assert np.mean(shards[1:] == shards[:-1]) < 0.2
    assert all(len(set(part)) == 10 for part in shards.reshape(10, 100))


def test_a_window_is_computed_without_the_others(monkeypatch):
    made = []
    original = SampleOrder._shuffle_window

    def counted(self, epoch, number):
        made.append((epoch, number))
        return original(self, epoch, number)

    monkeypatch.setattr(SampleOrder, "_shuffle_window", counted)
    order = SampleOrder([400] * 50_000, seed=0, window=16)  # 20 million examples
    order.take(7 * order.epoch_size + 16 * 400 * 1000, 10)
    assert made == [(7, 1000)]
    assert order.window(7, 1000).nbytes < 200_000


def test_the_order_of_this_version_never_changes():
    assert ORDER_VERSION == 1
    assert SampleOrder([2, 0, 3], seed=5, window=2).take(3, 5) == [
        Place(epoch=0, shard=0, example=1),
        Place(epoch=0, shard=2, example=0),
        Place(epoch=1, shard=2, example=2),
        Place(epoch=1, shard=2, example=0),
        Place(epoch=1, shard=2, example=1),
    ]


@pytest.mark.parametrize(("sizes", "seed", "window"), [([], 0, 1), ([0, 0], 0, 1), ([1], -1, 1), ([1], 0, 0)])
def test_refuses_what_has_no_order(sizes, seed, window):
    with pytest.raises(ValueError):
        SampleOrder(sizes, seed, window)

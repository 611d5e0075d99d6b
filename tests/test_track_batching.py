"""Tracks side by side: every piece once, in order, whatever their lengths; items parted again by track."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mert_foundry.pipeline.teachers.codec.track_batching import in_order, pieces_by_slot

LENGTHS = st.lists(st.integers(1, 20), max_size=8)


@given(LENGTHS, st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
def test_every_track_goes_whole_through_one_slot(lengths: list[int], count: int, first: int, following: int):
    tracks = [np.arange(length) + 100 * number for number, length in enumerate(lengths)]
    slots = pieces_by_slot([np.array_split(track, 3) for track in tracks], count, first, following)
    seen: dict[int, list] = {}
    slot_of: dict[int, int] = {}
    while any(turn := [next(slot, None) for slot in slots]):
        assert len({piece.track for piece in turn if piece}) == sum(piece is not None for piece in turn)
        for slot, piece in enumerate(turn):
            if piece:
                assert slot_of.setdefault(piece.track, slot) == slot
                seen.setdefault(piece.track, []).append(piece)
    assert sorted(seen) == list(range(len(tracks)))
    for number, pieces in seen.items():
        np.testing.assert_array_equal(np.concatenate([piece.samples for piece in pieces]), tracks[number])
        assert [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)
        assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        wanted = [first] + [following] * (len(pieces) - 1)
        assert all(len(piece.samples) == length for piece, length in zip(pieces[:-1], wanted))
        assert 0 < len(pieces[-1].samples) <= wanted[-1]


@given(LENGTHS, st.randoms(use_true_random=False))
def test_items_come_back_by_track(lengths: list[int], random):
    turns = [number for number, length in enumerate(lengths) for _ in range(length)]
    random.shuffle(turns)
    given_so_far = dict.fromkeys(range(len(lengths)), 0)
    items = []
    for number in turns:
        given_so_far[number] += 1
        items.append((number, given_so_far[number], given_so_far[number] == lengths[number]))
    found = [list(track) for track in itertools.islice(in_order(iter(items)), len(lengths))]
    assert found == [list(range(1, length + 1)) for length in lengths]


def test_no_more_is_read_than_an_item_needs():
    items = iter([(0, "a", False), (1, "b", True), (0, "c", True), (2, "d", True)])
    tracks = in_order(items)
    assert list(next(tracks)) == ["a", "c"]
    assert list(next(tracks)) == ["b"]
    assert list(items) == [(2, "d", True)]

"""The set of each row of a mixture: by a list built in full, in any cut, never far from its share."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mert_foundry.pipeline.stream.row_schedule import RowSchedule, whole_weights

WEIGHTS = st.lists(st.integers(1, 40) | st.integers(1, 2**60), min_size=1, max_size=6)
ROWS = 120


def built_in_full(weights: list[int], rows: int) -> list[int]:
    """Rows of all sets sorted by their times, as exact fractions."""
    total = sum(weights)
    times = [
        (Fraction((2 * row + 1) * total, 2 * weight), number)
        for number, weight in enumerate(weights)
        for row in range(rows)
    ]
    return [number for _, number in sorted(times)[:rows]]


@settings(deadline=None, max_examples=60)
@given(weights=WEIGHTS, data=st.data())
def test_any_cut_is_that_of_the_list_built_in_full(weights: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, ROWS))
    count = data.draw(st.integers(0, ROWS - start))
    whole = built_in_full(weights, ROWS)
    schedule = RowSchedule(weights)
    assert schedule.take(start, count) == whole[start : start + count]
    assert schedule.counts(start) == [whole[:start].count(number) for number in range(len(weights))]


@settings(deadline=None)
@given(weights=WEIGHTS, rows=st.integers(0, 10**15))
def test_no_set_is_further_from_its_share_than_was_derived(weights: list[int], rows: int) -> None:
    counts = RowSchedule(weights).counts(rows)
    assert sum(counts) == rows
    for weight, count in zip(weights, counts, strict=True):
        share = Fraction(weight, sum(weights))
        assert abs(count - share * rows) <= (1 + share * (len(weights) - 2)) / 2


def test_equal_weights_take_turns_and_the_weights_alone_say_how() -> None:
    assert RowSchedule([1, 1]).take(0, 6) == [0, 1, 0, 1, 0, 1]
    assert RowSchedule([3, 1]).take(0, 8) == [0, 0, 1, 0, 0, 0, 1, 0]
    assert RowSchedule([6, 2]).take(10**9, 50) == RowSchedule([3, 1]).take(10**9, 50)


def test_weights_keep_their_exact_proportions() -> None:
    assert whole_weights([0.1, 0.2, 0.7]) == [1, 2, 7]
    assert whole_weights([1.5, 1]) == [3, 2]
    assert whole_weights([40_000_000.0, 20_000_000.0]) == [40_000_000, 20_000_000]
    with pytest.raises(ValueError, match="above 0"):
        RowSchedule([1, 0])

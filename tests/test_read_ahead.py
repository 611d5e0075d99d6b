"""Loading ahead: every item in order, errors in their turn, no more than asked for, and nothing left."""

import threading
import time
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mert_foundry.pipeline.audio.read_ahead import read_ahead


class Fault(Exception):
    """Of an item, or of what gives the items."""


@given(
    count=st.integers(0, 12),
    threads=st.integers(1, 4),
    faulty=st.sets(st.integers(0, 12), max_size=2),
    end=st.none() | st.integers(0, 12),
    waits=st.lists(st.integers(0, 2), min_size=13, max_size=13),
)
def test_as_a_loop_would_give_them(count: int, threads: int, faulty: set[int], end: int | None, waits: list[int]):
    """Up to the first error in their order, whichever happens first."""

    def items():
        for number in range(count):
            if number == end:
                raise Fault(f"no item {number}")
            yield number

    def load(number: int) -> int:
        time.sleep(waits[number] / 1000)
        if number in faulty:
            raise Fault(f"item {number}")
        return number * number

    def outcome(pairs) -> tuple[list, str]:
        found = []
        try:
            for pair in pairs:
                found.append(pair)
        except Fault as error:
            return found, str(error)
        return found, ""

    before = threading.active_count()
    assert outcome(read_ahead(items(), load, threads)) == outcome((number, load(number)) for number in items())
    assert threading.active_count() <= before  # one of another test may end meanwhile


def test_no_more_are_taken_than_can_wait():
    taken = []

    def items():
        for number in range(10):
            taken.append(number)
            yield number

    ahead = read_ahead(items(), str, 3)
    assert next(ahead) == (0, "0") and len(taken) <= 4
    assert next(ahead) == (1, "1") and len(taken) <= 5
    ahead.close()


class Result:
    """What can be told to be gone."""


def test_an_error_keeps_no_result_of_what_came_after_it():
    made: list[weakref.ref] = []
    others = threading.Semaphore(0)

    def load(number: int) -> Result:
        if number == 0:
            for _ in range(3):
                others.acquire()
            raise Fault("the first")
        result = Result()
        made.append(weakref.ref(result))
        others.release()
        return result

    with pytest.raises(Fault, match="the first") as caught:
        list(read_ahead(range(4), load, 4))
    assert len(made) == 3 and all(reference() is None for reference in made) and caught.value

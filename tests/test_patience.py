"""How long a read waits for a storage, what it does not wait for, and what it says."""

import threading
import time
from collections.abc import Callable

import pytest

from mert_foundry.pipeline.storage import patience
from mert_foundry.pipeline.storage.patience import REFUSALS, Patience, ShortRead


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(patience, "LONGEST_WAIT", 0.01)


class NoConnection(Exception):
    """As the clients of some storages raise: no OSError."""


def failing(error: BaseException, times: int, calls: list[int] | None = None) -> Callable[[], str]:
    left = [times]

    def attempt() -> str:
        if calls is not None:
            calls.append(1)
        if left[0]:
            left[0] -= 1
            raise error
        return "content"

    return attempt


@pytest.mark.parametrize("error", [OSError("reset"), NoConnection("no connection"), TimeoutError()])
def test_an_outage_is_waited_out(error: Exception):
    assert Patience(60.0).read("a.tar", failing(error, 20)) == "content"


def test_without_patience_one_attempt_is_made():
    calls: list[int] = []
    with pytest.raises(OSError, match="^a.tar: reset$"):
        Patience(0.0).read("a.tar", failing(OSError("reset"), 1, calls))
    assert len(calls) == 1


def test_an_error_that_is_no_oserror_becomes_one_with_the_name_and_the_time():
    with pytest.raises(OSError, match=r"^a.tar: no connection to host, after 1 s$"):
        Patience(1.0).read("a.tar", failing(NoConnection("no connection\nto host"), 10**6))


@pytest.mark.parametrize("error", [FileNotFoundError("a.tar"), PermissionError("a.tar"), ShortRead([b""])])
def test_what_is_missing_refused_or_short_is_asked_for_a_few_times(error: Exception):
    calls: list[int] = []
    assert Patience(60.0).read("a.tar", failing(error, REFUSALS - 1)) == "content"
    with pytest.raises(type(error)):
        Patience(60.0).read("a.tar", failing(error, 10**6, calls))
    assert len(calls) == REFUSALS


@pytest.mark.parametrize("error", [ValueError("CRC"), TypeError("bug"), RuntimeError("shut down"), KeyboardInterrupt()])
def test_damage_bugs_and_interrupts_are_raised_at_once_as_they_are(error: BaseException):
    calls: list[int] = []
    with pytest.raises(type(error)) as raised:
        Patience(60.0).read("a.tar", failing(error, 10**6, calls))
    assert raised.value is error and len(calls) == 1


def test_refusals_count_only_in_a_row():
    """As a store answers that comes back: out of reach, then a listing that has not caught up."""
    errors = iter([OSError("refused")] * 5 + [FileNotFoundError("a.tar"), OSError("refused")] * REFUSALS)

    def attempt() -> str:
        for error in errors:
            raise error
        return "content"

    assert Patience(60.0).read("a.tar", attempt) == "content"


def test_a_read_that_waits_fails_as_soon_as_waiting_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patience, "FIRST_WAIT", 60.0)
    monkeypatch.setattr(patience, "LONGEST_WAIT", 60.0)
    monkeypatch.setattr(patience, "wait_random_exponential", lambda multiplier, max: lambda state: 60.0)
    shared = Patience(600.0)
    threading.Timer(0.1, shared.end).start()
    began = time.monotonic()
    with pytest.raises(OSError, match="a.tar: reset"):
        shared.read("a.tar", failing(OSError("reset"), 10**6))
    assert time.monotonic() - began < 30


def test_one_thread_speaks_for_all(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(patience, "WARN_AFTER", 0.05)
    shared, together = Patience(60.0), threading.Barrier(3)
    over = threading.Event()

    def attempt() -> str:
        if not over.is_set():
            raise OSError("503")
        return "content"

    def read() -> None:
        together.wait()
        shared.read("a.tar", attempt)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    together.wait()
    threading.Timer(0.4, over.set).start()
    for thread in threads:
        thread.join()
    (record,) = caplog.records
    assert record.getMessage() == "waiting for the storage: a.tar: 503; 0 s so far, for 60 s at most"

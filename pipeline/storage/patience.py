"""Reads from a storage that may be out of reach for a while: they are tried again until patience ends, and say so."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_not_exception_type, wait_random_exponential

Result = TypeVar("Result")

FIRST_WAIT, LONGEST_WAIT = (
    0.5,
    15.0,
)  # seconds: bounds of the random wait between attempts; the first doubles up to the longest
WARN_AFTER, WARN_EVERY = 10.0, 60.0  # seconds: from the start of an outage to the first warning, and between warnings
# Of S3; the client renews a token when it can, so these are waited out.
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestTimeTooSkewed", "TokenRefreshRequired"}
# Attempts in a row at what is missing or refused: a listing catches up, rights are given, or it stays so.
REFUSALS = 4
# What says that the content is wrong, or the program: another attempt would say it again.
NOT_OF_THE_STORAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)


class ShortRead(Exception):
    """A storage answered with fewer bytes than were asked for; `contents` are what it gave."""

    def __init__(self, contents: Sequence[bytes]):
        super().__init__("fewer bytes came than were asked for")
        self.contents = contents


class Patience:
    """How long reads wait for a storage; shared by the threads that read, so that one of them speaks for all.

    Args:
        seconds: of one outage, after which a read fails; 0: a read fails at once.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._lock = threading.Lock()
        self._next_warning = 0.0
        self._ended = threading.Event()

    def end(self) -> None:
        """Let no read wait any more: those that do fail at once."""
        self._ended.set()

    @property
    def has_ended(self) -> bool:
        """Whether no read is to wait any more."""
        return self._ended.is_set()

    @property
    def has_spoken(self) -> bool:
        """Whether a read has said within the last minute that it waits."""
        return time.monotonic() < self._next_warning

    def read(self, name: str, attempt: Callable[[], Result]) -> Result:
        """What `attempt` gives, in the end.

        Raises:
            OSError: naming `name` and the last error, when patience has ended or what is asked for is missing or
                refused.
            ShortRead: again and again fewer bytes came; the object is likely to be shorter.
            ValueError: as `attempt` does, at once.
        """
        refusals = 0

        def is_over(state: RetryCallState) -> bool:
            nonlocal refusals
            assert state.outcome is not None, "asked after an attempt"
            refusals = refusals + 1 if _is_refused(state.outcome.exception()) else 0
            return refusals >= REFUSALS or self._ended.is_set() or _passed(state) >= self.seconds

        retrying = Retrying(
            sleep=self._sleep,
            stop=is_over,
            wait=wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
            retry=retry_if_not_exception_type((*NOT_OF_THE_STORAGE, KeyboardInterrupt, SystemExit)),
            before_sleep=lambda state: self._warn(name, state),
            reraise=True,
        )
        begun = time.monotonic()
        try:
            return retrying(attempt)
        except (ShortRead, *NOT_OF_THE_STORAGE):
            raise
        except Exception as error:
            waited = time.monotonic() - begun
            after = f", after {waited:.0f} s" if waited >= 1 else ""
            # Other subclasses of OSError may not take a message alone; aiohttp's do not.
            kind = next((kind for kind in (FileNotFoundError, PermissionError) if isinstance(error, kind)), OSError)
            raise kind(f"{name}: {_explain(error)}{after}") from error

    def _sleep(self, seconds: float) -> None:
        self._ended.wait(seconds)

    def _warn(self, name: str, state: RetryCallState) -> None:
        """Say that a read waits: once it has for a while, and then once a minute over all threads."""
        assert state.outcome is not None, "called after an attempt"
        now, passed = time.monotonic(), _passed(state)
        with self._lock:
            if passed < WARN_AFTER or now < self._next_warning:
                return
            self._next_warning = now + WARN_EVERY
        error = state.outcome.exception()
        assert error is not None, "only a failed attempt is repeated"
        logging.getLogger(__name__).warning(
            f"waiting for the storage: {name}: {_explain(error)}; {passed:.0f} s so far, for {self.seconds:.0f} s at"
            " most"
        )


def _is_refused(error: BaseException | None) -> bool:
    """Whether the storage answered, and is likely to answer so again."""
    answer = getattr(getattr(error, "__cause__", None), "response", None) or {}
    if answer.get("Error", {}).get("Code") in EXPIRED:
        return False
    return isinstance(error, FileNotFoundError | PermissionError | ShortRead)


def _passed(state: RetryCallState) -> float:
    return state.seconds_since_start or 0.0


def _explain(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

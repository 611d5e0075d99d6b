"""Headers at their extremes: no decoder crashes or hangs, and what is accepted is what another reader gives."""

import multiprocessing
import os
import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from container_fuzz import (
    LIBRARIES,
    Base,
    Outcome,
    Variant,
    agrees,
    describe_reading,
    header_variants,
    make_bases,
    reads,
    structure_variants,
    try_file,
    write_base,
)

pytestmark = pytest.mark.process

SECONDS_A_FILE = 20
MOST_MEMORY = 2 << 30  # bytes that one file may take
REASONS = {"not_audio", "unreadable", "truncated", "length_mismatch"}
# What a row of the table counts. An accepted file has the samples that another library gives, or those before the
# change. one library: no other one reads such a file, even unchanged. disputed: the library that the project uses gives
# the same when it opens the file itself, one that reads the unchanged file does not. differed: nothing gives the same.
# by convention: as disputed, where readers are known to part ways.
PASSED = ["accepted", "one library", "by convention", "refused"]
FAILED = ["disputed", "differed", "fault", "crashed", "hung", "memory"]
CONVENTIONS = {  # base and change, and why nobody can say which reader is right
    r"mp3_\w+ with xing\.(flags|id|encoder)=": "ffmpeg cuts the delay only for encoders it knows, mpg123 for all",
    r"mp3_\w+ with xing\.frames=\w+ \((less|and) one": "which of count and frames is right, when they are one apart",
    r"mp3_bare with frame 1\.": "without its first frame a stream lacks bits for the next, which decoders replace in"
    " their own ways",
    r"mp3_\w+ with frame \d\.extension=": "a mode that the standard reserves, decoded 1.6 % apart",
    r"ogg_vorbis with .*checksum right|ogg_vorbis with vorbis\.(short|long)_block": "a whole page that was made with"
    " other packets or blocks than the audio: libvorbis decodes what it finds, ffmpeg refuses it (mert verify"
    " --corpus tells)",
}


class ChildDied(Exception):
    """The child crashed, hung, or took too much memory; `verdict` says which."""

    def __init__(self, verdict: str, detail: str):
        super().__init__(verdict, detail)
        self.verdict, self.detail = verdict, detail


class Child:
    """A process that runs functions for us and may die of them; the next call then starts another one."""

    def __init__(self) -> None:
        self._process = None

    def ask(self, function: Callable, *arguments: object) -> Any:
        """The function's result. Raises ChildDied."""
        if self._process is None:
            self._start()
        self._connection.send((function, arguments))
        try:
            if not self._connection.poll(SECONDS_A_FILE):
                self.stop()
                raise ChildDied("hung", f"no answer in {SECONDS_A_FILE} s")
            result, peak = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code, self._process = self._process.exitcode, None
            raise ChildDied("crashed", f"exit code {code}") from None
        if peak - self._idle > MOST_MEMORY:
            self.stop()
            raise ChildDied("memory", f"{(peak - self._idle) >> 20} MiB more than before")
        if isinstance(result, Exception):
            raise result
        return result

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._idle = self._connection.recv()


def _serve(connection: Connection) -> None:
    """Answer with a function's result, or what it raised, and the most memory this process has had."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries grumble there
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + 2 * MOST_MEMORY, resource.RLIM_INFINITY))
    connection.send(_peak())
    while True:
        function, arguments = connection.recv()
        try:
            result = function(*arguments)
        except Exception as error:
            result = error
        connection.send((result, _peak()))


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _peak() -> int:
    """The most memory of this process so far; getrusage would count what the one that started it had."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10


class Judged(NamedTuple):
    variant: Variant
    verdict: str
    detail: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.variant}: {self.verdict}: {self.detail}"


class Original(NamedTuple):
    """A base file on disk, one with its samples, how far readers of it may differ, and the libraries that read it as it
    is.
    """

    path: Path
    samples: Path
    rounding: str
    readers: set[str]


def judge(variants: list[Variant], bases: dict[str, Base], folder: Path) -> Iterator[Judged]:
    """What becomes of each variant, each base file itself among them."""
    child = Child()
    originals = {}
    for base in bases.values():
        path, samples = write_base(base, folder)
        readers = {reader for reader in LIBRARIES if child.ask(reads, path, reader, samples, base.rounding)}
        originals[base.name] = Original(path, samples, base.rounding, readers)
    try:
        for number, variant in enumerate(variants):
            original = originals[variant.base]
            path = folder / f"{number}{original.path.suffix}"
            path.write_bytes(variant.content)
            yield _judge(child, variant, path, original)
            path.unlink()
    finally:
        child.stop()


def _judge(child: Child, variant: Variant, path: Path, original: Original) -> Judged:
    try:
        outcome: Outcome = child.ask(try_file, path)
    except ChildDied as death:
        return Judged(variant, death.verdict, death.detail)
    if outcome.verdict != "accepted":
        return Judged(variant, outcome.verdict, outcome.detail, outcome.reason)
    others, verdict = original.readers - {outcome.library}, "differed"
    for reader in [*sorted(others), "base", outcome.library]:
        if reader and _agrees(child, path, reader, original, variant.repeats):
            if reader != outcome.library:
                return Judged(variant, "accepted", f"{outcome.detail}, as {reader}")
            if not others:
                return Judged(variant, "one library", f"{outcome.detail}, as {reader}")
            verdict = "disputed"
        if verdict == "disputed" and any(re.match(pattern, str(variant)) for pattern in CONVENTIONS):
            verdict = "by convention"
    readings = [f"{reader} {_reading(child, path, reader)}" for reader in LIBRARIES]
    return Judged(variant, verdict, "; ".join([f"{outcome.format} {outcome.detail}", *readings]))


def _agrees(child: Child, path: Path, reader: str, original: Original, repeats: int) -> bool:
    try:
        return child.ask(agrees, path, reader, original.samples, original.rounding, repeats)
    except ChildDied:
        return False  # another reader's own trouble


def _reading(child: Child, path: Path, reader: str) -> str:
    try:
        return child.ask(describe_reading, reader, path)
    except ChildDied as death:
        return death.verdict


def table(judged: list[Judged]) -> str:
    """How many files of each container were accepted, refused, and so on."""
    counts = Counter((result.variant.base, result.verdict) for result in judged)
    totals = Counter(result.verdict for result in judged)
    lines = [f"{'':15}" + "".join(f"{verdict:>12}" for verdict in (PASSED + FAILED))]
    for base in dict.fromkeys(result.variant.base for result in judged):
        lines.append(f"{base:15}" + "".join(f"{counts[base, verdict]:12}" for verdict in (PASSED + FAILED)))
    return "\n".join([*lines, f"{'all':15}" + "".join(f"{totals[verdict]:12}" for verdict in (PASSED + FAILED))])


def test_a_child_that_dies_says_how_and_another_one_follows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(globals(), "SECONDS_A_FILE", 3)
    monkeypatch.setitem(globals(), "MOST_MEMORY", 100 << 20)
    child = Child()
    for verdict, function, argument in [
        ("crashed", os._exit, 3), ("hung", time.sleep, 60), ("memory", eval, "len(b'x' * (300 << 20))"),
    ]:  # fmt: skip
        with pytest.raises(ChildDied) as caught:
            child.ask(function, argument)
        assert caught.value.verdict == verdict
        assert child.ask(len, "four") == 4
    child.stop()


def test_headers_at_their_extremes(tmp_path: Path, number: int | None = 1000):
    """A seeded choice of every field of every container at every extreme; number=None takes all of them."""
    bases = make_bases()
    untouched = [Variant(base.name, "no change", base.content) for base in bases.values()]
    made = untouched + header_variants(bases, number) + structure_variants(bases)
    judged = list(judge(made, bases, tmp_path))
    print("\n" + table(judged))
    assert not (failed := [result for result in judged if result.verdict in FAILED]), "\n".join(map(str, failed))
    assert not [result for result in judged[: len(untouched)] if result.verdict == "refused"]
    refused = [result for result in judged if result.verdict == "refused"]
    assert 0.2 < len(refused) / len(judged) < 0.8
    for result in refused:
        assert result.reason in REASONS and result.detail and "\n" not in result.detail, result
    for base in bases:
        assert {result.verdict for result in judged if result.variant.base == base} > {"refused"}, base

"""Decodes one file to its end and describes it, or says why it is rejected."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import msgspec
import numpy as np
import soundfile
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from mert_foundry.pipeline.audio.audio_file import AudioHeader
from mert_foundry.pipeline.audio.decode import AudioDigest, check_length, open_audio
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.file_tags import read_tags
from mert_foundry.pipeline.audio.levels import Levels
from mert_foundry.pipeline.audio.resample import mono_to_int16, to_mono
from mert_foundry.pipeline.frames import AUDIO_VERSION, nearest_rate
from mert_foundry.pipeline.manifest.placement import track_key
from mert_foundry.pipeline.manifest.rows import Reason, Reject, Track
from mert_foundry.pipeline.manifest.settings import ManifestConfig
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import file_sha256
from mert_foundry.pipeline.storage.patience import Patience

# Raise this number when the same file gets another row or reject although AUDIO_VERSION stays: earlier results are then
# not used.
ROW_VERSION = 1
NO_MEMORY = "can't allocate memory"  # how torch says it, in a RuntimeError


@dataclass(frozen=True)
class Examined:
    """The result of a file.

    is_lasting: whether the result holds until the file changes; it does not when the storage failed. sha256: of the
    file's bytes; empty when they were not read.
    """

    result: Track | Reject
    is_lasting: bool
    sha256: str = ""

    @property
    def seconds(self) -> float:
        """Length of the audio; 0 for a reject."""
        return self.result.seconds if isinstance(self.result, Track) else 0.0


ExamineAll = Callable[[Callable[[str], Examined], list[str], int], Iterable[Examined]]  # results in any order


def examine_in_threads(examine: Callable[[str], Examined], paths: list[str], workers: int) -> Iterator[Examined]:
    """The result of each path, in order.

    A decoder that crashes ends this process, so commands use other processes instead.
    """
    with ThreadPoolExecutor(workers) as threads:
        yield from threads.map(examine, paths)


def result_version(config: ManifestConfig) -> dict:
    """Everything but the file and its path that a result of an `Examiner` depends on.

    (Group and split are for `place` to say.)
    """
    settings = ("max_seconds", "length_tolerance_seconds")
    libraries = {name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())}
    return {
        "row_version": ROW_VERSION,
        "audio_version": AUDIO_VERSION,
        "libsndfile": soundfile.__libsndfile_version__,
        "av": av.__version__,
        **libraries,
        **{name: getattr(config, name) for name in settings},
        **({"tags": config.tags} if config.tags else {}),
    }


class Examiner:
    """Decodes and describes one file after another, or says why a file is rejected.

    Whether a track is of use is for `judge` to say.

    When the storage fails to give a file, it is asked again for `patience` seconds. If that was in vain, each next file
    is asked for only once, until the storage gives one.
    """

    def __init__(self, config: ManifestConfig):
        # In another process the working folder may be another.
        self._config = config.model_copy(update={"root": files.absolute(config.root)})
        self._storage_fails = False

    def __call__(self, path: str) -> Examined:
        """The result of a file, whose path is relative to the root.

        Raises AssertionError for a fault of this program.
        """
        patience = Patience(0.0 if self._storage_fails else self._config.patience)
        try:
            examined = patience.read(files.join(self._config.root, path), partial(_attempt, path, self._config))
        except OSError as error:  # `Patience` turns the clients' own error classes into this one
            self._storage_fails = True
            return Examined(reject_storage(path, error), is_lasting=False)
        except Exception as error:
            raise AssertionError(f"{path}: a fault of this program, not of the file") from error
        self._storage_fails = False
        return examined


def _attempt(path: str, config: ManifestConfig) -> Examined:
    """The result of a file. Raises the storage's error when the storage fails to give the file."""
    try:
        with files.local_copy(config.root, path) as local:
            return _examine_local(path, local, config)
    except OSError as error:
        if not is_own_fault(error, files.open_filesystem(config.root)[0]):
            raise
        return Examined(Reject(path=path, reason="unreadable", detail=_detail(error)), is_lasting=False)


def _examine_local(path: str, local: Path, config: ManifestConfig) -> Examined:
    """The result of a file on the local disk. It is not lasting when the file changes meanwhile."""
    before, sha256 = _state(local), ""
    try:
        num_bytes = _size(local)
        sha256 = file_sha256(local)
        track = _describe(path, local, num_bytes, sha256, config)
    except DecodeError as error:
        is_lasting = _state(local) == before and not isinstance(error.__cause__, MemoryError)
        return Examined(reject_decoding(path, error), is_lasting, sha256)
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or NO_MEMORY in str(error)):
            raise
        return Examined(Reject(path=path, reason="unreadable", detail=_detail(error)), is_lasting=False, sha256=sha256)
    return Examined(track, _state(local) == before, sha256)


def _state(local: Path) -> tuple[int, int, int, int]:
    found = local.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_sha256(path: str, config: ManifestConfig) -> str | None:
    """SHA-256 of a file (path relative to the root); None when it cannot be read now, for which an `Examiner` finds the
    reason.
    """

    def attempt() -> str | None:
        with files.local_copy(config.root, path) as local:
            return file_sha256(local) if local.is_file() else None  # to read a pipe could wait for ever

    try:
        return Patience(0.0).read(path, attempt)
    except OSError:
        return None


def is_own_fault(error: Exception, filesystem: AbstractFileSystem) -> bool:
    """Whether the file or folder itself is at fault, so that asking again is of no use.

    So it is when a local disk finds a broken link or a file of somebody else. An object store also refuses files that
    are there, when the credentials have expired.
    """
    return isinstance(filesystem, LocalFileSystem) and files.is_fault_of_file(error)


def reject_decoding(path: str, error: DecodeError) -> Reject:
    """The reject of a file that cannot be used."""
    return msgspec.convert({"path": path, "reason": error.reason, "detail": error.detail}, Reject)  # checks the reason


def reject_again(path: str, error: DecodeError | OSError) -> Reject:
    """The reject of a file that was scanned, and cannot be decoded once more."""
    if isinstance(error, DecodeError):
        return reject_decoding(path, error)
    reason: Reason = "unreadable" if files.is_fault_of_file(error) else "unreachable"
    return Reject(path=path, reason=reason, detail=" ".join(str(error).split()))


def lost(path: str, message: str) -> Examined:
    """The result of a file whose workers died, of whatever; the next scan tries again."""
    return Examined(Reject(path=path, reason="unreachable", detail=message), is_lasting=False)


def reject_storage(path: str, error: Exception) -> Reject:
    """The reject of a file that the storage did not give.

    `error` may be that of `Patience`, whose cause is then named.
    """
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    reason: Reason = "unreadable" if isinstance(cause, FileNotFoundError) else "unreachable"
    return Reject(path=path, reason=reason, detail=_detail(cause))


def _detail(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or f"{type(error).__name__}: {error}").split())


def crashed(path: str) -> Examined:
    """The result of a file whose decoding ended the process.

    Something else may have ended it, so the next scan tries again.
    """
    detail = "the decoder crashed: its process died, also when it had this file alone"
    return Examined(Reject(path=path, reason="unreadable", detail=detail), is_lasting=False)


def _describe(path: str, local: Path, num_bytes: int, sha256: str, config: ManifestConfig) -> Track:
    """The row of a track, with no group and split yet."""
    levels = Levels()
    with open_audio(local) as audio:
        header = audio.header
        digest = AudioDigest(header)
        blocks = _not_too_long(digest.follow(audio.blocks()), header, config)
        mix = levels.follow_mix(map(to_mono, blocks))
        for _ in levels.follow_stored(mono_to_int16(mix, header.sample_rate)):
            pass
    check_length(header, digest.num_samples, config.length_tolerance_seconds)
    seconds = digest.num_samples / header.sample_rate
    loudness = levels.loudness_lufs()
    return Track(
        key=track_key(path),
        path=path,
        bytes=num_bytes,
        sha256=sha256,
        audio_sha256=digest.hexdigest(),
        sample_rate=header.sample_rate,
        channels=header.channels,
        num_samples=digest.num_samples,
        seconds=round(seconds, 6),
        header_seconds=None if header.num_samples is None else round(header.num_samples / header.sample_rate, 6),
        format=header.format,
        group="",
        split="",
        peak_dbfs=round(float(levels.peak_dbfs), 2),
        loudness_lufs=None if loudness is None else round(float(loudness), 1),
        clipped_share=round(float(levels.clipped_share), 6),
        stream=header.stream,
        notes=tuple(_notes(header)),
        extra=(read_tags(local, config.tags) or None) if config.tags else None,
    )


def _size(local: Path) -> int:
    """Size of a file in bytes. Raises DecodeError when the path is no regular file, or the file is empty."""
    num_bytes = local.stat().st_size
    if not local.is_file():
        # Reading a pipe or a device could wait for ever; links to folders could form a circle.
        raise DecodeError("not_audio", "a linked folder" if local.is_dir() else "a pipe, socket or device")
    if num_bytes == 0:
        raise DecodeError("unreadable", "0 bytes")
    return num_bytes


def _not_too_long(blocks: Iterable[np.ndarray], header: AudioHeader, config: ManifestConfig) -> Iterator[np.ndarray]:
    """Pass blocks `[channels, n]` on.

    Raises DecodeError `too_long` as soon as the track is known to be, without decoding the rest.
    """
    seconds = (header.num_samples or 0) / header.sample_rate
    if seconds > config.max_seconds:
        raise DecodeError("too_long", f"{seconds:.3f} s by its header, at most {config.max_seconds} s are asked for")
    decoded = 0
    for block in blocks:
        decoded += block.shape[1]
        if decoded > config.max_seconds * header.sample_rate:
            raise DecodeError("too_long", f"more than {config.max_seconds} s")
        yield block


def judge(result: Track | Reject, config: ManifestConfig) -> Track | Reject:
    """The track, or its reject when the settings exclude it, naming both values.

    This uses measured values and decodes nothing.
    """
    if isinstance(result, Reject):
        return result
    assert result.peak_dbfs is not None and result.clipped_share is not None, "examine measures them"
    if result.num_samples / result.sample_rate < config.min_seconds:
        detail = f"{result.seconds:.3f} s, at least {config.min_seconds} s are asked for"
        return Reject(path=result.path, reason="too_short", detail=detail)
    if result.clipped_share > config.max_clipped_share:
        share = f"{result.clipped_share:.2%} of the samples lie more than 1 dB beyond full scale"
        detail = f"{share}, at most {config.max_clipped_share:.2%} may"
        return Reject(path=result.path, reason="clipped", detail=detail)
    if result.peak_dbfs < config.silence_dbfs:
        peak = f"peak {result.peak_dbfs:.1f} dBFS in the mono mix at 24 kHz"
        return Reject(
            path=result.path, reason="silent", detail=f"{peak}, at least {config.silence_dbfs} dBFS is asked for"
        )
    return result


def _notes(header: AudioHeader) -> list[str]:
    rate = nearest_rate(header.sample_rate)
    return [*header.notes, *([f"resampled as {rate} Hz"] if rate != header.sample_rate else [])]

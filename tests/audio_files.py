"""Sounds and audio files for tests, and the `mert` command as a user starts it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av
import numpy as np
import soundfile
from forked import Forked, forked_mert

from mert_foundry.pipeline.audio.blocks import to_int16

MUSIC = Path(__file__).parent / "data" / "music"
CLIPS = sorted(str(path.relative_to(MUSIC)) for path in MUSIC.rglob("*") if path.is_file())
# PyAV's encoder and container for what soundfile cannot write.
ENCODED_BY_AV = {"m4a": ("aac", "ipod"), "tta": ("tta", "tta"), "wv": ("wavpack", "wv"), "ac3": ("ac3", "ac3")}
# Ray's workers are as nice as 15 by default: beside other work they would hardly begin.
PROMPT = {"RAY_worker_niceness": "0"}
SUBTYPES = {"opus": "OPUS", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}


def tone(frequency: float, seconds: float, rate: int = 24_000) -> np.ndarray:
    """A sine at half of full scale, float32 `[T]`."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def noise(seconds: float, rate: int = 24_000, seed: int = 0, channels: int = 1) -> np.ndarray:
    """White noise at -20 dB, float32 `[T]`, or `[T, channels]` when there are several."""
    values = 0.1 * np.random.default_rng(seed).standard_normal((round(seconds * rate), channels))
    return values.astype(np.float32) if channels > 1 else values[:, 0].astype(np.float32)


def rising_tone(seconds: float) -> np.ndarray:
    """A tone that rises by 400 Hz a second, in noise, int16 `[T]` at 24 kHz."""
    time = np.arange(round(seconds * 24_000)) / 24_000
    return to_int16(0.3 * np.sin(2 * np.pi * 200 * time**2).astype(np.float32) + noise(seconds) / 10)


def write_audio(path: Path, audio: np.ndarray, rate: int = 24_000, subtype: str | None = None) -> Path:
    """Write `[T]` or `[T, channels]` in the format of the name's extension; makes folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    extension = path.suffix[1:]
    if extension in ENCODED_BY_AV:
        _encode(path, np.atleast_2d(audio.T), rate, *ENCODED_BY_AV[extension])
    else:
        container = {"opus": "OGG"}.get(extension, extension.upper())
        soundfile.write(path, audio, rate, subtype or SUBTYPES.get(extension, "PCM_16"), format=container)
    return path


def decoded(path: Path) -> np.ndarray:
    """A file as shards hold it: int16 `[T]`, 24 kHz mono, whole frames of 320 samples."""
    from mert_foundry.pipeline.audio.decoding import decoding

    with decoding(path) as file:
        audio = np.concatenate([np.zeros(0, np.int16), *file.blocks])
    return audio[: len(audio) // 320 * 320]


def mert(*arguments: object, **settings: object) -> subprocess.CompletedProcess:
    """Run the `mert` command to its end."""
    return subprocess.run(
        mert_command(*arguments), capture_output=True, text=True, timeout=300, env=mert_environment(), **settings
    )


def mert_command(*arguments: object) -> list[str]:
    """The console script that lies beside this Python, with its arguments."""
    return [str(Path(sys.executable).with_name("mert")), *map(str, arguments)]


def mert_environment() -> dict[str, str]:
    """The environment of a command: one arithmetic thread, no Ray cluster that happens to run; one that it starts is
    `PROMPT`.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return inherited | {"OMP_NUM_THREADS": "1"} | PROMPT


def _encode(path: Path, audio: np.ndarray, rate: int, codec: str, container: str) -> None:
    layout = {1: "mono", 2: "stereo"}[len(audio)]
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        stream.format = next(
            (form for form in stream.codec.audio_formats if form.name[:3] == "s16"), stream.format
        )  # not 8 bits
        integers = np.clip(np.rint(audio * 32768), -32768, 32767).astype("<i2").T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(integers), format="s16", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)


@contextmanager
def started(arguments: list[str], log: Path) -> Iterator[subprocess.Popen]:
    """The command at work, as leader of a process group, which is gone at the end."""
    with open(log, "w") as file:
        process = subprocess.Popen(
            mert_command(*arguments),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=mert_environment(),
            start_new_session=True,
        )
    with _gone_at_the_end(process):
        yield process


@contextmanager
def started_by_fork(arguments: list[str], log: Path, **environment: str) -> Iterator[Forked]:
    """As `started`, for a command that does not start Ray; it has its imports already."""
    log.write_text("")
    process = forked_mert(arguments, log, log, mert_environment() | environment)
    with _gone_at_the_end(process):
        yield process


@contextmanager
def _gone_at_the_end(process: subprocess.Popen | Forked) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def wait_until(process: subprocess.Popen | Forked, condition: Callable[[], bool]) -> None:
    """Until the condition holds; the process must not end before."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it was done before the moment came"
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.02)

"""The two labelling paths of `mert bench label`, each in processes of its own that time their stages.

The published path works as MERT's scripts do: whole files through `encodec` and nnAudio, one after the other.
"""

import multiprocessing
import os
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
import soundfile
import torch
from encodec.utils import convert_audio
from nnAudio.features.cqt import CQT1992v2
from torch import Tensor

from mert_foundry.jobs.benchmarks.measurement import StageClock, peak_memory
from mert_foundry.pipeline.audio.blocks import to_float, to_int16
from mert_foundry.pipeline.audio.decode import open_audio
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.resample import resample_to_int16
from mert_foundry.pipeline.audio.track_audio import TrackAudio
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.labelling.process_shard import DECODE_THREADS
from mert_foundry.pipeline.shards.format import encode_flac
from mert_foundry.pipeline.teachers.codec.weights import load_codec
from mert_foundry.pipeline.teachers.cqt import CqtTeacherConfig
from mert_foundry.pipeline.teachers.encodec import EncodecTeacherConfig
from mert_foundry.pipeline.teachers.registry import build_teachers

STAGES = ("decode", "resample", "encodec", "quantiser", "cqt", "flac")
TEACHER_STAGES = ("encodec", "quantiser", "cqt")
SEGMENT_SAMPLES = 30 * SAMPLE_RATE
DTYPES = {"audio": "int16", "codes": "uint16", "cqt": "float32", "latents": "float32"}


@dataclass(frozen=True)
class FileLabels:
    """What a path made of one file: arrays on disk."""

    folder: Path
    columns: dict[str, int]  # of each array, whose rows are frames (samples, for `audio`)
    audio_seconds: float

    def load(self, name: str) -> np.ndarray:
        """`audio` int16 `[T, 1]`, `codes` uint16 `[F, K]`, `cqt` float32 `[F, bins]` or `latents` float32 `[F, D]`."""
        return np.memmap(self.folder / name, DTYPES[name], "r").reshape(-1, self.columns[name])


@dataclass(frozen=True)
class Job:
    """A file to label into a new folder; `audio` is the int16 file that teachers hear, if another path decoded it."""

    path: Path
    folder: Path
    audio: Path | None = None


class Labeller(Protocol):
    """Labels files, times its stages on its clock, and returns the labels of each file, or why it cannot be used.

    Raises RuntimeError, MemoryError or DecodeError when it cannot go on.
    """

    clock: StageClock

    def label(self, jobs: Sequence[Job]) -> list[FileLabels | DecodeError]: ...


class Output:
    """Writes arrays row by row into files of a folder."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder = folder
        self.columns: dict[str, int] = {}

    def append(self, name: str, rows: np.ndarray) -> None:
        """Add rows `[n, columns]` to an array."""
        self.columns[name] = rows.shape[1]
        with open(self.folder / name, "ab") as file:
            file.write(rows.astype(DTYPES[name]).tobytes())

    def finish(self, num_samples: int) -> FileLabels:
        """What was written, for so many samples."""
        return FileLabels(self.folder, self.columns, num_samples / SAMPLE_RATE)


class OurLabeller:
    """The stages of `mert label`, one after the other; on a CPU each in one thread, for a GPU decoding in many."""

    def __init__(self, codec: EncodecTeacherConfig, cqt: CqtTeacherConfig, device: str):
        torch.set_num_threads(1)
        self.encodec, self.cqt = build_teachers([codec, cqt], device)
        self.device = device
        self.decode_threads = 1 if device == "cpu" else DECODE_THREADS
        self.clock = StageClock()

    def label(self, jobs: Sequence[Job]) -> list[FileLabels | DecodeError]:
        with ThreadPoolExecutor(self.decode_threads) as pool, ExitStack() as open_tracks:
            start = time.perf_counter()
            decoded, seconds = zip(*pool.map(lambda job: _decode(job, self.device), jobs))
            # The threads decode at the same time: each stage took its share of the time that went by.
            taken, passed = sum(seconds, Counter()), time.perf_counter() - start
            self.clock.seconds.update({stage: passed * part / taken.total() for stage, part in taken.items()})
            tracks = [
                (open_tracks.enter_context(track), Output(job.folder))
                for job, track in zip(jobs, decoded)
                if isinstance(track, TrackAudio)
            ]
            self._encodec(tracks)
            for track, output in tracks:
                self._cqt(track, output)
                self._flac(track, output)
            labels = iter([output.finish(track.num_frames * HOP) for track, output in tracks])
            return [next(labels) if isinstance(track, TrackAudio) else track for track in decoded]

    def _encodec(self, tracks: list[tuple[TrackAudio, Output]]) -> None:
        latents = self.encodec.encoder.latents(track.blocks() for track, _ in tracks)
        for batch, pieces in self.clock.follow("encodec", ((_finished(batch), pieces) for batch, pieces in latents)):
            with self.clock.stage("quantiser"):
                codes = self.encodec.quantizer.encode(batch).cpu().numpy()
            for slot, piece in pieces.items():
                tracks[piece.track][1].append("codes", codes[:, slot, : len(piece.samples) // HOP].T)

    def _cqt(self, track: TrackAudio, output: Output) -> None:
        for magnitudes in self.clock.follow("cqt", self.cqt.transform.stream(track.blocks(), self.cqt.chunk_frames)):
            with self.clock.stage("cqt"):
                self.cqt.store(magnitudes)
            output.append("cqt", magnitudes.cpu().numpy())

    def _flac(self, track: TrackAudio, output: Output) -> None:
        for start in range(0, track.num_frames * HOP, SEGMENT_SAMPLES):
            segment = track.read(start, SEGMENT_SAMPLES)
            with self.clock.stage("flac"):
                encode_flac(segment)
            output.append("audio", segment[:, None])


def _decode(job: Job, device: str) -> tuple[TrackAudio | DecodeError, Counter[str]]:
    """The decoded file or why it cannot be used, and the seconds that it took by stage."""
    clock = StageClock()
    try:
        with open_audio(job.path) as file, clock.stage("resample"):
            blocks = clock.follow("decode", file.blocks())
            track = TrackAudio(resample_to_int16(blocks, file.header.sample_rate, device=device))
    except DecodeError as error:
        return error, clock.seconds
    if not track.num_frames:
        track.close()
        return DecodeError("too_short", f"no whole frame of {HOP} samples"), clock.seconds
    return track, clock.seconds


class ReferenceLabeller:
    """The package's codec and nnAudio's transform on whole files, with all threads that torch takes by itself."""

    def __init__(self, codec: EncodecTeacherConfig, cqt: CqtTeacherConfig, device: str):
        self.device = device
        if device == "cpu":
            # A long file may need more memory than there is. With a limit that is an error; without, the system kills a
            # process.
            available = psutil.virtual_memory().available
            resource.setrlimit(resource.RLIMIT_DATA, (available, available))
        # By default torch rounds to TF32 on a GPU, and these labels are what ours are compared with.
        torch.backends.cudnn.allow_tf32 = False
        self.clock = StageClock()
        self.codec = load_codec(codec.weights).to(device)
        self.codebooks = codec.codebooks
        self.transform = CQT1992v2(
            sr=SAMPLE_RATE,
            hop_length=HOP,
            fmin=cqt.lowest_frequency,
            n_bins=cqt.bins,
            norm=1,
            window="hann",
            bins_per_octave=cqt.bins_per_octave,
            pad_mode="constant",
            output_format="Magnitude",
            verbose=False,
        ).to(device)

    def label(self, jobs: Sequence[Job]) -> list[FileLabels]:
        return [self._label(job) for job in jobs]

    @torch.inference_mode()
    def _label(self, job: Job) -> FileLabels:
        clock, output = self.clock, Output(job.folder)
        with clock.stage("decode"):
            samples, rate = read_whole(job.path)
        with clock.stage("resample"):
            # convert_audio takes at most two channels.
            samples = samples if len(samples) <= 2 else samples.mean(0, keepdim=True)
            resampled = convert_audio(samples, rate, SAMPLE_RATE, 1)[0].numpy()
        output.append("audio", to_int16(resampled)[:, None])
        heard = torch.from_numpy(to_float(np.fromfile(job.audio, "<i2"))).to(self.device)[None]
        with clock.stage("encodec"):
            latents = _finished(self.codec.encoder(heard[None]))
        with clock.stage("quantiser"):
            codes = self.codec.quantizer.vq.encode(latents, n_q=self.codebooks)[:, 0].cpu().numpy()
        with clock.stage("cqt"):
            magnitudes = self.transform(heard)[0].cpu().numpy()
        output.append("latents", latents[0].T.cpu().numpy())
        output.append("codes", codes.T)
        output.append("cqt", magnitudes.T[: codes.shape[1]])
        return output.finish(heard.shape[1])


def read_whole(path: Path) -> tuple[Tensor, int]:
    """Samples `[C, T]` and Hz, by libsndfile, or by our decoder for what it does not know (AAC, WMA)."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return torch.from_numpy(samples.T), rate
    except soundfile.SoundFileError:
        with open_audio(path) as file:
            return torch.from_numpy(np.concatenate(list(file.blocks()), axis=1)), file.header.sample_rate


def _finished(output: Tensor) -> Tensor:
    if output.is_cuda:
        torch.cuda.synchronize()
    return output


class Contender:
    """One of the paths that are compared: its processes, and the sums of what they did."""

    def __init__(self, labeller: Callable[..., Labeller], processes: int, *arguments: object):
        spawn = multiprocessing.get_context("spawn")
        self.processes = processes
        self._pool = ProcessPoolExecutor(processes, spawn, initializer=_start, initargs=(labeller, *arguments))
        self.busy = 1  # processes that had work
        self.audio = self.wall = 0.0
        self.stages: Counter[str] = Counter()
        self.peak_bytes = 0
        self.failure = ""
        list(self._pool.map(time.sleep, [0.1] * processes))  # all are up and have their teachers

    def label(self, jobs: Sequence[Job]) -> list[FileLabels | DecodeError]:
        """Label files; none once the path has failed, as for want of memory."""
        if self.failure:
            return []
        # Several are given one file at a time, so that none waits for the others; one alone may label all of them
        # together.
        calls = [[job] for job in jobs] if self.processes > 1 else [jobs]
        self.busy = max(self.busy, min(self.processes, len(calls)))
        start = time.perf_counter()
        try:
            results = list(self._pool.map(_label, calls))
        except (RuntimeError, MemoryError, DecodeError, BrokenProcessPool) as error:
            self.failure = " ".join(str(error).split())[:200] or type(error).__name__
            return []
        self.wall += time.perf_counter() - start
        done = []
        for labels, seconds, peak_bytes in results:
            done += labels
            self.stages.update(seconds)
            self.peak_bytes = max(self.peak_bytes, peak_bytes)
        self.audio += sum(labels.audio_seconds for labels in done if isinstance(labels, FileLabels))
        return done

    def rates(self) -> dict[str, float]:
        """Times real time of each stage, as if the processes with work did nothing else, and of the whole."""
        seconds = {name: self.stages[name] / self.busy for name in STAGES if self.stages[name]}
        seconds["teachers"] = sum(seconds.get(name, 0.0) for name in TEACHER_STAGES)
        seconds["whole"] = self.wall
        return {name: self.audio / taken for name, taken in seconds.items() if taken}

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)


_labeller: Labeller  # of a worker process


def _start(labeller: Callable[..., Labeller], *arguments: object) -> None:
    global _labeller
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _labeller = labeller(*arguments)


def _end_with_parent() -> None:
    """Without this, the workers of a process that is killed would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _label(jobs: Sequence[Job]) -> tuple[list[FileLabels | DecodeError], Counter[str], int]:
    """The labels, the seconds that each stage took, and the peak bytes of this process so far."""
    before = Counter(_labeller.clock.seconds)
    labels = _labeller.label(jobs)
    return labels, _labeller.clock.seconds - before, peak_memory()

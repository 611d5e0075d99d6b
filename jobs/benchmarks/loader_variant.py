"""One loader, measured in this process; `mert bench loader` starts it.

python -m mert_foundry.jobs.benchmarks.loader_variant '{"loader": "ours", "folder": "/tmp/examples", "audio_member":
"flac"}'
"""

import json
import resource
import sys
import time
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path

import psutil
import torch
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.jobs.benchmarks.loader_peers import PEERS, SEED, Batch
from mert_foundry.jobs.benchmarks.measurement import Figures
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.training.device_batch import to_device
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.shards.format import AudioMember
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.stream.batch_stream import BatchStream, StreamConfig

OURS = "ours"
OURS_BY_VISITS = "ours, 4 crops a visit"
WARM_UP = 16  # batches before the clock starts: workers are up and what is made ahead is made


class LoaderSettings(BaseModel):
    """What is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loader: str = Field(description="ours, by single crops or by visits, or one of PEERS")
    folder: Path = Field(description="where `mert bench loader` wrote the examples")
    audio_member: AudioMember = Field(description="how audio is stored")
    frames: int = Field(375, gt=0, description="length of a crop in target frames, 75 per second")
    batch: int = Field(16, gt=0, description="crops a batch")
    seconds: float = Field(2.0, gt=0, description="time to measure each form for")


def open_loader(settings: LoaderSettings) -> Generator[Batch, None, None]:
    """Endless batches in the stored types."""
    if settings.loader in (OURS, OURS_BY_VISITS):
        folder = str(settings.folder / settings.audio_member)
        crops = 4 if settings.loader == OURS_BY_VISITS else 1
        config = StreamConfig(batch_size=settings.batch, crop_samples=HOP * settings.frames, crops_per_visit=crops)
        with BatchStream(folder, load_index(folder), "train", config, SEED) as stream:
            for batch, _ in stream:
                yield batch
    else:
        flac = settings.audio_member == "flac"
        yield from PEERS[settings.loader](settings.folder, flac, settings.frames, settings.batch)


def measure(settings: LoaderSettings) -> Figures:
    """The figures of both forms of a batch: `stored`, for a device to convert, and `converted` on the CPU."""
    index = load_index(str(settings.folder / settings.audio_member))
    fields = set(HeadSpec.model_fields)
    heads = [HeadSpec(**spec.model_dump(include=fields)) for spec in index.targets]
    batches = open_loader(settings)
    figures = {}
    for form in ("stored", "converted"):
        for batch in islice(batches, WARM_UP):
            to_device(batch, heads, torch.device("cpu"))
        figures[form] = _measure_form(batches, heads if form == "converted" else None, settings)
    batches.close()
    return figures


def _measure_form(batches: Iterator[Batch], heads: list[HeadSpec] | None, settings: LoaderSettings) -> Figures:
    examples = 0
    cpu, (calls, read) = cpu_seconds(), read_calls()
    begin = time.perf_counter()  # after the readings, which take longer than a short measurement on a busy machine
    while not examples or time.perf_counter() - begin < settings.seconds:
        batch = next(batches)
        examples += len(batch["audio"])
        if heads is not None:
            to_device(batch, heads, torch.device("cpu"))
    cpu = cpu_seconds() - cpu
    calls, read = (now - before for now, before in zip(read_calls(), (calls, read)))
    audio = examples * settings.frames * HOP / SAMPLE_RATE
    return per_cpu_second(cpu, audio, examples) | {
        "read_calls_per_example": calls / examples,
        "bytes_read_per_audio_second": read / audio,
    }


def per_cpu_second(cpu: float, audio: float, examples: int) -> Figures:
    """The figures of so many CPU seconds. Raises RuntimeError when the clock of CPU time did not move."""
    if cpu <= 0:
        raise RuntimeError(f"CPU time of {examples} examples is not known: {cpu:g} s; measure for longer")
    return {"audio_seconds_per_cpu_second": audio / cpu, "cpu_milliseconds_per_example": 1000 * cpu / examples}


def cpu_seconds() -> float:
    """User and system time of this process and of all it has started, those that ended included."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    alive = (sum(child.cpu_times()[:4]) for child in psutil.Process().children(recursive=True))
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime + sum(alive)


def read_calls() -> tuple[int, int]:
    """Read calls and bytes read by this process and its workers so far (Linux); memory maps are not seen there."""
    this = psutil.Process()
    counters = [process.io_counters() for process in (this, *this.children(recursive=True))]
    return sum(each.read_count for each in counters), sum(each.read_chars for each in counters)


if __name__ == "__main__":
    torch.set_num_threads(1)  # threads that wait for each other burn CPU time
    print(json.dumps(measure(LoaderSettings.model_validate_json(sys.argv[1]))))

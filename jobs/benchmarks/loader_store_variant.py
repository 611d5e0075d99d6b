"""Our stream from an object store, measured in this process; `mert bench loader --store` starts it."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.jobs.benchmarks.loader_peers import SEED, Batch
from mert_foundry.jobs.benchmarks.loader_store import BUCKET, read_counts
from mert_foundry.jobs.benchmarks.loader_variant import cpu_seconds, per_cpu_second
from mert_foundry.jobs.benchmarks.measurement import Figures
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.shards.format import AudioMember
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.stream.batch_stream import BatchStream, StreamConfig

Way = Literal["local folder", "store, cache filled", "store, cache empty", "store, no cache"]
WAYS: tuple[Way, ...] = get_args(Way)
WARM_UP = 8  # batches, more than are made ahead


class StoreSettings(BaseModel):
    """What is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    way: Way = Field(description="where the shards come from")
    folder: Path = Field(description="shard folders by audio member")
    address: str = Field(description="of the store, which has the same folders in its bucket")
    audio_member: AudioMember = Field(description="how audio is stored")
    frames: int = Field(375, gt=0, description="length of a crop in target frames, 75 per second")
    batch: int = Field(16, gt=0, description="crops a batch")
    batches: int = Field(gt=0, description="to measure, for an epoch")


def measure(settings: StoreSettings) -> Figures:
    """Rate per CPU second, and requests and bytes of the store per audio second."""
    os.environ |= environment(settings.address)
    with tempfile.TemporaryDirectory(prefix="mert-bench-") as cache:
        if settings.way == "store, cache filled":
            for _ in open_stream(settings, cache, settings.batches):
                pass
        skipped = 0 if settings.way == "store, cache empty" else WARM_UP
        stream = open_stream(settings, cache, skipped + settings.batches)
        examples = 0
        cpu, counts = cpu_seconds(), read_counts(settings.address)
        for number, batch in enumerate(stream, start=1):
            examples += len(batch["audio"])
            if number == skipped:
                examples, cpu, counts = 0, cpu_seconds(), read_counts(settings.address)
        cpu, now = cpu_seconds() - cpu, read_counts(settings.address)
    audio = examples * settings.frames * HOP / SAMPLE_RATE
    shards = load_index(str(settings.folder / settings.audio_member)).shardlist
    return per_cpu_second(cpu, audio, examples) | {
        "requests_per_audio_second": (now["requests"] - counts["requests"]) / audio,
        "bytes_per_audio_second": (now["bytes"] - counts["bytes"]) / audio,
        "bytes_to_those_of_the_shards": (now["bytes"] - counts["bytes"]) / sum(shard.filesize for shard in shards),
    }


def open_stream(settings: StoreSettings, cache: str, batches: int) -> Iterator[Batch]:
    """So many batches in the stored types; its threads go on until the last was taken."""
    index = load_index(str(settings.folder / settings.audio_member))
    local = settings.way == "local folder"
    shards = str(settings.folder / settings.audio_member) if local else f"s3://{BUCKET}/{settings.audio_member}"
    limits = {"folder": cache, "bytes": sum(shard.filesize for shard in index.shardlist)}
    values: dict[str, object] = {"batch_size": settings.batch, "crop_samples": HOP * settings.frames}
    values |= {"cache": limits} if settings.way.startswith("store, cache") else {}
    with BatchStream(shards, index, "train", StreamConfig.model_validate(values), SEED) as stream:
        for batch, _ in islice(stream, batches):
            yield batch


def environment(address: str) -> dict[str, str]:
    """What leads clients of S3 to the store."""
    keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
    return {"AWS_ENDPOINT_URL": address, **keys}


def upload(folders: Sequence[Path], address: str) -> None:
    """Copy shard folders into the bucket."""
    os.environ |= environment(address)
    import s3fs

    store = s3fs.S3FileSystem()
    store.mkdir(BUCKET)
    for folder in folders:
        store.put(sorted(str(path) for path in folder.iterdir()), f"{BUCKET}/{folder.name}/")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(StoreSettings.model_validate_json(sys.argv[1]))))

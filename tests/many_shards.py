"""How long the state of very many shards and their index take from an object store: python tests/many_shards.py 150000
documents

The set is synthetic: records as of 128 examples with 8 codebooks of 1,024 and a CQT of 84 bins, made when they are
read; a track a shard. With `documents` it has what labelling writes down of its records. The store serves from a
process of its own, 30 ms after each request.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np
from loopback_store import LoopbackStore
from msgspec.structs import replace

from mert_foundry.pipeline.labelling.plan import SegmentConfig, ShardTask
from mert_foundry.pipeline.manifest.rows import Track
from mert_foundry.pipeline.shards.record import ExampleEntry, ShardRecord, parse_record
from mert_foundry.pipeline.shards.record_sums import RecordSums, summarise_record
from mert_foundry.pipeline.shards.statistics import measure
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage.documents import json_bytes

LATENCY = 0.03
FRAMES, EXAMPLES = 2250, 128
CODES = TargetSpec(
    name="codes", kind="discrete", dtype="uint16", frame_rate=75, size=8, codebook_size=1024, fingerprint="a" * 64,
    teacher={}
)  # fmt: skip
CQT = TargetSpec(
    name="cqt", kind="continuous", dtype="float16", frame_rate=75, size=84, fingerprint="b" * 64, teacher={}
)
SPECS = [CODES, CQT]
NAME, PLAN = "train-000000", "0" * 64
TAR_BYTES = 200_000_000


def record_template() -> bytes:
    """The record of `NAME`, of plan `PLAN`."""
    rng = np.random.default_rng(0)
    frames = FRAMES * EXAMPLES
    suffixes = ["codes.npy", "cqt.npy", "flac", "json"]
    members = [
        ExampleEntry(
            key=f"a-track-of-the-corpus-{number}-00000",
            num_frames=FRAMES,
            members=dict.fromkeys(suffixes, (number * 1500000 + 512, 123456, 3123456789)),
        )
        for number in range(EXAMPLES)
    ]
    statistics = {
        "codes": measure(CODES, rng.integers(0, 1024, (8, frames)).astype(np.uint16)),
        "cqt": measure(CQT, rng.random((frames, 84)).astype(np.float16)),
    }
    record = ShardRecord(
        schema_version=1, url=f"{NAME}.tar", split="train", examples=EXAMPLES, num_frames=frames, seconds=frames / 75,
        bytes=TAR_BYTES,
        sha256="c" * 64, audio_member="flac", dropped={}, dropped_tracks=[], plan_fingerprint=PLAN, backend={},
        teachers={spec.name: spec.fingerprint for spec in SPECS}, statistics=statistics, members=members,
    )  # fmt: skip
    return json_bytes(record.model_dump(mode="json"))


def make_tasks(count: int) -> list[ShardTask]:
    """A plan of `count` shards, a track each."""
    values = {"bytes": 1, "sha256": "d" * 64, "sample_rate": 24_000, "channels": 1, "num_samples": EXAMPLES * FRAMES * 320,  # noqa: E501
              "seconds": EXAMPLES * FRAMES / 75, "format": "wav/pcm_16", "group": "g", "split": "train",
              "header_seconds": None}  # fmt: skip
    config = SegmentConfig()
    return [
        ShardTask.model_construct(
            name=f"train-{number:06d}",
            tracks=[Track(key=f"t{number}", path=f"{number}.wav", audio_sha256=f"{number:064x}", **values)],
            config=config,
        )
        for number in range(count)
    ]


def fill(store: LoopbackStore, count: int, with_documents: bool) -> None:
    """Put tars and records of a whole set into `shards/`, and the documents of what they say, as
    labelling leaves them.
    """
    template = record_template()
    plans = {task.name: task.fingerprint() for task in make_tasks(count)}

    def record(key: str) -> bytes:
        name = key.removeprefix("shards/").removesuffix(".json")
        return template.replace(NAME.encode(), name.encode()).replace(PLAN.encode(), plans[name].encode())

    header = bytes(10240)  # as a tar of no example begins
    for name in plans:
        store.add(f"shards/{name}.tar", TAR_BYTES, header)
        store.add(f"shards/{name}.json", len(template), record)
    if with_documents:
        add_documents(store, plans, record)


def add_documents(store: LoopbackStore, plans: dict[str, str], record: Callable[[str], bytes]) -> None:
    """The documents, a thousand shards each."""
    one = summarise_record(parse_record("", record_template(), NAME))
    for names in (list(plans)[start : start + 1000] for start in range(0, len(plans), 1000)):
        states = [
            replace(
                one.shards[0],
                name=name,
                plan_fingerprint=plans[name],
                record_sha256=hashlib.sha256(record(f"shards/{name}.json")).hexdigest(),
            )
            for name in names
        ]
        counts = {name: array * len(names) for name, array in one.counts.items()}
        content = RecordSums(one.teachers, one.audio_member, counts, states).to_bytes()
        store.add(f"shards/.records/{hashlib.sha256(content).hexdigest()[:16]}.json", len(content), content)


def serve(count: int, with_documents: bool, connection: Connection) -> None:
    """Serve a set; answers each message with the counts of requests since the last one."""
    store = LoopbackStore(LATENCY)
    fill(store, count, with_documents)
    with store.serving() as address:
        connection.send(address)
        while connection.recv():
            connection.send(dict(store.requests))
            store.requests.clear()


def main(count: int, with_documents: bool) -> None:
    """Measure the steps."""
    mine, other = get_context("spawn").Pipe()
    server = get_context("spawn").Process(target=serve, args=(count, with_documents, other), daemon=True)
    server.start()
    os.environ |= {"AWS_ENDPOINT_URL": mine.recv(), "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    tasks = make_tasks(count)
    for what, work in STEPS.items():
        begun, cpu = time.monotonic(), time.process_time()
        result = work("s3://bucket/shards", tasks)
        mine.send(True)
        figures = {"seconds": round(time.monotonic() - begun, 1), "cpu": round(time.process_time() - cpu, 1)}
        line = {"shards": count, "step": what, **figures, "requests": mine.recv(), "result": result}
        print(json.dumps(line), flush=True)
    mine.send(False)


def find_state(folder: str, tasks: list[ShardTask]) -> int:
    """Shards to do."""
    from mert_foundry.pipeline.labelling.resume import find_unfinished

    return len(find_unfinished(folder, tasks, SPECS, "flac", overwrite=False))


def make_index(folder: str, tasks: list[ShardTask]) -> str:
    """The digest of the index."""
    from mert_foundry.pipeline.shards.index import build_index

    names = [task.name for task in tasks]
    settings = {"name": "x", "manifest_sha256": "d" * 64, "segment_seconds": 30.0}
    return build_index(folder, names, SPECS, audio_member="flac", **settings).digest()


def write_down(folder: str, tasks: list[ShardTask]) -> int:
    """Documents of the state, which `mert label` writes before its work and in it."""
    from mert_foundry.pipeline.shards.catalogue import read_catalogue

    catalogue = read_catalogue(folder)
    catalogue.publish()
    return len(catalogue.documents)


STEPS = {"write down": write_down, "state": find_state, "index": make_index}

if __name__ == "__main__":
    main(int(sys.argv[1]), with_documents=sys.argv[2:] == ["documents"])

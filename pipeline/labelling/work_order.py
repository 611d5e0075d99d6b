"""What a labelling process is to do, and the process itself, which holds the teachers and does one shard at a time.

It knows nothing of who hands out the shards; jobs/label.py makes Ray actors of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel

from mert_foundry.pipeline.labelling.plan import ShardTask
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.shards.record_sums import RecordSums, summarise_record
from mert_foundry.pipeline.teachers.registry import TEACHERS, Teachers, build_teachers


@dataclass(frozen=True)
class WorkOrder:
    """What a worker must know besides its shards.

    Args:
        teachers: configs of teachers, in the order of index.json.
        root: folder or fsspec URL of the audio files.
        out: folder or fsspec URL for the shards.
        device: where tracks are resampled and the teachers run.
        decode_threads: threads that decode ahead.
    """

    teachers: Sequence[BaseModel]
    root: str
    out: str
    device: Literal["cpu", "cuda"]
    decode_threads: int


class Labeller:
    """Holds the teachers of one process and labels one shard at a time. Raises as `build_teachers` does.

    Args:
        teachers: the classes that the order's configs may be of.
    """

    def __init__(self, order: WorkOrder, teachers: Teachers = TEACHERS):
        # Another number of threads would add in another order, and might decide a near tie otherwise.
        torch.set_num_threads(1)
        self.order = order
        self.teachers = build_teachers(order.teachers, order.device, teachers)
        self.backend = {
            "device": torch.cuda.get_device_name() if order.device == "cuda" else order.device,
            "torch": torch.__version__,
        }
        for teacher in self.teachers:
            self.backend |= getattr(teacher, "backend", {})
        self.seconds = 0.0

    def run(self, task: ShardTask) -> RecordSums:
        """Label and publish one shard; returns what is kept of its record. Raises as `process_shard` does."""
        self.seconds = 0.0
        record = process_shard(
            task,
            self.teachers,
            self.order.root,
            self.order.out,
            self.backend,
            device=self.order.device,
            decode_threads=self.order.decode_threads,
            report=self._count,
        )
        self.seconds = 0.0
        return summarise_record(record)

    def seconds_done(self) -> float:
        """Audio seconds done of the shard at work."""
        return self.seconds

    def _count(self, seconds: float) -> None:
        self.seconds += seconds

"""What a labelling process is to do, and the process itself, which holds the teachers and does one shard at a time.

It knows nothing of who hands out the shards; jobs/label.py makes Ray actors of it.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from pydantic import BaseModel

from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.labelling.alone import find_death, limit_memory
from mert_foundry.pipeline.labelling.plan import ShardTask
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.shards.record_sums import RecordSums, summarise_record
from mert_foundry.pipeline.shards.text import TOKENIZER_NAME
from mert_foundry.pipeline.teachers.registry import TEACHERS, Teachers, build_teachers
from mert_foundry.pipeline.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class WorkOrder:
    """What a worker must know besides its shards.

    Args:
        teachers: configs of teachers, in the order of index.json.
        root: folder or fsspec URL of the audio files.
        out: folder or fsspec URL for the shards.
        device: where tracks are resampled and the teachers run.
        decode_threads: threads that decode ahead.
        tokenizer: content of the tokenizer.json that text is encoded with; none where the shards get no text.
    """

    teachers: Sequence[BaseModel]
    root: str
    out: str
    device: Literal["cpu", "cuda"]
    decode_threads: int
    tokenizer: bytes | None = None


class Labeller:
    """Holds the teachers of one process and labels one shard at a time. Raises as `build_teachers` does.

    Args:
        teachers: the classes that the order's configs may be of.
    """

    def __init__(self, order: WorkOrder, teachers: Teachers = TEACHERS):
        # Another number of threads would add in another order, and might decide a near tie otherwise.
        torch.set_num_threads(1)
        self.order = order
        self.kinds = teachers
        self.teachers = build_teachers(order.teachers, order.device, teachers)
        self.backend = {
            "device": torch.cuda.get_device_name() if order.device == "cuda" else order.device,
            "torch": torch.__version__,
        }
        for teacher in self.teachers:
            self.backend |= getattr(teacher, "backend", {})
        self.tokenizer = TextTokenizer(TOKENIZER_NAME, order.tokenizer) if order.tokenizer else None
        self.seconds = 0.0

    def run(self, task: ShardTask) -> RecordSums:
        """Label and publish one shard; returns what is kept of its record. Raises as `process_shard` does."""
        return self._label(task, {})

    def run_carefully(self, task: ShardTask) -> RecordSums:
        """As `run`, for a shard that processes have died of: a track that ends a process of its own,
        twice, is dropped.
        """
        refused = {}
        for track in task.tracks:
            alone = task.model_copy(update={"tracks": [track]})
            if death := find_death(partial(label_alone, self.order, self.kinds, alone)):
                refused[track.key] = DecodeError(death.reason, death.detail)
        return self._label(task, refused)

    def _label(self, task: ShardTask, refused: Mapping[str, DecodeError]) -> RecordSums:
        self.seconds = 0.0
        record = process_shard(
            task,
            self.teachers,
            self.order.root,
            self.order.out,
            self.backend,
            device=self.order.device,
            decode_threads=self.order.decode_threads,
            refused=refused,
            report=self._count,
            tokenizer=self.tokenizer,
        )
        self.seconds = 0.0
        return summarise_record(record)

    def seconds_done(self) -> float:
        """Audio seconds done of the shard at work."""
        return self.seconds

    def _count(self, seconds: float) -> None:
        self.seconds += seconds


def label_alone(order: WorkOrder, teachers: Teachers, task: ShardTask) -> None:
    """Label a shard of one track in a process of its own, for nobody: its memory is limited, and what it makes is
    thrown away.
    """
    with tempfile.TemporaryDirectory(prefix="mert-") as folder:
        labeller = Labeller(replace(order, out=folder), teachers)
        limit_memory()
        labeller.run(task)

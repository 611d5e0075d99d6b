"""How fast a run goes: its audio or tokens, where the time of a step goes, the used share of the devices, who is slow,
and when it will end.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mert_foundry.model.objective.operations import StepOperations, count_operations
from mert_foundry.model.objective.pretrain_model import PretrainModel
from mert_foundry.model.training.ranks import world_size
from mert_foundry.model.training.stages import Stage, work_between
from mert_foundry.model.training.step_clock import PARTS

BEHIND = 0.1  # of a step: a rank that the others wait so long for is named


class Amount(NamedTuple):
    """How a record names what the encoder reads: by the second, in units of `per_rate`, and in all, in units of
    `per_total`.
    """

    rate: str
    per_rate: int
    total: str
    per_total: int


def amount_of(input_name: str, sample_rate: int) -> Amount:
    """That of audio at a rate, Hz, or of tokens."""
    if input_name == "tokens":
        return Amount("tokens_per_second", 1, "tokens_read", 1)
    return Amount("audio_seconds_per_second", sample_rate, "hours_heard", sample_rate * 3600)


@dataclass
class _Sums:
    """Sums over the steps since a reading, which was at `begin`, in seconds.

    seconds: of each part, means over ranks. busy: [ranks], seconds of each rank's own parts.
    """

    begin: float
    steps: int = 0
    samples: float = 0.0
    operations: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    busy: Tensor = field(default_factory=lambda: torch.zeros(world_size(), dtype=torch.float64))


class Pace:
    """What the steps between two readings were like.

    Args:
        model: whose operations are counted. sample_rate: of the audio, Hz.
        step: from which the run goes on. total_steps: where it ends.
        peak: operations per second that one device can do at most; None where it is not known.
        clock: gives seconds; tests have their own.
        stages: of the whole run, from which the time left is told where steps differ in size; none: all steps are
            alike.
    """

    def __init__(
        self,
        model: PretrainModel,
        sample_rate: int,
        step: int,
        total_steps: int,
        peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        stages: Sequence[Stage] = (),
    ):
        self._frames_of = model.encoder.num_frames
        self._stages = stages
        self._operations_of_rows = functools.cache(functools.partial(count_operations, model))
        self._every_frame = bool(model.objective.unmasked_weight)
        self._amount = amount_of(model.encoder.input_name, sample_rate)
        self._step = step
        self._total_steps = total_steps
        self._peak = peak
        self._clock = clock
        self._first: tuple[int, float] | None = None  # step, and time at its end: it compiles and fills caches
        self._sums = _Sums(clock())

    def add(self, totals: Mapping[str, Tensor]) -> None:
        """Count one step by its sums over ranks (TrainStep.finish)."""
        sums, rows, samples = self._sums, float(totals["rows"]), float(totals["samples"])
        self._step += 1
        sums.steps += 1
        sums.samples += samples
        for part in PARTS:
            sums.seconds[part] += float(totals[f"seconds/{part}"]) / world_size()
        sums.busy = sums.busy + totals["busy"]
        count: StepOperations = self._operations_of_rows(round(samples / rows))
        predicted = totals["valid_frames" if self._every_frame else "masked_frames"]
        sums.operations += count(rows, float(predicted))
        self._first = self._first or (self._step, self._clock())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out time spent on something else than training steps."""
        begin = self._clock()
        yield
        self._sums.begin += self._clock() - begin

    def read(self, heard: int | None, memory: Tensor) -> dict[str, Any]:
        """What a record says of the steps since the last reading, which start again.

        heard: samples, or tokens, so far, of all ranks; None where they were not counted. memory: bytes at most, by
        rank.

        seconds: of a step, and of its parts (step_clock.py), means over ranks. mfu: operations
        (model/objective/operations.py) over what all devices can do at most. slowest: the rank that the others wait
        for, and how long, as a share of a step; from 10 % on. eta_seconds: until the last step, at the operations a
        second since the second step of this start, with validations and checkpoints.
        """
        sums, self._sums = self._sums, _Sums(self._clock())
        elapsed = max(self._sums.begin - sums.begin, 1e-9)
        found: dict[str, Any] = {
            self._amount.rate: sums.samples / self._amount.per_rate / elapsed,
            "data_wait_share": min(sums.seconds["wait"] / elapsed, 1.0),
            "seconds": {name: value / sums.steps for name, value in {"step": elapsed, **sums.seconds}.items()},
            "operations_per_second": sums.operations / elapsed,
            "memory_peak_bytes": float(memory.max()),
        }
        if self._peak is not None:
            found["mfu"] = sums.operations / elapsed / (self._peak * world_size())
        if heard is not None:
            found[self._amount.total] = heard / self._amount.per_total
        if (slowest := _slowest(sums.busy.tolist(), elapsed)) is not None:
            found["slowest"] = slowest
        if (left := self._seconds_left()) is not None:
            found["eta_seconds"] = left
        return found

    def _seconds_left(self) -> float | None:
        assert self._first is not None, "a step was counted"
        step, then = self._first
        if self._step == step:
            return None
        done, left = self._work(step, self._step), self._work(self._step, self._total_steps)
        return left * (self._clock() - then) / done

    def _work(self, before: int, after: int) -> float:
        """Operations of steps, as if every frame were predicted: in proportion to how long steps of stages take."""
        return work_between(self._stages, before, after, self._work_of_step)

    def _work_of_step(self, stage: Stage) -> float:
        return self._operations_of_rows(stage.samples)(stage.rows, stage.rows * self._frames_of(stage.samples))


def _slowest(busy: list[float], elapsed: float) -> dict[str, float] | None:
    """A rank with much more to do than the middle one, of two than the other, delays all. `busy`: seconds by rank."""
    behind = (max(busy) - median_low(busy)) / elapsed
    return {"rank": busy.index(max(busy)), "behind": behind} if behind >= BEHIND else None

"""Stages of a run: steps whose global batches have the same number of rows and samples."""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Stage(NamedTuple):
    """From step `first_step` on, counted from 1, a global batch has `rows` crops of `samples` samples,
    over all ranks.
    """

    first_step: int
    rows: int
    samples: int


def begins_at(stages: Sequence[Stage], step: int) -> Stage | None:
    """The stage that a step begins; None for a step within one, and for the first of the run, at which
    nothing changes.
    """
    return next((stage for stage in stages[1:] if stage.first_step == step), None)


def work_between(stages: Sequence[Stage], before: int, after: int, work_of_step: Callable[[Stage], float]) -> float:
    """The sum of `work_of_step` over the steps after step `before` up to step `after`; without stages, the number of
    steps.
    """
    if not stages:
        return after - before
    ends = [stage.first_step - 1 for stage in stages[1:]] + [after]
    steps = [max(0, min(end, after) - max(stage.first_step - 1, before)) for stage, end in zip(stages, ends)]
    return sum(count * work_of_step(stage) for count, stage in zip(steps, stages) if count)

"""The training loop over any iterable of (batch, position): steps, validation, checkpoints, resume.

`train` is called by every rank with its own slice of each global batch; torch.distributed is used when it is
initialised. A run killed at any time goes on from its newest whole checkpoint as if nothing had been: on a CPU, with
the same number of ranks, its losses are bit for bit the same.

Rank 0 copies what a checkpoint holds to the CPU, and a thread of it writes while training goes on (saving.py); a run
ends when the last is there. A validation begins when no write is under way, and where a checkpoint is due at the same
step, it comes first: a validation that fails on any rank costs no training. A start makes up for the validation that is
due at the step it goes on from, if metrics.jsonl does not hold it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mert_foundry.model.objective.pretrain_model import PretrainModel
from mert_foundry.model.objective.trivial import TrivialScores
from mert_foundry.model.runs.checkpoint import (
    CHECKPOINTS,
    CheckpointState,
    check_weights,
    checkpoint_step,
    has_average,
    latest_checkpoint,
    load_average,
    load_optimizer_state,
    load_state,
    load_weights,
)
from mert_foundry.model.runs.checkpoint_writer import CheckpointWriter
from mert_foundry.model.runs.kept import check_begins_anew
from mert_foundry.model.runs.publish import remove_leftovers
from mert_foundry.model.runs.rewinds import find_target, forget_rewinds_after, position_after, rewind
from mert_foundry.model.training.compilation import compile_parts
from mert_foundry.model.training.device_peaks import known_peak
from mert_foundry.model.training.memory_peak import memory_peak
from mert_foundry.model.training.optimizer import learning_rate, restore_moments
from mert_foundry.model.training.pace import Pace
from mert_foundry.model.training.precision import resolve_precision, set_precision
from mert_foundry.model.training.ranks import (
    agree_on_rank_zero,
    of_this_rank,
    rank,
    sum_across_ranks,
    wait_for_all,
    world_size,
)
from mert_foundry.model.training.recorder import Recorder
from mert_foundry.model.training.saving import Saving
from mert_foundry.model.training.sharding import holds_own_shard, resolve_replicas, shard, shard_like, unsharded
from mert_foundry.model.training.spikes import SpikeWatch
from mert_foundry.model.training.stages import Stage, begins_at
from mert_foundry.model.training.step_deadline import StepDeadline
from mert_foundry.model.training.train_step import PreparedBatch, StepResult, TrainStep, add_by_name
from mert_foundry.model.training.trainer_config import TrainerConfig
from mert_foundry.model.training.weight_average import WeightAverage

MOST_REWINDS = 3  # to the same checkpoint: what makes spikes is then not in the batches

Batch = dict[str, Any]
Position = Any
Stream = Callable[[Position | None, int], Iterator[tuple[Batch, Position]]]
Validation = Callable[[], Iterable[Batch]]


@dataclass(frozen=True)
class TrainResult:
    """How training ended: done, or stopped on request; after `step` steps; the last validation if any was made."""

    status: Literal["done", "stopped"]
    step: int
    checkpoint: Path
    validation: dict[str, Any] | None


@dataclass(frozen=True)
class TrainingData:
    """What a rank trains on.

    Args:
        stream: position or None, and steps done -> iterator of (batch, position after it), this rank's rows; batches as
            in model/training/device_batch.py. The position of rank 0 is stored, unread, as JSON.
        validation: a fresh iterable of this rank's validation batches at each call; ranks may have different
            numbers of them. None: no validation.
        validation_sets: names of what is validated on apart too, beside the whole: `set` of each of its batches is one
            of them.
        sample_rate: of the audio, Hz; for throughput, and for mask spans in seconds.
        stages: of the whole run, where the stream's batches change in rows or samples; none: they do not.
    """

    stream: Stream
    validation: Validation | None
    sample_rate: int
    validation_sets: Sequence[str] = ()
    stages: Sequence[Stage] = ()


def train(
    model: PretrainModel,
    data: TrainingData,
    config: TrainerConfig,
    run_folder: Path,
    run_config: dict[str, Any],
    seed: int,
    device: torch.device,
    stop: Callable[[], bool],
    report: Callable[[dict[str, Any]], None],
    trivial: TrivialScores | None = None,
) -> TrainResult:
    """Train to `config.schedule.total_steps`, from the newest whole checkpoint in `run_folder` if there is one.

    Args:
        model: on any device; it is moved to `device`.
        run_config: the resolved config, saved with each checkpoint.
        stop: polled at each step, and again before a checkpoint in between is copied, which may have waited for the one
            before; when any rank says True, all write a checkpoint and return.
        report: called on rank 0 with each record, as written to metrics.jsonl, and with `checkpoint` and
            `resume` events, which are not.
        trivial: what constants reach, for the share that each loss explains; needed on rank 0 only.

    Raises:
        ValueError: the checkpoint does not fit the model or the seed; tf32 without a GPU; a mask span that is no whole
            number of frames; the stream ends early or gives a batch that does not fit.
        OSError: the last checkpoint, or `max_failed_checkpoints` in a row, could not be written.
        FloatingPointError: too many steps in a row that moved no weight, or rewinds to one checkpoint.
    """
    trainee = _trainee(model, config, data.sample_rate, seed, device)
    report = report if rank() == 0 else _ignore
    result = None
    while result is None:  # a run that goes back begins there as after a kill
        result = _go_on(trainee, data, config, Path(run_folder), run_config, stop, report, trivial)
    return result


def _go_on(
    trainee: TrainStep,
    data: TrainingData,
    config: TrainerConfig,
    run_folder: Path,
    run_config: dict[str, Any],
    stop: Callable[[], bool],
    report: Callable[[dict[str, Any]], None],
    trivial: TrivialScores | None,
) -> TrainResult | None:
    """Train from the newest whole checkpoint; None when the run is to go back to an earlier one."""
    checkpoints = run_folder / CHECKPOINTS
    state, checkpoint = _resume(trainee, checkpoints, trainee.seed, report)
    average = _average(trainee.model, config.ema, checkpoint)
    peak = _peak(config, trainee.device)
    pace = Pace(trainee.model, data.sample_rate, state.step, config.schedule.total_steps, peak, stages=data.stages)
    # A run that starts again forgets its validation at step 0 too.
    known_until = state.step if checkpoint is not None else -1
    with (
        Recorder(run_folder, known_until, pace, report, trivial) as recorder,
        CheckpointWriter(checkpoints, run_config, config.keep_checkpoints, config.keep_every) as writer,
        StepDeadline(config.step_deadline) as deadline,
    ):
        spikes = SpikeWatch(config.spike_band, state.spikes)
        saving = Saving(writer, recorder, checkpoint, config.max_failed_checkpoints)
        run = _Run(trainee, data, config, run_folder, recorder, saving, deadline, spikes, average)
        return run.go_on(state, stop)


@dataclass(frozen=True)
class _NextBatch:
    """A batch ready for its step, the keys of its examples, and the stream's position after it."""

    prepared: PreparedBatch
    keys: Sequence[str]
    position: Position


@dataclass
class _Run:
    """The steps of a run, with the validations and checkpoints between them.

    `average`: on rank 0, on each its part where ranks divide the model.
    """

    trainee: TrainStep
    data: TrainingData
    config: TrainerConfig
    folder: Path
    recorder: Recorder
    saving: Saving
    deadline: StepDeadline
    spikes: SpikeWatch
    average: WeightAverage | None
    validated: dict[str, Any] | None = None
    spike: dict[str, Any] | None = None  # of the last step, if it was one

    def go_on(self, state: CheckpointState, stop: Callable[[], bool]) -> TrainResult | None:
        """Train from a state to the last step, or until a stop is asked for; None when it is to go on from an earlier
        checkpoint.
        """
        total_steps = self.config.schedule.total_steps
        known = agree_on_rank_zero(self.recorder.has_validation(state.step), self.trainee.device)
        if not known:
            self._validate_if_due(state.step)
        batches = self.data.stream(state.position, state.step) if state.step < total_steps else iter(())
        batch: _NextBatch | None = None
        while state.step < total_steps:
            self.deadline.begin(state.step + 1)
            if stage := begins_at(self.data.stages, state.step + 1):
                self.spikes.forget()  # batches of another size have other losses and gradient norms
                self.recorder.stage(stage)
            batch = batch or self._next_batch(batches, state.step)
            state, batch, stopping = self._step(state, batch, batches, stop)
            self.deadline.end()
            if self._goes_back(state):
                return None
            self.saving.poll()
            done = state.step == total_steps
            if stopping or self._checkpoint_is_due(state.step):
                with self.trainee.clock.host("save"):
                    self.saving.finish()
                # Asked for during the wait, a stop is content with this checkpoint: a grace period is two writes, not
                # three.
                stopping = stopping or done or self._any_rank(stop())
                with self.trainee.clock.host("save"):
                    self.saving.start(state, self.trainee, self.average)
            if stopping and not done:
                return self._result("stopped", state)
            self._validate_if_due(state.step)
        return self._result("done", state)

    def _checkpoint_is_due(self, step: int) -> bool:
        return step == self.config.schedule.total_steps or step % self.config.checkpoint_every == 0

    def _next_batch(self, batches: Iterator[tuple[Batch, Position]], step: int) -> _NextBatch:
        """The batch of the step after `step`."""
        try:
            with self.trainee.clock.host("wait"):
                batch, position = next(batches)
        except StopIteration:
            total_steps = self.config.schedule.total_steps
            raise ValueError(f"the stream ended after step {step}, before total_steps {total_steps}") from None
        return _NextBatch(self.trainee.prepare(batch, step + 1), batch["key"], position)

    def _step(
        self,
        state: CheckpointState,
        batch: _NextBatch,
        batches: Iterator[tuple[Batch, Position]],
        stop: Callable[[], bool],
    ) -> tuple[CheckpointState, _NextBatch | None, bool]:
        """One step, recorded; the state after it, the batch that comes next, and whether any rank was asked to stop.

        That batch is made ready while a GPU is busy with this one's gradients. Before a checkpoint there is none: what
        is wrong with it must not cost the steps before it.
        """
        config, step = self.config, state.step + 1
        rate = learning_rate(config.schedule, step)
        diagnosed = config.diagnostics_every is not None and step % config.diagnostics_every == 0
        gradients = self.trainee.begin(batch.prepared, diagnosed)
        following = None if self._checkpoint_is_due(step) else self._next_batch(batches, step)
        logged = step == config.schedule.total_steps or step % config.log_every == 0
        extras = {"memory": of_this_rank(memory_peak(self.trainee.device))} if logged else {}
        result = self.trainee.finish(gradients, rate, {"stop": float(stop()), **extras}, self._skips)
        state = _advance(state, batch.position, result)
        if self.average is not None and result.moved:
            self.average.update(step)
        self.spike = self.spikes.look(result, batch.keys)
        state = dataclasses.replace(state, spikes=self.spikes.state())
        if self.spike is not None:
            self.recorder.spike(step, self.spike | {"skipped": not result.moved})
        self.recorder.step(state, result, rate, logged=logged)
        _stop_if_broken(state, config.max_consecutive_skips)
        return state, following, bool(result.totals["stop"])

    def _skips(self, loss: float, norm: float) -> bool:
        """Whether a finite step is a spike that the optimiser is not to move by."""
        return self.config.on_spike != "record" and bool(self.spikes.beyond(loss, norm))

    def _goes_back(self, state: CheckpointState) -> bool:
        """Whether the last step was a spike from which the run goes back; then all is ready for that, on every rank.

        Where no checkpoint is old enough, the spike is skipped, and the run goes on. Raises FloatingPointError when the
        same checkpoint was gone back to too often.
        """
        if self.config.on_spike != "rewind" or self.spike is None:
            return False
        self.saving.finish()
        target = find_target(self.folder, state.step - self.config.rewind_steps) if rank() == 0 else -1
        target = agree_on_rank_zero(target, self.trainee.device)
        if target < 0:
            return False
        count = rewind(self.folder, target, state.step, state.position) if rank() == 0 else 0
        count = agree_on_rank_zero(count, self.trainee.device)
        self.recorder.rewind(target, state.step, self.spike)
        if count > MOST_REWINDS:
            raise FloatingPointError(
                f"step {state.step} is a spike, and the run has gone back to step {target} {MOST_REWINDS} times already"
            )
        return True

    def _validate_if_due(self, step: int) -> None:
        is_last = step == self.config.schedule.total_steps
        if self.data.validation is None or not (is_last or step % self.config.validate_every == 0):
            return
        self.saving.finish(last=is_last)
        wait_for_all()  # where a rank fails, the launcher kills the others, and the thread that writes with rank 0
        with self.recorder.paused(), unsharded(self.trainee.model):
            self.validated = self._validate(self.data.validation())
        self.recorder.keep_best(step, self.validated)  # first: after a kill both are done again
        self.recorder.validation(step, self.validated)

    def _validate(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """Summary (PretrainModel.summarise) over the validation batches of all ranks; `sets` in it has that of each
        set.

        Raises ValueError when no rank has a batch.
        """
        model, device = self.trainee.model, self.trainee.device
        sums = model.zero_sums()
        of_sets = dict.fromkeys(self.data.validation_sets, sums)
        for batch in batches:
            found = self.trainee.evaluate(batch)
            sums = add_by_name(sums, found)
            if of_sets:
                of_sets[batch["set"]] = add_by_name(of_sets[batch["set"]], found)
        totals = sum_across_ranks(sums, device)
        if float(totals["masked_frames"]) == 0.0:
            raise ValueError("the validation stream gave no batch on any rank")
        summary = model.summarise(totals)
        if of_sets:
            summary["sets"] = {name: model.summarise(sum_across_ranks(part, device)) for name, part in of_sets.items()}
        return summary

    def _any_rank(self, asked: bool) -> bool:
        return float(sum_across_ranks({"stop": float(asked)}, self.trainee.device)["stop"]) > 0.0

    def _result(self, status: Literal["done", "stopped"], state: CheckpointState) -> TrainResult:
        """Once the last checkpoint is there, on every rank."""
        self.saving.finish(last=True)
        wait_for_all()
        assert self.saving.newest is not None, "a run ends with a checkpoint, or finds one of its last step"
        return TrainResult(status, state.step, self.saving.newest, self.validated)


def _trainee(
    model: PretrainModel, config: TrainerConfig, sample_rate: int, seed: int, device: torch.device
) -> TrainStep:
    """The model on its device, with all that one step needs. Sets the precision of this process."""
    precision = resolve_precision(config.precision, device)
    set_precision(precision)
    if config.compile:
        compile_parts(model)
    if config.parallel != "ddp":
        shard(model, resolve_replicas(config.parallel, config.replicas, world_size()), device)
    return TrainStep(
        model.to(device),
        config.optimizer,
        config.mask.in_frames(model.encoder.hop, sample_rate),
        config.mixture,
        config.accumulation,
        precision == "bf16",
        seed,
        device,
    )


def _resume(
    trainee: TrainStep, checkpoints: Path, seed: int, report: Callable[[dict[str, Any]], None]
) -> tuple[CheckpointState, Path | None]:
    """Load the newest whole checkpoint, the same on all ranks; or the state of a run not yet begun."""
    step = _agree_on_step(checkpoints, trainee.device, report)
    if step < 0:
        return CheckpointState(step=0, position=None, seed=seed, world_size=world_size(), samples=0), None
    path = checkpoints / f"step_{step}"
    state = load_state(path)
    if state.seed != seed:
        raise ValueError(f"{path}: seed is {state.seed} in the checkpoint but {seed} in this run")
    weights = load_weights(path)
    own = trainee.model.state_dict()
    check_weights(own, weights, path)
    trainee.model.load_state_dict({name: shard_like(own[name], weight) for name, weight in weights.items()})
    # The moments are the checkpoint's; the settings are this run's, which may have changed.
    restore_moments(trainee.optimizer, load_optimizer_state(path), path)
    report({"kind": "resume", "step": step, "path": str(path), "world_size": state.world_size})
    position = position_after(checkpoints.parent, step, state.position)
    return dataclasses.replace(state, world_size=world_size(), position=position), path


def _peak(config: TrainerConfig, device: torch.device) -> float | None:
    """Operations per second of one device at most, as stated or as known of its kind."""
    if config.peak_operations is not None:
        return config.peak_operations
    return known_peak(device, resolve_precision(config.precision, device) == "bf16")


def _average(model: PretrainModel, decay: float | None, checkpoint: Path | None) -> WeightAverage | None:
    """The average of the checkpoint that a run goes on from; of the weights as they are where there is none yet."""
    if decay is None or not holds_own_shard(model):
        return None
    average = WeightAverage(model, decay)
    if checkpoint is not None and has_average(checkpoint):
        average.load(load_average(checkpoint), checkpoint)
    return average


def _agree_on_step(checkpoints: Path, device: torch.device, report: Callable[[dict[str, Any]], None]) -> int:
    """Rank 0 looks and cleans up; all take its word: the step of the newest whole checkpoint, or -1."""
    step = -1
    if rank() == 0:
        cut_short = remove_leftovers(checkpoints)
        path, faults = latest_checkpoint(checkpoints)
        faults += [
            f"{each}: its write was cut short"
            for each in cut_short
            if path is None or checkpoint_step(each) > checkpoint_step(path)
        ]
        for fault in faults:
            report({"kind": "incomplete_checkpoint", "fault": fault})
        if path is None:
            check_begins_anew(checkpoints.parent)
        step = -1 if path is None else checkpoint_step(path)
        forget_rewinds_after(checkpoints.parent, step)
    return agree_on_rank_zero(step, device)


def _advance(state: CheckpointState, position: Position, result: StepResult) -> CheckpointState:
    """A skipped step has used its batch and its number, so the schedule and the stream go on."""
    return dataclasses.replace(
        state,
        step=state.step + 1,
        position=position,
        skipped_steps=state.skipped_steps + (not result.moved),
        consecutive_skips=0 if result.moved else state.consecutive_skips + 1,
        samples=None if state.samples is None else state.samples + int(result.totals["heard"]),
    )


def _stop_if_broken(state: CheckpointState, limit: int) -> None:
    if state.consecutive_skips >= limit:
        raise FloatingPointError(
            f"step {state.step}: loss or gradient was not finite, or a spike that on_spike skips, for"
            f" {state.consecutive_skips} steps in a row, max_consecutive_skips is {limit}"
        )


def _ignore(record: dict[str, Any]) -> None:
    """Ranks above 0 report nothing."""

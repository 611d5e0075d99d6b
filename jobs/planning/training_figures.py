"""The training side of a plan: steps, hours heard, shards against ranks and window, checkpoints, time, memory."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from mert_foundry.jobs.planning.figures import Basis, Figure, Line, Missing, figure
from mert_foundry.jobs.planning.gpus import CROP_SECONDS, GPUS, SOURCE, Gpu, MeasuredStep, find_step, is_checkpointed
from mert_foundry.jobs.planning.model_size import (
    ModelSize,
    build_on_meta,
    masked_share,
    measure_activations,
    measure_model,
)
from mert_foundry.jobs.pretraining.run_description import PretrainConfig, check_sizes, check_splits, heads_of
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.operations import count_operations
from mert_foundry.pipeline.frames import FRAME_RATE, HOP, SAMPLE_RATE
from mert_foundry.pipeline.shards.target import TargetSpec

RUN, ORDER, CHECKPOINTS, TIME, MEMORY = "run", "shards against ranks and window", "checkpoints", "time", "memory"


@dataclass(frozen=True)
class PlannedRun:
    """A run on `gpus` GPUs over shards that are not made yet.

    lengths: examples of the train split by their frames. shards: of that split.
    """

    config: PretrainConfig
    targets: Sequence[TargetSpec]
    lengths: Counter[int]
    shards: int
    gpus: int

    @property
    def rows(self) -> int:
        """Crops that a GPU takes at once: of its share of a batch, the largest of `accumulation` parts."""
        return math.ceil(self.config.stream.batch_size / self.gpus / self.config.trainer.accumulation)

    @property
    def examples(self) -> int:
        """Examples of the train split."""
        return self.lengths.total()

    @property
    def crop_frames(self) -> int:
        """Frames of a whole crop."""
        return self.config.stream.crop_samples // HOP

    @cached_property
    def heads(self) -> list[HeadSpec]:
        """A head for each target."""
        return heads_of(self.targets)

    @cached_property
    def size(self) -> ModelSize:
        """Counts of the model."""
        return measure_model(self.config.encoder, self.heads, self.config.objective)


def check_run(run: PlannedRun, splits: Sequence[str], place: str) -> None:
    """Raise ValueError for a run that `mert pretrain` would refuse on these shards; `splits`: those with examples."""
    if run.config.encoder.frontend.input_name != "audio":
        raise ValueError(
            f"encoder.frontend.kind is {run.config.encoder.frontend.kind}, for shards of text alone; runs on audio are"
            " planned"
        )
    check_sizes(run.config, run.targets, SAMPLE_RATE, HOP, run.gpus)
    check_splits(run.config, splits, place)


def run_figures(run: PlannedRun) -> Iterator[Line]:
    """Steps, crops, hours heard and epochs."""
    config = run.config
    steps, batch = config.trainer.schedule.total_steps, config.stream.batch_size
    kept = sum(min(frames, run.crop_frames) * count for frames, count in run.lengths.items())
    sizes: dict[str, float] = {"steps": steps, "batch_size": batch}
    yield figure(RUN, "GPUs", "", "gpus", {"gpus": run.gpus}, "stated")
    yield figure(RUN, "steps", "", "steps", {"steps": steps}, "stated", "trainer.schedule.total_steps")
    share: dict[str, float] = {"batch_size": batch, "gpus": run.gpus}
    yield figure(RUN, "crops of a step on each GPU", "", "batch_size / gpus", share, "counted")
    share["accumulation"] = config.trainer.accumulation
    formula = "ceil(batch_size / gpus / accumulation)"
    yield figure(RUN, "crops at once on each GPU", "", formula, share, "counted")
    crop: dict[str, float] = {"kept_frames": kept, "examples": run.examples, "frame_rate": FRAME_RATE}
    note = (
        "kept_frames: what all examples give once; one that is shorter than the crop gives itself and is padded;"
        " segments that a longer crop joins are not counted"
    )
    formula = "kept_frames / examples / frame_rate"
    yield figure(RUN, "audio of a crop, on average", "s", formula, crop, "counted", note)
    formula = "batch_size * kept_frames / examples / frame_rate / 3600"
    yield figure(RUN, "audio of a step", "h", formula, {"batch_size": batch, **crop}, "counted", note)
    formula = "steps * batch_size * kept_frames / examples / frame_rate / 3600"
    yield figure(RUN, "hours heard", "h", formula, sizes | crop, "counted", note)
    visits: dict[str, float] = {"examples": run.examples, "crops_per_visit": config.stream.crops_per_visit}
    formula = "examples * crops_per_visit / batch_size"
    yield figure(RUN, "steps of an epoch", "", formula, {**visits, "batch_size": batch}, "counted")
    note = "an epoch visits every example once, and takes crops_per_visit crops of it"
    formula = "steps * batch_size / crops_per_visit / examples"
    yield figure(RUN, "epochs", "", formula, sizes | visits, "counted", note)


def order_figures(run: PlannedRun) -> Iterator[Line]:
    """How shards, ranks and the shuffle window fit."""
    window = run.config.stream.shuffle_window
    inputs = {"shards": run.shards, "shuffle_window": window}
    note = "one window is a plain shuffle of all examples; every rank reads from all shards of a window"
    yield figure(ORDER, "windows of an epoch", "", "ceil(shards / shuffle_window)", inputs, "counted", note)
    formula = "examples / shards * min(shards, shuffle_window)"
    within: dict[str, float] = {**inputs, "examples": run.examples}
    yield figure(ORDER, "examples shuffled together", "", formula, within, "counted", "on average")
    formula = "examples / shards * min(shards, shuffle_window) / batch_size"
    within["batch_size"] = run.config.stream.batch_size
    note = "below 1 a batch reaches over several windows: more shards or a larger stream.shuffle_window mix better"
    yield figure(ORDER, "batches of a window", "", formula, within, "counted", note)
    note = "around the border of two windows, shards of both are read; shards need not be a multiple of the ranks"
    yield figure(
        ORDER, "shards open at once, each rank", "", "min(shards, 2 * shuffle_window)", inputs, "counted", note
    )


def checkpoint_figures(run: PlannedRun) -> Iterator[Line]:
    """Parameters, and bytes of checkpoints."""
    size, trainer = run.size, run.config.trainer
    note = "initial= brings an architecture of its own, which is not looked at" if run.config.initial else ""
    parameters = {"encoder": size.encoder_parameters, "heads": size.parameters - size.encoder_parameters}
    yield figure(CHECKPOINTS, "parameters", "", "encoder + heads", parameters, "counted", note)
    encoder = {"encoder": size.encoder_parameters}
    yield figure(CHECKPOINTS, "parameters of the encoder", "", "encoder", encoder, "counted", note)
    inputs = {"weight_bytes": size.weight_bytes, "moment_bytes": size.moment_bytes}
    yield figure(CHECKPOINTS, "weights", "B", "weight_bytes", {"weight_bytes": size.weight_bytes}, "counted", "fp32")
    inputs["averages"] = int(trainer.ema is not None)
    note = "weights, moments of AdamW, and an average where trainer.ema asks for one; names and headers are left out"
    each = "weight_bytes * (1 + averages) + moment_bytes"
    yield figure(CHECKPOINTS, "one checkpoint", "B", each, inputs, "counted", note)
    inputs["keep_checkpoints"] = trainer.keep_checkpoints
    inputs["best"] = int(run.config.valid_split is not None) + int(trainer.probe_every is not None)
    inputs["for_good"] = trainer.schedule.total_steps // trainer.keep_every if trainer.keep_every is not None else 0
    note = "the best by validation and by probe, those of trainer.keep_every, and one more while the newest is written"
    formula = f"({each}) * (keep_checkpoints + 1 + best + for_good)"
    yield figure(CHECKPOINTS, "checkpoints on disk, at most", "B", formula, inputs, "counted", note)
    written = {"steps": trainer.schedule.total_steps, "checkpoint_every": trainer.checkpoint_every}
    yield figure(CHECKPOINTS, "checkpoints written", "", "ceil(steps / checkpoint_every)", written, "counted")


def operation_figures(run: PlannedRun) -> Iterator[Line]:
    """Operations of a step, as the log of a run counts them for the used share of its devices."""
    config = run.config
    model = build_on_meta(config.encoder, run.heads, config.objective)
    samples = config.stream.crop_samples
    counted = count_operations(model, samples)
    frames = model.encoder.num_frames(samples)
    mask = config.trainer.mask.in_frames(config.encoder.frontend.hop, SAMPLE_RATE)
    inputs = {
        "of_row": counted.of_row,
        "of_predicted_frame": counted.of_predicted_frame,
        "batch_size": config.stream.batch_size,
        "frames": frames,
        "predicted": 1.0 if config.objective.unmasked_weight else masked_share(mask, frames),
    }
    note = (
        "multiplications and additions of matrix products and convolutions, forward and for both gradients, without"
        " what checkpointing repeats (model/objective/operations.py); predicted: share of the frames"
    )
    formula = "batch_size * (of_row + frames * predicted * of_predicted_frame) / 1e12"
    yield figure(TIME, "operations of a step", "T", formula, inputs, "counted", note)


def time_figures(run: PlannedRun, gpu: str | None, stated: float | None) -> Iterator[Line]:
    """Hours of training and GPU hours, from a rate that is stated or was measured."""
    rate = _stated_rate(stated) if stated is not None else _measured_rate(run, gpu)
    if isinstance(rate, str):
        yield Missing(section=TIME, name="training", needs=f"{rate}; audio_seconds_per_second= states that of one GPU")
        return
    value, basis, note = rate
    name = "audio seconds per second of one GPU"
    yield figure(TIME, name, "", "audio_seconds_per_second", {"audio_seconds_per_second": value}, basis, note)
    if run.gpus > 1:
        note += "; several GPUs are taken to lose nothing to each other, which nothing here has measured"
    inputs: dict[str, float] = {
        "steps": run.config.trainer.schedule.total_steps,
        "batch_size": run.config.stream.batch_size,
        "crop_seconds": run.config.stream.crop_samples / SAMPLE_RATE,
        "audio_seconds_per_second": value,
    }
    note += "; validation and checkpoints are left out"
    formula = "steps * batch_size * crop_seconds / audio_seconds_per_second / 3600"
    yield figure(TIME, "GPU hours at that rate", "h", formula, inputs, "estimate", note)
    hours = {**inputs, "gpus": run.gpus}
    yield figure(TIME, "training at that rate", "h", f"{formula} / gpus", hours, "estimate", note)
    step = {name: amount for name, amount in hours.items() if name != "steps"}
    formula = "batch_size * crop_seconds / audio_seconds_per_second / gpus"
    yield figure(TIME, "a step at that rate", "s", formula, step, "estimate", note)


def _stated_rate(rate: float) -> tuple[float, Basis, str]:
    return rate, "stated", "audio_seconds_per_second as stated"


def _measured_rate(run: PlannedRun, gpu: str | None) -> tuple[float, Basis, str] | str:
    """The rate of a known GPU and where it is from, or why there is none."""
    if gpu is None:
        return f"gpu= names a GPU that was measured ({', '.join(GPUS)})"
    step = _find(run, GPUS[gpu])
    if isinstance(step, str):
        return f"{step} was not measured on {gpu}"
    note = (
        f"{SOURCE}: the bench's step of {step.layout}, bf16, {step.batch} crops of 5 s; this run has {run.rows} at"
        " once. A real run of 95m on one H100 did 60 to 70 % of it"
    )
    return step.rate, "measured", note


def _find(run: PlannedRun, gpu: Gpu) -> MeasuredStep | str:
    """The measured step that is nearest to the run's, or what of it was not measured."""
    seconds = run.config.stream.crop_samples / SAMPLE_RATE
    if run.config.trainer.precision not in ("auto", "bf16"):
        return f"trainer.precision {run.config.trainer.precision}"
    if not CROP_SECONDS[0] <= seconds <= CROP_SECONDS[1]:
        return f"a crop of {seconds:g} s"
    return find_step(gpu, run.config.encoder, run.rows) or "a model of these sizes"


def memory_figures(run: PlannedRun, gpu: str | None) -> Iterator[Line]:
    """Memory of one GPU at its peak, the end of a forward pass."""
    config = run.config
    if why := _not_counted(config):
        yield Missing(section=MEMORY, name="peak of one GPU", needs=why)
        return
    bf16 = config.trainer.precision in ("auto", "bf16")
    mask = config.trainer.mask.in_frames(config.encoder.frontend.hop, SAMPLE_RATE)
    activations = measure_activations(
        config.encoder, run.heads, config.objective, mask, run.rows, config.stream.crop_samples, bf16
    )
    yield from _memory_lines(run, activations, bf16, gpu)


def _not_counted(config: PretrainConfig) -> str | None:
    """Why the memory of a run is not known; None when it is."""
    front_end, layers = is_checkpointed(config.encoder)
    if front_end:
        return (
            "with activation_checkpointing of the front-end it is not counted; set it to false for the memory without"
        )
    if layers and config.encoder.transformer.overrides:
        return "with activation_checkpointing of layers that differ (overrides) it is not counted"
    if config.trainer.parallel == "hsdp" and config.trainer.replicas is None:
        return "with trainer.parallel hsdp it depends on trainer.replicas, which are the nodes where it is not set"
    return None


def _memory_lines(run: PlannedRun, activations: int, bf16: bool, gpu: str | None) -> Iterator[Figure]:
    trainer = run.config.trainer
    divided = trainer.parallel != "ddp"
    kept_gradients = trainer.accumulation > 1 or (run.gpus > 1 and not divided)
    inputs: dict[str, float] = {
        "weights": run.size.weight_bytes,
        "moments": run.size.moment_bytes,
        "gradients": 4 * run.size.trained if kept_gradients else 0,
        "average": run.size.weight_bytes if trainer.ema is not None else 0,
        "activations": activations,
    }
    formula = "weights + moments + gradients + average + activations"
    if divided and run.gpus > 1:
        inputs["shards"] = run.gpus / (trainer.replicas or 1)
        inputs["layer"] = 4 * run.size.layer_parameters
        inputs["others"] = run.size.weight_bytes - 4 * run.size.layer_parameters * run.config.encoder.transformer.layers
        formula = "(weights + moments + gradients + average) / shards + others + 2 * layer + activations"
    kept = (
        "what autograd keeps of fake CUDA tensors, in bf16"
        if bf16
        else "what autograd keeps of fake CUDA tensors, in fp32"
    )
    yield figure(MEMORY, "activations", "B", "activations", {"activations": activations}, "counted", kept)
    note = (
        f"{kept}; gradients are there at the end of a forward pass only with several GPUs or accumulation; average: on"
        " rank 0. Temporaries are left out: eight peaks measured on an H100 were 1 to 6 % higher"
        " (docs/measurements.md)"
    )
    if trainer.compile:
        note += "; trainer.compile needs less, by a fifth for 330m"
    if "shards" in inputs:
        note += (
            "; shards: GPUs that divide a model; each has the weights of two layers whole, and of what is no layer"
            " (others). No such run was measured"
        )
    if trainer_checkpoints := int(run.config.encoder.transformer.activation_checkpointing):
        note += f"; every layer of {trainer_checkpoints} keeps its input alone, and one is computed again at a time"
    yield figure(MEMORY, "peak of one GPU", "B", formula, inputs, "estimate", note)
    if gpu is not None:
        inputs["gpu_memory"] = GPUS[gpu].memory
        yield figure(MEMORY, f"share of the memory of {gpu}", "", f"({formula}) / gpu_memory", inputs, "estimate", note)

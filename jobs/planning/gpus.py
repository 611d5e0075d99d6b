"""What GPUs were measured to do: docs/measurements.md, section "On a GPU", and nothing else."""

from dataclasses import dataclass

from mert_foundry.jobs.benchmarks.step_variant import LAYOUTS
from mert_foundry.model.encoder import EncoderConfig

SOURCE = 'docs/measurements.md, "On a GPU"'
CROP_SECONDS = (4.0, 6.0)  # crops had 5 s; of much longer ones attention takes a larger part


@dataclass(frozen=True)
class MeasuredStep:
    """A training step in bf16 on one GPU: `batch` crops of 5 s, audio seconds per second."""

    layout: str
    batch: int
    rate: float
    checkpointed: bool = False


@dataclass(frozen=True)
class MeasuredLabelling:
    """Labelling of 60 s MP3 files with EnCodec and CQT by `workers` on one GPU and 16 CPU cores, together, times real
    time.
    """

    workers: int
    rate: float


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU. memory: bytes, by its name; labelling: by rising workers."""

    memory: float
    steps: tuple[MeasuredStep, ...]
    labelling: tuple[MeasuredLabelling, ...]


GPUS = {
    "h100": Gpu(
        memory=80e9,
        steps=(
            MeasuredStep("95m", 16, 1_889),
            MeasuredStep("95m", 64, 3_570),
            MeasuredStep("95m", 128, 3_908),
            MeasuredStep("95m", 256, 4_164),
            MeasuredStep("330m", 8, 565),
            MeasuredStep("330m", 16, 875),
            MeasuredStep("330m", 32, 1_532),
            MeasuredStep("330m", 64, 1_759),
            MeasuredStep("330m", 128, 1_889),
            MeasuredStep("330m", 64, 1_152, checkpointed=True),
        ),
        labelling=(MeasuredLabelling(6, 1_100), MeasuredLabelling(16, 1_900)),
    )
}


def find_step(gpu: Gpu, encoder: EncoderConfig, rows: int) -> MeasuredStep | None:
    """The measurement of this layout with the most crops that are no more than `rows`, else with the fewest; None
    without one.
    """
    checkpointed = is_checkpointed(encoder)
    found = [
        step
        for step in gpu.steps
        if _sizes(LAYOUTS[step.layout][0]) == _sizes(encoder) and (step.checkpointed,) * 2 == checkpointed
    ]
    below = [step for step in found if step.batch <= rows]
    return max(below, key=_batch) if below else min(found, key=_batch, default=None)


def find_labelling(gpu: Gpu, workers: int) -> MeasuredLabelling:
    """The measurement with the most workers that are no more than `workers`, else with the fewest."""
    below = [each for each in gpu.labelling if each.workers <= workers]
    return below[-1] if below else gpu.labelling[0]


def is_checkpointed(encoder: EncoderConfig) -> tuple[bool, bool | int]:
    """Whether front-end and transformer compute activations again in the backward pass; a number: every n-th layer of
    it.
    """
    return getattr(encoder.frontend, "activation_checkpointing", False), encoder.transformer.activation_checkpointing


def _batch(step: MeasuredStep) -> int:
    return step.batch


def _sizes(encoder: EncoderConfig) -> dict:
    """What a layout is: its config without what costs next to nothing, or is looked at by itself."""
    frontend = encoder.frontend.model_dump(exclude={"gradient_multiplier", "activation_checkpointing"})
    free = {
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "layer_drop",
        "activation_checkpointing",
        "norm_epsilon",
    }
    return {"frontend": frontend, "transformer": encoder.transformer.model_dump(exclude=free)}

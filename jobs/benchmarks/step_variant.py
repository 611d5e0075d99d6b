"""One variant of the pre-training step, measured in this process; `mert bench step` starts it.

python -m mert_foundry.jobs.benchmarks.step_variant '{"variant": "ours", "layout": "small", "batch": 2, "seconds": 1.0,
...}'
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mert_foundry.jobs.benchmarks.measurement import peak_memory
from mert_foundry.model.encoder import EncoderConfig
from mert_foundry.model.frontend.convolution import FrontendConfig
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.pretrain_model import ObjectiveConfig, PretrainModel, build_pretrain_model
from mert_foundry.model.objective.span_mask import MaskConfig, draw_masks
from mert_foundry.model.training.compilation import compile_parts
from mert_foundry.model.training.optimizer import OptimizerConfig, build_optimizer
from mert_foundry.model.training.precision import Precision, set_precision
from mert_foundry.model.transformer.config import TransformerConfig

SAMPLE_RATE = 24_000
# Layer drop is off: a step that happens to skip layers would be compared with one that does not.
LAYOUTS = {
    "95m": (EncoderConfig(transformer=TransformerConfig(layer_drop=0.0)), ObjectiveConfig(final_dim=64)),
    "330m": (
        EncoderConfig(
            frontend=FrontendConfig(gradient_multiplier=1.0),
            input_dropout=0.0,
            transformer=TransformerConfig(
                layers=24,
                width=1024,
                heads=16,
                feed_forward=4096,
                norm="pre",
                dropout=0.0,
                attention_dropout=0.0,
                layer_drop=0.0,
            ),
        ),
        ObjectiveConfig(final_dim=128),
    ),
    "small": (
        EncoderConfig(
            frontend=FrontendConfig(channels=32),
            transformer=TransformerConfig(layers=2, width=64, heads=4, feed_forward=128, layer_drop=0.0),
        ),
        ObjectiveConfig(final_dim=16),
    ),
}
HEADS = (
    HeadSpec(name="codes", kind="discrete", size=8, codebook_size=1024),
    HeadSpec(name="cqt", kind="continuous", size=336),
)
BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


class StepSettings(BaseModel):
    """What is measured; the sizes are the same for every variant of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: str = Field("ours", description="one of VARIANTS")
    layout: str = Field("95m", description="one of LAYOUTS")
    batch: int = Field(8, ge=2, description="crops a step")
    seconds: float = Field(5.0, gt=0.0, description="length of a crop")
    dropout: float | None = Field(None, ge=0.0, lt=1.0, description="every dropout; None: those of the layout's recipe")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where it runs")
    precision: Precision = Field("fp32", description="arithmetic; bf16: autocast")
    steps: int = Field(1, ge=1, description="measured steps, after one that warms up")


def main(arguments: list[str]) -> int:
    print(json.dumps(measure(StepSettings(**json.loads(arguments[0])))))
    return 0


def measure(settings: StepSettings) -> dict[str, float]:
    """Seconds a step, peak memory in bytes, and the loss of the first step.

    Memory: on the CPU the process's largest resident set, on CUDA the largest allocated.
    """
    device = torch.device(settings.device)
    set_precision(settings.precision)
    model = build(settings).to(device)
    step = training_step(model, settings, device)
    first = step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(settings.steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - begin) / settings.steps
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory()
    return {"seconds": seconds, "peak_bytes": memory, "first_loss": first}


def build(settings: StepSettings) -> PretrainModel:
    """Our model of the layout; the same weights for every variant."""
    encoder, objective = LAYOUTS[settings.layout]
    transformer, frontend = encoder.transformer, encoder.frontend
    if settings.dropout is not None:
        transformer = transformer.model_copy(
            update={
                "dropout": settings.dropout,
                "attention_dropout": settings.dropout,
                "activation_dropout": settings.dropout,
            }
        )
        encoder = encoder.model_copy(update={"input_dropout": settings.dropout})
    checkpointing = {"activation_checkpointing": True}
    if settings.variant in ("ours checkpointed", "ours checkpointed front-end"):
        frontend = frontend.model_copy(update=checkpointing)
    if settings.variant == "ours checkpointed":
        transformer = transformer.model_copy(update=checkpointing)
    encoder = encoder.model_copy(update={"transformer": transformer, "frontend": frontend})
    return build_pretrain_model(encoder, HEADS, objective, seed=0)


def training_step(model: PretrainModel, settings: StepSettings, device: torch.device) -> Callable[[], float]:
    """Forward, backward, clipping and AdamW on one batch of noise; the closure returns the loss."""
    batch, mask = make_batch(model, settings, device)
    trained, loss_of, context = VARIANTS[settings.variant](model)
    trained.to(device).train()
    config = OptimizerConfig()
    optimizer = build_optimizer(trained, config)
    for group in optimizer.param_groups:
        group["lr"] = 1e-5

    def step() -> float:
        autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16")
        with context(), autocast:
            loss = loss_of(batch, mask)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), config.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    torch.manual_seed(0)
    return step


def make_batch(model: PretrainModel, settings: StepSettings, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Noise with random targets in the model's device form, and the published masks [B, F]."""
    generator = torch.Generator().manual_seed(0)
    samples = round(settings.seconds * SAMPLE_RATE)
    frames = model.encoder.num_frames(samples)
    rows = settings.batch
    batch = {
        "audio": 0.1 * torch.randn(rows, samples, generator=generator),
        "codes": torch.randint(0, 1024, (rows, 8, frames), generator=generator),
        "cqt": torch.rand(rows, frames, 336, generator=generator),
        "valid": torch.ones(rows, frames, dtype=torch.bool),
    }
    keys = [str(row) for row in range(rows)]
    mask = torch.from_numpy(draw_masks(MaskConfig(), 0, 1, keys, np.ones((rows, frames), dtype=bool)))
    return {name: tensor.to(device) for name, tensor in batch.items()}, mask.to(device)


def count_operations(model: PretrainModel, settings: StepSettings) -> float:
    """Multiplications and additions of a training step in matrix products and convolutions.

    Forward counts once, backward twice. Predicted frames are those of `make_batch`.
    """
    frontend, transformer = model.encoder.config.frontend, model.encoder.config.transformer
    samples, channels, forward = round(settings.seconds * SAMPLE_RATE), 1, 0
    for kernel, stride in zip(frontend.kernels, frontend.strides):
        samples = (samples - kernel) // stride + 1
        forward += samples * channels * kernel * frontend.channels
        channels = frontend.channels
    frames, width = samples, transformer.width
    forward += frames * width * (channels + transformer.position_kernel * width // transformer.position_groups)
    forward += frames * transformer.layers * (4 * width**2 + 2 * frames * width + 2 * width * transformer.feed_forward)
    _, mask = make_batch(model, settings, torch.device("cpu"))
    head_weights = sum(weight.numel() for weight in model.heads.parameters() if weight.dim() > 1)
    return 2.0 * 3.0 * (settings.batch * forward + int(mask.sum()) * head_weights)


Variant = tuple[
    nn.Module, Callable[[dict[str, Tensor], Tensor], Tensor], Callable[[], contextlib.AbstractContextManager]
]


def ours(model: PretrainModel, compiled: bool = False, backend: str | None = None) -> Variant:
    """This project's model."""
    if compiled:
        compile_parts(model)

    def loss_of(batch: dict[str, Tensor], mask: Tensor) -> Tensor:
        sums = model(batch, mask)
        return model.weighted_loss(model.mean_losses(sums, sums))

    return model, loss_of, contextlib.nullcontext if backend is None else lambda: sdpa_kernel(BACKENDS[backend])


def hubert(model: PretrainModel, attention: str, compiled: bool = False) -> Variant:
    """transformers' HubertModel with naive heads."""
    from mert_foundry.jobs.benchmarks.naive_hubert import NaiveHubert

    naive = NaiveHubert(model, attention)
    return naive, torch.compile(naive) if compiled else naive, contextlib.nullcontext


VARIANTS: dict[str, Callable[[PretrainModel], Variant]] = {
    "hubert eager": lambda model: hubert(model, "eager"),
    "hubert sdpa": lambda model: hubert(model, "sdpa"),
    "hubert sdpa compiled": lambda model: hubert(model, "sdpa", compiled=True),
    "ours": ours,
    "ours checkpointed": ours,
    "ours checkpointed front-end": ours,
    "ours compiled": lambda model: ours(model, compiled=True),
    **{f"ours sdpa {name}": lambda model, name=name: ours(model, backend=name) for name in BACKENDS},
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

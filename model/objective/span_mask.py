"""Span masks over frames, as fairseq draws them for HuBERT and MERT (static length), and what fills masked frames.

Where this differs from fairseq and MERT's code:

- Each row is drawn alone (fairseq trims all rows of a batch to the fewest masked frames, which makes a row depend
  on its neighbours), and the last frame can be masked too.
- Spans that may not overlap are drawn uniformly among all arrangements that fit.
- `keep` works without `replace`, and the two exclude each other. Replacements come from frames of the same row
  ("in_sample"); MERT's "in_batch" is left out, since a row would depend on its neighbours and on the number of ranks.
- A validation draws masks for step 0, before any schedule: always with the first values.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from mert_foundry.model.objective.seeding import derive_seed
from mert_foundry.model.transformer.masking import Masking

SPAN_TOLERANCE = (
    0.1  # frames by which a span in seconds may miss a whole number: 0.067 s are 5 at 75 Hz, 0.1 s none at 25
)


class SpanConfig(BaseModel):
    """Spans over one axis."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probability: float = Field(gt=0.0, le=1.0, description="masked share if no spans overlapped")
    span: int = Field(ge=1, description="length of a masked span")
    min_spans: int = Field(ge=0, description="least number of spans in a row, where they fit")
    min_space: int | None = Field(None, ge=0, description="least gap between two spans; null: spans may overlap")


class ChannelMaskConfig(SpanConfig):
    """Which features of all frames are set to 0 (HuBERT's mask_channel_*); the defaults are fairseq's."""

    span: int = Field(10, ge=1, description="length of a masked span, features")
    min_spans: int = Field(0, ge=0, description="least number of spans in a row, where they fit")


class MaskConfig(SpanConfig):
    """How frames are masked; the defaults are MERT's.

    A schedule is a list of [step, value]: from that training step on the value holds, until the next entry.
    """

    probability: float = Field(0.8, gt=0.0, le=1.0, description="masked share of frames if no spans overlapped")
    span: int = Field(5, ge=1, description="length of a masked span, frames")
    span_seconds: float | None = Field(
        None,
        gt=0.0,
        allow_inf_nan=False,
        description="the same in seconds, instead of `span`: a whole number of frames, to a tenth of one",
    )
    min_spans: int = Field(2, ge=1, description="least number of spans in a row, where they fit")
    probability_schedule: tuple[tuple[int, float], ...] = Field((), description="later values of probability")
    span_schedule: tuple[tuple[int, int], ...] = Field((), description="later values of span, frames")
    fill: Literal["embedding", "noise"] = Field(
        "embedding",
        description="what masked frames become: embedding: a learnt vector; noise: their samples, N(0, 0.1)",
    )
    replace: float = Field(0.0, ge=0.0, le=1.0, description="share of masked frames that get another frame's features")
    keep: float = Field(0.0, ge=0.0, le=1.0, description="share of masked frames that keep their own features")
    channels: ChannelMaskConfig | None = Field(None, description="features masked in all frames; null for none")

    @model_validator(mode="after")
    def _one_span(self) -> "MaskConfig":
        if self.span_seconds is not None and self.model_fields_set & {"span", "span_schedule"}:
            raise ValueError(
                f"span_seconds {self.span_seconds} is given, so span and span_schedule, in frames, must not be"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_the_other_span(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A stored config is read again, and only one of the two may be given.
        left_out = {"span_seconds"} if self.span_seconds is None else {"span", "span_schedule"}
        return {name: value for name, value in fields(self).items() if name not in left_out}

    @model_validator(mode="after")
    def _consistent(self) -> "MaskConfig":
        if self.replace + self.keep > 1.0:
            raise ValueError(f"replace {self.replace} and keep {self.keep} are together above 1")
        for name in ("probability", "span"):
            entries = getattr(self, f"{name}_schedule")
            steps = [0, *(step for step, _ in entries)]
            if any(later <= earlier for earlier, later in zip(steps, steps[1:])):
                raise ValueError(f"{name}_schedule must have rising steps above 0, not {steps[1:]}")
            for step, value in entries:
                if not (0.0 < value <= 1.0 if name == "probability" else value >= 1):
                    raise ValueError(f"{name}_schedule has {name} {value} from step {step}")
        return self

    def in_frames(self, hop: int, sample_rate: int) -> "MaskConfig":
        """The same with `span_seconds` as `span`, in frames of `hop` samples.

        Raises ValueError when it is further than a tenth of a frame from a whole number of frames, or from one frame.
        """
        if self.span_seconds is None:
            return self
        frames = self.span_seconds * sample_rate / hop
        span = max(round(frames), 1)
        if abs(frames - span) > SPAN_TOLERANCE:
            frame = hop / sample_rate
            below, above = max(math.floor(frames), 1) * frame, (math.floor(frames) + 1) * frame
            raise ValueError(
                f"mask.span_seconds {self.span_seconds:g} is {frames:.4g} frames of {frame:.4g} s; "
                f"whole ones are {below:.4g} s" + (f" and {above:.4g} s" if above > below else "")
            )
        return self.model_copy(update={"span": span, "span_seconds": None})

    def at_step(self, step: int) -> "MaskConfig":
        """The same with `probability` and `span` as the schedules have them at a training step."""
        values = {"probability": self.probability, "span": self.span}
        for name in values:
            for begin, value in getattr(self, f"{name}_schedule"):
                if begin <= step:
                    values[name] = value
        return self.model_copy(update=values)


def draw_masking(
    config: MaskConfig, seed: int, step: int, keys: Sequence[str], valid: np.ndarray, width: int
) -> Masking:
    """Everything that is masked in the rows named by `keys`, on the CPU; as `draw_masks`, each row on its own.

    `width` is the number D of features a frame has when it is masked. Parts no option asks for are None.
    """
    predicted = draw_masks(config, seed, step, keys, valid)
    embedded, source = _draw_fills(config, seed, step, keys, valid, predicted)
    return Masking(
        torch.from_numpy(predicted),
        torch.from_numpy(np.zeros_like(embedded) if config.fill == "noise" else embedded),
        torch.from_numpy(source) if config.replace else None,
        torch.from_numpy(_draw_channels(config.channels, seed, step, keys, width)) if config.channels else None,
        torch.from_numpy(embedded) if config.fill == "noise" else None,
    )


def draw_masks(config: MaskConfig, seed: int, step: int, keys: Sequence[str], valid: np.ndarray) -> np.ndarray:
    """Masks [B, F] bool for the rows named by `keys`, each a pure function of (seed, step, key) and its valid frames.

    `valid` is [B, F] bool; only valid frames are masked, and every row with one gets at least one masked frame.
    """
    assert config.span_seconds is None, "the caller knows the hop: `in_frames`"
    config = config.at_step(step)
    masks = np.zeros(valid.shape, dtype=bool)
    for row, key in enumerate(keys):
        generator = np.random.default_rng(derive_seed(seed, step, "mask", key))
        frames = np.flatnonzero(valid[row])
        masks[row, frames] = draw_mask(config, len(frames), generator)
    return masks


def draw_mask(config: SpanConfig, length: int, generator: np.random.Generator) -> np.ndarray:
    """One mask [length] bool of int(probability * length / span + uniform) spans, or as many as fit.

    Spans that may overlap have distinct starts; a span longer than the row is cut to it.
    """
    mask = np.zeros(length, dtype=bool)
    num_spans = int(config.probability * length / config.span + generator.random())
    num_spans = max(num_spans, config.min_spans)
    for start in _draw_starts(config, num_spans, length, generator):
        mask[start : start + config.span] = True
    return mask


def _draw_starts(config: SpanConfig, num_spans: int, length: int, generator: np.random.Generator) -> np.ndarray:
    if config.min_space is None:
        num_starts = max(length - config.span + 1, 1)
        return generator.choice(num_starts, min(num_spans, num_starts), replace=False)
    period = config.span + config.min_space
    num_spans = min(num_spans, max((length + config.min_space) // period, 1))
    # Arrangements of n spans with gaps correspond one to one to n distinct positions among free + n, in order.
    free = max(length - num_spans * period + config.min_space, 0)
    positions = np.sort(generator.choice(free + num_spans, num_spans, replace=False))
    return positions + np.arange(num_spans) * (period - 1)


def _draw_fills(
    config: MaskConfig, seed: int, step: int, keys: Sequence[str], valid: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Frames that the embedding or noise replaces [B, F] bool, and whose features each frame gets [B, F] int64."""
    embedded = predicted.copy()
    source = np.tile(np.arange(predicted.shape[1]), (len(keys), 1))
    if config.replace == config.keep == 0.0:
        return embedded, source
    for row, key in enumerate(keys):
        generator = np.random.default_rng(derive_seed(seed, step, "mask_fill", key))
        frames = np.flatnonzero(valid[row])
        draws = generator.random(len(frames))
        # Steps of 1 to n - 1 around the row lead to any other of its n valid frames; a lone frame has no other.
        others = (np.arange(len(frames)) + generator.integers(1, max(len(frames), 2), len(frames))) % len(frames)
        masked = predicted[row, frames]
        replaced = masked & (draws < config.replace) & (len(frames) > 1)
        kept = masked & (draws >= 1.0 - config.keep)
        embedded[row, frames[replaced | kept]] = False
        source[row, frames[replaced]] = frames[others[replaced]]
    return embedded, source


def _draw_channels(config: ChannelMaskConfig, seed: int, step: int, keys: Sequence[str], width: int) -> np.ndarray:
    generators = [np.random.default_rng(derive_seed(seed, step, "channel_mask", key)) for key in keys]
    return np.stack([draw_mask(config, width, generator) for generator in generators])

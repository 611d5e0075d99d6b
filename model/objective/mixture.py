"""In-batch noise mixture (arXiv 2306.00107, section 3): snippets of other rows are added, targets stay clean.

MERT's own code mixes when `rand() > mixture_prob`, the inverse of what its setting says (no effect at 0.5).
Here `probability` is the probability that a row is mixed.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from mert_foundry.model.objective.seeding import derive_seed


class MixtureConfig(BaseModel):
    """How rows are mixed; the defaults are MERT 95M's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probability: float = Field(0.5, ge=0.0, le=1.0, description="probability that a row is mixed")
    min_snippets: int = Field(1, ge=1, description="fewest snippets added to a mixed row")
    max_snippets: int = Field(3, ge=1, description="most snippets added to a mixed row")
    min_samples: int = Field(12_000, ge=1, description="shortest snippet, samples")
    max_samples: int = Field(24_000, ge=1, description="longest snippet, samples")
    volume: float = Field(1.0, ge=0.0, description="factor on a snippet before it is added")

    @model_validator(mode="after")
    def _ordered(self) -> "MixtureConfig":
        for unit in ("snippets", "samples"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if low > high:
                raise ValueError(f"min_{unit} {low} is above max_{unit} {high}")
        return self


def mix_batch(
    audio: Tensor, lengths: Sequence[int], rows: Sequence[int], config: MixtureConfig, seed: int, step: int
) -> Tensor:
    """Audio with snippets of other rows added; the input is left as it is.

    Args:
        audio: [B, T] float.
        lengths: [B] samples before padding; snippets come from and go to these alone.
        rows: [B] index of each row in the global batch.

    Every draw of a row is a pure function of (seed, step, its index in the global batch) and of B: the snippets
    come from the rows at hand, so their source changes with the number of ranks. A lone row (B = 1) has none to
    mix with and stays as it is.
    """
    mixed = audio.clone()
    if len(audio) == 1:
        return mixed
    for target, row in enumerate(rows):
        generator = np.random.default_rng(derive_seed(seed, step, "mixture", int(row)))
        if generator.random() >= config.probability:
            continue
        for _ in range(generator.integers(config.min_snippets, config.max_snippets, endpoint=True)):
            source = (target + 1 + int(generator.integers(len(audio) - 1))) % len(audio)
            _add_snippet(mixed[target, : lengths[target]], audio[source, : lengths[source]], config, generator)
    return mixed


def _add_snippet(target: Tensor, source: Tensor, config: MixtureConfig, generator: np.random.Generator) -> None:
    samples = int(generator.integers(config.min_samples, config.max_samples, endpoint=True))
    samples = min(samples, len(source), len(target))
    begin = int(generator.integers(len(source) - samples, endpoint=True))
    start = int(generator.integers(len(target) - samples, endpoint=True))
    target[start : start + samples] += config.volume * source[begin : begin + samples]

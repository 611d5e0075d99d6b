"""Statistics of targets: exact partial sums per shard, merged into what index.json shows.

Partials add up in float64 in the order of the examples, then of the shards, so they are a pure
function of the shard set: not of where, when or by how many workers it was labelled.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Annotated, Literal, TypeGuard

import numpy as np
from pydantic import Field

from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage.documents import Document

ROUNDING = 1e-9  # relative
LEAST_DEVIATION = 0.001  # of the largest bin's, 60 dB below it: what varies less is noise, and is not blown up


class DiscreteCounts(Document):
    """Partial of a discrete target."""

    kind: Literal["discrete"] = Field("discrete", description="Codes")
    counts: list[list[int]] = Field(description="Frames that chose each entry, [codebooks][entries]")


class ContinuousSums(Document):
    """Partial of a continuous target, in the target's own unit."""

    kind: Literal["continuous"] = Field("continuous", description="Values")
    count: int = Field(ge=0, description="Frames summed")
    sum: list[float] = Field(description="Sum over frames, per bin")
    sum_of_squares: list[float] = Field(description="Sum of squares over frames, per bin")
    minimum: float | None = Field(description="Smallest value; none without frames")
    maximum: float | None = Field(description="Largest value; none without frames")


class DiscreteSummary(Document):
    """What index.json says about a discrete target, per codebook level."""

    kind: Literal["discrete"] = Field("discrete", description="Codes")
    usage: list[float] = Field(description="Share of the entries seen at least once, 0 to 1")
    perplexity: list[float] = Field(description="exp of the entropy of the entries, 1 to codebook size")


class ContinuousSummary(Document):
    """What index.json says about a continuous target, in the target's own unit."""

    kind: Literal["continuous"] = Field("continuous", description="Values")
    mean: list[float] = Field(description="Mean over frames, per bin")
    deviation: list[float] = Field(description="Standard deviation over frames, per bin")
    minimum: float = Field(description="Smallest value")
    maximum: float = Field(description="Largest value")


Partial = Annotated[DiscreteCounts | ContinuousSums, Field(discriminator="kind")]
Summary = Annotated[DiscreteSummary | ContinuousSummary, Field(discriminator="kind")]


def measure(spec: TargetSpec, array: np.ndarray) -> DiscreteCounts | ContinuousSums:
    """The partial of one array, discrete `[K, F]` or continuous `[F, bins]`; F may be 0."""
    if spec.kind == "discrete":
        assert spec.codebook_size is not None, "check_specs asks for one"
        counts = [np.bincount(level, minlength=spec.codebook_size).tolist() for level in array]
        return DiscreteCounts(counts=counts)
    return measure_values(spec.values(array))


def measure_values(values: np.ndarray) -> ContinuousSums:
    """The partial of values `[F, bins]`, summed in float64; F may be 0."""
    return ContinuousSums(
        count=len(values),
        sum=values.sum(axis=0, dtype=np.float64).tolist(),
        sum_of_squares=np.square(values, dtype=np.float64).sum(axis=0).tolist(),
        minimum=float(values.min()) if len(values) else None,
        maximum=float(values.max()) if len(values) else None,
    )


def empty(spec: TargetSpec) -> DiscreteCounts | ContinuousSums:
    """The partial of no frames at all."""
    return measure(spec, np.zeros(spec.shape(0), spec.dtype))


def merge(
    first: DiscreteCounts | ContinuousSums, second: DiscreteCounts | ContinuousSums
) -> DiscreteCounts | ContinuousSums:
    """The partial of both. Raises ValueError when kinds or sizes differ."""
    if isinstance(first, DiscreteCounts) and isinstance(second, DiscreteCounts):
        return DiscreteCounts(counts=_added(first.counts, second.counts))
    if isinstance(first, ContinuousSums) and isinstance(second, ContinuousSums):
        return merge_values(first, second)
    raise ValueError(f"statistics of a {first.kind} and a {second.kind} target do not merge")


def merge_values(first: ContinuousSums, second: ContinuousSums) -> ContinuousSums:
    """The partial of both. Raises ValueError when sizes differ."""
    return ContinuousSums(
        count=first.count + second.count,
        sum=_added(first.sum, second.sum),
        sum_of_squares=_added(first.sum_of_squares, second.sum_of_squares),
        minimum=_present(min, first.minimum, second.minimum),
        maximum=_present(max, first.maximum, second.maximum),
    )


def agree(first: Mapping[str, Partial | Summary], second: Mapping[str, Partial | Summary]) -> bool:
    """Whether statistics by target are equal: counts exactly, sums and what is made of them but for rounding.

    A sum over the values of uint8 levels differs in its last bits between CPUs: where there is AVX-512, numpy's expm1
    is another one.
    """
    return first.keys() == second.keys() and all(
        dict(first[name]).keys() == dict(second[name]).keys()
        and all(_is_near(value, getattr(second[name], field)) for field, value in first[name])
        for name in first
    )


def _is_near(first: object, second: object) -> bool:
    """Equal, or floats, or as many floats, that are equal but for rounding."""
    if not (_are_floats(first) and _are_floats(second)):
        return first == second
    left, right = np.atleast_1d(first), np.atleast_1d(second)
    return left.shape == right.shape and np.allclose(left, right, ROUNDING, ROUNDING * np.abs(right).max(initial=0))


def _are_floats(values: object) -> TypeGuard[float | list[float]]:
    return isinstance(values, float) or (isinstance(values, list) and all(isinstance(value, float) for value in values))


def mix(
    partials: Sequence[DiscreteCounts | ContinuousSums], shares: Sequence[float]
) -> DiscreteCounts | ContinuousSums:
    """The partial of as many frames as all of these have, to which each contributes its share, which add up to 1.

    Of one partial, itself. Raises ValueError when kinds or sizes differ, or one has no frame.
    """
    if len(partials) == 1:
        return partials[0]
    frames = [_frames(partial) for partial in partials]
    if not all(frames):
        raise ValueError("statistics of no frames")
    factors = [share * sum(frames) / count for share, count in zip(shares, frames)]
    return reduce(merge, (_scaled(partial, factor) for partial, factor in zip(partials, factors)))


def _frames(partial: DiscreteCounts | ContinuousSums) -> int:
    return sum(partial.counts[0]) if isinstance(partial, DiscreteCounts) else partial.count


def _scaled(partial: DiscreteCounts | ContinuousSums, factor: float) -> DiscreteCounts | ContinuousSums:
    """The partial as if it had `factor` times its frames, to whole frames."""
    if isinstance(partial, DiscreteCounts):
        return DiscreteCounts(counts=np.rint(np.array(partial.counts) * factor).astype(int).tolist())
    count = round(partial.count * factor)
    exact = count / partial.count
    sums = {name: [exact * value for value in getattr(partial, name)] for name in ("sum", "sum_of_squares")}
    return partial.model_copy(update={"count": count, **sums})


def summarise(partial: DiscreteCounts | ContinuousSums) -> DiscreteSummary | ContinuousSummary:
    """Usage and perplexity, or mean and standard deviation. Raises ValueError for a partial of no frames."""
    if isinstance(partial, DiscreteCounts):
        return summarise_counts(partial)
    if not partial.count or partial.minimum is None or partial.maximum is None:
        raise ValueError("statistics of no frames")
    mean, variance = mean_and_variance(partial)
    return ContinuousSummary(
        mean=mean.tolist(),
        deviation=np.sqrt(variance).tolist(),
        minimum=partial.minimum,
        maximum=partial.maximum,
    )


def mean_and_variance(sums: ContinuousSums) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance over frames, per bin, float64 [bins] each; of at least one frame."""
    mean = np.array(sums.sum) / sums.count
    return mean, np.maximum(np.array(sums.sum_of_squares) / sums.count - mean**2, 0)


def standardising_deviation(variance: np.ndarray) -> np.ndarray:
    """What to divide by, per bin: the deviation, but not below `LEAST_DEVIATION` of the largest, and 1
    where all are 0.
    """
    deviation = np.sqrt(variance)
    return np.maximum(deviation, LEAST_DEVIATION * deviation.max() or 1.0)


def summarise_counts(partial: DiscreteCounts) -> DiscreteSummary:
    """Usage and perplexity. Raises ValueError for a partial of no frames."""
    return DiscreteSummary(
        usage=[sum(count > 0 for count in level) / len(level) for level in partial.counts],
        perplexity=[_perplexity(level) for level in partial.counts],
    )


def _perplexity(counts: Iterable[int]) -> float:
    seen = [count for count in counts if count]
    total = sum(seen)
    if not total:
        raise ValueError("statistics of no frames")
    entropy = -math.fsum(count / total * math.log(count / total) for count in seen)
    return round(math.exp(entropy), 6)


def _added(first: list, second: list) -> list:
    left, right = np.array(first), np.array(second)
    if left.shape != right.shape:
        raise ValueError(f"statistics of shapes {left.shape} and {right.shape} do not merge")
    return (left + right).tolist()


def _present(choose, *values: float | None) -> float | None:
    return choose((value for value in values if value is not None), default=None)

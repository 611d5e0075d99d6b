"""The shard sets that a run draws from, each with a weight, and the targets they have together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mert_foundry.pipeline.shards.index import ShardIndex
from mert_foundry.pipeline.shards.target import TargetSpec

MUST_AGREE = ("kind", "dtype", "frame_rate", "size", "codebook_size", "companding", "fingerprint")


@dataclass(frozen=True)
class ShardSet:
    """A set of shards: its folder (a local path or fsspec URL), its index, and its weight beside other sets."""

    folder: str
    index: ShardIndex
    weight: int = 1

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its index.json, which names it."""
        return self.index.digest()

    def num_examples(self, split: str) -> int:
        """Examples of a split; 0 when there is no such split."""
        return self.index.totals[split].examples if split in self.index.totals else 0

    def num_frames(self, split: str) -> int:
        """Target frames of a split."""
        return sum(entry.num_frames for entry in self.index.shards(split))

    def filled_splits(self) -> list[str]:
        """The splits that have an example."""
        return [split for split, totals in sorted(self.index.totals.items()) if totals.examples]


class SetMixture:
    """Sets in the order of their digests, so that the order in which they were named changes nothing.

    Raises ValueError naming set and both values when a set is there twice, or sets differ in sample rate, hop or a target.
    """

    def __init__(self, sets: Sequence[ShardSet]) -> None:
        self.sets = sorted(sets, key=lambda each: each.digest)
        for one, other in zip(self.sets, self.sets[1:]):
            if one.digest == other.digest:
                raise ValueError(f"{other.folder} is the same set as {one.folder}: index.json has SHA-256 {one.digest}")
        first, *others = sets
        for other in others:
            _check_agreement(first, other)
        self.targets: list[TargetSpec] = first.index.targets
        self.sample_rate: int = first.index.sample_rate
        self.hop: int = first.index.hop

    @property
    def weights(self) -> dict[str, int]:
        """Weights by digest, without a common divisor: in proportion they are the same."""
        divisor = math.gcd(*(each.weight for each in self.sets))
        return {each.digest: each.weight // divisor for each in self.sets}

    def having(self, split: str) -> list[ShardSet]:
        """The sets that have an example in a split."""
        return [each for each in self.sets if split in each.filled_splits()]


def _check_agreement(first: ShardSet, other: ShardSet) -> None:
    for field in ("sample_rate", "hop"):
        theirs, ours = getattr(other.index, field), getattr(first.index, field)
        if theirs != ours:
            raise ValueError(f"{other.folder}: {field} is {theirs}, that of {first.folder} is {ours}")
    specs, others = ({spec.name: spec for spec in each.index.targets} for each in (first, other))
    for name in sorted(specs.keys() ^ others.keys()):
        with_it, without = (first, other) if name in specs else (other, first)
        raise ValueError(f"{without.folder} has no target {name}, which {with_it.folder} has")
    for name, spec in specs.items():
        for field in MUST_AGREE:
            theirs, ours = getattr(others[name], field), getattr(spec, field)
            if theirs != ours:
                raise ValueError(
                    f"{other.folder}: {field} of target {name} is {theirs}, that of {first.folder} is {ours}"
                )

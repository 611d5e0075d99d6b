"""The shard sets that a run draws from, each with a weight, and the targets they have together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from mert_foundry.pipeline.shards.index import ShardIndex
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.shards.text import TextSpec

MissingTargets = Literal["stop", "mask"]
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

    def has(self, target: str) -> bool:
        """Whether its examples have a target."""
        return any(spec.name == target for spec in self.index.targets)

    def num_examples(self, split: str) -> int:
        """Examples of a split; 0 when there is no such split."""
        return self.index.totals[split].examples if split in self.index.totals else 0

    def num_frames(self, split: str) -> int:
        """Target frames of a split; 0 when there is no such split."""
        return self.index.num_frames(split)

    def filled_splits(self) -> list[str]:
        """The splits that have an example."""
        return [split for split, totals in sorted(self.index.totals.items()) if totals.examples]


class SetMixture:
    """Sets in the order of their digests, so that the order in which they were named changes no row.

    Args:
        sets: at least one.
        missing_targets: stop: all sets have the same targets; mask: `targets` are those of any set, and batches say
            which rows lack one of `partial_targets`.

    Raises ValueError naming set and both values when a set is there twice, or sets differ in sample rate, hop, a target
    or whether they have audio.
    """

    def __init__(self, sets: Sequence[ShardSet], missing_targets: MissingTargets = "stop") -> None:
        self.sets = sorted(sets, key=lambda each: each.digest)
        for one, other in zip(self.sets, self.sets[1:]):
            if one.digest == other.digest:
                raise ValueError(f"{other.folder} is the same set as {one.folder}: index.json has SHA-256 {one.digest}")
        first, *others = sets
        for other in others:
            _check_rates(first, other)
        self.sample_rate: int = first.index.sample_rate
        self.hop: int = first.index.hop
        self.has_audio: bool = first.index.has_audio
        self.targets = _join_targets(sets)
        self.partial_targets = {spec.name for spec in self.targets if not all(each.has(spec.name) for each in sets)}
        if missing_targets == "stop" and self.partial_targets:
            name = min(self.partial_targets)
            with_it, without = (next(each for each in sets if each.has(name) is has) for has in (True, False))
            raise ValueError(
                f"{without.folder} has no target {name}, which {with_it.folder} has; missing_targets=mask trains on it"
                " all the same"
            )

    @property
    def weights(self) -> dict[str, int]:
        """Weights by digest, without a common divisor: in proportion they are the same."""
        divisor = math.gcd(*(each.weight for each in self.sets))
        return {each.digest: each.weight // divisor for each in self.sets}

    @property
    def text(self) -> TextSpec | None:
        """The text of the sets that have some; None when none has.

        Raises ValueError naming two sets and their tokenizers when these differ.
        """
        with_text = [each for each in self.sets if each.index.text]
        for each in with_text[1:]:
            theirs, ours = each.index.text, with_text[0].index.text
            if theirs and ours and theirs.fingerprint != ours.fingerprint:
                raise ValueError(
                    f"{each.folder}: text is of tokenizer {theirs.fingerprint}, that of {with_text[0].folder} of"
                    f" {ours.fingerprint}"
                )
        return with_text[0].index.text if with_text else None

    def having(self, split: str, target: str | None = None) -> list[ShardSet]:
        """The sets that have an example in a split, and a target if one is named."""
        having = [each for each in self.sets if split in each.filled_splits()]
        return [each for each in having if target is None or each.has(target)]


def _check_rates(first: ShardSet, other: ShardSet) -> None:
    for field in ("sample_rate", "hop"):
        theirs, ours = getattr(other.index, field), getattr(first.index, field)
        if theirs != ours:
            raise ValueError(f"{other.folder}: {field} is {theirs}, that of {first.folder} is {ours}")
    if first.index.has_audio != other.index.has_audio:
        alone, heard = (first, other) if other.index.has_audio else (other, first)
        raise ValueError(f"{alone.folder} is text alone, {heard.folder} has audio: a run takes sets of one of the two")


def _join_targets(sets: Sequence[ShardSet]) -> list[TargetSpec]:
    """The targets of any set, in the order in which they are met. Raises ValueError when two sets differ in one."""
    found: dict[str, tuple[ShardSet, TargetSpec]] = {}
    for each in sets:
        for spec in each.index.targets:
            first, ours = found.setdefault(spec.name, (each, spec))
            for field in MUST_AGREE:
                value, theirs = getattr(spec, field), getattr(ours, field)
                if value != theirs:
                    raise ValueError(
                        f"{each.folder}: {field} of target {spec.name} is {value}, that of {first.folder} is {theirs}"
                    )
    return [spec for _, spec in found.values()]

"""Where a stream is, as checkpoints hold it: of each set what is consumed, and which weights held from which row on.

A run that has only ever had one set has a `StreamPosition`. With the first other set comes a `MixturePosition`, which
knows its own
past: so the row of any step can be told later, also after weights were changed or sets were added.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.pipeline.storage.documents import parse_values
from mert_foundry.pipeline.stream.sample_order import ORDER_VERSION


class OtherSetsError(ValueError):
    """A position of sets that are all missing from those at hand."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StreamPosition(_Document):
    """Where a stream of one set is: the examples before (epoch, offset) are consumed, on every rank."""

    order_version: int = Field(description="Version of the sample order")
    index_digest: str = Field(description="SHA-256 of index.json")
    split: str = Field(description="Split")
    seed: int = Field(description="Seed of order and crops")
    shuffle_window: int = Field(description="Shards shuffled together")
    epoch: int = Field(ge=0, description="Epochs completed")
    offset: int = Field(ge=0, description="Examples consumed of the current epoch, those passed over included")
    bad_shards: list[str] = Field(default=[], description="Shards passed over so far, since they were corrupt")


class SetPosition(_Document):
    """What of one set of a mixture is consumed."""

    epoch: int = Field(default=0, ge=0, description="Epochs completed")
    offset: int = Field(
        default=0, ge=0, description="Examples consumed of the current epoch, those passed over included"
    )
    bad_shards: list[str] = Field(default=[], description="Shards passed over so far, since they were corrupt")

    @classmethod
    def at(cls, consumed: int, epoch_size: int, bad_shards: list[str]) -> "SetPosition":
        """After so many examples of a set, over all epochs."""
        epoch, offset = divmod(consumed, epoch_size)
        return cls(epoch=epoch, offset=offset, bad_shards=bad_shards)

    def consumed(self, epoch_size: int) -> int:
        """Examples consumed over all epochs."""
        return self.epoch * epoch_size + self.offset


class Phase(_Document):
    """A stretch of a run with the same sets and weights. Keys are digests: SHA-256 of each index.json."""

    rows: int = Field(ge=0, description="Rows of all sets before it")
    weights: dict[str, int] = Field(description="Weights of the sets in it")
    sets: dict[str, SetPosition] = Field(description="What was consumed of each set before it")


class MixturePosition(_Document):
    """Where a stream of several sets is, or of one that had others before."""

    order_version: int = Field(description="Version of the sample order")
    split: str = Field(description="Split")
    seed: int = Field(description="Seed of order and crops")
    shuffle_window: int = Field(description="Shards shuffled together in each set")
    rows: int = Field(ge=0, description="Rows of all sets so far; each is a visit to an example")
    sets: dict[str, SetPosition] = Field(
        description="By digest, what is consumed of each set, of those no longer drawn from too"
    )
    phases: list[Phase] = Field(min_length=1, description="Which weights held from which row on; the last holds now")

    def enter_phase(self, weights: Mapping[str, int]) -> "MixturePosition":
        """The same place, from which on these weights hold; nothing changes when they did so before."""
        if self.phases[-1].weights == weights:
            return self
        sets = {**self.sets, **{digest: SetPosition() for digest in weights if digest not in self.sets}}
        phase = Phase(rows=self.rows, weights=dict(weights), sets=sets)
        # One in which no row was drawn is none.
        before = [earlier for earlier in self.phases if earlier.rows < self.rows]
        return self.model_copy(update={"sets": sets, "phases": [*before, phase]})

    def document(self) -> dict[str, Any]:
        """What a checkpoint holds: the form of one set where there never was another."""
        if len(self.sets) > 1:
            return self.model_dump()
        ((digest, place),) = self.sets.items()
        shared = self.model_dump(include={"order_version", "split", "seed", "shuffle_window"})
        return StreamPosition(index_digest=digest, **shared, **place.model_dump()).model_dump()


def begin(split: str, seed: int, shuffle_window: int, weights: Mapping[str, int]) -> MixturePosition:
    """Before the first row."""
    sets = {digest: SetPosition() for digest in weights}
    return MixturePosition(
        order_version=ORDER_VERSION,
        split=split,
        seed=seed,
        shuffle_window=shuffle_window,
        rows=0,
        sets=sets,
        phases=[Phase(rows=0, weights=dict(weights), sets=sets)],
    )


def parse_position(position: Mapping[str, Any], epoch_sizes: Mapping[str, int]) -> MixturePosition:
    """A stored position. `epoch_sizes`: examples of each set at hand, by digest.

    Raises ValueError for what is no position and for an offset beyond the end of an epoch, OtherSetsError for one of
    other sets only.
    """
    if "sets" in position:
        given = parse_values("stream position", position, MixturePosition)
        known = [digest for digest in given.sets if digest in epoch_sizes]
        if not known:
            raise OtherSetsError(
                f"stream position: {_names(given.sets)} do not fit this stream's {_names(epoch_sizes)}"
            )
    else:
        given = _as_mixture(parse_values("stream position", position, StreamPosition), epoch_sizes)
        known = list(given.sets)
    for digest in known:
        offset, size = given.sets[digest].offset, epoch_sizes[digest]
        if offset >= size:
            raise ValueError(f"stream position: offset {offset} in an epoch of {size} examples")
    return given


def check_same(given: MixturePosition, ours: MixturePosition) -> None:
    """Raise ValueError naming both values when a position is of another order."""
    for field in ("order_version", "split", "seed", "shuffle_window"):
        theirs, own = getattr(given, field), getattr(ours, field)
        if theirs != own:
            raise ValueError(f"stream position: {field} {theirs} does not fit this stream's {own}")


def _as_mixture(given: StreamPosition, epoch_sizes: Mapping[str, int]) -> MixturePosition:
    """The position of a run of one set; rows count those passed over too, as nothing says how many they were."""
    digest = given.index_digest
    if digest not in epoch_sizes:
        raise OtherSetsError(
            f"stream position: index_digest {digest} does not fit this stream's {', '.join(epoch_sizes)}"
        )
    place = SetPosition(epoch=given.epoch, offset=given.offset, bad_shards=given.bad_shards)
    start = begin(given.split, given.seed, given.shuffle_window, {digest: 1})
    rows = place.consumed(epoch_sizes[digest])
    return start.model_copy(update={"order_version": given.order_version, "rows": rows, "sets": {digest: place}})


def _names(digests: Mapping[str, object] | Sequence[str]) -> str:
    return f"sets {', '.join(digest[:12] for digest in digests)}"

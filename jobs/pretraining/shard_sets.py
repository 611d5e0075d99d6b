"""The shard sets of a run: how the settings name them, what weights they have, and what a run keeps of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from mert_foundry.model.objective.text_memory import TOKENIZER
from mert_foundry.pipeline.shards.index import ShardIndex, load_index
from mert_foundry.pipeline.stream.row_schedule import whole_weights
from mert_foundry.pipeline.stream.set_mixture import MissingTargets, SetMixture, ShardSet

PARTS = 1_000_000  # of the whole: what the share of a set is rounded to where a temperature other than 1 makes it


class WeightedShards(BaseModel):
    """One of several shard sets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="Shard folder, a local path or fsspec URL")
    weight: float | None = Field(
        default=None,
        gt=0.0,
        allow_inf_nan=False,
        description="Its share of the rows beside the other weights; null, then in all: by hours",
    )


def _alternative(value: object) -> str:
    return "folder" if isinstance(value, str) else "sets"


Shards = Annotated[
    Annotated[str, Tag("folder")] | Annotated[list[WeightedShards], Tag("sets")], Discriminator(_alternative)
]


def check_weights(shards: str | Sequence[WeightedShards], temperature: float) -> None:
    """Raise ValueError for no set, for weights of some sets only, and for a temperature beside weights or a single
    folder.
    """
    if isinstance(shards, str):
        if temperature != 1.0:
            raise ValueError(f"mixing_temperature is {temperature:g}, but shards is one folder, {shards}")
        return
    if not shards:
        raise ValueError("shards is an empty list")
    weighted = [each.path for each in shards if each.weight is not None]
    if 0 < len(weighted) < len(shards):
        other = next(each.path for each in shards if each.weight is None)
        raise ValueError(f"shards: {weighted[0]} has a weight, {other} has none; give all of them one, or none")
    if weighted and temperature != 1.0:
        raise ValueError(
            f"mixing_temperature is {temperature:g}, which is for sets without weight; {weighted[0]} has one"
        )


def load_mixture(
    shards: str | Sequence[WeightedShards], temperature: float, split: str, missing_targets: MissingTargets = "stop"
) -> SetMixture:
    """The sets with their weights; those without one have hours^(1 / temperature) of `split`.

    Raises as `load_index` and `SetMixture`.
    """
    if isinstance(shards, str):
        return SetMixture([ShardSet(shards, load_index(shards))])
    sets = [ShardSet(each.path, load_index(each.path)) for each in shards]
    weights = [each.weight for each in shards if each.weight is not None]
    whole = whole_weights(weights) if weights else _weights_by_hours(sets, temperature, split)
    return SetMixture([replace(each, weight=weight) for each, weight in zip(sets, whole)], missing_targets)


def _weights_by_hours(sets: Sequence[ShardSet], temperature: float, split: str) -> list[int]:
    frames = [each.num_frames(split) for each in sets]
    if temperature == 1.0 or not all(frames):
        return [max(1, count) for count in frames]  # a set without the split is refused later, by name
    powers = [(count / max(frames)) ** (1.0 / temperature) for count in frames]  # at most 1: no float overflows
    return [max(1, round(PARTS * power / sum(powers))) for power in powers]


def describe_sets(mixture: SetMixture, with_text: bool = False) -> dict[str, Any]:
    """What a run keeps of its data.

    One set stands there by itself, several in a list. `with_text`: the tokenizer among the teachers.
    """
    described = [_describe_set(each.index) for each in mixture.sets]
    shared: dict[str, Any] = {
        "sample_rate": mixture.sample_rate,
        "teachers": {spec.name: spec.teacher | {"fingerprint": spec.fingerprint} for spec in mixture.targets},
    }
    if with_text and mixture.text:
        about_text = {"fingerprint": mixture.text.fingerprint, "vocabulary_size": mixture.text.vocabulary_size}
        shared["teachers"][TOKENIZER] = about_text
    if len(described) == 1:
        return described[0] | shared
    weights = mixture.weights
    total = sum(weights.values())
    sets = [
        {"path": each.folder, "share": round(weights[each.digest] / total, 6), **about}
        for each, about in zip(mixture.sets, described)
    ]
    amount = "hours" if mixture.has_audio else "tokens"
    splits = sorted({split for about in described for split in about[amount]})
    sums = {split: round(sum(about[amount].get(split, 0) for about in described), 4) for split in splits}
    return {"sets": sets, amount: sums, **shared}


def _describe_set(index: ShardIndex) -> dict[str, Any]:
    about = {"index_sha256": index.digest(), "manifest_sha256": index.manifest_sha256}
    if not index.has_audio:
        return {**about, "tokens": {split: index.num_frames(split) for split in index.totals}}
    return {**about, "hours": {split: round(totals.seconds / 3600, 4) for split, totals in index.totals.items()}}


def find_exchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The data of a run that goes on must hold a set that it had, and no other set at the path of one: else key, old,
    new digest.
    """
    old, new = _digests(before), _digests(now)
    if set(old.values()) == set(new.values()):
        return None  # also when folders have changed their names
    if not set(old.values()) & set(new.values()):
        return "data.index_sha256", " ".join(old.values()), " ".join(new.values())
    for path in sorted(old.keys() & new.keys()):
        if old[path] != new[path]:
            return f"index_sha256 of {path}", old[path], new[path]
    return None


def find_other_teacher(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """A target that another teacher labels than before: key, old and new fingerprint.

    A head trained on one must not go on with the other.
    """
    for name, teacher in now["teachers"].items():
        old, new = before["teachers"].get(name, teacher)["fingerprint"], teacher["fingerprint"]
        if old != new:
            return f"teacher of {name}", old, new
    return None


def _digests(data: Mapping[str, Any]) -> dict[str, str]:
    """By path; that of a single set is not kept there, so it is empty."""
    if "sets" not in data:
        return {"": data["index_sha256"]}
    return {each["path"]: each["index_sha256"] for each in data["sets"]}

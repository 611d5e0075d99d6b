"""The options of mert inspect for each kind of folder. Only runs have several locations."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ManifestOptions:
    """For a manifest folder. `diff`: another manifest to compare it with."""

    locations: tuple[str, ...]
    diff: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """For one or several run folders. `diff`: another run to compare a single one with."""

    locations: tuple[str, ...]
    diff: str | None = None


@dataclass(frozen=True, kw_only=True)
class ChosenExamples:
    """Which examples a page shows: those that `keys` names, or else as many as `examples` says, drawn by `seed`."""

    examples: int = 6
    keys: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ShardOptions(ChosenExamples):
    """A shard folder, and the examples of its page.

    diff: another one to compare it with. shard, example: the name of a shard, the key of an example to show. export: a
    key, and a folder to write its files to. manifest: the manifest that the set was made from. codec: the teacher's
    codec, where it has moved.
    """

    locations: tuple[str, ...]
    diff: str | None = None
    shard: str | None = None
    example: str | None = None
    export: tuple[str, str] | None = None
    manifest: str | None = None
    codec: str | None = None


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(ChosenExamples):
    """A feature store, and the tracks whose neighbours are on its page.

    track: the key of a track whose neighbours to show. manifest: where groups come from.
    """

    locations: tuple[str, ...]
    track: str | None = None
    manifest: str | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """The folder that `mert probe` wrote."""

    locations: tuple[str, ...]


AnyOptions = ManifestOptions | RunOptions | ShardOptions | FeatureOptions | ProbeOptions

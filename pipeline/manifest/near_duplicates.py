"""Near duplicates within a manifest: found by their sketches, reported in clusters, kept together, or all but one of
each recording dropped.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mert_foundry.pipeline.fingerprint.near_duplicates import (
    SHORTER_SHARE,
    Overlap,
    compare,
    find_near_duplicates,
)
from mert_foundry.pipeline.fingerprint.sketch import Sketch
from mert_foundry.pipeline.manifest.rows import REST_SPLIT, Reject, Track
from mert_foundry.pipeline.manifest.settings import Keep
from mert_foundry.pipeline.storage import files

CLUSTERS_NAME = "near_duplicates.jsonl"
MOST_COMPARED = 8


class Copy(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A track of a cluster, compared with one before it in the cluster."""

    key: Annotated[str, Meta(description="Key of the track")]
    path: Annotated[str, Meta(description="Path relative to the root")]
    kept: Annotated[bool, Meta(description="Whether it is in the manifest")]
    like: Annotated[str, Meta(description="Key of the track it is compared with; empty for the first of a cluster")] = (
        ""
    )
    start: Annotated[float | None, Meta(description="Where it begins in that one, seconds; negative: before")] = None
    seconds: Annotated[float, Meta(description="What both have in common, seconds")] = 0.0
    share: Annotated[float, Meta(description="Share of the keys of the fingerprint that agree where both overlap")] = (
        0.0
    )


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """A line of near_duplicates.jsonl: tracks that are joined by having at least half of the shorter one in common."""

    cluster: Annotated[str, Meta(description="Its name: the first of its keys")]
    group: Annotated[str, Meta(description="The group that all its tracks take")]
    split: Annotated[str, Meta(description="The split of that group")]
    tracks: Annotated[tuple[Copy, ...], Meta(description="Its tracks, those that are preferred first")]


@dataclass(frozen=True)
class Resolved:
    """Rows and rejects, with clusters in one group each and what is dropped among the rejects; and the clusters, by
    name.
    """

    results: list[Track | Reject]
    clusters: list[Cluster]


def resolve(results: Sequence[Track | Reject], sketches: Mapping[str, Sketch], keep: Keep) -> Resolved:
    """Find the near duplicates and decide what happens to them. The order of `results` stays, and changes nothing.

    A cluster takes one group: that of its first track by key, one in train before others, so that nothing that was
    trained on gets into another split by a copy. A track is dropped when one that is preferred and kept has at least
    half of it.

    Args:
        sketches: by the SHA-256 of the decoded audio.
        keep: what is kept of near duplicates.
    """
    tracks = sorted((result for result in results if isinstance(result, Track)), key=lambda track: track.key)
    pairs = list(
        find_near_duplicates([sketches[track.audio_sha256] for track in tracks], [track.seconds for track in tracks])
    )
    paired: dict[str, set[str]] = defaultdict(set)
    for first, second in pairs:
        paired[tracks[first].key].add(tracks[second].key)
        paired[tracks[second].key].add(tracks[first].key)
    new: dict[str, Track | Reject] = {}
    clusters = []
    for members in _join(pairs):
        cluster = _describe([tracks[member] for member in members], paired, sketches, keep)
        clusters.append(cluster)
        by_key = {tracks[member].key: tracks[member] for member in members}
        for copy in cluster.tracks:
            new[copy.path] = _place(by_key[copy.key], copy, cluster, by_key)
    kept = [new.get(result.path, result) if isinstance(result, Track) else result for result in results]
    return Resolved(kept, sorted(clusters, key=lambda cluster: cluster.cluster))


def publish_clusters(out: str, clusters: Iterable[Cluster]) -> None:
    """Write near_duplicates.jsonl."""
    lines = (json.dumps(msgspec.to_builtins(one), sort_keys=True) + "\n" for one in clusters)
    files.publish_bytes(files.join(out, CLUSTERS_NAME), "".join(lines).encode())


def _join(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Numbers in clusters, each sorted: those that pairs join."""
    leader: dict[int, int] = {}

    def find(one: int) -> int:
        while (above := leader.setdefault(one, one)) != one:
            leader[one] = leader[above]
            one = leader[one]
        return one

    for pair in pairs:
        first, second = sorted(map(find, pair))
        leader[second] = first
    clusters: dict[int, list[int]] = defaultdict(list)
    for one in sorted(leader):
        clusters[find(one)].append(one)
    return list(clusters.values())


def _describe(
    tracks: list[Track], paired: Mapping[str, set[str]], sketches: Mapping[str, Sketch], keep: Keep
) -> Cluster:
    """The cluster of tracks, which are sorted by key.

    A track is compared with those kept before it that it is paired with, and with the first `MOST_COMPARED` kept: with
    all of them, a cluster of thousands would take hours.
    """
    leader = min(tracks, key=lambda track: (track.split != REST_SPLIT, track.key))
    ordered = sorted(tracks, key=_ORDERS[keep])
    kept: dict[str, Track] = {}
    copies: list[Copy] = []
    for track in ordered:
        near = {key: kept[key] for key in sorted(paired[track.key]) if key in kept}
        near |= dict(islice(kept.items(), MOST_COMPARED))
        own = {key: found for key, before in near.items() if (found := _compare(before, track, sketches))}
        like = max(own, key=lambda key: own[key].seconds, default="")
        found = own.get(like)
        is_kept = keep == "all" or found is None or found.seconds < SHORTER_SHARE * track.seconds
        if is_kept:
            kept[track.key] = track
        copy = Copy(key=track.key, path=track.path, kept=is_kept)
        if found:
            copy = msgspec.structs.replace(copy, like=like, start=found.start, seconds=found.seconds, share=found.share)
        copies.append(copy)
    return Cluster(cluster=tracks[0].key, group=leader.group, split=leader.split, tracks=tuple(copies))


def _compare(before: Track, track: Track, sketches: Mapping[str, Sketch]) -> Overlap | None:
    return compare(sketches[before.audio_sha256], sketches[track.audio_sha256], before.seconds, track.seconds)


def _by_quality(track: Track) -> tuple[Any, ...]:
    """Higher sample rate, more bytes per second, longer, first key."""
    return (-track.sample_rate, -track.bytes / max(track.seconds, 1e-6), -track.seconds, track.key)


_ORDERS: dict[str, Callable[[Track], Any]] = {
    "all": lambda track: track.key,
    "first": lambda track: track.key,
    "best": _by_quality,
}


def _place(track: Track, copy: Copy, cluster: Cluster, by_key: Mapping[str, Track]) -> Track | Reject:
    if copy.kept:
        return msgspec.structs.replace(track, group=cluster.group, split=cluster.split)
    share = f"{copy.seconds:.1f} of {track.seconds:.1f} s"
    detail = f"{copy.like} ({by_key[copy.like].path}) is kept: {share} are the same, {copy.share:.0%} of the keys agree"
    return Reject(path=track.path, reason="near_duplicate", detail=detail)

"""What follows from the path of a track and the settings alone: its key, its group and its split."""

import hashlib
import re

import msgspec

from mert_foundry.pipeline.manifest.rows import REST_SPLIT, Track
from mert_foundry.pipeline.manifest.settings import ManifestConfig


def track_key(path: str) -> str:
    """Stable id of a track: readable part of its name, and 12 hexadecimal digits of its path's SHA-256.

    No dot and no slash, since WebDataset splits member names at the first dot.
    """
    stem = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:40].strip("-").lower()
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{slug}-{digest}" if slug else digest


def choose_split(group: str, seed: int, splits: dict[str, float]) -> str:
    """The split of a group, from a hash of (seed, group): adding files moves no group."""
    digest = hashlib.sha256(f"{seed}\0{group}".encode("utf-8", "surrogateescape")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for name, share in sorted(splits.items()):
        if position < share:
            return name
        position -= share
    return REST_SPLIT


def track_group(path: str, group_by: str) -> str:
    """The parent folder of a track, or the track itself (also for a track right under the root)."""
    return path.rsplit("/", 1)[0] if group_by == "folder" and "/" in path else path


def group_and_split(path: str, config: ManifestConfig, group: str = "", split: str = "") -> tuple[str, str]:
    """Where a track belongs: `group` and `split` where the user names them, else as the settings say."""
    group = group or track_group(path, config.group_by)
    return group, split or choose_split(group, config.seed, config.splits)


def place(track: Track, config: ManifestConfig) -> Track:
    """The track in the group and split that the settings give it."""
    group, split = group_and_split(track.path, config)
    return msgspec.structs.replace(track, group=group, split=split)

"""Whether the splits have the hours that were asked for, which group stands in the way, and a seed that comes nearer.

A split cannot be balanced and hold still at once. That adding files moves no track means: whatever the corpus grows to,
a group stays where it was when its first file stood alone. So the split can depend on nothing but the name of the group
and the settings, and not on hours. What is left is to see the imbalance, and to choose another seed before anything is
trained.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mert_foundry.pipeline.manifest.placement import choose_split
from mert_foundry.pipeline.manifest.rows import REST_SPLIT, Track
from mert_foundry.pipeline.manifest.settings import ManifestConfig

TOLERANCE = 0.2  # by which a split's hours may differ from those wanted, relative to them
SEEDS = 100
MOST_HASHES = 1_000_000  # 1.5 s


@dataclass(frozen=True)
class Imbalance:
    """A split that has too much or too little. `group` is the longest of those that it has, or that it lacks."""

    split: str
    hours: float
    wanted_hours: float
    group: str
    group_hours: float

    def __str__(self) -> str:
        belongs = "its longest group" if self.hours > self.wanted_hours else "the longest group outside"
        return (
            f"{self.split} has {self.hours:.3g} h, {self.wanted_hours:.3g} h are wanted; {belongs}, {self.group!r},"
            f" has {self.group_hours:.3g} h"
        )


def wanted_shares(config: ManifestConfig) -> dict[str, float]:
    """Share of the hours by split, what is left for train first."""
    return {REST_SPLIT: 1 - sum(config.splits.values()), **config.splits}


def find_imbalances(tracks: Iterable[Track], config: ManifestConfig) -> list[Imbalance]:
    """The splits whose hours differ from those wanted by more than the tolerance."""
    groups = _hours_by_group(tracks)
    total = math.fsum(groups.values())
    found = []
    for split, share in wanted_shares(config).items():
        hours = math.fsum(length for (_, own), length in groups.items() if own == split)
        if abs(hours - share * total) <= TOLERANCE * share * total:
            continue
        is_over = hours > share * total
        candidates = {name: length for (name, own), length in groups.items() if (own == split) == is_over}
        longest = max(sorted(candidates), key=candidates.__getitem__)
        found.append(Imbalance(split, hours, share * total, longest, candidates[longest]))
    return found


def find_better_seed(tracks: Iterable[Track], config: ManifestConfig) -> tuple[int, dict[str, float]] | None:
    """The seed below 100 that comes nearest to the shares wanted, and the hours by split with it; None if none comes
    nearer.
    """
    groups: dict[str, float] = defaultdict(float)
    for (name, _), hours in _hours_by_group(tracks).items():
        groups[name] += hours
    seeds = [config.seed, *range(min(SEEDS, MOST_HASHES // max(1, len(groups))))]
    by_seed = {seed: _split_hours(groups, seed, config) for seed in seeds}
    best = min(seeds, key=lambda seed: (_error(by_seed[seed], config), seed != config.seed, seed))
    return None if best == config.seed else (best, by_seed[best])


def _hours_by_group(tracks: Iterable[Track]) -> dict[tuple[str, str], float]:
    """Hours by (group, split)."""
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for track in tracks:
        seconds[track.group, track.split].append(track.seconds)
    return {key: math.fsum(lengths) / 3600 for key, lengths in seconds.items()}


def _split_hours(groups: Mapping[str, float], seed: int, config: ManifestConfig) -> dict[str, float]:
    hours = dict.fromkeys(wanted_shares(config), 0.0)
    for name, length in groups.items():
        hours[choose_split(name, seed, config.splits)] += length
    return hours


def _error(hours: Mapping[str, float], config: ManifestConfig) -> float:
    """The largest difference from the hours wanted, relative to them."""
    total = math.fsum(hours.values())
    return max(
        abs(hours[split] - share * total) / (share * total) for split, share in wanted_shares(config).items() if share
    )

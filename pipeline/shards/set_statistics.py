"""Statistics of a shard set: of all its targets together, and of its text where it has some."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mert_foundry.pipeline.shards.format import Example
from mert_foundry.pipeline.shards.record import ShardRecord
from mert_foundry.pipeline.shards.statistics import DiscreteCounts, Partial, Summary, empty, measure, merge, summarise
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.shards.text import OF_TEXT, TextSpec, measure_tokens, summarise_tokens


def empty_statistics(specs: Sequence[TargetSpec], text: TextSpec | None) -> dict[str, Partial]:
    """The statistics of no examples, by target."""
    statistics: dict[str, Partial] = {spec.name: empty(spec) for spec in specs}
    return statistics | ({OF_TEXT: measure_tokens(text, np.zeros(0, text.dtype))} if text else {})


def measure_example(example: Example, specs: Sequence[TargetSpec], text: TextSpec | None) -> dict[str, Partial]:
    """The statistics of one example, by target."""
    statistics: dict[str, Partial] = {spec.name: measure(spec, example.targets[spec.name]) for spec in specs}
    if text and example.text:
        statistics[OF_TEXT] = measure_tokens(text, example.text.tokens)
    return statistics


def sum_records(
    specs: Sequence[TargetSpec], records: Iterable[ShardRecord], text: TextSpec | None = None
) -> tuple[dict[str, Partial], dict[str, int]]:
    """Sums of the statistics by target, and dropped segments by reason."""
    statistics = empty_statistics(specs, text)
    dropped: Counter[str] = Counter()
    for record in records:
        dropped.update(record.dropped)
        statistics = {target: merge(partial, record.statistics[target]) for target, partial in statistics.items()}
    return statistics, dict(dropped)


def summarise_all(statistics: Mapping[str, Partial]) -> dict[str, Summary]:
    """What index.json says of statistics by target. Raises as `summarise`."""
    return {
        name: summarise_tokens(partial)
        if name == OF_TEXT and isinstance(partial, DiscreteCounts)
        else summarise(partial)
        for name, partial in statistics.items()
    }

"""A difference between two manifests, shard sets or runs, as lines for people."""

from collections.abc import Sequence

from mert_foundry.jobs.command.text import table
from mert_foundry.pipeline.inspection.difference import Difference

MOST_KEYS = 20
LONGEST_VALUE = 70  # characters: a SHA-256 has 64


def difference_lines(difference: Difference) -> list[str]:
    """Settings as a table; keys with `+` added, `-` removed, `~` changed, at most 20 of each."""
    lines = [f"from  {difference.first}", f"to    {difference.second}"]
    if difference.same:
        return [*lines, "", "no difference"]
    if difference.settings:
        rows = [(change.key, _value(change.first), _value(change.second)) for change in difference.settings]
        lines += ["", "settings and fingerprints", *table(("", "from", "to"), rows)]
    lines += [
        "",
        f"{difference.rows}: {len(difference.added)} added, {len(difference.removed)} removed,"
        f" {len(difference.changed)} changed",
    ]
    lines += _some("+", difference.added)
    lines += _some("-", difference.removed)
    return lines + _some("~", [f"{change.key}: {', '.join(change.what)}" for change in difference.changed])


def _some(mark: str, texts: Sequence[str]) -> list[str]:
    lines = [f"  {mark} {text}" for text in texts[:MOST_KEYS]]
    return lines + ([f"  {mark} and {len(texts) - MOST_KEYS} more; --json names all"] if len(texts) > MOST_KEYS else [])


def _value(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"

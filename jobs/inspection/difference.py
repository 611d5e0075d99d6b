"""What mert inspect --diff shows: how two manifests, shard sets or runs differ."""

from mert_foundry.jobs.inspection.view import Block, Note, Section, Table, View
from mert_foundry.pipeline.inspection.difference import Difference

LONGEST_VALUE = 70  # characters; a SHA-256 has 64


def difference_view(difference: Difference) -> View:
    """A view of the settings that differ, and of keys that were added (`+`), removed (`-`) or changed (`~`)."""
    blocks: list[Block] = [Note("no difference")]
    if not difference.same:
        settings = [(change.key, _value(change.first), _value(change.second)) for change in difference.settings]
        counts = f"{len(difference.added)} added, {len(difference.removed)} removed, {len(difference.changed)} changed"
        changed = [(f"~ {change.key}", ", ".join(change.what)) for change in difference.changed]
        blocks = [
            Table(("settings and fingerprints", "from", "to"), settings),
            Note(f"{difference.rows}: {counts}"),
            Table(("added",), [(f"+ {key}",) for key in difference.added], may_be_long=True),
            Table(("removed",), [(f"- {key}",) for key in difference.removed], may_be_long=True),
            Table(("changed", "what"), changed, may_be_long=True),
        ]
    title = f"from {difference.first} to {difference.second}"
    return View(difference.kind, title, [Section("Overview", blocks)], difference.model_dump(mode="json"))


def _value(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"

"""What share of each set a run has heard how often, and whether its positions leave out or repeat an example."""

from collections.abc import Iterator
from itertools import islice

from pydantic import JsonValue

from mert_foundry.jobs.inspection.past import load_past, positions
from mert_foundry.jobs.inspection.view import Block, Note, Section, Table
from mert_foundry.model.runs.history import RunHistory
from mert_foundry.model.runs.rewinds import read_rewinds
from mert_foundry.pipeline.stream.past_rows import PastRows

MOST_COUNTED = 20_000_000  # examples; a second or two for each ten million
MOST_FAULTS = 20


def coverage(history: RunHistory) -> tuple[Section, dict[str, JsonValue]]:
    """The section of a run, and the same as data.

    Where the sets cannot be read, or there is no position, it says so.
    """
    title = "Coverage"
    try:
        if not positions(history):
            raise ValueError("the run kept no position")
        past = load_past(history)
        faults = list(islice(past.find_faults(), MOST_FAULTS))
        epochs, examples = past.count_epochs(MOST_COUNTED)
    except (OSError, ValueError, ImportError) as error:
        return Section(title, [Note(f"not known: {error}")]), {"unknown": str(error)}
    sets = list(heard_of_sets(past))
    data: dict[str, JsonValue] = {
        "rows": past.now.rows,
        "sets": list(sets),
        "positions": len(past.known),
        "positions_left_out": len(past.left_out),
        "faults": list(faults),
        "epochs_counted": epochs,
        "examples_counted": examples,
    }
    rows = [(each["set"], each["drawn"], each["examples"], heard_text(each), len(each["bad_shards"])) for each in sets]
    table = Table(("set", "drawn", "examples", "heard", "bad shards"), rows)
    passed_over = [Note("batches that a rewind passed over count as drawn")] if read_rewinds(history.folder) else []
    return Section(title, [table, *passed_over, *proof(past, faults, epochs, examples)]), data


def heard_of_sets(past: PastRows) -> Iterator[dict]:
    """Of each set: examples drawn, and which share of its examples was heard how often (share by times); null where it
    is missing.
    """
    for digest, place in past.now.sets.items():
        known = past.sets.get(digest)
        size = known.num_examples(past.now.split) if known else None
        heard = {}
        if size:
            heard = {str(place.epoch): (size - place.offset) / size, str(place.epoch + 1): place.offset / size}
        yield {
            "set": known.folder if known else f"index.json {digest[:12]}, not found",
            "index_sha256": digest,
            "examples": size,
            "drawn": past.consumed(digest, place) if known else None,
            "heard": {times: share for times, share in heard.items() if share},
            "bad_shards": place.bad_shards,
        }


def heard_text(heard: dict) -> str:
    """Such as `62.0% 3 times, 38.0% 4 times`."""
    return ", ".join(f"{share:.1%} {times} times" for times, share in heard["heard"].items()) or "-"


def proof(past: PastRows, faults: list[str], epochs: int, examples: int) -> Iterator[Block]:
    """What the positions show."""
    yield from (Note(fault, warning=True) for fault in faults)
    if past.left_out:
        yield Note(
            f"{len(past.left_out)} positions, of steps {past.left_out[0]} to {past.left_out[-1]}, are of sets that are"
            " not at hand; they are left out"
        )
    if any(place.bad_shards for place in past.now.sets.values()):
        yield Note("examples of bad shards count as drawn, but were passed over")
    if not faults:
        yield Note(
            f"each of {len(past.known)} positions is what the order makes of the rows before it, so within an epoch no"
            f" example was missed or doubled; counted through {epochs} epochs, {examples:,} examples"
        )
    if len(past.now.phases) > 1:
        rows = ", ".join(f"{phase.rows:,}" for phase in past.now.phases[1:])
        yield Note(f"sets or weights changed after rows {rows}")

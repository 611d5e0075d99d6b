"""The examples and crops of one step of a run: which rows its global batch had, told from positions and indexes.

    mert audit RUN_FOLDER --step 1200
    mert audit RUN_FOLDER --step 1200 --json                       the same for machines, all rows
    mert audit RUN_FOLDER --step 1200 --shards FOLDER [FOLDER ...]    the sets where they are now

Any step up to the last position that the run kept, also before weights were changed or sets were added. Nothing is read
of the shards but index.json and the records of the shards that the step drew from. Crops are as long, and
as many of a visit, as config.yaml says now that they are at this step.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack

from pydantic import JsonValue

from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.inspection.as_text import as_text
from mert_foundry.jobs.inspection.past import load_past, stream_of
from mert_foundry.jobs.inspection.view import Note, Section, Table, View
from mert_foundry.model.runs.history import RunHistory, load_run
from mert_foundry.model.runs.rewinds import read_rewinds
from mert_foundry.pipeline.frames import FRAME_RATE
from mert_foundry.pipeline.shards.reader import ShardReader
from mert_foundry.pipeline.storage.files import local_path
from mert_foundry.pipeline.storage.folder_kinds import RUN, check_input
from mert_foundry.pipeline.stream.crops import CropRule, crop_frames
from mert_foundry.pipeline.stream.past_rows import PastRows

COLUMNS = ("row", "set", "shard", "key", "epoch", "begins_in", "start", "seconds")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mert audit", add_help=False)
    parser.add_argument("run", metavar="RUN_FOLDER")
    parser.add_argument("--step", type=int, required=True, metavar="N")
    parser.add_argument("--shards", nargs="+", default=(), metavar="FOLDER")
    options = parser.parse_args(arguments)
    check_input(options.run, RUN)
    view = audit(load_run(local_path(options.run)), options.step, options.shards)
    console.answer(view.data, as_text(view))
    return 0


def audit(history: RunHistory, step: int, folders: tuple[str, ...] = ()) -> View:
    """What a step drew.

    Raises as `load_past`, `check_not_at_rewind`, `PastRows.places_of` and `ShardReader.entries`.
    """
    past = load_past(history, folders)
    check_not_at_rewind(history, past, step)
    stream = stream_of(history).at_step(step)
    rule = CropRule(crop_frames(stream.crop_samples), stream.crops_per_visit, past.now.seed)
    rows = list(list_rows(past, step, rule))
    data: dict[str, JsonValue] = {"kind": "audit", "run": str(history.folder), "step": step, "rows": list(rows)}
    table = Table(COLUMNS, [tuple(row[name] for name in COLUMNS) for row in rows])
    note = Note(f"{len(rows)} rows; a crop begins at start, in seconds, of the example it begins in")
    return View("audit", f"{history.folder} step {step}", [Section("Rows", [table, note])], data)


def check_not_at_rewind(history: RunHistory, past: PastRows, step: int) -> None:
    """Raise ValueError for a step between two positions between which the run passed over batches."""
    known = [position.step for position in past.known]
    for rewound in read_rewinds(history.folder):
        checkpoint = rewound["checkpoint"]
        before = max((each for each in known if each <= checkpoint), default=0)
        after = min((each for each in known if each > checkpoint), default=step)
        if before < step <= after:
            raise ValueError(
                f"{history.folder}: step {step} cannot be told: between steps {before} and {after} the run went back"
                f" from step {rewound['spike']} to step {checkpoint} and passed over batches"
            )


def list_rows(past: PastRows, step: int, rule: CropRule) -> Iterator[dict]:
    """Each row of a step by column, its crop in seconds. Raises as `audit`."""
    drawn = past.places_of(step)
    shards = {digest: past.sets[digest].index.shards(past.now.split) for digest in {row.digest for row in drawn}}
    with ExitStack() as stack:
        readers = {}
        for digest, entries in shards.items():
            each = past.sets[digest]
            readers[digest] = ShardReader(each.folder, each.index, entries, open_shards=len(drawn))
            stack.callback(readers[digest].close)
        examples = [readers[digest].entries(place.shard) for digest, place in drawn]
    crops = [
        (digest, place, listed, crop)
        for (digest, place), listed in zip(drawn, examples)
        for crop in rule.visit(place.epoch, listed, place.example, past.sets[digest].index.segment_frames)
    ]
    for number, (digest, place, listed, crop) in enumerate(crops):
        first = crop.pieces[0]
        yield {
            "row": number,
            "set": past.sets[digest].folder,
            "shard": shards[digest][place.shard].name,
            "key": crop.key,
            "epoch": place.epoch,
            "begins_in": listed[first.example].key,
            "start": round(first.start_frame / FRAME_RATE, 3),
            "seconds": round(crop.num_frames / FRAME_RATE, 3),
        }


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))

"""Requests to an object store, and cost where prices are given."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from mert_foundry.jobs.planning.figures import Basis, Figure, Line, Missing, figure
from mert_foundry.jobs.planning.settings import Prices
from mert_foundry.jobs.planning.shard_figures import BYTES, LABELLING, FlacRate, PlannedSet, count_examples
from mert_foundry.jobs.planning.training_figures import TIME, PlannedRun
from mert_foundry.pipeline.frames import FRAME_RATE, HOP
from mert_foundry.pipeline.labelling.planned_bytes import array_bytes

STORE, COST = "requests to an object store", "cost"
SET_FILES = 2  # label.yaml and index.json
WRITTEN, READ = "labelling: files written", "training: requests that read, at most"


def labelling_requests(planned: PlannedSet) -> Iterator[Line]:
    """Files that labelling reads and writes."""
    tracks = {"tracks": sum(len(task.tracks) for task in planned.tasks)}
    note = "looks whether a file is there and how large it is come on top, and the parts of large uploads"
    yield figure(STORE, "labelling: files read", "", "tracks", tracks, "counted", note)
    written = {"shards": len(planned.tasks), "set_files": SET_FILES}
    note = f"a tar and a record each, and label.yaml and index.json; {note}"
    yield figure(STORE, WRITTEN, "", "2 * shards + set_files", written, "counted", note)


def training_requests(run: PlannedRun, planned: PlannedSet, flac: FlacRate) -> Iterator[Line]:
    """Requests and bytes that a run reads: a range for the audio and for each target of a crop, and records."""
    config, window = run.config, run.config.stream.shuffle_window
    parts = [planned.audio_member == "flac", *(spec.kind == "discrete" for spec in run.targets)]
    once = 1 / config.stream.crops_per_visit  # of what is read whole, for all crops of a visit
    ranges = sum(once if whole else 1 for whole in parts)
    crops: dict[str, float] = {
        "steps": config.trainer.schedule.total_steps,
        "batch_size": config.stream.batch_size,
        "ranges": ranges,
    }
    epochs = crops["steps"] * config.stream.visits / run.examples
    validations = 0 if config.valid_split is None else 1 + -(-crops["steps"] // config.trainer.validate_every)
    valid = [] if config.valid_split is None else [shard for shard in planned.of(config.valid_split) if shard.examples]
    inputs = crops | {
        "gpus": run.gpus,
        "shards": run.shards,
        # As many as are kept open are read once; of more, each again in each epoch.
        "readings": 1 if run.shards <= 2 * window else math.ceil(epochs),
        "validations": validations,
        "valid_examples": sum(shard.examples for shard in valid),
        "valid_shards": len(valid),
    }
    formula = (
        "(steps * batch_size + validations * valid_examples) * ranges"
        " + gpus * (shards * readings + valid_shards * validations)"
    )
    note = (
        "ranges: the audio and each target of a crop, what is read whole once a visit; besides, each rank reads"
        " the record of a shard that it opens"
    )
    yield figure(STORE, READ, "", formula, inputs, "counted", note)
    sizes = _bytes_of_a_crop(run, planned, flac)
    inputs = {name: amount for name, amount in crops.items() if name != "ranges"} | sizes
    formula = f"steps * batch_size * ({' + '.join(sizes)})"
    basis: Basis = flac.basis if planned.audio_member == "flac" else "counted"
    note = (
        "FLAC and codes are read whole, of PCM and spectra only the crop; means over the examples, without validation"
    )
    yield figure(STORE, "training: bytes read", "B", formula, inputs, basis, note)


def _bytes_of_a_crop(run: PlannedRun, planned: PlannedSet, flac: FlacRate) -> dict[str, float]:
    """Mean bytes that a crop reads of each member."""
    lengths = count_examples(planned, run.config.train_split)
    frames = sum(frames * count for frames, count in lengths.items()) / run.examples
    kept = sum(min(frames, run.crop_frames) * count for frames, count in lengths.items()) / run.examples
    visit = run.config.stream.crops_per_visit  # crops of an example that is read whole
    sizes = {"audio": flac.value * frames / FRAME_RATE / visit if planned.audio_member == "flac" else 2 * HOP * kept}
    for spec in run.targets:
        if spec.kind == "discrete":
            whole = sum(array_bytes(spec.dtype, spec.shape(frames)) * count for frames, count in lengths.items())
            sizes[spec.name] = whole / run.examples / visit
        else:
            sizes[spec.name] = spec.size * np.dtype(spec.dtype).itemsize * kept
    return sizes


def cost_figures(prices: Prices, lines: Sequence[Line]) -> Iterator[Line]:
    """The cost of what has a price; `lines` are the plan's until here."""
    known = {(line.section, line.name): line for line in lines if isinstance(line, Figure)}
    unknown = {line.section for line in lines if isinstance(line, Missing)}
    asked = prices.model_dump(exclude_none=True)
    if not asked:
        needs = f"prices.NAME= gives a price, in any one currency: {', '.join(Prices.model_fields)}"
        yield Missing(section=COST, name="cost", needs=needs)
    for price, name, place, per in _PRICED:
        if price not in asked:
            continue
        if place in known:
            amount = known[place]
            inputs = {"amount": amount.value, "price": asked[price]}
            basis: Basis = "estimate" if amount.basis == "estimate" else "stated"
            note = f"amount: {place[0]}, {place[1]}; price: prices.{price}"
            yield figure(COST, name, "", f"amount / {per} * price", inputs, basis, note)
        elif place[0] in unknown:
            yield Missing(section=COST, name=name, needs=f"what is not known under {place[0]}")


# The price, what is paid for, the figure that says how much of it, and the number that the price is for.
_PRICED: tuple[tuple[str, str, tuple[str, str], str], ...] = (
    ("worker_hour", "labelling workers", (LABELLING, "hours of one worker"), "1"),
    ("gpu_hour", "GPUs for labelling", (LABELLING, "hours of one GPU"), "1"),
    ("gpu_hour", "GPUs for training", (TIME, "GPU hours at that rate"), "1"),
    ("gb_month", "shards in the store, a month", (BYTES, "all shards"), "1e9"),
    ("thousand_writes", "writing the shards", (STORE, WRITTEN), "1000"),
    ("thousand_reads", "reading them in training", (STORE, READ), "1000"),
)

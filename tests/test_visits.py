"""What a visit to an example gives: one crop or several, of one segment or of consecutive ones joined to the frame.

In any world, through resumes, beside another set, and in the audit.
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shard_fixtures import as_dropped, index_shards, make_track, write_examples, write_set
from test_audit import write_run

from mert_foundry.jobs import audit
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.shards.reader import ShardReader
from mert_foundry.pipeline.shards.record import ExampleEntry
from mert_foundry.pipeline.stream.batch_stream import MixtureStream, StreamConfig, validation_batches
from mert_foundry.pipeline.stream.crops import CropRule
from mert_foundry.pipeline.stream.set_mixture import SetMixture, ShardSet

SEGMENT = 75  # frames, as the index of these sets says
FRAMES = 100  # of a crop
SEED = 5
STREAM = {"batch_size": 4, "crop_samples": 320 * FRAMES, "shuffle_window": 2, "threads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards: tracks of up to 5 segments, one with a segment missing in its middle, and a short one. FLAC."""
    folder = tmp_path_factory.mktemp("shards")
    with_hole = make_track("hole", 75, 75, 75, 75, 20)
    shards = [
        [*make_track("long", 75, 75, 75, 75, 93), *make_track("short", 30)],
        [*with_hole[:1], as_dropped(with_hole[1]), *with_hole[2:]],
        [*make_track("two", 75, 40), *make_track("twobis", 75)],
    ]
    names = []
    for number, outcomes in enumerate(shards):
        names.append(f"train-{number:06d}")
        write_examples(folder, names[-1], outcomes)
    write_examples(folder, "valid-000000", make_track("v", 75, 75, 30))
    index_shards(folder, [*names, "valid-000000"])
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    write_set(folder, [3, 2], "pcm.npy", prefix="other")
    return folder


def read(weights, count, position=None, world_size=1, **changes):
    """`count` global batches of all ranks, and the position after each."""
    sets = [ShardSet(str(folder), load_index(str(folder)), weight) for folder, weight in weights.items()]
    config = StreamConfig(**STREAM | changes)
    streams = [
        MixtureStream(SetMixture(sets), "train", config, SEED, rank, world_size, position) for rank in range(world_size)
    ]
    try:
        return [join([next(stream) for stream in streams]) for _ in range(count)]
    finally:
        for stream in streams:
            stream.close()


def join(parts):
    batches, positions = zip(*parts, strict=True)
    assert all(position == positions[0] for position in positions)
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0] if name != "key"}
    return whole | {"key": sum((batch["key"] for batch in batches), [])}, json.loads(json.dumps(positions[0]))


def assert_same(found, expected):
    for (left, left_position), (right, right_position) in zip(found, expected, strict=True):
        assert left_position == right_position and left["key"] == right["key"]
        assert all(torch.equal(left[name], right[name]) for name in left.keys() - {"key"})


def tracks_of(folder, split="train"):
    """By track, its arrays put together by the reader, and which of its frames are there."""
    index = load_index(str(folder))
    reader = ShardReader(str(folder), index, index.shards(split))
    found = {}
    for shard in range(len(index.shards(split))):
        entries = reader.entries(shard)
        for name in {entry.track for entry in entries}:
            track = reader.read_track(shard, name)
            there = np.zeros(len(track.audio) // 320, bool)
            for number, start in track.starts.items():
                there[start : start + entries[number].num_frames] = True
            found[name] = track, there, {entries[number].key: start for number, start in track.starts.items()}
    return found


def first_frame(batch, row):
    """Where in its track a row begins: samples tell it within 100 frames, codes within 16, both within 400."""
    within, code = int(batch["audio"][row, 0]) // 320, int(batch["codes"][row, 0, 0])
    return next(frame for frame in range(within, 400, 100) if frame % 16 == code)


def check_row(batch, row, tracks, frames=FRAMES):
    """A row is a part of its track without a gap, of full length unless the track is not, with the example of its key
    in it.
    """
    key = batch["key"][row].partition("+")[0]
    track, there, starts = tracks[key.rpartition("-")[0]]
    count = int(batch["valid"][row].sum())
    assert batch["valid"][row].tolist() == [frame < count for frame in range(batch["valid"].shape[1])]
    first = first_frame(batch, row)
    assert there[first : first + count].all()
    borders = np.flatnonzero(np.diff(there.astype(int), prepend=0, append=0)).reshape(-1, 2)
    stretch = next((start, stop) for start, stop in borders.tolist() if start <= starts[key] < stop)
    assert stretch[0] <= first and first + count <= stretch[1]
    assert count == min(frames, stretch[1] - stretch[0])
    pieces = slice(first, first + count)
    np.testing.assert_array_equal(batch["audio"][row, : 320 * count], track.audio[320 * first : 320 * (first + count)])
    np.testing.assert_array_equal(batch["codes"][row, :, :count], track.targets["codes"][:, pieces])
    np.testing.assert_array_equal(batch["cqt"][row, :count], track.targets["cqt"][pieces])
    assert not batch["audio"][row, 320 * count :].any() and not batch["cqt"][row, count:].any()
    return key, first, count


def test_a_crop_is_a_part_of_its_track_without_a_gap(folder):
    tracks = tracks_of(folder)
    rows = [check_row(batch, row, tracks) for batch, _ in read({folder: 1}, 39) for row in range(4)]
    epochs = [rows[start : start + 13] for start in range(0, len(rows), 13)]
    assert len(epochs) == 12
    for epoch in epochs:
        assert sorted(key for key, _, _ in epoch) == sorted(key for _, _, starts in tracks.values() for key in starts)
        starts = [first for key, first, _ in sorted(epoch) if key.startswith("long")]
        assert all(one < other for one, other in pairwise(starts)), (
            "spread over the track, in the order of its segments"
        )
    long = [first for key, first, _ in rows if key.startswith("long")]
    assert min(long) < 30 and max(long) > 260, "its first and its last frames are heard too"
    assert {count for _, _, count in rows} == {100, 75, 30}


@pytest.mark.parametrize("changes", [{}, {"crop_samples": 320 * 500}, {"crops_per_visit": 2, "batch_size": 8}])
def test_resumed_in_other_worlds_with_another_set_beside_it(folder, other, changes):
    weights = {folder: 2, other: 1}
    reference = read(weights, 12, **changes)
    found = read(weights, 3, world_size=2, **changes)
    found += read(weights, 4, found[-1][1], world_size=4, **changes)
    found += read(weights, 5, found[-1][1], threads=1, **changes)
    assert_same(found, reference)


def test_whole_songs_are_padded(folder):
    tracks = tracks_of(folder)
    rows = [
        check_row(batch, row, tracks, 500)
        for batch, _ in read({folder: 1}, 4, crop_samples=160_000)
        for row in range(4)
    ]
    assert {count for _, _, count in rows} <= {393, 30, 75, 170, 115}
    assert any(count == 393 for _, _, count in rows)


@pytest.mark.parametrize("crop", [20, FRAMES])
def test_crops_of_one_visit_are_rows_of_one_batch(folder, crop):
    """The visits, in order, are the examples that single crops are taken of; the crops of a visit lie in order in its
    track.
    """
    changes = {"crop_samples": 320 * crop}
    tracks = tracks_of(folder)
    single = [key for batch, _ in read({folder: 1}, 12, **changes) for key in batch["key"]]
    several = read({folder: 1}, 12, batch_size=12, crops_per_visit=3, **changes)
    assert [key for batch, _ in several for key in batch["key"][::3]] == single
    assert [position for _, position in several] == [position for _, position in read({folder: 1}, 12, **changes)]
    for batch, _ in several:
        assert batch["row"].tolist() == list(range(12))
        for first in range(0, 12, 3):
            key = batch["key"][first]
            assert batch["key"][first : first + 3] == [key, f"{key}+1", f"{key}+2"]
            if crop == FRAMES:
                assert all(check_row(batch, row, tracks, crop) for row in range(first, first + 3))
            starts = [first_frame(batch, row) for row in range(first, first + 3)]
            assert starts == sorted(starts) and (len(set(starts)) == 3 or not key.startswith("long"))


def test_an_example_is_read_once_for_all_crops_of_its_visit(folder, monkeypatch):
    read_parts = []
    original = ShardReader.read_cuts
    monkeypatch.setattr(
        ShardReader, "read_cuts", lambda self, *place: read_parts.append(len(place[2])) or original(self, *place)
    )
    read({folder: 1}, 1, batch_size=12, crops_per_visit=3, crop_samples=6400, prefetch=1)
    assert set(read_parts) == {3} and len(read_parts) >= 4


def test_visits_that_do_not_fit_are_refused(folder):
    with pytest.raises(ValueError, match="batch_size 4 is not a multiple of crops_per_visit 3"):
        StreamConfig(**STREAM | {"crops_per_visit": 3})
    with pytest.raises(ValueError, match="batch size 4 gives each of 2 ranks 2 rows, no multiple of crops_per_visit 4"):
        read({folder: 1}, 1, world_size=2, crops_per_visit=4)


def test_crops_as_long_as_a_segment_lie_in_one_example(folder):
    for batch, _ in read({folder: 1}, 8, crop_samples=320 * SEGMENT):
        for row, key in enumerate(batch["key"]):
            first = first_frame(batch, row)
            begin = SEGMENT * int(key[-5:])
            assert begin <= first and first + int(batch["valid"][row].sum()) <= begin + (
                93 if key == "long-00004" else SEGMENT
            )


def test_validation_joins_too_and_takes_every_example_once(folder):
    tracks = tracks_of(folder, "valid")
    batches = list(validation_batches(str(folder), load_index(str(folder)), "valid", StreamConfig(**STREAM)))
    rows = [check_row(batch, row, tracks) for batch in batches for row in range(len(batch["key"]))]
    # 180 frames have 81 starts, 27 for each of 3 crops; each begins at the middle one.
    assert rows == [("v-00000", 13, 100), ("v-00001", 40, 100), ("v-00002", 67, 100)]


@pytest.mark.parametrize("crops", [1, 2])
def test_the_audit_tells_where_a_joined_crop_begins(folder, other, tmp_path, run_here, crops):
    steps = read({folder: 2, other: 1}, 6, crops_per_visit=crops)
    drawn = [([], position) for _, position in steps]
    shards = [{"path": str(path)} for path in (folder, other)]
    run = write_run(tmp_path / "run", {}, drawn, shards=shards, stream=STREAM | {"crops_per_visit": crops})
    for step in (2, 6):
        code, out, err = run_here(audit, run, "--step", step, "--json")
        assert (code, err) == (0, "")
        batch = steps[step - 1][0]
        rows = json.loads(out)["rows"]
        assert len(rows) == STREAM["batch_size"]
        for row, told in enumerate(rows):
            segment = int(told["begins_in"][-5:])
            assert (told["row"], told["key"]) == (row, batch["key"][row])
            assert told["begins_in"].rpartition("-")[0] == told["key"].partition("+")[0].rpartition("-")[0]
            assert SEGMENT * segment + round(75 * told["start"]) == first_frame(batch, row)
            assert round(75 * told["seconds"]) == int(batch["valid"][row].sum())


LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=9)


@given(lengths=LENGTHS, frames=st.integers(1, 400), per_visit=st.integers(1, 4), seed=st.none() | st.integers(0, 99))
def test_starts_are_shared_out_evenly_among_the_crops_of_a_track(lengths, frames, per_visit, seed):
    entries = [
        ExampleEntry(key=f"t-{number:05d}", num_frames=length, members={}) for number, length in enumerate(lengths)
    ]
    rule = CropRule(frames, per_visit, seed)
    crops = [crop for example in range(len(entries)) for crop in rule.visit(0, entries, example, 0)]
    assert len({crop.key for crop in crops}) == len(crops) == per_visit * len(entries)
    before = np.cumsum([0, *lengths])
    starts = []
    for number, crop in enumerate(crops):
        taken = [
            frame
            for piece in crop.pieces
            for frame in range(
                before[piece.example] + piece.start_frame, before[piece.example] + piece.start_frame + piece.num_frames
            )
        ]
        assert taken == list(range(taken[0], taken[0] + min(frames, sum(lengths))))
        # Where there are starts for all, each of these parts has one: a start in each part of equal size.
        possible = max(1, sum(lengths) - frames + 1)
        if possible >= len(crops):
            assert number * possible // len(crops) <= taken[0] < (number + 1) * possible // len(crops)
        starts.append(taken[0])
    assert starts == sorted(starts)

"""Cutting tracks and filling shards: nothing is lost, and the plan is a function of content alone."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mert_foundry.pipeline.frames import (
    FRAME_RATE,
    HOP,
    SAMPLE_RATE,
    count_segments,
    resampled_length,
    seconds_to_frames,
    segment_lengths,
    whole_frames,
)
from mert_foundry.pipeline.labelling.plan import (
    SegmentConfig,
    ShardTask,
    choose_tracks,
    cut,
    plan_shards,
    planned_segments,
)
from mert_foundry.pipeline.manifest.placement import track_key
from mert_foundry.pipeline.manifest.rows import Manifest, Track
from mert_foundry.pipeline.manifest.shifted_track import shift_track, split_key
from mert_foundry.pipeline.shards.format import check_key
from mert_foundry.pipeline.shards.index import Augment, Selection

LENGTHS = st.one_of(st.integers(0, 5000), st.integers(0, 1_000_000))
TRACKS = st.lists(
    st.tuples(
        st.integers(1, 200),
        st.sampled_from([8000, 22_050, 24_000, 44_100, 48_000]),
        st.sampled_from(["train", "valid"]),
    ),
    min_size=1,
    max_size=25,
)
SEGMENTS = st.builds(
    SegmentConfig,
    segment_seconds=st.floats(1, 40),
    shortest_seconds=st.floats(0.02, 10),
    examples_per_shard=st.integers(1, 12),
    audio=st.sampled_from(["flac", "pcm.npy"]),
)


def make_manifest(tracks: list[tuple[int, int, str]]) -> Manifest:
    return Manifest(
        root="root", sha256="0" * 64, tracks=[make_track(number, *track) for number, track in enumerate(tracks)]
    )


def make_track(number: int, seconds: float, rate: int, split: str) -> Track:
    return Track(
        key=f"track-{number:03d}",
        path=f"folder/{number}.wav",
        bytes=1,
        sha256=f"{number:064x}",
        audio_sha256=f"{number:064x}",
        sample_rate=rate,
        channels=1,
        num_samples=int(seconds * rate),
        seconds=seconds,
        header_seconds=None,
        format="wav",
        group="folder",
        split=split,
    )


@given(num_frames=LENGTHS, segment=st.integers(5, 3000), shortest=st.integers(1, 3000))
def test_segments_cover_the_track(num_frames: int, segment: int, shortest: int):
    shortest = min(shortest, segment)
    lengths = segment_lengths(num_frames, segment, shortest)
    assert count_segments(num_frames, segment, shortest) == len(lengths)
    if num_frames < shortest:
        assert lengths == []
        return
    assert sum(lengths) == num_frames
    assert all(length == segment for length in lengths[:-1])
    assert shortest <= lengths[-1] < segment + shortest


@given(num_samples=LENGTHS, rate=st.sampled_from([8000, 11_025, 22_050, 24_000, 44_100, 48_000, 96_000]))
def test_lengths_in_exact_arithmetic(num_samples: int, rate: int):
    resampled = resampled_length(num_samples, rate)
    assert (resampled - 1) * rate < num_samples * SAMPLE_RATE <= resampled * rate
    frames = whole_frames(resampled)
    assert frames * HOP <= resampled < (frames + 1) * HOP
    assert seconds_to_frames(frames / FRAME_RATE) == frames


@settings(deadline=None)
@given(tracks=TRACKS, config=SEGMENTS)
def test_every_track_is_whole_in_one_shard_of_its_split(tracks: list, config: SegmentConfig):
    manifest = make_manifest(tracks)
    tasks = plan_shards(manifest, config)
    planned = [track for task in tasks for track in task.tracks]
    assert sorted(track.key for track in planned) == [track.key for track in manifest.tracks]
    assert {track.key: track for track in planned} == {track.key: track for track in manifest.tracks}
    for split in ("train", "valid"):
        names = [task.name for task in tasks if task.name.startswith(split)]
        assert names == [f"{split}-{number:06d}" for number in range(len(names))]
    for task in tasks:
        assert {track.split for track in task.tracks} == {task.name.rpartition("-")[0]}
        counts = [len(planned_segments(track, config)) for track in task.tracks]
        # Full at the last track, not before.
        assert sum(counts[:-1]) < config.examples_per_shard
    assert sum(task.seconds for task in tasks) == sum(track.seconds for track in manifest.tracks)
    for split in ("train", "valid"):
        for task in [task for task in tasks if task.name.startswith(split)][:-1]:
            assert sum(len(planned_segments(track, config)) for track in task.tracks) >= config.examples_per_shard


@settings(deadline=None)
@given(tracks=TRACKS, config=SEGMENTS, seed=st.integers(0, 99))
def test_the_plan_does_not_depend_on_the_order_of_the_manifest(tracks: list, config: SegmentConfig, seed: int):
    manifest = make_manifest(tracks)
    shuffled = list(manifest.tracks)
    random.Random(seed).shuffle(shuffled)
    assert plan_shards(manifest.model_copy(update={"tracks": shuffled}), config) == plan_shards(manifest, config)


@given(
    tracks=TRACKS, config=SEGMENTS, limits=st.tuples(st.floats(1e-4, 2), st.floats(1e-4, 2)), seed=st.integers(0, 99)
)
def test_more_hours_hold_what_fewer_hold(tracks: list, config: SegmentConfig, limits: tuple, seed: int):
    manifest = make_manifest(tracks)
    fewer, more = (Selection(splits=None, limit_hours=limit) for limit in sorted(limits))
    few, many = (choose_tracks(manifest, selection) for selection in (fewer, more))
    for split in {track.split for track in manifest.tracks}:
        assert few[split] and few[split] == many[split][: len(few[split])]
    # So what was labelled stays, but for the last shard of each split, which may get more tracks.
    smaller, larger = ({task.name: task for task in plan_shards(manifest, config, each)} for each in (fewer, more))
    lasts = {max(name for name in smaller if name.startswith(split)) for split in few}
    assert all(task == larger[name] for name, task in smaller.items() if name not in lasts)
    shuffled = list(manifest.tracks)
    random.Random(seed).shuffle(shuffled)
    assert choose_tracks(manifest.model_copy(update={"tracks": shuffled}), fewer) == few


@given(tracks=TRACKS, limit=st.floats(1e-4, 2))
def test_hours_are_reached_in_every_split_and_passed_by_less_than_a_track(tracks: list, limit: float):
    manifest = make_manifest(tracks)
    total = sum(track.seconds for track in manifest.tracks)
    for split, chosen in choose_tracks(manifest, Selection(splits=None, limit_hours=limit)).items():
        there = sum(track.seconds for track in manifest.tracks if track.split == split)
        taken, last = sum(track.seconds for track in chosen), chosen[-1].seconds
        wanted = min(1.0, limit * 3600 / total) * there
        assert taken > wanted - 1e-6 and taken - last < wanted + 1e-6


SHIFTS = st.lists(st.integers(-11, 11).filter(bool), min_size=1, max_size=4)


@settings(max_examples=40)
@given(tracks=TRACKS, config=SEGMENTS, limits=st.tuples(st.floats(1e-4, 2), st.floats(1e-4, 2)), semitones=SHIFTS)
def test_copies_stand_beside_their_tracks_of_train_and_change_nothing_else(
    tracks: list, config: SegmentConfig, limits: tuple, semitones: list
):
    manifest, augment = make_manifest([*tracks, (30, 24_000, "train")]), Augment(semitones=semitones)
    fewer, more = (Selection(limit_hours=limit) for limit in sorted(limits))
    plain = choose_tracks(manifest, fewer)
    chosen = choose_tracks(manifest, fewer, augment)
    shifts = [0, *sorted(set(semitones))]
    assert [split_key(track.key) for track in chosen["train"]] == [
        (track.key, shift) for track in plain["train"] for shift in shifts
    ]
    assert [track.seconds for track in chosen["train"]] == [track.seconds for track in plain["train"] for _ in shifts]
    assert {split: chosen[split] for split in chosen if split != "train"} == {
        split: plain[split] for split in plain if split != "train"
    }
    # So shards of the other splits stay when copies are asked for, and those of fewer hours when more are, but for the
    # last.
    prints = {task.name: task.fingerprint() for task in plan_shards(manifest, config, fewer)}
    smaller, larger = (
        {task.name: task.fingerprint() for task in plan_shards(manifest, config, each, augment)}
        for each in (fewer, more)
    )
    assert all(prints[name] == found for name, found in smaller.items() if not name.startswith("train"))
    lasts = {max(name for name in smaller if name.startswith(split)) for split in chosen}
    assert all(found == larger[name] for name, found in smaller.items() if name not in lasts)


@given(path=st.text(min_size=1), semitones=st.integers(-11, 11).filter(bool))
def test_the_key_of_a_copy_says_track_and_shift_and_fits_a_tar(path: str, semitones: int):
    track = replace(make_track(0, 30, 24_000, "train"), key=track_key(path))
    copy = shift_track(track, semitones)
    assert split_key(copy.key) == (track.key, semitones) and split_key(track.key) == (track.key, 0)
    check_key(f"{copy.key}-00000", ["random-projection.npy"])
    fields = set(track.__struct_fields__) - {"key"}
    assert all(getattr(copy, name) == getattr(track, name) for name in fields)


def test_the_shift_is_part_of_the_fingerprint():
    task = whole_task([(60, 24_000, "train")])
    copy = shift_track(task.tracks[0], 2)
    found = {
        task.model_copy(update={"tracks": tracks}).fingerprint()
        for tracks in (task.tracks, [copy], [replace(copy, semitones=3)], [replace(task.tracks[0], key=copy.key)])
    }
    assert len(found) == 4


def test_copies_without_a_track_of_train_are_refused():
    manifest = make_manifest([(30, 24_000, "valid")] * 3 + [(30, 24_000, "train")])
    with pytest.raises(ValueError, match="augment: tracks of the split train are copied, and only valid are labelled"):
        choose_tracks(manifest, Selection(splits=["valid"]), Augment(semitones=[2]))


def test_a_split_that_is_not_there_is_refused_by_name_and_one_alone_has_all_the_hours():
    manifest = make_manifest([(30, 24_000, "train")] * 9 + [(30, 24_000, "valid")] * 3)
    assert {*choose_tracks(manifest, Selection(splits=["valid"], limit_hours=None))} == {"valid"}
    alone = choose_tracks(manifest, Selection(splits=["train"], limit_hours=60 / 3600))
    assert [len(tracks) for tracks in alone.values()] == [2]
    both = choose_tracks(manifest, Selection(splits=None, limit_hours=120 / 3600))
    assert {split: len(tracks) for split, tracks in both.items()} == {"train": 3, "valid": 1}
    with pytest.raises(ValueError, match="no track in 'trian', only in train, valid"):
        choose_tracks(manifest, Selection(splits=["trian"], limit_hours=None))


def test_a_selection_is_a_set_of_splits_whatever_their_order():
    manifest = make_manifest([(30, 24_000, "train")] * 3 + [(30, 24_000, "valid")] * 3)
    one, other = (Selection(splits=splits) for splits in (["train", "valid"], ["valid", "train", "valid"]))
    assert one == other and str(one) == str(other) == "splits train, valid"
    assert list(choose_tracks(manifest, one).items()) == list(choose_tracks(manifest, other).items())
    assert choose_tracks(manifest, Selection()) == choose_tracks(manifest, one) and Selection() != one


def test_shards_mix_neighbours_of_the_manifest():
    manifest = make_manifest([(30, 24_000, "train")] * 200)
    first = plan_shards(manifest, SegmentConfig(examples_per_shard=50))[0]
    numbers = sorted(int(track.key[-3:]) for track in first.tracks)
    assert numbers != list(range(50)) and numbers[-1] > 150 and numbers[0] < 50


CHANGES = [
    ("key", "other-key"),
    ("audio_sha256", "f" * 64),
    ("sample_rate", 32_000),
    ("num_samples", 123_456),
]
IRRELEVANT = [
    ("path", "elsewhere/a.flac"),
    ("bytes", 99),
    ("sha256", "e" * 64),
    ("format", "flac"),
    ("group", "other"),
    ("header_seconds", 3.0),
]


@given(tracks=TRACKS, position=st.integers(0, 99), change=st.sampled_from(CHANGES))
def test_fingerprints_change_with_the_content(tracks: list, position: int, change: tuple):
    task = whole_task(tracks)
    position %= len(tracks)
    changed = list(task.tracks)
    changed[position] = replace(changed[position], **dict([change]))
    assert task.model_copy(update={"tracks": changed}).fingerprint() != task.fingerprint()
    assert task.model_copy(update={"tracks": task.tracks[:-1]}).fingerprint() != task.fingerprint()
    assert task.model_copy(update={"name": "train-000001"}).fingerprint() != task.fingerprint()
    if len(tracks) > 1:
        assert task.model_copy(update={"tracks": task.tracks[::-1]}).fingerprint() != task.fingerprint()


@given(tracks=TRACKS, position=st.integers(0, 99), change=st.sampled_from(IRRELEVANT))
def test_fingerprints_do_not_change_with_names_and_places(tracks: list, position: int, change: tuple):
    task = whole_task(tracks)
    changed = list(task.tracks)
    changed[position % len(tracks)] = replace(changed[position % len(tracks)], **dict([change]))
    assert task.model_copy(update={"tracks": changed}).fingerprint() == task.fingerprint()


def test_fingerprints_follow_the_settings_that_shape_examples():
    task = whole_task([(60, 24_000, "train")])
    for settings_, same in [
        ({"segment_seconds": 20.0}, False),
        ({"shortest_seconds": 4.0}, False),
        ({"audio": "pcm.npy"}, False),
        ({"drop_silent": False}, False),
        ({"examples_per_shard": 7}, True),
    ]:
        changed = task.model_copy(update={"config": SegmentConfig(**settings_)})
        assert (changed.fingerprint() == task.fingerprint()) is same


def test_fingerprints_hold_from_one_release_to_the_next():
    """Changing this value makes every shard of every user stale."""
    assert whole_task([(60, 24_000, "train"), (7, 44_100, "train")]).fingerprint() == FINGERPRINT


def test_a_segment_shorter_than_the_shortest_is_one_segment():
    assert cut(600, SegmentConfig(segment_seconds=4.0, shortest_seconds=5.0)) == [300, 300]


def whole_task(tracks: list) -> ShardTask:
    return ShardTask(name="train-000000", tracks=make_manifest(tracks).tracks, config=SegmentConfig())


FINGERPRINT = "1ff7317df210474f64d7efa06831ed3cce7d4f08bc1932f710df904f9b69b8ee"

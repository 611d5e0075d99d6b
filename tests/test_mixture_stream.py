"""Several sets in one stream: as a list built in full has it, in any world, resumed anywhere, with
weights that change.
"""

import json
import resource
from collections import Counter
from fractions import Fraction
from itertools import count

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_fixtures import write_set

from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.shards.reader import ShardReader
from mert_foundry.pipeline.stream.batch_stream import BatchStream, MixtureStream, StreamConfig
from mert_foundry.pipeline.stream.crops import random_crop
from mert_foundry.pipeline.stream.sample_order import SampleOrder
from mert_foundry.pipeline.stream.set_mixture import SetMixture, ShardSet

SIZES = {"large": [3, 0, 4, 6], "small": [2, 3], "third": [7]}
CROP_FRAMES, SEED = 20, 3
ROWS = 48  # read in full


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three sets, one in FLAC, whose tracks have names of their own."""
    root = tmp_path_factory.mktemp("sets")
    for number, (name, sizes) in enumerate(SIZES.items()):
        write_set(root / name, sizes, "flac" if number else "pcm.npy", [2], prefix=name)
    return {name: str(root / name) for name in SIZES}


def config(batch_size=4, **changes):
    defaults = {"batch_size": batch_size, "crop_samples": 320 * CROP_FRAMES, "shuffle_window": 2, "threads": 2}
    return StreamConfig(**defaults | changes)


def mixture_of(folders, weights):
    return SetMixture([ShardSet(folders[name], load_index(folders[name]), weight) for name, weight in weights.items()])


def read(folders, weights, batches, position=None, world_size=1, **changes):
    """Keys and audio of `batches` global batches, each put together from all ranks, and the last position."""
    streams = [
        MixtureStream(mixture_of(folders, weights), "train", config(**changes), SEED, rank, world_size, position)
        for rank in range(world_size)
    ]
    rows = []
    try:
        for _ in range(batches):
            parts, positions = zip(*(next(stream) for stream in streams), strict=True)
            assert all(other == positions[0] for other in positions)
            position = json.loads(json.dumps(positions[0]))
            rows += [row for batch in parts for row in zip(batch["key"], batch["audio"], strict=True)]
    finally:
        for stream in streams:
            stream.close()
    return rows, position


def assert_same(rows, others):
    assert [key for key, _ in rows] == [key for key, _ in others]
    assert all(torch.equal(audio, other) for (_, audio), (_, other) in zip(rows, others, strict=True))


def examples_of(folder):
    """Key and frames of the examples of a set without end, in the order that it has alone, with their epochs."""
    index = load_index(folder)
    shards = index.shards("train")
    reader = ShardReader(folder, index, shards)
    order = SampleOrder([shard.nsamples for shard in shards], SEED, 2)
    for number in count():
        (place,) = order.take(number, 1)
        entry = reader.entries(place.shard)[place.example]
        yield place.epoch, entry.key, entry.num_frames


class NaiveMixture:
    """Rows one by one: the set whose next row is due first, from each set its next example."""

    def __init__(self, folders):
        self.examples = {name: examples_of(folder) for name, folder in folders.items()}
        self.digests = {name: load_index(folder).digest() for name, folder in folders.items()}

    def rows(self, weights, number):
        """Key and first frame of so many rows, under weights that begin to hold now."""
        total, drawn, rows = sum(weights.values()), Counter(), []
        for _ in range(number):
            due = {name: Fraction((2 * drawn[name] + 1) * total, weight) for name, weight in weights.items()}
            name = min(due, key=lambda name: (due[name], self.digests[name]))
            drawn[name] += 1
            epoch, key, frames = next(self.examples[name])
            rows.append((key, random_crop(SEED, epoch, key, frames, CROP_FRAMES).start_frame))
        return rows


def assert_as_listed(rows, listed):
    assert [(key, int(audio[0]) // 320) for key, audio in rows] == listed


@pytest.fixture(scope="module")
def reference(folders):
    return read(folders, {"large": 3, "small": 1}, ROWS // 4)[0]


def test_rows_are_those_of_the_list_built_in_full(folders, reference):
    assert_as_listed(reference, NaiveMixture(folders).rows({"large": 3, "small": 1}, ROWS))
    assert Counter(key[:5] for key, _ in reference) == {"large": 36, "small": 12}


def test_each_set_goes_through_its_own_epochs(folders, reference):
    keys = [key for key, _ in reference if key.startswith("large")]
    assert len(set(keys[:13])) == len(set(keys[13:26])) == 13 and set(keys[:13]) == set(keys[13:26])
    small = [key for key, _ in reference if key.startswith("small")]
    assert len(set(small[:5])) == 5 and set(small[:5]) == set(small[5:10])


def test_the_order_in_which_sets_are_named_changes_nothing(folders, reference):
    assert_same(read(folders, {"small": 1, "large": 3}, ROWS // 4)[0], reference)
    assert_same(read(folders, {"small": 2, "large": 6}, ROWS // 4)[0], reference)


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_same_rows_in_every_world(folders, reference, world_size):
    assert_same(read(folders, {"large": 3, "small": 1}, ROWS // 4, world_size=world_size, threads=1)[0], reference)


def test_one_set_in_a_mixture_is_that_set_alone_to_the_position(folders):
    folder = folders["large"]
    rows, position = read(folders, {"large": 5}, 7)
    with BatchStream(folder, load_index(folder), "train", config(), SEED) as stream:
        alone = [next(stream) for _ in range(7)]
    assert [key for key, _ in rows] == [key for batch, _ in alone for key in batch["key"]]
    assert position == alone[-1][1] and position["index_digest"] == load_index(folder).digest()


worlds, counts = st.sampled_from([1, 2, 4]), st.integers(0, 11)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.tuples(counts, counts), sizes=st.tuples(worlds, worlds, worlds))
def test_resumes_anywhere_twice_in_a_row_in_another_world(folders, reference, stops, sizes):
    first, second = sorted(stops)
    position, rows = None, []
    for batches, world_size in zip((first, second - first, ROWS // 4 - second), sizes, strict=True):
        more, position = read(folders, {"large": 3, "small": 1}, batches, position, world_size)
        rows += more
    assert_same(rows, reference)


def test_another_batch_size_goes_on_with_the_same_rows(folders, reference):
    rows, position = read(folders, {"large": 3, "small": 1}, 3)
    more, _ = read(folders, {"large": 3, "small": 1}, 6, position, batch_size=6)
    assert_same(rows + more, reference)


SETS = st.dictionaries(st.sampled_from(sorted(SIZES)), st.integers(1, 5), min_size=1).filter(
    lambda sets: "large" in sets
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(phases=st.lists(st.tuples(SETS, st.integers(1, 5), worlds), min_size=2, max_size=4))
def test_weights_change_and_sets_come_and_go_at_resumes_and_each_set_goes_on(folders, phases):
    naive, position = NaiveMixture(folders), None
    listed, rows, stretch = [], [], []
    for weights, batches, world_size in phases:
        more, position = read(folders, weights, batches, position, world_size)
        rows += more
        if stretch and stretch[-1][0] == weights:
            stretch[-1][1] += 4 * batches
        else:
            stretch.append([weights, 4 * batches])
    for weights, number in stretch:
        # One set alone has no weight: any number means the same.
        listed += naive.rows(weights, number)
    assert_as_listed(rows, listed)


def test_a_run_of_one_set_goes_on_with_a_second_and_says_from_which_row_on(folders):
    rows, position = read(folders, {"large": 1}, 5)
    more, position = read(folders, {"large": 1, "small": 1}, 3, position)
    naive = NaiveMixture(folders)
    assert_as_listed(rows + more, naive.rows({"large": 1}, 20) + naive.rows({"large": 1, "small": 1}, 12))
    digests = {name: load_index(folder).digest() for name, folder in folders.items()}
    assert position["rows"] == 32
    assert [(phase["rows"], phase["weights"]) for phase in position["phases"]] == [
        (0, {digests["large"]: 1}),
        (20, {digests["large"]: 1, digests["small"]: 1}),
    ]
    assert position["phases"][1]["sets"][digests["large"]] == {"epoch": 1, "offset": 7, "bad_shards": []}
    assert position["sets"][digests["small"]] == {"epoch": 1, "offset": 1, "bad_shards": []}


def test_refuses_positions_of_other_sets_and_sets_that_are_the_same(folders, tmp_path):
    _, position = read(folders, {"large": 1, "small": 1}, 1)
    with pytest.raises(ValueError, match="^stream position: sets .* do not fit this stream's sets"):
        read(folders, {"third": 1}, 1, position)
    with pytest.raises(ValueError, match="seed 4 does not fit this stream's 3"):
        read(folders, {"large": 1, "small": 1}, 1, {**position, "seed": 4})
    large = load_index(folders["large"])
    with pytest.raises(ValueError, match="is the same set as .*large"):
        SetMixture([ShardSet(folders["large"], large), ShardSet(str(tmp_path), large)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frame_rate": 25}, r"B: frame_rate of target codes is 25, that of A is 75"),
        ({"size": 3}, r"B: size of target codes is 3, that of A is 2"),
        ({"fingerprint": "e" * 64}, r"B: fingerprint of target codes is e{64}, that of A is a{64}"),
    ],
)
def test_sets_must_agree_on_their_targets(folders, change, words):
    index = load_index(folders["large"])
    codes, cqt = index.targets
    other = index.model_copy(update={"targets": [codes.model_copy(update=change), cqt], "name": "other"})
    with pytest.raises(ValueError, match=f"^{words}$"):
        SetMixture([ShardSet("A", index), ShardSet("B", other)])


def test_a_set_without_a_target_is_refused(folders):
    index = load_index(folders["large"])
    other = index.model_copy(update={"targets": index.targets[:1], "statistics": {}, "name": "other"})
    with pytest.raises(ValueError, match="^B has no target cqt, which A has; missing_targets=mask"):
        SetMixture([ShardSet("A", index), ShardSet("B", other)])


def test_sets_of_an_object_store_and_of_this_machine_mix_with_one_cache(folders, reference, tmp_path):
    remote = "memory://mixture-stream"
    for name in ("large", "small"):
        write_set(f"{remote}/{name}", SIZES[name], "flac" if name == "small" else "pcm.npy", [2], prefix=name)
    there = {name: f"{remote}/{name}" for name in ("large", "small")}
    cache = {"folder": str(tmp_path / "cache"), "bytes": "100MB"}
    for places in (there, folders | {"small": there["small"]}):
        assert_same(read(places, {"large": 3, "small": 1}, ROWS // 4, cache=cache, world_size=2)[0], reference)
    held = sum(entry.filesize for folder in there.values() for entry in load_index(folder).shards("train"))
    words = f"stream.cache.bytes is {held - 1}, but the shards of 2 sets have {held} bytes"
    with pytest.raises(ValueError, match=words):
        read(there, {"large": 3, "small": 1}, 1, cache={**cache, "bytes": str(held - 1)})


def test_open_files_are_allowed_or_refused_at_the_start(folders, monkeypatch):
    """With many sets a process may have many shards open: it raises its own limit, up to the machine's."""
    limits = {"soft": 64, "hard": 4096}
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limits["soft"], limits["hard"]))
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.update(soft=wanted[0]))
    read(folders, {"large": 1, "small": 1}, 1)
    assert limits["soft"] == 256 + 6  # shards of both sets, the empty one included
    limits["hard"] = 256
    with pytest.raises(
        ValueError, match=r"^2 sets with stream.shuffle_window 2 can have 6 shards open .* may open 256 files"
    ):
        read(folders, {"large": 1, "small": 1}, 1)

"""verify_shard: a whole shard has no fault, and each kind of damage is named, never a traceback."""

import hashlib
import json
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_fixtures import as_dropped, index_shards, make_example, make_track, write_examples

from mert_foundry.pipeline.labelling.verify import verify_shard
from mert_foundry.pipeline.shards.format import encode_array, encode_example
from mert_foundry.pipeline.shards.index import load_index

TAR, RECORD = "train-000000.tar", "train-000000.json"


@pytest.fixture
def shards(tmp_path):
    write_examples(tmp_path, "train-000000", [*make_track("a", 12, 9), *make_track("b", 15)])
    write_examples(tmp_path, "train-000001", make_track("c", 20, 14))
    write_examples(tmp_path, "valid-000000", [])
    index_shards(tmp_path, ["train-000000", "train-000001", "valid-000000"])
    return tmp_path


def faults(folder, shard=0):
    index = load_index(str(folder))
    return verify_shard(str(folder), index.shardlist[shard], index)


def has(found, file, key, *words):
    assert any(
        fault.file == file and fault.key == key and all(word in fault.message for word in words) for fault in found
    ), found


def members(folder):
    record = json.loads((folder / RECORD).read_bytes())
    return {entry["key"]: entry["members"] for entry in record["members"]}


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_whole_shards_have_no_fault(shards, shard):
    assert faults(shards, shard) == []


def test_remote_and_pcm_shards_have_no_fault():
    folder = "memory://test-shard-verify"
    write_examples(folder, "train-000000", make_track("a", 12, 9), "pcm.npy")
    index_shards(folder, ["train-000000"], "pcm.npy")
    assert faults(folder) == []


def test_truncated_tar(shards):
    tar = shards / TAR
    content = tar.read_bytes()
    offset, size, _ = members(shards)["b-00000"]["flac"]
    tar.write_bytes(content[: offset + 100])
    found = faults(shards)
    has(found, TAR, None, f"{offset + 100} bytes", f"{len(content)}")
    has(found, TAR, None, "SHA-256")
    has(found, TAR, None, "not a whole tar")
    has(found, TAR, "b-00000", "no b-00000.json: 11 of 12 members found")
    has(found, TAR, "b-00000", f"flac: {size} bytes expected", "100 read")
    assert not any(fault.key in ("a-00000", "a-00001") for fault in found)


@pytest.mark.parametrize("suffix", ["codes.npy", "cqt.npy", "flac", "json"])
def test_one_flipped_bit_is_named_by_key_and_member(shards, suffix):
    offset, size, _ = members(shards)["a-00001"][suffix]
    content = bytearray((shards / TAR).read_bytes())
    content[offset + size // 2] ^= 4
    (shards / TAR).write_bytes(content)
    found = faults(shards)
    has(found, TAR, None, "SHA-256")
    has(found, TAR, "a-00001", f"{suffix}: CRC-32")
    assert {fault.key for fault in found} == {None, "a-00001"}


def test_flipped_header_is_named(shards):
    content = bytearray((shards / TAR).read_bytes())
    content[members(shards)["a-00001"]["codes.npy"][0] - 512] ^= 1
    (shards / TAR).write_bytes(content)
    has(faults(shards), TAR, "a-00001", "no a-00001.codes.npy: 4 of 12 members found")


@pytest.mark.parametrize("name", [TAR, RECORD])
def test_missing_file(shards, name):
    (shards / name).unlink()
    has(faults(shards), name, None, "cannot be read")


def test_renamed_and_swapped_tars(shards):
    first, second = shards / TAR, shards / "train-000001.tar"
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    for shard, key in ((0, "a-00000"), (1, "c-00000")):
        found = faults(shards, shard)
        has(found, f"train-00000{shard}.tar", None, "SHA-256")
        has(found, f"train-00000{shard}.tar", key, "in the tar", "in the record")
    first.rename(shards / "train-000007.tar")
    has(faults(shards), TAR, None, "cannot be read")


def test_swapped_records(shards):
    (shards / RECORD).write_bytes((shards / "train-000001.json").read_bytes())
    found = faults(shards)
    has(found, RECORD, None, "SHA-256")
    has(found, RECORD, None, "url train-000001.tar", "train-000000.tar")
    has(found, RECORD, None, "examples 2, the index says 3")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1", b"\xff\xfe", b"null"])
def test_a_record_that_is_none(shards, content):
    (shards / RECORD).write_bytes(content)
    found = faults(shards)
    has(found, RECORD, None, "SHA-256")
    assert len(found) == 2 and all("\n" not in fault.message for fault in found)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_gives_faults_and_no_traceback(shards, data):
    path = shards / data.draw(st.sampled_from([TAR, RECORD]))
    whole = path.read_bytes()
    damaged = bytearray(whole)
    start = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = damaged[:start]
    else:
        damaged[start] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    try:
        found = faults(shards)
    finally:
        path.write_bytes(whole)
    assert found and {fault.file for fault in found} <= {TAR, RECORD}


def rewrite(folder, key, suffix, content):
    """Replace a member by one of the same size and make every checksum agree, as a bad writer would."""
    offset, size, _ = members(folder)[key][suffix]
    assert len(content) == size
    tar = bytearray((folder / TAR).read_bytes())
    tar[offset : offset + size] = content
    (folder / TAR).write_bytes(tar)

    def change(record):
        record["sha256"] = hashlib.sha256(tar).hexdigest()
        for entry in record["members"]:
            if entry["key"] == key:
                entry["members"][suffix][2] = zlib.crc32(content)

    rewrite_record(folder, change)


def rewrite_record(folder, change):
    record = json.loads((folder / RECORD).read_bytes())
    change(record)
    content = json.dumps(record).encode()
    (folder / RECORD).write_bytes(content)
    index = json.loads((folder / "index.json").read_bytes())
    index["shardlist"][0]["sha256"] = record["sha256"]
    index["shardlist"][0]["record_sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))


def test_what_checksums_cannot_tell(shards):
    """Members that a faulty writer checksummed: only their content gives them away."""
    examples = {example.key: example for example in [*make_track("a", 12, 9), *make_track("b", 15)]}
    codes = examples["a-00000"].targets["codes"].copy()
    codes[1, 3] = 16
    rewrite(shards, "a-00000", "codes.npy", encode_array(codes))
    cqt = examples["a-00001"].targets["cqt"].copy()
    cqt[2, 2] = np.nan
    rewrite(shards, "a-00001", "cqt.npy", encode_array(cqt))
    longer = encode_example(make_example("b", 16), index_specs(shards), "flac")["json"]
    rewrite(shards, "b-00000", "json", longer)
    found = faults(shards)
    has(found, TAR, "a-00000", "code 16", "16 entries")
    has(found, TAR, "a-00001", "1 of 36 values are not finite")
    has(found, TAR, "b-00000", "4800", "5120")
    assert len(found) == 3


def index_specs(folder):
    return load_index(str(folder)).targets


def test_undecodable_audio(shards):
    size = members(shards)["b-00000"]["flac"][1]
    rewrite(shards, "b-00000", "flac", b"\0" * size)
    has(faults(shards), TAR, "b-00000", "flac: cannot be decoded")


def test_edited_statistics_and_member_table(shards):
    def falsify(record):
        record["statistics"]["cqt"]["maximum"] += 1

    rewrite_record(shards, falsify)
    has(faults(shards), RECORD, None, "statistics")

    def double(record):
        record["members"][2] = {**record["members"][1], "num_frames": 15}

    rewrite_record(shards, double)
    found = faults(shards)
    has(found, RECORD, "a-00001", "stands twice")
    has(found, TAR, "a-00001", "9 frames, the record says 15")


def test_tracks_with_holes(tmp_path):
    examples = make_track("a", 12, 9, 10)
    write_examples(tmp_path, "train-000000", [examples[0], examples[2]])
    index_shards(tmp_path, ["train-000000"])
    found = faults(tmp_path)
    has(found, TAR, "a-00000", "track a: segments [0, 2] of 3")
    has(found, TAR, "a-00002", f"starts at sample {21 * 320}", f"ends at {12 * 320}")


@pytest.fixture
def holed(tmp_path):
    """A track whose first, third and last segments were dropped, and a whole one."""
    examples = make_track("a", 12, 9, 10, 11, 12)
    for number in (0, 2, 4):
        examples[number] = as_dropped(examples[number])
    write_examples(tmp_path, "train-000000", [*examples, *make_track("b", 15)])
    index_shards(tmp_path, ["train-000000"])
    return tmp_path


def test_dropped_segments_are_no_fault(holed):
    assert faults(holed) == []


def forget(record):
    del record["dropped_segments"][1]
    record["dropped"]["silent"] -= 1


def hole_of(number, **changes):
    return lambda record: record["dropped_segments"][number].update(changes)


@pytest.mark.parametrize(
    ("change", "file", "key", "words"),
    [
        (forget, RECORD, "a-00000", ["segments [0, 1, 3, 4] of 5"]),
        (forget, TAR, "a-00003", [f"starts at sample {31 * 320}", f"ends at {21 * 320}"]),
        (hole_of(1, start_sample=320 * 20), RECORD, "a-00002", [f"starts at sample {20 * 320}", f"ends at {21 * 320}"]),
        (hole_of(0, start_sample=320), RECORD, "a-00000", ["starts at sample 320", "ends at 0"]),
        (hole_of(1, num_samples=320 * 11, num_frames=11), TAR, "a-00003", [f"{31 * 320}", f"ends at {32 * 320}"]),
        (hole_of(1, segment=1), RECORD, "a-00000", ["segments [0, 1, 1, 3, 4] of 5"]),
        (hole_of(2, segment=5, segments=6), RECORD, "a-00000", ["segments [0, 1, 2, 3, 5] of 5"]),
        (hole_of(2, segments=6), RECORD, "a-00004", ["6 segments", "a-00000", "5 segments"]),
        (hole_of(2, audio_sha256="e" * 64), RECORD, "a-00004", ["e" * 64, "c" * 64]),
        (hole_of(2, track="b"), RECORD, "b-00004", [f"ends at {15 * 320}"]),
        (hole_of(2, track="z"), RECORD, "z-00004", ["no other one of its track"]),
        (hole_of(2, reason="broken"), RECORD, None, ["{'silent': 3}", "{'silent': 2, 'broken': 1}"]),
        (hole_of(2, num_frames=13), RECORD, None, [f"num_samples {12 * 320}", "13"]),
    ],
)
def test_dropped_segments_that_do_not_fit_are_named(holed, change, file, key, words):
    rewrite_record(holed, change)
    has(faults(holed), file, key, *words)

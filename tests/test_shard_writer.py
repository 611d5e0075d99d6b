"""The writer: same input same bytes, whole or absent, readable by plain WebDataset."""

import gc
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import weakref
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset
from shard_fixtures import make_example, make_track, write_examples

from mert_foundry.pipeline.labelling.shard_writer import ENCODING_THREADS
from mert_foundry.pipeline.shards.record import DroppedTrack, load_record

EXAMPLES = [*make_track("a", 30, 20), *make_track("b", 41)]


@pytest.mark.parametrize("audio_member", ["flac", "pcm.npy"])
def test_same_input_same_bytes(tmp_path, audio_member):
    for folder in ("one", "two"):
        write_examples(tmp_path / folder, "train-000000", iter(EXAMPLES), audio_member)
    for name in ("train-000000.tar", "train-000000.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(os.listdir(tmp_path / "one")) == ["train-000000.json", "train-000000.tar"]


def test_record_says_what_the_tar_holds(tmp_path):
    dropped = [DroppedTrack(track=track, reason="unreadable", detail="x", segments=2) for track in ("p", "q")]
    record = write_examples(tmp_path, "train-000000", [EXAMPLES[0], dropped[0], *EXAMPLES[1:], dropped[1]])
    assert load_record(str(tmp_path), "train-000000") == record
    assert (record.examples, record.num_frames, record.seconds) == (3, 91, 91 / 75)
    assert record.dropped == {"unreadable": 4}
    assert record.dropped_tracks == dropped
    assert record.teachers == {"codes": "a" * 64, "cqt": "b" * 64}
    content = (tmp_path / "train-000000.tar").read_bytes()
    assert record.bytes == len(content)
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [
            f"{entry.key}.{suffix}" for entry in record.members for suffix in entry.members
        ]
        spans = [span for entry in record.members for span in entry.members.values()]
        for member, (offset, size, checksum) in zip(members, spans, strict=True):
            assert (member.offset_data, member.size) == (offset, size)
            assert zlib.crc32(content[offset : offset + size]) == checksum
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o444)
            assert content[member.offset + 257 : member.offset + 265] == b"ustar\x0000"


def test_plain_webdataset_reads_it(tmp_path):
    write_examples(tmp_path, "train-000000", EXAMPLES)
    url = str(tmp_path / "train-000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [example.key for example in EXAMPLES]
    for sample, example in zip(samples, EXAMPLES, strict=True):
        np.testing.assert_array_equal(sample["codes.npy"], example.targets["codes"])
        np.testing.assert_array_equal(sample["cqt.npy"], example.targets["cqt"])
        assert sample["json"] == example.info.model_dump()
        audio, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="int16")
        assert rate == 24_000
        np.testing.assert_array_equal(audio, example.audio)


def test_empty_shard_is_a_valid_tar(tmp_path):
    record = write_examples(
        tmp_path, "train-000000", [DroppedTrack(track="p", reason="silent", detail="x", segments=1)]
    )
    assert (record.examples, record.seconds, record.dropped) == (0, 0.0, {"silent": 1})
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert tar.getmembers() == []


def failing():
    yield EXAMPLES[0]
    raise OSError("disk on fire")


def test_an_error_leaves_what_was_there(tmp_path):
    with pytest.raises(OSError, match="disk on fire"):
        write_examples(tmp_path, "train-000000", failing())
    assert os.listdir(tmp_path) == []
    record = write_examples(tmp_path, "train-000000", EXAMPLES)
    with pytest.raises(OSError, match="disk on fire"):
        write_examples(tmp_path, "train-000000", failing())
    assert load_record(str(tmp_path), "train-000000") == record
    assert sorted(os.listdir(tmp_path)) == ["train-000000.json", "train-000000.tar"]


def test_a_new_tar_never_stands_beside_the_old_record(tmp_path, monkeypatch):
    write_examples(tmp_path, "train-000000", EXAMPLES)

    def power_cut(location, content):
        raise KeyboardInterrupt

    monkeypatch.setattr("mert_foundry.pipeline.storage.files.publish_bytes", power_cut)
    with pytest.raises(KeyboardInterrupt):
        write_examples(tmp_path, "train-000000", EXAMPLES[:1])
    assert os.listdir(tmp_path) == ["train-000000.tar"]


def test_refuses_a_key_twice_and_bad_names(tmp_path):
    threads = threading.active_count()
    with pytest.raises(ValueError) as caught:
        write_examples(tmp_path, "train-000000", [EXAMPLES[0], EXAMPLES[0]])
    # While the error is held, and with it the writer's frame.
    assert "a-00000 comes twice" in str(caught.value) and threading.active_count() <= threads
    for name in ("../train-000000", "train-0", "train-000000.tar", "a/b-000000", "train-000000\n"):
        with pytest.raises(ValueError, match="split-000000"):
            write_examples(tmp_path, name, EXAMPLES)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_holds_the_examples_being_encoded_and_no_more(tmp_path):
    alive = []

    def stream():
        for number in range(10):
            gc.collect()
            assert sum(reference() is not None for reference in alive) <= ENCODING_THREADS + 2
            audio = make_example(f"t{number}", 30)
            alive.append(weakref.ref(audio))
            yield audio
            del audio

    write_examples(tmp_path, "train-000000", stream())
    assert len(alive) == 10


ENDLESS_WRITER = """
import itertools, sys
sys.path.insert(0, sys.argv[2])
from shard_fixtures import make_example, write_examples
write_examples(sys.argv[1], "train-000000", (make_example(f"t{n}", 60) for n in itertools.count()))
"""


@pytest.mark.process
def test_sigkill_while_writing_leaves_nothing_visible(tmp_path):
    command = [sys.executable, "-c", ENDLESS_WRITER, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command) as writer:
        try:
            for _ in range(600):
                time.sleep(0.1)
                assert writer.poll() is None, "the writer ended by itself"
                if sum(path.stat().st_size for path in tmp_path.iterdir()) > 100_000:
                    break
        finally:
            writer.send_signal(signal.SIGKILL)
    leftovers = os.listdir(tmp_path)
    assert leftovers and all(name.startswith(".") for name in leftovers)
    with pytest.raises(FileNotFoundError):
        load_record(str(tmp_path), "train-000000")
    assert write_examples(tmp_path, "train-000000", EXAMPLES).examples == 3

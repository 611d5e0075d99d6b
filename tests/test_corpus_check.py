"""Source files against shards, by another library: agreement, what it would have found, and what no second library
reads.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import noise, tone, write_audio
from test_manifest import build

from mert_foundry.jobs import verify
from mert_foundry.pipeline.audio.sound_file import PcmFile
from mert_foundry.pipeline.labelling.corpus_check import compare_corpus, difference, find_lag
from mert_foundry.pipeline.labelling.plan import SegmentConfig, plan_shards
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.manifest.rows import Manifest
from mert_foundry.pipeline.shards.index import build_index
from mert_foundry.pipeline.teachers.random_projection import RandomProjectionTeacherConfig
from mert_foundry.pipeline.teachers.registry import build_teachers


def make_shards(manifest: Manifest, out: Path) -> Path:
    """Label with a teacher that costs nothing, and write the index."""
    teachers = build_teachers([RandomProjectionTeacherConfig(kind="random_projection", codebook_size=64)], "cpu")
    tasks = plan_shards(manifest, SegmentConfig(segment_seconds=2.0, shortest_seconds=1.0))
    for task in tasks:
        process_shard(task, teachers, manifest.root, str(out), {})
    build_index(
        str(out),
        [task.name for task in tasks],
        [teacher.spec for teacher in teachers],
        name="test",
        manifest_sha256=manifest.sha256,
        segment_seconds=2.0,
        audio_member="flac",
    )
    return out


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Every kind of second reader, a rate to resample, a silent segment, and two files that none reads."""
    root = tmp_path / "root"
    stereo = noise(4, 44_100, channels=2)
    for name in ("a.wav", "b.flac", "c.ogg", "d.mp3", "e.aiff", "f.au", "g.w64"):
        write_audio(root / name, stereo * (1 + ord(name[0])) / 120, 44_100)
    write_audio(root / "h.opus", noise(4, 48_000, 3), 48_000)
    write_audio(root / "i.m4a", noise(4, 44_100, 4), 44_100)
    soundfile.write(root / "j.wav", stereo / 3, 44_100, endian="BIG")
    write_audio(root / "k.caf", np.concatenate([tone(300, 2), 0.0002 * tone(300, 2), tone(400, 2)]), 24_000)
    write_audio(root / "l.wv", noise(4, 32_000, 5), 32_000)
    return root


@pytest.fixture
def say(run_here: Callable) -> Callable[..., tuple[int, str, str]]:
    """Run `mert verify`."""
    return partial(run_here, verify)


def test_good_files_agree_and_what_none_reads_is_counted(corpus: Path, tmp_path: Path, say: Callable):
    manifest = build(corpus, tmp_path / "manifest")
    shards = make_shards(manifest, tmp_path / "shards")
    code, out, _ = say(shards, "--manifest", tmp_path / "manifest", "--corpus", 100)
    assert code == 0, out
    assert "12 source files: 10 agree with another library, 2 that none reads (1 mov/aac, 1 wv/wavpack)" in out
    code, out, _ = say(shards, "--manifest", tmp_path / "manifest", "--corpus", 3, "--json")
    assert json.loads(out)["notes"][0].startswith("3 source files")


def test_a_reader_that_swaps_bytes_or_loses_the_end_is_found(
    corpus: Path, tmp_path: Path, say: Callable, monkeypatch: pytest.MonkeyPatch
):
    """The faults of an earlier reader, made again: noise for music in one file, and 1,640 samples less in another."""
    blocks = PcmFile.blocks

    def faulty(file: PcmFile):
        for block in blocks(file):
            if file.header.format == "wav/pcm_s16be":
                yield ((block * 32768).astype(np.int16).byteswap() / 32768).astype(np.float32)
            else:
                yield block[:, : block.shape[1] - 1640 if file.header.format.startswith("au/") else None]

    monkeypatch.setattr(PcmFile, "blocks", faulty)
    monkeypatch.setattr("mert_foundry.pipeline.manifest.examine.check_length", lambda *arguments: None)
    manifest = build(corpus, tmp_path / "manifest")
    shards = make_shards(manifest, tmp_path / "shards")
    code, out, _ = say(shards, "--manifest", tmp_path / "manifest", "--corpus", 100)
    assert code == 1
    faults = [line for line in out.splitlines() if line.startswith(("train", "valid"))]
    assert len(faults) == 2
    assert any("j.wav" in line and "steps of 16 bits apart" in line for line in faults)
    assert any("f.au" in line and "samples" in line and "are stored" in line for line in faults)


def test_opus_decoded_at_another_rate_is_found(corpus: Path, tmp_path: Path):
    """Audio of 8 kHz in the shard where the file holds the full band."""
    manifest = build(corpus, tmp_path / "manifest")
    opus = next(track for track in manifest.tracks if track.format == "ogg/opus")
    shards = make_shards(manifest.model_copy(update={"tracks": [opus]}), tmp_path / "shards")
    [before] = compare_corpus(str(shards), manifest, 5)
    assert before.is_read and before.fault is None
    write_audio(corpus / "h.opus", np.repeat(noise(4, 8000, 3), 6), 48_000)
    [after] = compare_corpus(str(shards), manifest, 5)
    assert "relative error" in str(after.fault) and opus.key in str(after.fault)


def test_options_that_do_not_fit(tmp_path: Path, corpus: Path, say: Callable):
    manifest = build(corpus, tmp_path / "manifest")
    wav = [track for track in manifest.tracks if track.path == "a.wav"]
    shards = make_shards(manifest.model_copy(update={"tracks": wav}), tmp_path / "shards")
    code, _, error = say(shards, "--corpus", 3)
    assert code == 2 and "--manifest" in error
    code, _, error = say(shards, "--manifest", tmp_path / "manifest", "--corpus", -3)
    assert code == 2 and "-3" in error
    corpus.rename(tmp_path / "elsewhere")
    code, _, error = say(shards, "--manifest", tmp_path / "manifest", "--corpus", 3)
    assert code == 1 and str(corpus) in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("lag", [0, 1, -1, 48, -500])
def test_lag_is_found(lag: int):
    audio = (noise(3) * 32768).astype(np.int16)
    assert find_lag(audio, np.roll(audio, lag)) == lag


def test_what_counts_as_the_same():
    audio = (noise(2) * 32768).astype(np.int16)[: 320 * 150]
    kept = np.ones(150, bool)
    assert difference(audio, audio, "wav/pcm_s16le", kept) == ""
    assert difference(audio, audio + np.int16(1), "wav/pcm_s16le", kept) == ""
    assert "2 steps" in difference(audio, audio + np.int16(2), "wav/pcm_s16le", kept)
    assert "error" in difference(audio, np.roll(audio, 48), "ogg/opus", kept)
    assert difference(audio, np.roll(audio, 48), "mp3/mp3float", kept) == ""
    assert "stored" in difference(audio, audio[:-1], "flac/flac", kept)
    assert difference(audio, audio[:-3000], "ogg/vorbis", kept) == ""
    assert "stored" in difference(audio[:-320], audio, "ogg/vorbis", kept[:-1])
    dropped = kept.copy()
    dropped[10:20] = False
    silenced = audio.copy()
    silenced[3200:6400] = 0
    assert difference(silenced, audio, "flac/flac", dropped) == ""
    assert difference(silenced, audio, "flac/flac", kept) != ""

"""index.json: what it says, what it refuses, and that it is a function of the records."""

import hashlib
import json

import numpy as np
import pytest
from shard_fixtures import CODES, CQT, SPECS, index_shards, make_track, write_examples, write_set

from mert_foundry.pipeline.shards.index import build_index, load_index
from mert_foundry.pipeline.shards.record import DroppedTrack, load_record


@pytest.fixture
def shards(tmp_path):
    write_examples(tmp_path, "train-000000", make_track("a", 30, 20))
    write_examples(tmp_path, "train-000001", [DroppedTrack(track="p", reason="silent", detail="x", segments=2)])
    write_examples(tmp_path, "valid-000000", make_track("b", 41))
    return tmp_path


NAMES = ["train-000000", "train-000001", "valid-000000"]


def test_says_what_the_shards_hold(shards):
    index = index_shards(shards, NAMES)
    assert load_index(str(shards)) == index
    assert {split: (t.shards, t.examples, t.seconds) for split, t in index.totals.items()} == {
        "train": (2, 2, 50 / 75),
        "valid": (1, 1, 41 / 75),
    }
    assert index.dropped == {"silent": 2}
    assert [entry.name for entry in index.shards("train")] == NAMES[:2]
    frames = np.concatenate([np.arange(50), np.arange(41)])
    bins = frames[:, None] % 100 + np.arange(4)
    np.testing.assert_allclose(index.statistics["cqt"].mean, bins.mean(axis=0))
    np.testing.assert_allclose(index.statistics["cqt"].deviation, bins.std(axis=0))
    assert index.statistics["codes"].usage == [1.0, 1.0]
    assert 15 < index.statistics["codes"].perplexity[0] < 16


def test_digest_is_that_of_the_file_and_order_does_not_matter(shards):
    index = index_shards(shards, NAMES)
    content = (shards / "index.json").read_bytes()
    assert index.digest() == hashlib.sha256(content).hexdigest() == load_index(str(shards)).digest()
    index_shards(shards, NAMES[::-1])
    assert (shards / "index.json").read_bytes() == content
    assert index_shards(shards, NAMES[:2]).digest() != index.digest()


def test_an_index_from_before_companding_keeps_its_digest(shards):
    index_shards(shards, NAMES)
    raw = json.loads((shards / "index.json").read_bytes())
    fields = "codebook_size dtype fingerprint frame_rate kind name size teacher".split()
    assert [sorted(target) for target in raw["targets"]] == [fields, fields]


def test_is_a_wids_index(shards):
    index_shards(shards, NAMES)
    raw = json.loads((shards / "index.json").read_bytes())
    assert (raw["__kind__"], raw["wids_version"]) == ("wids-shard-index-v1", 1)
    for shard in raw["shardlist"]:
        assert shard["filesize"] == (shards / shard["url"]).stat().st_size
    assert [shard["nsamples"] for shard in raw["shardlist"]] == [2, 0, 1]


def test_refuses_shards_that_do_not_fit(shards):
    other = CQT.model_copy(update={"fingerprint": "e" * 64})
    settings = {"name": "x", "manifest_sha256": "d" * 64, "segment_seconds": 1.0}
    with pytest.raises(ValueError, match=f"train-000000: .*{'b' * 64}.*{'e' * 64}"):
        build_index(str(shards), NAMES, [CODES, other], audio_member="flac", **settings)
    with pytest.raises(ValueError, match=r"train-000000: audio stored as flac, expected pcm\.npy"):
        build_index(str(shards), NAMES, SPECS, audio_member="pcm.npy", **settings)
    with pytest.raises(FileNotFoundError, match="train-000009"):
        index_shards(shards, [*NAMES, "train-000009"])
    with pytest.raises(ValueError, match=r"no example in any of 1 shards; dropped: {'silent': 2}"):
        index_shards(shards, NAMES[1:2])
    with pytest.raises(ValueError, match="each url once"):
        index_shards(shards, [*NAMES, NAMES[0]])
    tar = shards / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train-000000\.tar: \d+ bytes, its record says \d+"):
        index_shards(shards, NAMES)
    tar.unlink()
    with pytest.raises(FileNotFoundError, match="train-000000"):
        index_shards(shards, NAMES)


def test_refuses_a_record_of_another_shard(shards):
    (shards / "train-000001.json").write_bytes((shards / "train-000000.json").read_bytes())
    with pytest.raises(ValueError, match=r"train-000001\.json: is the record of train-000000"):
        load_record(str(shards), "train-000001")


def shard_zero(field, value):
    def change(raw):
        raw["shardlist"][0][field] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shard_zero("url", "../train-000000.tar"), r"shardlist\.0\.url"),
        (shard_zero("url", "/etc/train-000000.tar"), r"shardlist\.0\.url"),
        (shard_zero("record", "valid-000000.json"), "record valid-000000.json"),
        (shard_zero("split", "valid"), "split valid"),
        (shard_zero("nsamples", 3), "totals"),
        (lambda raw: raw["shardlist"].reverse(), "sorted"),
        (lambda raw: raw.update(hop=160), "hop"),
        (lambda raw: raw.update(sample_rate=16000), "sample_rate"),
        (lambda raw: raw.update(schema_version=2), "schema_version"),
        (lambda raw: raw.update(surprise=1), "surprise"),
        (lambda raw: raw["statistics"].pop("cqt"), "statistics"),
        (lambda raw: raw["targets"][0].update(frame_rate=50), "50 Hz"),
    ],
)
def test_load_refuses_what_does_not_agree(shards, change, words):
    index_shards(shards, NAMES)
    location = shards / "index.json"
    raw = json.loads(location.read_bytes())
    change(raw)
    location.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=rf"index\.json: .*{words}") as error:
        load_index(str(shards))
    assert "\n" not in str(error.value)


def test_load_names_what_is_not_json_or_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"index\.json"):
        load_index(str(tmp_path))
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index\.json"):
        load_index(str(tmp_path))


def test_unknown_split_names_those_there_are(shards):
    with pytest.raises(ValueError, match="no split 'test' in this shard set, only train, valid"):
        index_shards(shards, NAMES).shards("test")


def test_on_a_remote_filesystem():
    folder = "memory://test-shard-index"
    index = write_set(folder, [2, 1])
    assert load_index(folder) == index

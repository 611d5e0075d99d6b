"""What this project writes opens in other people's readers, with the very lines that README.md shows."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from shard_fixtures import index_shards, make_track, write_examples

from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan, write_manifest

README = Path(__file__).parent.parent / "pipeline" / "README.md"
HEADING = "## Open the shards in other readers"
SECONDS = {"high.flac": 5.0, "low.wav": 4.0, "stereo.wav": 4.0, "mono.ogg": 4.0, "alone.wav": 3.5}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of six examples in all, of two splits; values tell their place."""
    folder = tmp_path_factory.mktemp("mine") / "shards"
    for name, tracks in {"train-000000": "ab", "train-000001": "c", "valid-000000": "d"}.items():
        write_examples(folder, name, [example for track in tracks for example in make_track(track, 30, 20)][:5])
    index_shards(folder, ["train-000000", "train-000001", "valid-000000"])
    return folder


@pytest.fixture
def snippet(shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs the README's Python block that has a text in it, on the shards of these tests; gives its names."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run(mark: str, instead_of: str = "runs/mine/shards", place: Path = shards, append: str = "") -> dict:
        section = README.read_text().split(HEADING)[1].split("\n## ")[0]
        (block,) = [block for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL) if mark in block]
        assert instead_of in block
        names: dict = {"seen": []}
        exec(block.replace(instead_of, str(place)) + append, names)
        return names

    return run


def check(audio: np.ndarray, rate: int, codes: np.ndarray, cqt: np.ndarray, info: dict | None = None) -> None:
    """The example's values are those that belong to its place in the track."""
    frames = len(cqt)
    assert rate == 24_000 and len(audio) == 320 * frames and codes.shape == (2, frames) and cqt.shape == (frames, 4)
    start = int(audio[0]) // 320
    assert start in (0, 30) and (info is None or info["start_sample"] == 320 * start)
    np.testing.assert_array_equal(audio, np.arange(320 * start, 320 * (start + frames)) % 32_000)
    np.testing.assert_array_equal(codes[0], np.arange(start, start + frames) % 16)
    np.testing.assert_array_equal(cqt[:, 0], np.arange(start, start + frames) % 100)


def test_webdataset_shuffles_and_decodes(snippet):
    names = snippet(
        "webdataset.WebDataset", append="    seen.append((example['__key__'], audio, rate, codes, cqt, info))\n"
    )
    keys = [key for key, *_ in names["seen"]]
    assert sorted(keys) == ["a-00000", "a-00001", "b-00000", "b-00001", "c-00000", "c-00001"] and keys != sorted(keys)
    for _, audio, rate, codes, cqt, info in names["seen"]:
        assert codes.dtype == np.uint16 and cqt.dtype == np.float16
        check(audio, rate, codes, cqt, info)


def test_wids_reads_any_example_by_its_number(snippet, shards: Path):
    names = snippet("wids.ShardListDataset")
    check(names["audio"], names["rate"], names["codes"], names["cqt"])
    examples = names["examples"]
    keys = [f"{track}-0000{segment}" for track in "abcd" for segment in (0, 1)]
    assert len(examples) == len(keys)
    for number in np.random.default_rng(0).permutation(len(keys)):
        example = examples[int(number)]
        assert example["__key__"] == keys[number] and json.load(example[".json"])["track"] == keys[number][0]
        audio, rate = soundfile.read(example[".flac"], dtype="int16")
        check(audio, rate, np.load(example[".codes.npy"]), np.load(example[".cqt.npy"]))
    assert not list(shards.glob("*.lock"))


def test_hugging_face_datasets_streams_and_shuffles(snippet):
    names = snippet("datasets.load_dataset", append="    seen.append((example['__key__'], audio, rate, codes, cqt))\n")
    keys = [str(key) for key, *_ in names["seen"]]
    assert sorted(keys) == ["a-00000", "a-00001", "b-00000", "b-00001", "c-00000", "c-00001"] and keys != sorted(keys)
    for _, *example in names["seen"]:
        check(*example)


def test_manifest_opens_in_pandas_and_duckdb(snippet, synthetic_corpus: Path, tmp_path: Path):
    config = ManifestConfig(root=str(synthetic_corpus), out=str(tmp_path / "manifest"), splits={"valid": 0.4})
    write_manifest(config, scan(config))
    names = snippet("duckdb", "runs/mine/manifest", tmp_path / "manifest")
    tracks, hours = names["tracks"], names["hours"]
    assert {Path(path).name: seconds for path, seconds in zip(tracks.path, tracks.seconds)} == pytest.approx(SECONDS)
    assert tracks.key.is_unique and (tracks.num_samples / tracks.sample_rate).tolist() == pytest.approx(
        tracks.seconds.tolist()
    )
    by_split = tracks.groupby("split").seconds.agg(["count", "sum"])
    assert dict(zip(hours.split, hours.tracks)) == by_split["count"].to_dict()
    assert dict(zip(hours.split, hours.hours * 3600)) == pytest.approx(by_split["sum"].to_dict())

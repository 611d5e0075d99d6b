"""The HTML report as a file: self-contained, safe whatever the names, small enough, true to the shards."""

import base64
import io
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from labelled_set import HOSTILE
from shard_fixtures import as_dropped, index_shards, make_track, write_examples

from mert_foundry.jobs import inspect
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.inspection import as_page
from mert_foundry.pipeline.frames import HOP
from mert_foundry.pipeline.inspection.codec_decoding import CodecDecoder, recorded_teacher
from mert_foundry.pipeline.inspection.example_media import encode_mp3, loudness, outline, target_levels
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.shards.reader import ShardReader
from mert_foundry.pipeline.shards.record import DroppedTrack, load_record
from mert_foundry.pipeline.teachers.codec.weights import load_codec

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def make(*arguments: object) -> int:
    """Run the command in this process; gives its exit code."""
    return run(inspect.main, [str(argument) for argument in arguments], inspect.__doc__)


@pytest.fixture(scope="module")
def page(labelled, tmp_path_factory) -> Path:
    """A report of every example."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert make(labelled / "shards", "--manifest", labelled / "manifest", "--html", path, "--examples", 99) == 0
    return path


class Elements(HTMLParser):
    """Every start tag with its attributes, and all text outside scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text += data


def data_of(path: Path) -> dict:
    """The JSON that the page's script reads."""
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1]
    )


def test_the_page_asks_for_nothing_and_may_not(page):
    found = Elements(page.read_text())
    for tag, attributes in found.tags:
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
    policy = next(
        attributes["content"]
        for tag, attributes in found.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert any(attributes.get("name") == "viewport" for _, attributes in found.tags)


def test_names_are_text_and_never_markup(page):
    text = page.read_text()
    found = Elements(text)
    assert {tag for tag, _ in found.tags} <= {
        "html",
        "head",
        "meta",
        "title",
        "link",
        "style",
        "body",
        "header",
        "div",
        "p",
        "h1",
        "wbr",
        "button",
        "nav",
        "a",
        "main",
        "section",
        "h2",
        "dl",
        "dt",
        "dd",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "figure",
        "footer",
        "code",
        "noscript",
        "script",
    }
    assert text.count("</script>") == 2  # the data's and the script's own
    assert HOSTILE in {example["title"] for example in data_of(page)["examples"]}


def test_examples_are_those_of_the_shards(labelled, page):
    shards, index = str(labelled / "shards"), load_index(str(labelled / "shards"))
    data = data_of(page)
    clips = {}
    reader = ShardReader(shards, index, index.shardlist)
    for number in range(len(index.shardlist)):
        for example in range(len(reader.entries(number))):
            clip = reader.read(number, example)
            clips[clip.key] = clip
    assert sorted(example["meta"].split(" ")[0] for example in data["examples"]) == sorted(clips)
    for example in data["examples"]:
        clip = clips[example["meta"].split(" ")[0]]
        assert example["frames"] * HOP == len(clip.audio)
        panels = {panel["name"]: panel for panel in example["panels"]}
        assert list(panels) == [spec.name for spec in index.targets]
        for name in ("codes", "random_projection"):
            codes = np.frombuffer(unpacked(panels[name]["data"]), "<u2").reshape(
                panels[name]["rows"], panels[name]["columns"]
            )
            assert (codes == clip.targets[name]).all()
        levels = np.frombuffer(unpacked(panels["cqt"]["data"]), np.uint8).reshape(48, example["frames"])
        decibels = (levels.astype(float) - panels["cqt"]["scale"]["last"]) * panels["cqt"]["scale"]["step"]
        values = index.targets[1].values(clip.targets["cqt"]).T
        loud = levels > 0
        assert loud.any()
        wanted = 20 * np.log10(values[loud] / index.statistics["cqt"].maximum)
        assert np.abs(decibels[loud] - wanted).max() <= 0.2501
        assert panels["cqt"]["pitch"] == {"lowest": 110.0, "per_octave": 12}
        sounds = [soundfile.read(io.BytesIO(base64.b64decode(source["audio"]))) for source in example["sources"]]
        assert [source["label"] for source in example["sources"]] == ["Original", "From codes"]
        assert all((len(audio), rate) == (len(clip.audio), 24_000) for audio, rate in sounds)
        original = clip.audio / 32768
        assert np.corrcoef(sounds[0][0], original)[0, 1] > 0.8  # MP3 of white noise keeps no better
    shares = np.frombuffer(unpacked(data["shares"]["codes"]), "<f4").reshape(4, 64)
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-5)


def unpacked(text: str) -> bytes:
    """Base64 of a zlib stream."""
    return zlib.decompress(base64.b64decode(text))


def test_the_same_seed_draws_the_same_examples_and_keys_name_them(labelled, tmp_path):
    shards = labelled / "shards"
    for name, options in {"a": ["--seed", 3], "b": ["--seed", 3], "c": ["--seed", 4]}.items():
        assert make(shards, "--html", tmp_path / f"{name}.html", "--examples", 2, *options) == 0
    titles = {name: [each["meta"] for each in data_of(tmp_path / f"{name}.html")["examples"]] for name in "abc"}
    assert titles["a"] == titles["b"] != titles["c"] and len(titles["a"]) == 2
    assert (tmp_path / "a.html").read_text() == (tmp_path / "b.html").read_text().replace("b.html", "a.html")
    keys = [entry.key for entry in load_record(str(shards), "train-000000").members[:2]][::-1]
    assert make(shards, "--html", tmp_path / "keys.html", "--keys", ",".join(keys)) == 0
    assert [each["meta"].split(" ")[0] for each in data_of(tmp_path / "keys.html")["examples"]] == keys
    assert make(shards, "--html", tmp_path / "none.html", "--keys", "nobody-00000") == 1
    assert not (tmp_path / "none.html").exists()


def test_decoded_audio_is_what_the_encodec_package_decodes(labelled, tiny_codec):
    index = load_index(str(labelled / "shards"))
    spec = index.targets[0]
    reader = ShardReader(str(labelled / "shards"), index, index.shardlist)
    codes = reader.read(0, 0).targets["codes"]
    decoder = CodecDecoder(spec, recorded_teacher(str(labelled / "shards"), spec))
    with torch.inference_mode():
        wanted = load_codec(str(tiny_codec)).decode([(torch.from_numpy(codes.astype(np.int64))[None], None)])[0, 0]
    assert np.allclose(decoder.decode(codes), wanted[: HOP * codes.shape[1]].numpy(), atol=1e-6)


def test_a_codec_that_cannot_be_had_is_said_on_the_page(labelled, other_codec, tmp_path, capsys):
    shards, out = labelled / "shards", tmp_path / "report.html"
    assert make(shards, "--html", out, "--examples", 1, "--codec", other_codec) == 0
    fingerprint = load_index(str(shards)).targets[0].fingerprint
    assert f"There is no audio decoded from codes: codec {other_codec}: fingerprint" in Elements(out.read_text()).text
    assert fingerprint in capsys.readouterr().err
    assert [source["label"] for source in data_of(out)["examples"][0]["sources"]] == ["Original"]


def test_no_more_examples_than_the_page_may_hold(labelled, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(as_page, "MOST_BYTES", 700_000)
    out = tmp_path / "report.html"
    assert make(labelled / "shards", "--html", out, "--examples", 99) == 0
    shown = len(data_of(out)["examples"])
    assert 0 < shown < 8 and out.stat().st_size <= 700_000
    assert f"{shown} of 8 examples are shown" in capsys.readouterr().err
    assert f"{shown} of 8 examples are shown" in Elements(out.read_text()).text
    monkeypatch.setattr(as_page, "MOST_BYTES", 1000)
    assert make(labelled / "shards", "--html", tmp_path / "large.html") == 1
    assert "the most is 1000" in capsys.readouterr().err and not (tmp_path / "large.html").exists()


def test_a_set_of_unknown_teachers_with_drops(tmp_path):
    drops = [
        DroppedTrack(track=f"gone{number}", reason=reason, detail=HOSTILE, segments=number + 1)
        for number, reason in enumerate(["silent", "truncated"])
    ]
    hole = as_dropped(make_track("one", 30, 15, 75)[2])
    write_examples(
        tmp_path, "train-000000", [*make_track("one", 30, 15, 75)[:2], hole, *drops, *make_track("two", 8)], "pcm.npy"
    )
    index_shards(tmp_path, ["train-000000"], "pcm.npy")
    assert make(tmp_path, "--html", tmp_path / "page.html") == 0
    data = data_of(tmp_path / "page.html")
    plot = next(plot for plot in data["plots"].values() if plot["title"] == "Segments dropped by the labellers")
    assert (plot["labels"], plot["series"][0]["values"]) == (["silent", "truncated"], [2, 2])
    text = Elements((tmp_path / "page.html").read_text()).text
    assert HOSTILE in text and "Dropped segments of other tracks (1 of 1)" in text
    assert all(words in text for words in ["one-00002", "0.600", "peak -70.0 dBFS"])
    assert [len(example["sources"]) for example in data["examples"]] == [1, 1, 1]
    assert "pitch" not in data["examples"][0]["panels"][1]
    assert make(tmp_path, "--html", tmp_path / "none.html", "--examples", 0) == 0
    assert "No example was asked for." in Elements((tmp_path / "none.html").read_text()).text


def test_a_manifest_page(labelled, tmp_path):
    assert make(labelled / "manifest", "--html", tmp_path / "manifest.html") == 0
    found = Elements((tmp_path / "manifest.html").read_text())
    assert HOSTILE in found.text and "<b>not audio" in found.text
    assert not {tag for tag, _ in found.tags} & {"img", "b"}
    assert {plot["title"] for plot in data_of(tmp_path / "manifest.html")["plots"].values()} == {
        "Length of tracks",
        "Loudness of tracks",
        "Peaks of tracks",
        "Clipping",
        "Files rejected",
    }


def test_outline_and_loudness_against_naive_ones():
    audio = np.random.default_rng(0).integers(-20_000, 20_000, 24_000 * 3).astype(np.int16)
    found = outline(audio)
    assert found.shape == (2, len(audio) // 80)
    for place in (0, 17, found.shape[1] - 1):
        piece = audio[80 * place : 80 * place + 80] / 32768 * 127
        assert tuple(found[:, place]) == (round(piece.min()), round(piece.max()))
    # EBU Tech 3341: a 1 kHz sine at -23 dBFS in one channel of two has -23 LUFS; mono alone so too by BS.1770's sum.
    time = np.arange(24_000 * 10) / 24_000
    sine = np.rint(32767 * 10 ** (-20 / 20) * np.sin(2 * np.pi * 997 * time)).astype(np.int16)
    assert loudness(sine) == pytest.approx(-23.0, abs=0.1)
    assert loudness(np.zeros(24_000, np.int16)) is None and loudness(sine[:5000]) is None


def test_levels_of_values_with_a_sign_are_linear(labelled):
    spec = load_index(str(labelled / "shards")).targets[1].model_copy(update={"dtype": "float16", "companding": None})
    values = np.array([[-2.0, 0.0], [1.0, 2.0]], np.float16)
    found = target_levels(spec, values, -2.0, 2.0)
    assert not found.decibels and found.levels.tolist() == [[0, 191], [128, 255]]


def test_mp3_decodes_to_as_many_samples():
    for samples in (HOP, 5 * HOP, 24_000):
        audio = np.random.default_rng(1).integers(-9000, 9000, samples).astype(np.int16)
        assert len(soundfile.read(io.BytesIO(encode_mp3(audio)))[0]) == samples

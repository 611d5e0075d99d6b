"""Text beside audio: columns of a list of files become text and tokens in the shards, which others read and the stream
batches.
"""

import csv
import json
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tokenizers
import torch
import webdataset
from audio_files import noise, tone, write_audio
from folders import contents, make_manifest, visible

from mert_foundry.jobs import inspect as inspect_job
from mert_foundry.jobs import label as label_job
from mert_foundry.jobs import plan as plan_job
from mert_foundry.jobs import tokenizer as tokenizer_job
from mert_foundry.jobs import verify as verify_job
from mert_foundry.jobs.command.line import run
from mert_foundry.pipeline.labelling.plan import SegmentConfig, plan_shards
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.labelling.resume import find_unfinished
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.shards.index import ShardIndex, build_index, load_index
from mert_foundry.pipeline.stream.batch_stream import BatchStream, MixtureStream, StreamConfig, validation_batches
from mert_foundry.pipeline.stream.set_mixture import SetMixture, ShardSet
from mert_foundry.pipeline.teachers.random_projection import RandomProjectionTeacherConfig
from mert_foundry.pipeline.teachers.registry import build_teachers
from mert_foundry.pipeline.text.columns import TextColumns
from mert_foundry.pipeline.text.tokenizer import TextTokenizer, load_tokenizer
from mert_foundry.pipeline.text.training import train_tokenizer

SEGMENTS = SegmentConfig(segment_seconds=1.0, shortest_seconds=0.5, examples_per_shard=4, audio="pcm.npy")
TEACHER = RandomProjectionTeacherConfig(kind="random_projection", codebook_size=16)
COLUMNS = TextColumns(columns=["title", "tags"], template="{title}: {tags}")
# By file: title, tags. The second has neither; the third is in three scripts.
ROWS = {
    "a.wav": ("Battle", "fast drums, brass"),
    "b.wav": ("", ""),
    "c.wav": ("Śpiew 歌 <pad>", "slow choir, choir, choir"),
    "d.wav": ("Rain", ""),
}
TEXTS = {"a": "Battle: fast drums, brass", "b": "", "c": "Śpiew 歌 <pad>: slow choir, choir, choir", "d": "Rain:"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with audio/, list.csv, manifest/ and tokenizer/."""
    folder = tmp_path_factory.mktemp("text")
    for number, name in enumerate(ROWS):
        write_audio(folder / "audio" / name, tone(300 + 200 * number, 2.2) + noise(2.2, seed=number))
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "title", "tags"), *((path, *values) for path, values in ROWS.items())])
    make_manifest(folder / "audio", folder / "manifest", files=str(folder / "list.csv"), splits={}, min_seconds=1.0)
    assert train(folder, folder / "tokenizer") == 0
    return folder


def train(folder: Path, out: Path, *more: str) -> int:
    settings = [f"manifest={folder}/manifest", f"out={out}", "columns=[title, tags]", f"template='{COLUMNS.template}'"]
    return run(tokenizer_job.main, [*settings, "vocabulary_size=300", *more], "", tokenizer_job.CONFIG)


def label(folder: Path, out: Path, columns: TextColumns | None = COLUMNS) -> ShardIndex:
    """Label the manifest with the tokenizer of `folder`, as `mert label` does, without Ray."""
    manifest, teachers = load_manifest(str(folder / "manifest")), build_teachers([TEACHER], "cpu")
    tokenizer = load_tokenizer(str(folder / "tokenizer")) if columns else None
    tasks = plan_shards(manifest, SEGMENTS, text=columns)
    for task in tasks:
        process_shard(task, teachers, manifest.root, str(out), {}, tokenizer=tokenizer)
    if tokenizer:
        (out / "tokenizer.json").write_bytes(tokenizer.content)
    return build_index(
        str(out),
        [task.name for task in tasks],
        [teacher.spec for teacher in teachers],
        name="mine",
        manifest_sha256=manifest.sha256,
        segment_seconds=SEGMENTS.segment_seconds,
        audio_member="pcm.npy",
        text=tokenizer.spec(columns) if tokenizer and columns else None,
    )


@pytest.fixture(scope="module")
def shards(folder: Path) -> Path:
    label(folder, folder / "shards")
    return folder / "shards"


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """The same without text."""
    label(folder, folder / "plain", None)
    return folder / "plain"


def text_of(key: str) -> str:
    return TEXTS[key[0]]


def encode(folder: Path, text: str) -> list[int]:
    """By the library alone."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer.encode(text).ids if text else []


def test_training_is_deterministic_and_decoding_gives_the_text_back(folder: Path, tmp_path: Path):
    assert train(folder, tmp_path / "again") == 0
    assert contents(tmp_path / "again") == contents(folder / "tokenizer")
    texts = [text for text in TEXTS.values() if text]
    assert train_tokenizer(texts, 300) == train_tokenizer(texts[::-1], 300)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    assert [tokenizer.id_to_token(number) for number in (0, 1)] == ["<pad>", "<mask>"]
    for text in [*texts, "never seen: ☂ \n\x00é"]:
        tokens = encode(folder, text)
        assert tokenizer.decode(tokens, skip_special_tokens=False) == text and min(tokens) > 1
    assert len(encode(folder, "choir choir")) < 11  # it has learned what comes often


def test_another_size_or_folder_of_others_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert train(folder, folder / "manifest") == 2
    assert train(folder, folder / "tokenizer") == 1 and "not empty" in capsys.readouterr().err
    assert train(folder, tmp_path / "x", "vocabulary_size=257") == 2
    assert train(folder, tmp_path / "x", "columns=[title, mood]", "template=null") == 1
    assert "no track has a column 'mood'; columns are tags, title" in capsys.readouterr().err


def test_a_template_joins_columns_and_null_joins_those_there(folder: Path):
    track = load_manifest(str(folder / "manifest")).tracks[0]

    def text(columns: TextColumns, **extra: object) -> str:
        return columns.text_of(msgspec.structs.replace(track, extra=extra))

    assert text(COLUMNS, title="A", tags=["x", None, 3]) == "A: x, 3" and text(COLUMNS, tags="x") == ": x"
    plain = TextColumns(columns=["title", "year", "tags"])
    assert text(plain, title=" A ", year=1999, tags="") == "A, 1999" and text(plain, mood="x") == ""
    with pytest.raises(ValueError, match=f"{track.key}.*tags is {{'x': 1}}"):
        text(plain, tags={"x": 1})
    with pytest.raises(ValueError, match="title is '\\\\udcff', no UTF-8"):
        text(plain, title="\udcff")
    for template in ("{title}", "{title}: {tags!r}", "{title} {tags.upper}", "{} {title} {tags}"):
        with pytest.raises(ValueError, match="template"):
            TextColumns(columns=["title", "tags"], template=template)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("library", ["webdataset", "wids", "datasets"])
def test_the_snippets_of_the_guide_read_text_and_tokens(
    library: str, folder: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    guide = (Path(__file__).parent.parent / "pipeline" / "text" / "README.md").read_text()
    [block] = [block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if f"{library}." in block]
    names: dict = {}
    exec(block.replace("runs/mine/shards_text", str(shards)), names)  # leaves the last example read
    assert names["text"] in TEXTS.values() and list(names["tokens"]) == encode(folder, names["text"])


def test_plain_webdataset_reads_text_and_tokens_of_every_segment(folder: Path, shards: Path):
    tars = sorted(map(str, shards.glob("*.tar")))
    examples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert sorted(example["__key__"][0] for example in examples) == sorted("abcd" * 2)
    for example in examples:
        text = text_of(example["__key__"])
        assert example["txt"] == text and example["tokens.npy"].dtype == np.uint16
        assert example["tokens.npy"].tolist() == encode(folder, text)


def test_shards_without_text_are_what_they_were(plain: Path, shards: Path):
    assert b'"text"' not in (plain / "index.json").read_bytes()
    with_text, without = (
        {example["__key__"]: example for example in webdataset.WebDataset(sorted(map(str, each.glob("*.tar"))), shardshuffle=False)}  # noqa: E501
        for each in (shards, plain)
    )  # fmt: skip
    for key, example in without.items():
        members = {name: data for name, data in example.items() if name[0] != "_"}
        assert set(members) == {"json", "pcm.npy", "random_projection.npy"}
        assert members == {name: with_text[key][name] for name in members}


def test_a_vocabulary_beyond_two_bytes_is_stored_in_four():
    words = {f"w{number}": number for number in range(70_000)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=8)
    made = TextTokenizer("x", tokenizer.to_str().encode())
    assert made.spec(COLUMNS).dtype == "uint32" and made.vocabulary_size == 70_000
    assert made.encode("w69999 w1").tokens.tolist() == [69_999, 1]
    with pytest.raises(ValueError, match="x: no tokenizer"):
        TextTokenizer("x", b"{}")


def test_the_same_text_has_the_same_tokens_though_a_tokenizer_asks_for_dropout(folder: Path):
    document = json.loads((folder / "tokenizer" / "tokenizer.json").read_bytes())
    document["model"]["dropout"] = 0.5
    made = TextTokenizer("x", json.dumps(document).encode())
    assert {tuple(made.encode(TEXTS["a"]).tokens.tolist()) for _ in range(20)} == {tuple(encode(folder, TEXTS["a"]))}


def test_a_text_that_a_tokenizer_cannot_encode_is_named_with_it():
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"known": 0}, unk_token="?"))
    with pytest.raises(ValueError, match=r"words\.json: the text 'unheard of' cannot be encoded \("):
        TextTokenizer("words.json", words.to_str().encode()).encode("unheard of")


def test_inspect_shows_vocabulary_lengths_and_examples_without_text(folder: Path, shards: Path, run_here):
    code, out, _ = run_here(inspect_job, shards, "--json")
    summary = json.loads(out)["text"]
    lengths = [len(encode(folder, text)) for text in TEXTS.values() if text]
    assert code == 0 and (summary["examples"], summary["without_text"]) == (8, 2)
    assert (summary["tokens"]["minimum"], summary["tokens"]["maximum"]) == (min(lengths), max(lengths))
    used = {token for text in TEXTS.values() for token in encode(folder, text)}
    vocabulary = load_index(str(shards)).text.vocabulary_size
    assert summary["usage"] == pytest.approx(len(used) / vocabulary)
    assert "2 of 8 examples" in run_here(inspect_job, shards)[1]
    keys = {key[0]: key for key in keys_of(shards)}
    code, out, _ = run_here(inspect_job, shards, "--example", keys["c"], "--json")
    example = json.loads(out)
    assert example["text"] == TEXTS["c"] and len(example["pieces"]) == len(encode(folder, TEXTS["c"]))
    pieces = json.loads(run_here(inspect_job, shards, "--example", keys["a"], "--json")[1])["pieces"]
    assert "".join(pieces) == TEXTS["a"] and len(pieces) < len(TEXTS["a"])
    assert " | ".join(pieces) in run_here(inspect_job, shards, "--example", keys["a"])[1]
    assert "none" in run_here(inspect_job, shards, "--example", keys["b"])[1]


def keys_of(shards: Path) -> list[str]:
    return [example["__key__"] for example in webdataset.WebDataset(sorted(map(str, shards.glob("*.tar"))), shardshuffle=False)]  # fmt: skip  # noqa: E501


def test_verify_finds_tokens_that_are_not_those_of_the_text(folder: Path, shards: Path, tmp_path: Path, run_here):
    manifest = folder / "manifest"
    code, out, err = run_here(verify_job, shards, "--manifest", manifest)
    assert code == 0 and "no fault" in out, err
    shutil.copytree(shards, tmp_path / "shards")
    other = train_tokenizer(["Battle Battle"], 300)
    (tmp_path / "shards" / "tokenizer.json").write_bytes(other)
    code, out, _ = run_here(verify_job, tmp_path / "shards")
    assert code == 1 and load_index(str(shards)).text.fingerprint in out
    index = load_index(str(shards))
    changed = index.text.model_copy(update={"fingerprint": TextTokenizer("x", other).fingerprint})
    for path in (tmp_path / "shards").glob("*.json"):
        path.write_bytes(path.read_bytes().replace(index.text.fingerprint.encode(), changed.fingerprint.encode()))
    shutil.rmtree(tmp_path / "shards" / ".records", ignore_errors=True)
    (tmp_path / "shards" / "tokenizer.json").write_bytes(other)
    code, out, _ = run_here(verify_job, tmp_path / "shards")
    assert code == 1 and "the tokens are not those of the text 'Battle: fast drums, brass'" in out


def test_other_text_or_another_tokenizer_is_stale_until_overwritten(folder: Path, shards: Path):
    manifest, (teacher,) = load_manifest(str(folder / "manifest")), build_teachers([TEACHER], "cpu")
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    other = TextTokenizer("other", train_tokenizer(["other"], 280))

    def unfinished(columns: TextColumns | None, spec: object, overwrite: bool = False, tracks: object = None) -> int:
        listing = manifest.model_copy(update={"tracks": tracks or manifest.tracks})
        tasks = plan_shards(listing, SEGMENTS, text=columns)
        found = find_unfinished(str(shards), tasks, [teacher.spec], "pcm.npy", overwrite, text=spec)
        return len(found)

    number = len(load_index(str(shards)).shardlist)
    assert unfinished(COLUMNS, tokenizer.spec(COLUMNS)) == 0
    with pytest.raises(ValueError, match=f"{tokenizer.fingerprint}.*{other.fingerprint}.*overwrite=true"):
        unfinished(COLUMNS, other.spec(COLUMNS))
    assert unfinished(COLUMNS, other.spec(COLUMNS), overwrite=True) == number
    with pytest.raises(ValueError, match=f"text was made by tokenizer {tokenizer.fingerprint}, none is to be there"):
        unfinished(None, None)
    titles = TextColumns(columns=["title"])
    with pytest.raises(ValueError, match="its plan was"):
        unfinished(titles, tokenizer.spec(titles))
    # Only the shard of the track whose text has changed is made again.
    changed = [
        msgspec.structs.replace(track, extra={"title": "Sun"}) if track.path == "d.wav" else track
        for track in manifest.tracks
    ]
    assert unfinished(COLUMNS, tokenizer.spec(COLUMNS), overwrite=True, tracks=changed) == 1 < number


def test_text_is_asked_for_where_there_is_none(folder: Path, plain: Path):
    (teacher,) = build_teachers([TEACHER], "cpu")
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    tasks = plan_shards(load_manifest(str(folder / "manifest")), SEGMENTS)
    assert find_unfinished(str(plain), tasks, [teacher.spec], "pcm.npy", False) == []
    with pytest.raises(ValueError, match=f"there is no text in the shards, tokenizer {tokenizer.fingerprint}"):
        find_unfinished(str(plain), tasks, [teacher.spec], "pcm.npy", False, text=tokenizer.spec(COLUMNS))
    with pytest.raises(ValueError, match="text is asked for, there is none"):
        BatchStream(str(plain), load_index(str(plain)), "train", CONFIG, 0, with_text=True)


CONFIG = StreamConfig(batch_size=4, crop_samples=320 * 20, shuffle_window=2, threads=2)


def read(folder: Path, count: int, position: dict | None = None, with_text: bool = True) -> list[tuple[dict, dict]]:
    stream = BatchStream(
        str(folder), load_index(str(folder)), "train", CONFIG, 3, position=position, with_text=with_text
    )
    with stream:
        return [next(stream) for _ in range(count)]


def test_the_stream_pads_tokens_to_the_longest_of_the_batch_and_keeps_all_else(folder: Path, shards: Path):
    widths = set()
    batches = read(shards, 6)
    for (batch, position), (plain_batch, plain_position) in zip(batches, read(shards, 6, with_text=False)):
        texts = [encode(folder, text_of(key)) for key in batch["key"]]
        assert batch["tokens"].dtype == torch.int64
        assert batch["tokens"].shape == batch["tokens_valid"].shape == (4, max(map(len, texts)))
        for row, valid, text in zip(batch["tokens"], batch["tokens_valid"], texts):
            assert row[valid].tolist() == text and valid[: len(text)].all() and not row[~valid].any()
        widths.add(batch["tokens"].shape[1])
        assert position == plain_position and batch.keys() - plain_batch.keys() == {"tokens", "tokens_valid"}
        assert batch["key"] == plain_batch["key"]
        assert all(torch.equal(batch[name], plain_batch[name]) for name in plain_batch if name != "key")
    resumed = read(shards, 3, batches[2][1])
    for (batch, position), (again, again_position) in zip(batches[3:], resumed):
        assert position == again_position and torch.equal(batch["tokens"], again["tokens"])
    assert len(widths) > 1


def test_validation_and_sets_without_text(folder: Path, shards: Path, plain: Path):
    (batch, *_) = validation_batches(str(shards), load_index(str(shards)), "train", CONFIG, with_text=True)
    assert [row[valid].tolist() for row, valid in zip(batch["tokens"], batch["tokens_valid"])] == [
        encode(folder, text_of(key)) for key in batch["key"]
    ]
    sets = [ShardSet(str(each), load_index(str(each))) for each in (shards, plain)]
    with MixtureStream(SetMixture(sets), "train", CONFIG, 0, with_text=True) as stream:
        seen = [next(stream)[0] for _ in range(4)]
    lengths = [valid.sum().item() for batch in seen for valid in batch["tokens_valid"]]
    keys = [key for batch in seen for key in batch["key"]]
    by_key = {key: {length for other, length in zip(keys, lengths) if other == key} for key in keys}
    assert any(by_key[key] == {0, len(encode(folder, text_of(key)))} for key in keys if text_of(key))
    index = sets[0].index
    other = index.model_copy(update={"text": index.text.model_copy(update={"fingerprint": "e" * 64})})
    with pytest.raises(ValueError, match="e" * 64):
        MixtureStream(SetMixture([sets[0], ShardSet("other", other)]), "train", CONFIG, 0, with_text=True)


def test_the_plan_counts_text_to_the_byte(folder: Path, shards: Path, tmp_path: Path, run_here):
    text = {"columns": COLUMNS.columns, "template": COLUMNS.template, "tokenizer": str(folder / "tokenizer")}
    config = {"teachers": [TEACHER.model_dump()], "segments": SEGMENTS.model_dump(), "text": text}
    (tmp_path / "label.yaml").write_text(json.dumps(config))
    code, out, err = run_here(plan_job, tmp_path / "label.yaml", f"manifest={folder}/manifest", "labelling_rate=100", "flac_bytes_per_second=1", "--json")  # fmt: skip  # noqa: E501
    assert code == 0, err
    figures = {f"{line['section']}/{line['name']}": line["value"] for line in json.loads(out)["figures"]}
    assert figures["bytes/all shards"] == sum(entry.filesize for entry in load_index(str(shards)).shardlist)


@pytest.mark.process
@pytest.mark.slow
def test_mert_label_writes_the_same_set_and_says_what_is_wrong(
    folder: Path, shards: Path, tmp_path: Path, ray_address: str, run_here
):
    def label_with(*more: str) -> tuple[int, str, str]:
        text = {"columns": COLUMNS.columns, "template": COLUMNS.template, "tokenizer": str(folder / "tokenizer")}
        config = {"teachers": [TEACHER.model_dump()], "segments": SEGMENTS.model_dump(), "text": text}
        (tmp_path / "label.yaml").write_text(json.dumps(config))
        places = [f"manifest={folder}/manifest", f"out={tmp_path}/shards", f"address={ray_address}"]
        return run_here(label_job, tmp_path / "label.yaml", *places, *more)

    code, out, err = label_with()
    assert code == 0 and "3 of 4 tracks have some" in out + err and "text: vocabulary of" in out, err
    made, wanted = visible(tmp_path / "shards"), visible(shards)
    assert {name: made[name] for name in wanted if name.endswith(".tar")} == {
        name: data for name, data in wanted.items() if name.endswith(".tar")
    }
    assert made["tokenizer.json"] == wanted["tokenizer.json"] and b"template" in made["label.yaml"]
    assert load_index(str(tmp_path / "shards")).text == load_index(str(shards)).text
    code, _, err = label_with("text.columns=[title, mood]", "text.template=null")
    assert code == 2 and "no track has a column 'mood'" in err
    code, _, err = label_with("text.tokenizer=nowhere")
    assert code == 2 and "text.tokenizer" in err and "nowhere/tokenizer.json" in err
    code, _, err = label_with("text=null")
    assert code == 1 and "overwrite=true" in err

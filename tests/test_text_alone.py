"""Text alone: files become shards of tokens, which others read, and over which the same trainer trains the same
encoder.
"""

import io
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import webdataset
import yaml
import zarr
from folders import visible
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import run_ranks

from mert_foundry.jobs import export as export_job
from mert_foundry.jobs import extract as extract_job
from mert_foundry.jobs import pretrain as pretrain_job
from mert_foundry.jobs import tokenize as tokenize_job
from mert_foundry.jobs import tokenizer as tokenizer_job
from mert_foundry.jobs import verify as verify_job
from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.pretraining.run_description import PretrainConfig, heads_of, with_vocabulary
from mert_foundry.model.encoder import MertEncoder
from mert_foundry.model.interop.load import load_encoder
from mert_foundry.model.objective.pretrain_model import build_pretrain_model
from mert_foundry.model.runs.checkpoint import load_average, load_weights
from mert_foundry.model.training.ranks import rank, world_size
from mert_foundry.model.training.trainer import TrainingData, train
from mert_foundry.pipeline.labelling.document_shards import (
    DocumentSegmentConfig,
    plan_document_shards,
    write_document_shard,
)
from mert_foundry.pipeline.shards.format import decode_info
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.stream.batch_stream import BatchStream, StreamConfig, validation_batches
from mert_foundry.pipeline.stream.set_mixture import SetMixture, ShardSet
from mert_foundry.pipeline.text.documents import DocumentFolder, find_documents, read_texts
from mert_foundry.pipeline.text.tokenizer import TextTokenizer
from mert_foundry.pipeline.text.training import train_tokenizer

WORDS = (
    "the licence of this program permits its users to copy, to change and to share it 歌 Śpiew without any fee".split()
)
SEGMENT, SHORTEST = 64, 8
# A tiny encoder of the shipped recipe.
TINY = [
    "encoder.frontend.width=16",
    "encoder.transformer.layers=2",
    "encoder.transformer.width=32",
    "encoder.transformer.heads=2",
    "encoder.transformer.feed_forward=64",
    "objective.final_dim=16",
    "stream.batch_size=4",
    "stream.crop_samples=10240",  # 32 tokens
    "trainer.schedule={learning_rate: 0.005, warmup_steps: 2, total_steps: 8}",
    "trainer.log_every=1",
    "trainer.validate_every=4",
    "trainer.checkpoint_every=4",
    "trainer.diagnostics_every=4",
    "trainer.ema=0.9",
    "device=cpu",
]
CONFIGS = Path(__file__).parents[1] / "configs"


def sentences(seed: int, count: int) -> str:
    """Text of which every second word follows from the one before it."""
    generator, words = random.Random(seed), []
    for _ in range(count):
        number = generator.randrange(len(WORDS) - 1)
        words += WORDS[number : number + 2]
    return " ".join(words) + "\n"


def tokenize(folder: Path, out: Path, *more: str) -> int:
    changes = [
        f"documents.root={folder}/texts",
        f"tokenizer={folder}/tokenizer",
        f"out={out}",
        "documents.splits={valid: 0.3}",
    ]
    sizes = [f"segments={{segment_tokens: {SEGMENT}, shortest_tokens: {SHORTEST}, bytes_per_shard: 1500}}"]
    return run(tokenize_job.main, [*changes, *sizes, *more], tokenize_job.__doc__, tokenize_job.CONFIG)


def train_on_documents(folder: Path, out: Path, size: int) -> int:
    source = [
        f"documents.root={folder}/texts",
        "documents.splits={valid: 0.3}",
        f"out={out}",
        f"vocabulary_size={size}",
    ]
    return run(tokenizer_job.main, source, tokenizer_job.__doc__, tokenizer_job.CONFIG)


def pretrain(shards: Path, out: Path, *more: str) -> int:
    words = [str(CONFIGS / "text.yaml"), f"shards={shards}", f"out={out}", *TINY, *more]
    return run(pretrain_job.main, words, pretrain_job.__doc__, pretrain_job.CONFIG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts/, some of which are no documents, tokenizer/, shards/ and run/."""
    folder = tmp_path_factory.mktemp("text_alone")
    texts = folder / "texts"
    (texts / "more").mkdir(parents=True)
    for number in range(12):
        (texts / ("more" if number % 2 else ".") / f"{number}.txt").write_text(sentences(number, 60 + 10 * number))
    (texts / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (texts / "null.txt").write_bytes(b"a\0b")
    (texts / "empty.txt").write_bytes(b" \n")
    (texts / "z-copy.txt").write_bytes((texts / "0.txt").read_bytes())
    (texts / "short.txt").write_text("fee")
    (texts / "broken.txt").symlink_to(texts / "nowhere")
    assert train_on_documents(folder, folder / "tokenizer", 300) == 0
    assert tokenize(folder, folder / "shards") == 0
    assert pretrain(folder / "shards", folder / "run") == 0
    return folder


def test_files_that_are_no_documents_are_listed_with_a_reason(folder):
    rows = [json.loads(line) for line in (folder / "shards" / "rejected.jsonl").read_text().splitlines()]
    assert {row["path"]: row["reason"] for row in rows} == {
        "latin.txt": "not_utf8",
        "null.txt": "not_text",
        "empty.txt": "empty",
        "z-copy.txt": "duplicate",
        "broken.txt": "unreadable",
    }
    index = load_index(str(folder / "shards"))
    assert index.dropped == {"too_short": 1}
    assert set(index.totals) == {"train", "valid"} and len(index.shardlist) > 3


def test_other_readers_get_the_tokens_that_the_library_makes_of_each_file(folder):
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    paths = {row["key"]: row["path"] for row in map(json.loads, (folder / "shards" / "documents.jsonl").open())}
    found: dict[str, list[int]] = {}
    shards = sorted(map(str, (folder / "shards").glob("*.tar")))
    for example in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode():
        assert {name for name in example if not name.startswith("__")} == {"json", "tokens.npy"}
        assert example["tokens.npy"].shape == (1, example["json"]["num_frames"])
        found.setdefault(example["json"]["track"], []).extend(example["tokens.npy"][0].tolist())
    assert len(found) == 12
    for key, tokens in found.items():
        assert tokens == library.encode((folder / "texts" / paths[key]).read_text()).ids


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=4), st.integers(1, 50), st.integers(1, 50))
def test_documents_of_any_length_are_cut_without_a_gap(tmp_path_factory, lengths, segment, shortest):
    folder = tmp_path_factory.mktemp("cut")
    tokenizer = TextTokenizer("ours", train_tokenizer(["a"], 258))  # a byte is a token
    texts = {
        f"{number}.txt": random.Random(number).choices("abcdefgh", k=length) for number, length in enumerate(lengths)
    }
    for name, letters in texts.items():
        (folder / name).write_text("".join(letters))
    documents = find_documents(DocumentFolder(root=str(folder), splits={}))
    config = DocumentSegmentConfig(segment_tokens=segment, shortest_tokens=shortest)
    [task] = plan_document_shards(documents.rows, config)
    record = write_document_shard(task, str(folder), str(folder / "out"), tokenizer)
    cut: dict[str, list[np.ndarray]] = {}
    if record.members:
        for example in webdataset.WebDataset(str(folder / "out" / record.url), shardshuffle=False):
            info = decode_info("json", example["json"])
            assert info.start_sample == 320 * sum(map(len, cut.setdefault(info.track, [])))
            cut[info.track].append(np.load(io.BytesIO(example["tokens.npy"]))[0])
    least = min(segment, shortest)
    for row in documents.rows:
        pieces = cut.pop(row.key, [])
        if row.bytes < least:
            assert not pieces and row.key in {drop.track for drop in record.dropped_tracks}
            continue
        assert tokenizer.decode(np.concatenate(pieces)) == (folder / row.path).read_text()
        assert all(len(piece) == segment for piece in pieces[:-1])
        assert least <= len(pieces[-1]) < segment + least or len(pieces[-1]) == segment
    assert not cut


def test_a_rerun_makes_what_is_missing_and_the_same_bytes(folder, tmp_path, capsys):
    shutil.copytree(folder / "shards", tmp_path / "shards")
    for name in ("train-000001.json", "index.json", "valid-000000.tar"):
        (tmp_path / "shards" / name).unlink()
    kept = (tmp_path / "shards" / "train-000000.tar").stat().st_mtime_ns
    assert tokenize(folder, tmp_path / "shards") == 0
    assert visible(tmp_path / "shards") == visible(folder / "shards")
    assert (tmp_path / "shards" / "train-000000.tar").stat().st_mtime_ns == kept
    assert tokenize(folder, tmp_path / "again") == 0
    assert visible(tmp_path / "again") == visible(folder / "shards")


def test_another_tokenizer_is_refused_until_it_may_replace(folder, tmp_path, capsys):
    shutil.copytree(folder / "shards", tmp_path / "shards")
    assert train_on_documents(folder, tmp_path / "other", 280) == 0
    other = f"tokenizer={tmp_path}/other"
    assert tokenize(folder, tmp_path / "shards", other) == 1
    said = capsys.readouterr().err
    fingerprints = [
        yaml.safe_load((each / "tokenizer.yaml").read_text())["sha256"]
        for each in (folder / "tokenizer", tmp_path / "other")
    ]
    assert all(fingerprint in said for fingerprint in fingerprints)
    assert tokenize(folder, tmp_path / "shards", other, "overwrite=true") == 0
    assert load_index(str(tmp_path / "shards")).targets[0].codebook_size == 280


def test_a_tokenizer_that_truncates_loses_nothing_of_a_document(folder, tmp_path):
    short = tokenizers.Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    short.enable_truncation(16)
    short.save(str(tmp_path / "tokenizer.json"))
    assert tokenize(folder, tmp_path / "shards", f"tokenizer={tmp_path}/tokenizer.json") == 0
    whole, made = (
        {tar.name: tar.read_bytes() for tar in (each / "shards").glob("*.tar")} for each in (folder, tmp_path)
    )
    assert made == whole != {}


def test_a_mark_of_byte_order_is_no_text_and_no_output_lies_among_the_documents(folder, tmp_path, capsys):
    (tmp_path / "marked.txt").write_bytes("\ufeffa fee".encode())
    (tmp_path / "mark.txt").write_bytes("\ufeff".encode())
    found = find_documents(DocumentFolder(root=str(tmp_path)))
    assert [reject.reason for reject in found.rejects] == ["empty"]
    assert list(read_texts(str(tmp_path), found.rows)) == ["a fee"]
    assert tokenize(folder, folder / "texts" / "shards") == 1
    assert "lies in root" in capsys.readouterr().err and not (folder / "texts" / "shards").exists()


def test_a_long_stretch_without_a_space_is_cut_for_training():
    lines = ["x" * 1000, "x" * 1000, "x" * 500]
    assert train_tokenizer(["".join(lines)], 300) == train_tokenizer(["\n".join(lines)], 300)


def test_a_folder_of_somebody_else_is_left_alone(folder, tmp_path, capsys):
    (tmp_path / "documents.jsonl").write_text("mine")
    assert tokenize(folder, tmp_path) == 2
    assert "documents.jsonl is not ours" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["documents.jsonl"]


def test_verification_finds_a_changed_token_and_another_tokenizer(folder, tmp_path, run_here):
    assert run_here(verify_job, folder / "shards")[0] == 0
    shutil.copytree(folder / "shards", tmp_path / "shards")
    tar = tmp_path / "shards" / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[content.index(b"\x93NUMPY") + 130] ^= 1
    tar.write_bytes(content)
    (tmp_path / "shards" / "tokenizer.json").write_bytes(train_tokenizer(["fee"], 259))
    code, said, _ = run_here(verify_job, tmp_path / "shards")
    assert code == 1 and "CRC-32" in said and "tokenizer.json: SHA-256" in said
    for option in (["--relabel", "1"], ["--manifest", folder]):
        code, _, fault = run_here(verify_job, folder / "shards", *option)
        assert code == 2 and "text alone" in fault


def test_inspection_shows_tokens_and_text_and_no_hours(folder, tmp_path, say):
    index = load_index(str(folder / "shards"))
    code, said, _ = say(folder / "shards")
    tokens = sum(entry.num_frames for entry in index.shardlist)
    assert code == 0 and f"{tokens:,}" in said and "documents" in said
    assert "audio  " not in said and "hours" not in said and "seconds" not in said
    key = json.loads(say(folder / "shards", "--shard", "valid-000000", "--json")[1])["members"][0]["key"]
    shown = json.loads(say(folder / "shards", "--example", key, "--json")[1])
    row = next(
        row for row in map(json.loads, (folder / "shards" / "documents.jsonl").open()) if key.startswith(row["key"])
    )
    assert (folder / "texts" / row["path"]).read_text().startswith(shown["text"].rstrip("\ufffd"))
    assert shown["seconds"] is None and len(shown["pieces"]) == shown["info"]["num_frames"]
    assert say(folder / "shards", "--html", tmp_path / "page.html", "--keys", key)[0] == 0
    assert shown["text"][:30] in (tmp_path / "page.html").read_text()


def test_batches_hold_the_tokens_and_no_audio(folder):
    index = load_index(str(folder / "shards"))
    config = StreamConfig(
        batch_size=3, crop_samples=320 * 100, threads=1
    )  # longer than a segment: neighbours are joined
    library = TextTokenizer("ours", (folder / "tokenizer" / "tokenizer.json").read_bytes())
    whole = "".join(path.read_text() for path in sorted((folder / "texts").rglob("[0-9]*.txt")))
    with BatchStream(str(folder / "shards"), index, "train", config, seed=0) as stream:
        batch, _ = next(stream)
    assert "audio" not in batch and batch["tokens"].shape == (3, 1, 100) and batch["tokens"].dtype == torch.uint16
    for row, valid in zip(batch["tokens"].numpy(), batch["valid"].numpy()):
        assert library.decode(row[0][valid]).strip("\ufffd") in whole
    validation = list(validation_batches(str(folder / "shards"), index, "valid", config))
    assert sum(len(each["key"]) for each in validation) == index.totals["valid"].examples


def metrics(run_folder: Path) -> Iterator[dict]:
    return map(json.loads, (run_folder / "metrics.jsonl").open())


def test_the_trainer_reports_tokens_beside_the_entropy_of_unigrams(folder, say):
    [first, *_, last] = [record for record in metrics(folder / "run") if record["kind"] == "validation"]
    assert last["losses"]["tokens"] < first["losses"]["tokens"]
    records = [record for record in metrics(folder / "run") if record["kind"] == "train"]
    assert records[-1]["tokens_per_second"] > 0 and not {"hours_heard", "audio_seconds_per_second"} & set(records[-1])
    assert 1000 < records[-1]["tokens_read"] <= 8 * 4 * 32  # padding is not counted
    assert any(record["kind"] == "diagnostics" for record in metrics(folder / "run"))
    counts = np.zeros(300)
    tars = sorted(map(str, (folder / "shards").glob("train-*.tar")))
    for example in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode():
        counts += np.bincount(example["tokens.npy"][0], minlength=300)
    described = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    smoothed = (counts + 0.5) / (counts + 0.5).sum()
    cross_entropy = -(counts / counts.sum() * np.log(smoothed)).sum()
    assert described["trivial"]["train"]["tokens"]["loss"] == pytest.approx(cross_entropy)
    assert described["config"]["encoder"]["frontend"]["vocabulary_size"] == 300
    assert described["data"]["tokens"]["train"] == counts.sum() and "hours" not in described["data"]
    said = say(folder / "run")[1]
    assert "tokens per second" in said and "audio" not in said


def test_a_run_goes_on_bit_for_bit(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_8")
    assert pretrain(folder / "shards", tmp_path / "run") == 0
    whole, resumed = (each / "checkpoints" / "step_8" for each in (folder / "run", tmp_path / "run"))
    for load in (load_weights, load_average):
        expected, found = load(whole), load(resumed)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    ours, theirs = (
        [each["loss"] for each in metrics(run) if each["kind"] == "train"] for run in (tmp_path / "run", folder / "run")
    )
    assert ours == theirs and len(ours) == 8


def test_a_masked_token_is_not_seen_and_others_are():
    config = load_config(PretrainConfig, [str(CONFIGS / "text.yaml"), "shards=x", "out=y", *TINY]).encoder
    torch.manual_seed(0)
    known = config.frontend.model_copy(update={"vocabulary_size": 50})
    encoder = MertEncoder(config.model_copy(update={"frontend": known})).eval()
    tokens = torch.randint(50, (1, 1, 20))
    mask = torch.zeros(1, 20, dtype=torch.bool)
    mask[0, 5:8] = True
    hidden = tokens.clone()
    hidden[0, 0, 6] = (hidden[0, 0, 6] + 1) % 50
    seen = tokens.clone()
    seen[0, 0, 9] = (seen[0, 0, 9] + 1) % 50
    last = encoder(tokens, mask).last
    assert torch.equal(last, encoder(hidden, mask).last)
    assert not torch.equal(last[0, 6], encoder(seen, mask).last[0, 6])


def train_here(process_rank: int, shards: Path, out: Path, parallel: str) -> None:
    """Four steps of the tiny recipe, in whatever group of ranks this process is in."""
    index = load_index(str(shards))
    settings = [str(CONFIGS / "text.yaml"), f"shards={shards}", f"out={out}", *TINY, f"trainer.parallel={parallel}"]
    config = with_vocabulary(load_config(PretrainConfig, settings), SetMixture([ShardSet(str(shards), index)]))
    schedule = config.trainer.schedule.model_copy(update={"total_steps": 4})

    def stream(position: dict | None, step: int) -> BatchStream:
        return BatchStream(str(shards), index, "train", config.stream, 0, rank(), world_size(), position)

    out.mkdir(exist_ok=True)
    train(
        model=build_pretrain_model(config.encoder, heads_of(index.targets), config.objective, 0),
        data=TrainingData(stream, None, index.sample_rate),
        config=config.trainer.model_copy(update={"schedule": schedule}),
        run_folder=out,
        run_config={},
        seed=0,
        device=torch.device("cpu"),
        stop=lambda: False,
        report=lambda record: None,
    )


@pytest.mark.process
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_train_as_one(folder, tmp_path, parallel):
    train_here(0, folder / "shards", tmp_path / "one", "ddp")
    run_ranks(train_here, 2, folder / "shards", tmp_path / "two", parallel)
    one, two = (
        [each["loss"] for each in metrics(tmp_path / name) if each["kind"] == "train"] for name in ("one", "two")
    )
    assert len(one) == 4 and two == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("trainer.mixture={}", ["trainer.mixture is set", "is text alone"]),
        ("trainer.mask.fill=noise", ["trainer.mask.fill is noise"]),
        ("objective.unmasked_weight=0.5", ["unmasked_weight is 0.5"]),
        ("encoder.frontend.vocabulary_size=77", ["vocabulary_size is 77", "has 300 tokens"]),
        ("encoder.frontend={kind: log_mel}", ["is text alone", "log_mel"]),
    ],
)
def test_settings_that_are_for_audio_are_refused(folder, tmp_path, capsys, change, words):
    assert pretrain(folder / "shards", tmp_path / "run", change) == 1
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and all(word in said for word in words)


def test_audio_is_refused_where_tokens_are_read_and_mixed_with_them(folder, labelled, tmp_path, capsys):
    assert pretrain(labelled / "shards", tmp_path / "run") == 1
    assert "has audio, but encoder.frontend.kind is embedding" in capsys.readouterr().err
    both = f"shards=[{{path: {folder}/shards}}, {{path: {labelled}/shards}}]"
    assert pretrain(folder / "shards", tmp_path / "run", both, "missing_targets=mask") == 1
    assert f"{folder}/shards is text alone" in capsys.readouterr().err


def test_a_run_begins_from_an_encoder_over_the_same_tokens_only(folder, tmp_path, capsys):
    assert pretrain(folder / "shards", tmp_path / "run", f"initial={folder}/run") == 0
    assert "encoder and tokens heads as stored" in capsys.readouterr().err
    shutil.copytree(folder / "shards", tmp_path / "shards")
    other = TextTokenizer("other", train_tokenizer(["fee " + sentences(99, 200)], 300))
    assert other.vocabulary_size == 300
    (tmp_path / "tokenizer.json").write_bytes(other.content)
    assert tokenize(folder, tmp_path / "shards", f"tokenizer={tmp_path}/tokenizer.json", "overwrite=true") == 0
    assert pretrain(tmp_path / "shards", tmp_path / "other_run", f"initial={folder}/run") == 1
    said = capsys.readouterr().err
    assert other.fingerprint in said and load_index(str(folder / "shards")).targets[0].fingerprint in said


def extract(model: Path, shards: Path, out: Path, *more: str) -> int:
    words = [
        f"model={model}",
        f"input={shards}",
        f"out={out}",
        "pooling=none",
        "dtype=float32",
        "device=cpu",
        "actors=1",
        *more,
    ]
    return run(extract_job.main, words, extract_job.__doc__, extract_job.CONFIG)


def test_hidden_states_of_documents_from_a_run_and_its_export(folder, tmp_path, run_here, say):
    code, _, said = run_here(export_job, folder / "run", tmp_path / "export")
    assert code == 0 and "no native hubert folder" in said
    for name in ("run", "export"):
        model = tmp_path / "export" if name == "export" else folder / "run"
        # Windows of 90 tokens: of 300 the longest documents need several.
        windows = ["windows={seconds: 1.2, overlap_seconds: 0.4}"]
        assert extract(model, folder / "shards", tmp_path / f"{name}.zarr", *windows) == 0
    ours, theirs = (zarr.open_group(tmp_path / f"{name}.zarr", mode="r") for name in ("run", "export"))
    assert np.array_equal(ours["features"][:], theirs["features"][:])
    encoder, _ = load_encoder(folder / "run")
    library = TextTokenizer("ours", (folder / "tokenizer" / "tokenizer.json").read_bytes())
    paths = {row["key"]: row["path"] for row in map(json.loads, (folder / "shards" / "documents.jsonl").open())}
    keys, offsets, lengths = (ours[name][:].tolist() for name in ("key", "offset", "length"))
    for key, offset, length in zip(keys, offsets, lengths):
        tokens = library.encode((folder / "texts" / paths[key]).read_text()).tokens.astype(np.int64)
        assert length == len(tokens)
        first = torch.from_numpy(tokens[:90])[None, None]
        with torch.no_grad():
            states = torch.stack(encoder(first).hidden_states, dim=2)[0].numpy()
        kept = min(length, 75)  # before the seam with the next window
        assert np.allclose(ours["features"][offset : offset + kept], states[:kept], atol=1e-5)
    said = say(tmp_path / "run.zarr")[1]
    assert f"{sum(lengths):,}" in said and "documents" in said and " h " not in said


def test_encoders_of_tokens_and_of_audio_are_not_taken_for_each_other(folder, labelled, tmp_path, capsys):
    assert extract(folder / "run", labelled / "shards", tmp_path / "a.zarr") == 1
    assert "reads tokens" in capsys.readouterr().err
    assert extract(Path("foundry-encoder"), folder / "shards", tmp_path / "b.zarr") == 1
    assert "has tokens" in capsys.readouterr().err

"""Text as memory in `mert pretrain`: it starts as if it were not there, is dropped by a seeded draw, and travels with
the encoder.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
import zarr
from pretrain_run import NO_DROPOUT, Ranks, arguments, final_weights, pretrain_here, read_metrics
from shard_fixtures import SPECS, make_example, write_set

from mert_foundry.jobs import export as export_job
from mert_foundry.jobs import extract as extract_job
from mert_foundry.jobs.pretraining.initial_weights import load_initial_weights
from mert_foundry.jobs.pretraining.run_description import read_description
from mert_foundry.model.interop.load import build_encoder, build_memory, read_model
from mert_foundry.model.objective.pretrain_model import build_pretrain_model
from mert_foundry.model.objective.text_memory import TextMemory, TextMemoryConfig, keep_texts
from mert_foundry.pipeline.labelling.shard_writer import write_shard
from mert_foundry.pipeline.shards.index import build_index
from mert_foundry.pipeline.shards.text import Text, TextSpec

VOCABULARY = 40
MEMORY = [
    "memory={layers: 1, width: 8, heads: 2}",
    "encoder.transformer.memory_width=8",
    "encoder.transformer.overrides={1: {reads_memory: true}}",
]
NO_MIXTURE = "trainer.mixture=null"
NAMES = ["train-000000", "train-000001", "valid-000000"]


def write_texts(folder: Path, fingerprint: str = "e" * 64) -> Path:
    """Three shards of four examples of 12 to 33 frames, every third without text, else of 1 to 9 tokens."""
    spec = TextSpec(
        columns=["title"], template=None, dtype="uint16", vocabulary_size=VOCABULARY, fingerprint=fingerprint
    )
    random = np.random.default_rng(0)
    for name in NAMES:
        examples = []
        for number in range(4):
            tokens = random.integers(0, VOCABULARY, 0 if number == 2 else random.integers(1, 10)).astype(np.uint16)
            example = make_example(f"{name[:5]}{name[-1]}x{number}", 12 + 7 * number)
            examples.append(replace(example, text=Text("a text" if len(tokens) else "", tokens)))
        settings = {"audio_member": "pcm.npy", "plan_fingerprint": "plan", "backend": {}, "text": spec}
        write_shard(str(folder), name, examples, SPECS, **settings)
    card = {"name": "texts", "manifest_sha256": "d" * 64, "segment_seconds": 1.0, "audio_member": "pcm.npy"}
    build_index(str(folder), NAMES, SPECS, text=spec, **card)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve steps with text, without any other dropout; read only."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert pretrain_here(shards, out, *NO_DROPOUT, *MEMORY) == 0
    return out


def losses(out: Path, kind: str = "train") -> list[dict[str, float]]:
    return [record["losses"] for record in read_metrics(out, kind)]


def test_the_first_losses_are_those_without_text_then_the_gate_opens(shards: Path, finished: Path, tmp_path: Path):
    assert pretrain_here(shards, tmp_path / "plain", *NO_DROPOUT) == 0
    ours, plain = losses(finished), losses(tmp_path / "plain")
    assert ours[0] == plain[0]
    # The rate of step 1 moves the gate; what opened it shows in the next losses.
    assert ours[-1] != plain[-1]
    weights = final_weights(finished)
    assert weights["encoder.transformer.layers.1.memory.gate"].abs() > 1e-4
    assert {name.split(".")[0] for name in weights} == {"encoder", "heads", "memory"}
    assert not any("layers.0.memory" in name for name in weights if name.startswith("encoder"))


def test_a_text_that_is_always_dropped_changes_nothing(shards: Path, tmp_path: Path):
    dropped = tmp_path / "dropped"
    assert pretrain_here(shards, dropped, *NO_DROPOUT, *MEMORY, "memory.dropout=1", "valid_split=null") == 0
    assert pretrain_here(shards, tmp_path / "plain", *NO_DROPOUT, "valid_split=null") == 0
    # The norm of the gradient, by which it is clipped, is summed over more tensors, and so rounded otherwise.
    for ours, plain in zip(losses(dropped), losses(tmp_path / "plain"), strict=True):
        assert ours == pytest.approx(plain, rel=1e-5)
    weights = final_weights(dropped)
    for name, weight in final_weights(tmp_path / "plain").items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-5)
    assert weights["encoder.transformer.layers.1.memory.gate"] == 0


def test_texts_are_dropped_with_the_stated_probability_by_seed_step_and_key():
    keys = [f"track-{number}" for number in range(2000)]
    kept = keep_texts(0.3, 1, 5, keys)
    assert kept.float().mean() == pytest.approx(0.7, abs=0.03)
    assert torch.equal(kept[10:20], keep_texts(0.3, 1, 5, keys[10:20]))  # whoever else is in the batch
    for seed, step in ((2, 5), (1, 6)):
        assert 0.3 < (kept == keep_texts(0.3, seed, step, keys)).float().mean() < 0.7
    assert keep_texts(0.0, 1, 5, keys).all() and not keep_texts(1.0, 1, 5, keys).any()


def test_a_resumed_run_is_the_same_bit_for_bit(shards: Path, tmp_path: Path):
    # With every dropout of the encoder too.
    assert pretrain_here(shards, tmp_path / "whole", *MEMORY) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step_12")
    assert pretrain_here(shards, tmp_path / "resumed", *MEMORY) == 0
    assert read_metrics(tmp_path / "resumed") == read_metrics(tmp_path / "whole")
    ours, theirs = final_weights(tmp_path / "resumed"), final_weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_do_as_one(parallel: str, shards: Path, tmp_path: Path):
    settings = [*NO_DROPOUT, *MEMORY, NO_MIXTURE, "trainer.schedule.total_steps=6", "trainer.validate_every=6"]
    alone, divided = tmp_path / "alone", tmp_path / "divided"
    assert pretrain_here(shards, alone, *settings) == 0
    words = arguments(shards, divided, *settings, f"trainer.parallel={parallel}")
    assert Ranks(divided, [words] * 2).finish() == [0, 0]
    for kind in ("train", "validation"):
        for ours, theirs in zip(losses(divided, kind), losses(alone, kind), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = final_weights(divided), final_weights(alone)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4) for name in ours)


def test_padding_and_missing_texts_change_nothing_that_is_read():
    torch.manual_seed(0)
    memory = TextMemory(TextMemoryConfig(layers=2, width=8, heads=2), VOCABULARY)
    tokens = torch.randint(0, VOCABULARY, (2, 5))
    valid = torch.tensor([[True] * 3 + [False] * 2, [False] * 5])
    out = memory(tokens, valid)
    assert out.shape == (2, 5, 8) and out.isfinite().all()
    torch.testing.assert_close(out[:1, :3], memory(tokens[:1, :3], valid[:1, :3]))
    other = tokens.clone()
    other[~valid] = 7
    torch.testing.assert_close(memory(other, valid)[0, :3], out[0, :3])


def test_the_memory_is_exported_beside_an_encoder_that_works_without(
    finished: Path, tmp_path: Path, run_here: Callable
):
    code, _, err = run_here(export_job, finished, tmp_path / "export")
    assert code == 0 and "memory" in err
    of_run, exported = read_model(finished), read_model(tmp_path / "export")
    assert exported.memory is not None and of_run.memory is not None
    assert (exported.memory.vocabulary_size, exported.memory.fingerprint) == (VOCABULARY, "e" * 64)
    assert exported.memory.config == of_run.memory.config == TextMemoryConfig(layers=1, width=8, heads=2)
    weights = final_weights(finished)
    assert {f"memory.{name}" for name in exported.memory.weights} == {name for name in weights if name[:7] == "memory."}
    tokens, valid = torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.bool)
    with torch.no_grad():
        memories = [build_memory(stored.memory)(tokens, valid) for stored in (of_run, exported)]
        assert torch.equal(*memories)
        encoder, audio = build_encoder(exported).eval(), torch.randn(1, 6400)
        without, with_text = encoder(audio).last, encoder(audio, memory=memories[0], memory_valid=valid).last
    assert without.isfinite().all() and not torch.equal(without, with_text)


def test_a_run_begins_from_the_memory_of_another_with_the_same_tokenizer(finished: Path):
    config, initial = read_description(finished).config, read_model(finished)
    heads, memory = initial.heads, TextMemoryConfig(layers=1, width=8, heads=2, dropout=0.1)
    for fingerprint, taken in (("e" * 64, True), ("f" * 64, False)):
        model = build_pretrain_model(config.encoder, heads, config.objective, 5, memory, VOCABULARY)
        said = load_initial_weights(model, initial, {**initial.fingerprints, "text.tokens": fingerprint})
        assert said.endswith("the memory as stored" if taken else "the memory is new")
        assert torch.equal(model.memory.embedding.weight, initial.memory.weights["embedding.weight"]) == taken


@pytest.mark.process
@pytest.mark.slow
def test_extract_works_without_text(shards: Path, finished: Path, tmp_path: Path, run_here: Callable):
    settings = [f"model={finished}", f"input={shards}", f"out={tmp_path}/features.zarr", "dtype=float32", "actors=1"]
    code, _, err = run_here(extract_job, *settings)
    assert code == 0, err
    features = zarr.open_group(tmp_path / "features.zarr", mode="r")["features"][:]
    assert features.size and np.isfinite(features).all()


def test_what_does_not_fit_is_one_line(shards: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    def refusal(shards: Path, out: Path, *changes: str) -> str:
        capsys.readouterr()
        assert pretrain_here(shards, out, *changes) in (1, 2)
        err = capsys.readouterr().err
        assert err.count("\n") == 1, err
        return err

    assert "memory.width is 8, encoder.transformer.memory_width None" in refusal(shards, tmp_path / "a", MEMORY[0])
    write_set(tmp_path / "plain", [3], valid_sizes=[2])
    assert f"memory is text, but {tmp_path}/plain has none" in refusal(tmp_path / "plain", tmp_path / "b", *MEMORY)
    both = f"shards=[{{path: {shards}}}, {{path: {write_texts(tmp_path / 'other', 'f' * 64)}}}]"
    said = refusal(shards, tmp_path / "c", *MEMORY, both)
    assert "e" * 64 in said and "f" * 64 in said
    assert "memory.layers was 1" in refusal(shards, finished, *NO_DROPOUT, *MEMORY, "memory.layers=2")


def test_a_run_says_which_tokenizer_it_had(finished: Path):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["data"]["teachers"]["text.tokens"] == {"fingerprint": "e" * 64, "vocabulary_size": VOCABULARY}

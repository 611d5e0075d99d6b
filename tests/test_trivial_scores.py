"""What a trivial predictor reaches: the very loss that the objective gives a model which predicts constants."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pretrain_run import CONFIG
from shard_fixtures import CODES, CQT, make_example
from tiny_model import tiny_encoder

from mert_foundry.jobs.pretraining import trivial_scores
from mert_foundry.jobs.pretraining.progress import describe_losses, describe_trivial
from mert_foundry.jobs.pretraining.run_description import PretrainConfig, heads_of
from mert_foundry.jobs.pretraining.trivial_scores import measure_trivial
from mert_foundry.model.objective.pretrain_model import ObjectiveConfig, build_pretrain_model
from mert_foundry.model.objective.target_alignment import align_valid
from mert_foundry.model.objective.trivial import TrivialScore, TrivialScores, explained_shares, score_unigram
from mert_foundry.model.training.device_batch import to_device
from mert_foundry.pipeline.labelling.shard_writer import write_shard
from mert_foundry.pipeline.shards.companding import Companding
from mert_foundry.pipeline.shards.format import Example
from mert_foundry.pipeline.shards.index import ShardIndex, build_index, load_index
from mert_foundry.pipeline.stream.batch_stream import validation_batches

LEVELS = CQT.model_copy(
    update={"name": "levels", "size": 3, "dtype": "uint8", "companding": Companding(peak=225, mu=10_000)}
)
SPECS = [CODES, CQT, LEVELS]
LENGTHS = {"train-000000": (12, 50, 31), "train-000001": (60,), "train-000002": (7, 18), "valid-000000": (44, 23)}
CROP_FRAMES = 70  # every example is whole, and the encoder has a frame for each of its frames


def random_example(track: str, num_frames: int, rng: np.random.Generator) -> Example:
    """Codes of which some are frequent, and the last appears in validation alone; values that differ by bin."""
    whole = make_example(track, num_frames)
    most = 16 if track.startswith("valid") else 15
    codes = np.minimum(rng.geometric([[0.2], [0.5]], (2, num_frames)) - 1, most - 1).astype(np.uint16)
    cqt = rng.normal([0, 1, -2, 3], [1, 2, 0.1, 4], (num_frames, 4)).astype(np.float16)
    levels = rng.integers(20, [90, 200, 255], (num_frames, 3)).astype(np.uint8)
    return Example(whole.info, whole.audio, {"codes": codes, "cqt": cqt, "levels": levels})


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(5)
    for name, lengths in LENGTHS.items():
        examples = [random_example(f"{name}x{number}", length, rng) for number, length in enumerate(lengths)]
        write_shard(
            str(folder), name, examples, SPECS, audio_member="flac", plan_fingerprint="plan", backend={"device": "cpu"}
        )
    settings = {"name": "tiny", "manifest_sha256": "d" * 64, "segment_seconds": 1.0, "audio_member": "flac"}
    build_index(str(folder), list(LENGTHS), SPECS, **settings)
    return folder


def config_of(shards: Path, **changes: object) -> PretrainConfig:
    stream = CONFIG["stream"] | {"crop_samples": 320 * CROP_FRAMES, "batch_size": 2}
    return PretrainConfig(shards=str(shards), out="unused", stream=stream, **changes)


class Constant(torch.nn.Module):
    """A head that looks at nothing: logits [K, 1, V] or values [1, bins] for every frame."""

    def __init__(self, value: np.ndarray):
        super().__init__()
        self.value = torch.from_numpy(value)

    def forward(self, frames: torch.Tensor, codebooks: object = None) -> torch.Tensor:
        if self.value.ndim == 3:
            return self.value.expand(-1, len(frames), -1)
        return self.value.expand(len(frames), -1)


def stored(shards: Path, index: ShardIndex, split: str) -> dict[str, np.ndarray]:
    """The targets of all frames of a split, read as training reads them: codes [K, F], values [F, bins]."""
    batches = list(validation_batches(str(shards), index, split, config_of(shards).stream))
    found = {}
    for spec in SPECS:
        rows = [
            spec.values(array[valid].numpy()) if spec.kind == "continuous" else array[:, valid].numpy()
            for batch in batches
            for array, valid in zip(batch[spec.name], batch["valid"], strict=True)
        ]
        found[spec.name] = np.concatenate(rows, axis=spec.frame_axis)
    return found


def constants(train: dict[str, np.ndarray]) -> dict[str, Constant]:
    """Heads that predict training's frequencies, half a count added to each code, and its means."""
    counts = np.stack([np.bincount(level, minlength=16) for level in train["codes"]]) + 0.5
    logits = np.log(counts / counts.sum(1, keepdims=True))[:, None]
    return {"codes": Constant(logits)} | {name: Constant(train[name].mean(0)[None]) for name in ("cqt", "levels")}


@pytest.mark.parametrize(("split", "kind"), [("train", "train"), ("valid", "validation")])
@torch.no_grad()
def test_the_figures_are_the_losses_of_a_model_that_predicts_constants(shards, split, kind):
    index = load_index(str(shards))
    config = config_of(shards)
    objective = ObjectiveConfig(final_dim=4, target_weights={"cqt": 0.5}, unmasked_weight=0.5)
    model = build_pretrain_model(tiny_encoder(dropout=0.0), heads_of(index), objective, 0).eval()
    for name, head in constants(stored(shards, index, "train")).items():
        model.heads[name] = head
    totals = model.zero_sums()
    for batch in validation_batches(str(shards), index, split, config.stream):
        inputs = to_device(batch, model.head_specs, torch.device("cpu"))
        frames = model.encoder.num_frames(inputs["audio"].shape[1])
        valid = align_valid(inputs["valid"], model.encoder.hop, frames)
        totals = {name: totals[name] + value for name, value in model(inputs, valid).items()}
    frames = sum(sum(lengths) for name, lengths in LENGTHS.items() if name.startswith(split))
    assert totals["masked_frames"] == totals["valid_frames"] == frames

    summary = model.summarise(totals)
    scores = measure_trivial(config, index).on(kind)
    assert scores.keys() == {"codes", "cqt", "levels"}
    for name, score in scores.items():
        assert score.loss == pytest.approx(summary["losses"][name], rel=1e-5), name
    assert sum(scores["codes"].codebooks) == pytest.approx(scores["codes"].loss)
    assert scores["codes"].most_frequent == pytest.approx(summary["accuracy"]["codes"])
    shares = explained_shares(summary["losses"], scores)
    assert {name: shares[name] for name in scores} == pytest.approx(dict.fromkeys(scores, 0.0), abs=1e-5)
    assert shares["unmasked/codes"] == 1.0 and "feature_penalty" not in shares  # no frame was left unmasked


def test_the_unigram_of_many_frames_has_its_entropy_and_an_unseen_code_a_finite_loss():
    counts = np.array([[600_000, 300_000, 100_000, 0]])
    shares = counts[0, :3] / 1e6
    score = score_unigram(counts, counts)
    assert score.codebooks == pytest.approx([-(shares * np.log(shares)).sum()], abs=1e-5)
    assert score.most_frequent == [0.6]
    unseen = score_unigram(counts, np.array([[0, 0, 0, 10]]))
    assert unseen.loss == pytest.approx(np.log(1_000_002 / 0.5)) and unseen.most_frequent == [0.0]


def test_a_target_that_never_varies_has_no_share():
    scores = {"cqt": TrivialScore(loss=0.0), "codes": TrivialScore(loss=4.0)}
    assert explained_shares({"cqt": 1.0, "codes": 6.0, "feature_penalty": 2.0}, scores) == {"codes": -0.5}


def test_of_many_shards_some_are_read_and_this_is_said(shards, monkeypatch):
    index, config = load_index(str(shards)), config_of(shards)
    assert measure_trivial(config, index).basis == (
        "the best constants of train (3 of 3 shards), scored on train and on valid (1 of 1 shards)"
    )
    monkeypatch.setattr(trivial_scores, "MOST_SHARDS", 2)
    scores = measure_trivial(config.model_copy(update={"valid_split": None}), index)
    assert scores.basis == "the best constants of train (2 of 3 shards)" and scores.validation == {}
    bins = stored(shards, index, "train")["cqt"][: sum(LENGTHS["train-000000"] + LENGTHS["train-000001"])]
    assert scores.train["cqt"].loss == pytest.approx(bins.var(axis=0).mean())


def test_an_encoder_that_averages_target_frames_has_no_figure_for_values_and_says_why(shards):
    config = config_of(shards, encoder={"frontend": {"kind": "log_mel"}})  # 25 Hz, targets have 75
    scores = measure_trivial(config, load_index(str(shards)))
    assert set(scores.train) == set(scores.validation) == {"codes"} and set(scores.unknown) == {"cqt", "levels"}
    assert "cqt: not compared: a frame of the encoder is the mean of 3" in describe_trivial(scores)
    record = {"kind": "train", "loss": 9.0, "losses": {"codes": 3.0, "cqt": 6.0}, "accuracy": {"codes": [0.5, 0.2]}}
    assert ", cqt 6.000;" in describe_losses(record, scores)


def test_a_line_shows_losses_and_accuracy_beside_the_constants():
    codes = TrivialScore(loss=4.0, codebooks=[2.5, 1.5], most_frequent=[0.2, 0.4])
    scores = TrivialScores(basis="", train={"codes": codes, "cqt": TrivialScore(loss=0.25)})
    losses = {"codes": 3.0, "cqt": 0.3, "unmasked/codes": 1.0, "feature_penalty": 0.01}
    record = {"kind": "train", "loss": 3.5, "losses": losses, "accuracy": {"codes": [float("nan"), 0.5]}}
    assert describe_losses(record, scores) == (
        "loss 3.500; codes 1.50 nats a codebook (unigram 2.00, 25.0% explained), cqt 0.300 (mean 0.250, -20.0% explained),"
        " unmasked/codes 0.50 nats a codebook (unigram 2.00, 75.0% explained), feature_penalty 0.010;"
        " codes accuracy 50.00% (most frequent code 40.00%)"
    )
    assert (
        describe_losses({**record, "kind": "validation"}, scores)
        == describe_losses(record, None)
        == (
            "loss 3.500; codes 1.50 nats a codebook, cqt 0.300, unmasked/codes 0.50 nats a codebook, feature_penalty 0.010;"
            " codes accuracy 50.00%"
        )
    )

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
from mert_foundry.jobs.pretraining.target_values import ValueMoments, sample_values, scale_of, scaled_heads
from mert_foundry.jobs.pretraining.trivial_scores import measure_trivial
from mert_foundry.model.encoder import EncoderConfig
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.pretrain_model import ObjectiveConfig, PretrainModel, build_pretrain_model
from mert_foundry.model.objective.target_alignment import align_valid
from mert_foundry.model.objective.trivial import TrivialScore, TrivialScores, explained_shares, score_unigram
from mert_foundry.model.objective.value_scale import Standardise, ValueScale
from mert_foundry.model.training.device_batch import to_device
from mert_foundry.pipeline.labelling.shard_writer import write_shard
from mert_foundry.pipeline.shards.companding import Companding
from mert_foundry.pipeline.shards.format import Example
from mert_foundry.pipeline.shards.index import ShardIndex, build_index, load_index
from mert_foundry.pipeline.stream.batch_stream import validation_batches
from mert_foundry.pipeline.stream.set_mixture import SetMixture, ShardSet

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


@pytest.fixture(scope="module")
def shards_of_levels(tmp_path_factory) -> Path:
    """Companded levels alone, those of `levels_of`."""
    folder = tmp_path_factory.mktemp("levels")
    for split in ("train", "valid"):
        levels = levels_of(split)
        examples = [
            Example(whole.info, whole.audio, {"levels": stored})
            for number, stored in enumerate(levels)
            for whole in [make_example(f"{split}{number}", len(stored))]
        ]
        write_shard(
            str(folder), f"{split}-000000", examples, [LEVELS], audio_member="flac", plan_fingerprint="plan", backend={}
        )
    settings = {"name": "tiny", "manifest_sha256": "d" * 64, "segment_seconds": 1.0, "audio_member": "flac"}
    build_index(str(folder), ["train-000000", "valid-000000"], [LEVELS], **settings)
    return folder


def levels_of(split: str) -> list[np.ndarray]:
    """Examples of a split, uint8 [F, 3]."""
    rng = np.random.default_rng(ord(split[0]))
    return [rng.integers(20, [90, 200, 255], (length, 3)).astype(np.uint8) for length in (66, 31, 50)]


def measured(config: PretrainConfig, index: ShardIndex) -> TrivialScores:
    """The constants as `mert pretrain` measures them for a run that begins."""
    mixture = SetMixture([ShardSet(config.shards, index)])
    sampled = sample_values(config, mixture)
    return measure_trivial(config, mixture, scaled_heads(config, mixture, sampled, Path("none")), sampled)


def sums_over(model: PretrainModel, config: PretrainConfig, index: ShardIndex, split: str) -> dict[str, torch.Tensor]:
    """The model's sums over a split, every valid frame masked."""
    totals = model.zero_sums()
    for batch in validation_batches(config.shards, index, split, config.stream):
        inputs = to_device(batch, model.head_specs, torch.device("cpu"))
        frames = model.encoder.num_frames(inputs["audio"].shape[1])
        valid = align_valid(inputs["valid"], model.encoder.hop, frames)
        totals = {name: totals[name] + value for name, value in model(inputs, valid).items()}
    return totals


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
    model = build_pretrain_model(tiny_encoder(dropout=0.0), heads_of(index.targets), objective, 0).eval()
    for name, head in constants(stored(shards, index, "train")).items():
        model.heads[name] = head
    totals = sums_over(model, config, index, split)
    frames = sum(sum(lengths) for name, lengths in LENGTHS.items() if name.startswith(split))
    assert totals["masked_frames"] == totals["valid_frames"] == frames

    summary = model.summarise(totals)
    scores = measured(config, index).on(kind)
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
    assert measured(config, index).basis == (
        "the best constants of train (3 of 3 shards), scored on train and on valid (1 of 1 shards)"
    )
    monkeypatch.setattr(trivial_scores, "MOST_SHARDS", 2)
    scores = measured(config.model_copy(update={"valid_split": None}), index)
    assert scores.basis == "the best constants of train (2 of 3 shards)" and scores.validation == {}
    bins = stored(shards, index, "train")["cqt"][: sum(LENGTHS["train-000000"] + LENGTHS["train-000001"])]
    assert scores.train["cqt"].loss == pytest.approx(bins.var(axis=0).mean())


@pytest.mark.parametrize("value_scale", ["raw", "standardised", "log", "decorrelated"])
@pytest.mark.parametrize("kind", ["convolution", "log_mel"])  # 75 Hz as the targets, 25 Hz
@torch.no_grad()
def test_in_any_scale_and_at_any_rate_the_figures_are_the_losses_of_constants(shards_of_levels, value_scale, kind):
    index = load_index(str(shards_of_levels))
    frontend = {"kind": kind} if kind == "log_mel" else {"channels": 8}
    encoder = EncoderConfig(frontend=frontend, transformer={"layers": 1, "width": 16, "heads": 2, "feed_forward": 8})
    config = config_of(shards_of_levels, encoder=encoder, objective={"value_scale": value_scale, "final_dim": 4})
    mixture = SetMixture([ShardSet(config.shards, index)])
    heads = scaled_heads(config, mixture, sample_values(config, mixture), Path("none"))
    model = build_pretrain_model(encoder, heads, config.objective, 0).eval()
    stride = encoder.frontend.hop // 320
    seen = {split: in_scale(levels_of(split), stride, value_scale) for split in ("train", "valid")}
    if value_scale != "raw":
        mean, projection = seen["train"].mean(0), naive_projection(seen["train"], value_scale)
        seen = {split: (values - mean) @ projection for split, values in seen.items()}
    model.heads["levels"] = Constant(seen["train"].mean(0)[None])
    scores = measured(config, index)
    for split, record in (("train", "train"), ("valid", "validation")):
        totals = sums_over(model, config, index, split)
        assert totals["masked_frames"] == len(seen[split])
        loss = model.summarise(totals)["losses"]["levels"]
        naive = np.square(seen[split] - seen["train"].mean(0)).mean()
        assert loss == pytest.approx(naive, rel=2e-3 if value_scale == "decorrelated" else 1e-4)  # float16 components
        assert scores.on(record)["levels"].loss == pytest.approx(loss, rel=1e-4)
    if value_scale in ("standardised", "log"):
        assert scores.train["levels"].loss == pytest.approx(1.0, rel=1e-4)
    assert ("levels: of at most 256 examples" in describe_trivial(scores)) == (
        value_scale != "raw" or kind == "log_mel"
    )


def in_scale(levels: list[np.ndarray], stride: int, value_scale: str) -> np.ndarray:
    """What a head sees of stored levels, not yet standardised: means of `stride` values, then the logarithm."""
    values = [LEVELS.values(example) for example in levels]
    means = np.concatenate(
        [
            np.stack([value[i : i + stride].mean(0) for i in range(0, len(value) - stride + 1, stride)])
            for value in values
        ]
    )
    return np.log1p(means * 10_000 / 225) if value_scale in ("log", "decorrelated") else means


def naive_projection(values: np.ndarray, value_scale: str) -> np.ndarray:
    """By what the distance from the mean is multiplied; principal components as the singular vectors of the data give
    them.
    """
    if value_scale != "decorrelated":
        return np.diag(1 / values.std(0))
    _, singular, directions = np.linalg.svd(values - values.mean(0), full_matrices=False)
    variances = singular**2 / len(values)
    return directions.T / np.sqrt(variances + 0.01 * variances[0])


@pytest.mark.parametrize("value_scale", ["log", "decorrelated"])
def test_a_logarithm_needs_companding(shards, value_scale):
    config = config_of(shards, objective={"value_scale": value_scale})
    with pytest.raises(ValueError, match=f"value_scale is {value_scale}, but target cqt has no companding"):
        sample_values(config, SetMixture([ShardSet(str(shards), load_index(str(shards)))]))


def test_a_bin_that_hardly_varies_teaches_little_noise():
    values = np.array([[0.0, 5.0, 1.0], [2.0, 5.0, 1.0002]])
    moments = ValueMoments(values.mean(0), np.cov(values.T, bias=True))
    expected = ValueScale(logarithmic=False, mean=(1.0, 5.0, 1.0001), deviation=(1.0, 0.001, 0.001))
    assert scale_of(moments, "standardised") == expected
    still = scale_of(ValueMoments(values[0], np.zeros((3, 3))), "decorrelated")
    assert still.deviation is None and np.isfinite(still.projection()).all()


@pytest.mark.parametrize("spread", [0.0, 3e-17, 1e-8])
def test_what_hardly_varies_has_small_finite_components(spread):
    generator = np.random.default_rng(0)
    values = 9.2 + generator.normal(size=(500, 336)) * np.sqrt(spread)
    scale = scale_of(ValueMoments(values.mean(0), np.cov(values.T, bias=True)), "decorrelated")
    predicted = (values - values.mean(0)) @ scale.projection()
    assert np.abs(scale.projection()).max() < 1e4 and np.square(predicted).mean() < 0.2


def test_decorrelated_values_are_uncorrelated_and_noise_stays_small():
    generator = np.random.default_rng(0)
    mixed = generator.normal(size=(4000, 100)) * np.geomspace(30.0, 0.01, 100) @ generator.normal(size=(100, 100))
    values = torch.from_numpy(mixed).float()
    moments = ValueMoments(mixed.mean(0), np.cov(mixed.T, bias=True))
    scale = scale_of(moments, "decorrelated")
    assert scale.size == 64 and "components" not in scale_of(moments, "log").model_dump()
    again = ValueScale.model_validate_json(scale.model_dump_json())
    predicted = Standardise(again.model_copy(update={"logarithmic": False}), None)(values).double().numpy()
    covariance = np.cov(predicted.T, bias=True)
    off_diagonal = covariance - np.diag(np.diag(covariance))
    assert np.abs(off_diagonal).max() < 0.01
    assert 0.98 < covariance[0, 0] < 1.0 and (np.diff(np.diag(covariance)) < 1e-3).all() and covariance[-1, -1] < 0.05


def test_deviations_that_older_runs_have_beside_components_do_not_count():
    values = np.random.default_rng(0).normal(size=(100, 3)) @ np.random.default_rng(1).normal(size=(3, 3))
    scale = scale_of(ValueMoments(values.mean(0), np.cov(values.T, bias=True)), "decorrelated")
    older = scale.model_dump(mode="json") | {"deviation": [1.0, 2.0, 3.0]}
    read = ValueScale.model_validate(older)
    assert read.model_dump(mode="json") == older and "deviation" not in scale.model_dump()
    HeadSpec(name="cqt", kind="continuous", size=3, companding={"peak": 15.0, "mu": 300.0}, scale=read)
    frames = torch.rand(4, 3)
    expected = Standardise(scale.model_copy(update={"logarithmic": False}), None)(frames)
    assert torch.equal(Standardise(read.model_copy(update={"logarithmic": False}), None)(frames), expected)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"scale": {"logarithmic": False, "mean": [0, 0]}}, "needs a deviation of each bin, or components"),
        ({"scale": {"logarithmic": False, "mean": [0.0], "deviation": [1.0]}}, "has 2 bins, its scale 1 means"),
        ({"scale": {"logarithmic": True, "mean": [0, 0], "deviation": [1, 1]}}, "no companding"),
        ({"scale": {"logarithmic": False, "mean": [0, 0], "deviation": [1, 0]}}, "greater than 0"),
        ({"scale": {"logarithmic": False, "mean": [0, 0], "deviation": [1, 1], "components": "AAAAAAAA"}}, "no finite"),
        ({"scale": {"logarithmic": False, "mean": [0], "deviation": [1], "components": "AHw="}}, "no finite"),
        ({"scale": {"logarithmic": False, "mean": [0], "deviation": [1], "components": ""}}, "no finite"),
        (
            {"kind": "discrete", "codebook_size": 4, "scale": {"logarithmic": False, "mean": [], "deviation": []}},
            "discrete",
        ),
    ],
)
def test_a_scale_that_does_not_fit_is_refused(changes, fault):
    with pytest.raises(ValueError, match=fault):
        HeadSpec(**{"name": "cqt", "kind": "continuous", "size": 2, **changes})


def test_a_line_shows_losses_and_accuracy_beside_the_constants():
    codes = TrivialScore(loss=4.0, codebooks=[2.5, 1.5], most_frequent=[0.2, 0.4])
    scores = TrivialScores(basis="", train={"codes": codes, "cqt": TrivialScore(loss=0.25)})
    losses = {"codes": 3.0, "cqt": 0.3, "unmasked/codes": 1.0, "feature_penalty": 0.01}
    record = {"kind": "train", "loss": 3.5, "losses": losses, "accuracy": {"codes": [float("nan"), 0.5]}}
    assert describe_losses(record, scores) == (
        "loss 3.500; codes 1.50 nats a codebook (unigram 2.00, 25.0% explained), cqt 0.300 (mean 0.250, -20.0%"
        " explained), unmasked/codes 0.50 nats a codebook (unigram 2.00, 75.0% explained), feature_penalty 0.010;"
        " codes accuracy 50.00% (most frequent code 40.00%)"
    )
    assert (
        describe_losses({**record, "kind": "validation"}, scores)
        == describe_losses(record, None)
        == (
            "loss 3.500; codes 1.50 nats a codebook, cqt 0.300, unmasked/codes 0.50 nats a codebook, feature_penalty"
            " 0.010; codes accuracy 50.00%"
        )
    )

"""The configs that ship: each loads with its own model, and the big ones are the published runs."""

from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from mert_foundry.jobs.codec import CodecTrainingConfig
from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.demo import KILL_AFTER_STEP, PRETRAIN
from mert_foundry.jobs.extraction.settings import ExtractConfig
from mert_foundry.jobs.fit import FitConfig
from mert_foundry.jobs.label import LabelConfig
from mert_foundry.jobs.pretraining.run_description import PretrainConfig
from mert_foundry.jobs.probing.settings import ProbeConfig
from mert_foundry.jobs.suite import SuiteConfig
from mert_foundry.jobs.tokenize import TokenizeConfig
from mert_foundry.jobs.tokenizer import TokenizerConfig
from mert_foundry.model.encoder import MertEncoder
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.pretrain_model import PretrainModel
from mert_foundry.pipeline.frames import SAMPLE_RATE
from mert_foundry.pipeline.manifest.scan import ManifestConfig

CONFIGS = Path(__file__).parents[1] / "configs"
# What a user gives on the command line, beside the file.
JOBS: dict[str, tuple[type[BaseModel], list[str]]] = {
    "manifest": (ManifestConfig, ["root=music", "out=manifest"]),
    "codec": (CodecTrainingConfig, ["manifest=manifest", "out=codec"]),
    "fit": (FitConfig, ["manifest=manifest", "out=mel_rvq"]),
    "extract": (ExtractConfig, ["model=export", "input=shards", "out=features.zarr"]),
    "label": (LabelConfig, ["manifest=manifest", "out=shards"]),
    "tokenizer": (TokenizerConfig, ["manifest=manifest", "out=tokenizer", "columns=[title]"]),
    "tokenize": (TokenizeConfig, ["documents.root=texts", "tokenizer=tokenizer", "out=shards"]),
    "text": (PretrainConfig, ["shards=shards", "out=run"]),
    "suite": (SuiteConfig, ["out=suite"]),
    "probe": (ProbeConfig, ["model=run", "data=suite", "out=probe"]),
    "tiny": (PretrainConfig, ["shards=shards", "out=run"]),
    "small_corpus": (PretrainConfig, ["shards=shards", "out=run"]),
    "mert_95m": (PretrainConfig, ["shards=shards", "out=run"]),
    "mert_330m": (PretrainConfig, ["shards=shards", "out=run"]),
    "mert_95m_1gpu": (PretrainConfig, ["shards=shards", "out=run"]),
    "mert_95m_8gpu": (PretrainConfig, ["shards=shards", "out=run"]),
    "mert_330m_8gpu": (PretrainConfig, ["shards=shards", "out=run"]),
    "mert_1b_64gpu": (PretrainConfig, ["shards=shards", "out=run"]),
    "long_context_30s": (PretrainConfig, ["shards=shards", "out=run"]),
}

# arXiv 2306.00107, tables of models and hyperparameters, and the released fairseq configs (REFERENCE):
# (key, 95M, 330M). Samples and frames at 24 kHz and 75 Hz.
PUBLISHED = [
    ("encoder.transformer.layers", 12, 24),
    ("encoder.transformer.width", 768, 1024),
    ("encoder.transformer.heads", 12, 16),
    ("encoder.transformer.feed_forward", 3072, 4096),
    ("encoder.transformer.norm", "post", "pre"),
    ("encoder.transformer.position_kernel", 128, 128),
    ("encoder.transformer.position_groups", 16, 16),
    ("encoder.frontend.channels", 512, 512),
    ("encoder.frontend.kernels", (10, 3, 3, 3, 3, 2, 2), (10, 3, 3, 3, 3, 2, 2)),
    ("encoder.frontend.strides", (5, 2, 2, 2, 2, 2, 2), (5, 2, 2, 2, 2, 2, 2)),
    ("encoder.frontend.gradient_multiplier", 0.1, 1.0),
    ("stream.crop_samples", 120_000, 122_880),
    ("trainer.mask.probability", 0.8, 0.8),
    ("trainer.mask.span", 5, 5),
    ("trainer.mask.min_spans", 2, 2),
    ("encoder.input_dropout", 0.1, 0.0),
    ("encoder.transformer.dropout", 0.1, 0.0),
    ("encoder.transformer.attention_dropout", 0.1, 0.0),
    ("encoder.transformer.activation_dropout", 0.0, 0.0),
    ("encoder.transformer.layer_drop", 0.05, 0.0),
    ("objective.final_dim", 64, 128),
    ("objective.temperature", 0.1, 0.1),
    ("objective.feature_penalty", 10.0, 10.0),
    ("objective.target_weights", {}, {}),
    ("trainer.optimizer.betas", (0.9, 0.98), (0.9, 0.98)),
    ("trainer.optimizer.epsilon", 1e-6, 1e-6),
    ("trainer.optimizer.weight_decay", 0.01, 0.01),
    ("trainer.optimizer.gradient_clip", 10.0, 1.0),
    ("trainer.schedule.learning_rate", 5e-4, 1.5e-3),
    ("trainer.schedule.warmup_steps", 32_000, 32_000),
    ("trainer.schedule.total_steps", 400_000, 400_000),
    ("trainer.accumulation", 1, 8),
    ("trainer.mixture.probability", 0.5, 0.5),
    ("trainer.mixture.min_snippets", 1, 1),
    ("trainer.mixture.max_snippets", 3, 3),
    ("trainer.mixture.min_samples", 12_000, 12_000),
    ("trainer.mixture.max_samples", 24_000, 36_000),
    ("trainer.mixture.volume", 1.0, 1.0),
]
ENCODER_PARAMETERS = {"mert_95m": 94_371_712, "mert_330m": 315_428_992}
ENCODER_FRAMES = {"mert_95m": 374, "mert_330m": 383}
# A GPU's samples a step are at most these, over 64 GPUs.
MOST_SAMPLES = {"mert_95m": 2_000_000, "mert_330m": 8 * 900_000}
HOURS_A_STEP = {"mert_95m": 1.5, "mert_330m": 5.3}


def load(name: str) -> BaseModel:
    model, required = JOBS[name]
    return load_config(model, [str(CONFIGS / f"{name}.yaml"), *required])


def test_every_config_is_tested_here():
    assert {path.stem for path in CONFIGS.iterdir() if path.is_file()} == set(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_loads_with_the_keys_of_the_command_line(name):
    load(name)


@pytest.mark.parametrize("name", ["mert_95m", "mert_330m"])
@pytest.mark.parametrize(("key", "small", "large"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_big_models_are_trained_as_published(name, key, small, large):
    value = load(name)
    for part in key.split("."):
        value = getattr(value, part)
    assert value == (small if name == "mert_95m" else large)


@pytest.mark.parametrize("name", ENCODER_PARAMETERS)
def test_big_models_have_the_published_size(name):
    config = load(name)
    with torch.device("meta"):
        encoder = MertEncoder(config.encoder)
    assert {parameter.device.type for parameter in encoder.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in encoder.parameters()) == ENCODER_PARAMETERS[name]
    assert encoder.num_frames(config.stream.crop_samples) == ENCODER_FRAMES[name]


@pytest.mark.parametrize("name", ENCODER_PARAMETERS)
def test_big_models_build_with_the_published_heads(name):
    config = load(name)
    heads = [
        HeadSpec(name="codes", kind="discrete", size=8, codebook_size=1024),
        HeadSpec(name="cqt", kind="continuous", size=336),
    ]
    with torch.device("meta"):
        model = PretrainModel(config.encoder, heads, config.objective)
    width, final_dim = config.encoder.transformer.width, config.objective.final_dim
    codes = 8 * (width * final_dim + final_dim) + 8 * 1024 * final_dim
    cqt = width * 336 + 336
    assert sum(parameter.numel() for parameter in model.parameters()) == ENCODER_PARAMETERS[name] + codes + cqt


@pytest.mark.parametrize("name", MOST_SAMPLES)
def test_a_step_has_the_published_audio(name):
    """As many crops as fit the published limit of each of 64 GPUs, and no fewer than that fills nine tenths of it."""
    config = load(name)
    rows, rest = divmod(config.stream.batch_size, 64 * config.trainer.accumulation)
    assert rest == 0
    samples = rows * config.trainer.accumulation * config.stream.crop_samples
    assert 0.9 * MOST_SAMPLES[name] < samples <= MOST_SAMPLES[name]
    hours = config.stream.batch_size * config.stream.crop_samples / SAMPLE_RATE / 3600
    assert hours == pytest.approx(HOURS_A_STEP[name], rel=0.06)


def test_the_run_of_the_demo_can_be_killed(monkeypatch):
    """Two ranks share its batches, and the demo kills one at a checkpoint that is not the last."""
    monkeypatch.chdir(CONFIGS.parent)
    config = load_config(PretrainConfig, PRETRAIN[PRETRAIN.index("mert_foundry.jobs.pretrain") + 1 :])
    assert config.stream.batch_size % 2 == 0
    assert KILL_AFTER_STEP % config.trainer.checkpoint_every == 0
    assert KILL_AFTER_STEP < config.trainer.schedule.total_steps

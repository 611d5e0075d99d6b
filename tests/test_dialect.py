"""One dialect of settings: a name of before is refused with that of now, and precision and device are the same words
everywhere.
"""

import argparse
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import BaseModel

from mert_foundry.jobs import extract, fit, label, pretrain, verify
from mert_foundry.jobs.benchmarks import label_benchmark, step_benchmark
from mert_foundry.jobs.benchmarks.step_variant import StepSettings
from mert_foundry.jobs.command.config import RENAMED, load_config
from mert_foundry.jobs.command.preflight import resolve_device
from mert_foundry.jobs.extraction.settings import ExtractConfig
from mert_foundry.jobs.fit import FitConfig
from mert_foundry.jobs.label import LabelConfig
from mert_foundry.jobs.pretraining.run_description import PretrainConfig
from mert_foundry.model.features.feature_encoder import Precision as FeaturePrecision
from mert_foundry.model.training.trainer_config import TrainerConfig
from mert_foundry.pipeline.teachers.encodec import EncodecTeacherConfig

TEACHERS = "teachers=[{kind: cqt}]"
COMMANDS = {
    "LabelConfig": (label, LabelConfig, ["manifest=m", "out=o", TEACHERS]),
    "ExtractConfig": (extract, ExtractConfig, ["model=m", "input=i", "out=o"]),
    "FitConfig": (fit, FitConfig, ["manifest=m", "out=o", "teacher={kind: kmeans}"]),
    "PretrainConfig": (pretrain, PretrainConfig, ["shards=s", "out=o", "stream={batch_size: 2}"]),
}
ATTENTION = "encoder.transformer.attention"
OVERRIDE = "encoder.transformer.overrides.0-3.attention"
OLD = [
    ("LabelConfig", "relabel=true", "relabel is now called overwrite"),
    ("LabelConfig", "relabel=false", "relabel is now called overwrite"),
    ("ExtractConfig", "replace=true", "replace is now called overwrite"),
    ("ExtractConfig", "precision=float32", "precision=float32 is now called precision=fp32"),
    ("ExtractConfig", "precision=bfloat16", "precision=bfloat16 is now called precision=bf16"),
    ("ExtractConfig", "pooling=mean_deviation", "pooling=mean_deviation is now called pooling=mean_std"),
    ("FitConfig", "feature=chroma", "feature is now called teacher.feature"),
    ("FitConfig", "clusters=30", "clusters is now called teacher.clusters"),
    (
        "PretrainConfig",
        f"{ATTENTION}.temperature=true",
        f"{ATTENTION}.temperature is now called {ATTENTION}.learnable_temperature",
    ),
    (
        "PretrainConfig",
        f"{OVERRIDE}.temperature=true",
        f"{OVERRIDE}.temperature is now called {OVERRIDE}.learnable_temperature",
    ),
]
ON_A_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")


@pytest.fixture
def refusal(run_here: Callable) -> Callable[..., str]:
    """What a command says that refuses its arguments."""

    def refusal(module, *arguments: object) -> str:
        code, _, err = run_here(module, *arguments)
        assert code == 2
        return err

    return refusal


@pytest.mark.parametrize(("name", "old", "line"), OLD)
def test_an_old_name_is_refused_with_the_new_one_on_the_command_line(name: str, old: str, line: str, refusal: Callable):
    module, _, needed = COMMANDS[name]
    assert refusal(module, *needed, old) == f"arguments: {line}\n"


@pytest.mark.parametrize(("name", "old", "line"), OLD)
def test_an_old_name_is_refused_with_the_new_one_in_a_file(
    name: str, old: str, line: str, tmp_path: Path, refusal: Callable
):
    module, _, needed = COMMANDS[name]
    key, value = old.split("=")
    values: object = yaml.safe_load(value)
    for part in reversed(key.split(".")):
        values = {part: values}
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(values))
    assert refusal(module, path, *needed) == f"{path}: {line}\n"


def test_an_override_of_one_layer_may_be_a_number_or_dotted(refusal: Callable):
    key = "encoder.transformer.overrides"
    for override in ("{1: {attention: {temperature: true}}}", "{1: {attention.temperature: true}}"):
        line = refusal(pretrain, *COMMANDS["PretrainConfig"][2], f"{key}={override}")
        assert (
            line == f"arguments: {key}.1.attention.temperature is now called {key}.1.attention.learnable_temperature\n"
        )


@pytest.mark.parametrize(("name", "old", "line"), OLD)
def test_the_new_name_is_taken(name: str, old: str, line: str):
    _, model, needed = COMMANDS[name]
    new = line.rsplit(" ", 1)[1]
    transformer = ["encoder.transformer.layers=4"] if name == "PretrainConfig" else []
    load_config(model, [*needed, *transformer, new if "=" in new else f"{new}={old.split('=')[1]}"])


def test_every_renamed_name_is_tested_and_of_a_config_there_is():
    assert RENAMED.keys() == COMMANDS.keys() == {model.__name__ for _, model, _ in COMMANDS.values()}
    assert sum(map(len, RENAMED.values())) == len({line.replace(OVERRIDE, ATTENTION) for _, _, line in OLD})


def test_settings_that_only_look_like_old_ones_are_left_alone():
    config = load_config(
        PretrainConfig, [*COMMANDS["PretrainConfig"][2], "objective.temperature=0.2", "trainer.mask.replace=0.1"]
    )
    assert (config.objective.temperature, config.trainer.mask.replace) == (0.2, 0.1)
    assert load_config(ExtractConfig, [*COMMANDS["ExtractConfig"][2], "dtype=float32"]).dtype == "float32"


def test_precision_has_the_same_words_everywhere():
    def words(model: type[BaseModel]) -> set[str]:
        return set(typing.get_args(model.model_fields["precision"].annotation))

    plain = {"fp32", "tf32", "bf16"}
    assert words(EncodecTeacherConfig) == words(StepSettings) == set(typing.get_args(FeaturePrecision)) == plain
    assert words(ExtractConfig) == words(TrainerConfig) == plain | {"auto"}


@pytest.mark.parametrize("model", [LabelConfig, ExtractConfig, PretrainConfig])
def test_device_has_the_same_words_in_every_config(model: type[BaseModel]):
    assert set(typing.get_args(model.model_fields["device"].annotation)) == {"auto", "cpu", "cuda"}


@pytest.mark.parametrize(
    ("parse", "needed"), [(verify.parse, ["shards"]), (label_benchmark.parse, ["files"]), (step_benchmark.parse, [])]
)
def test_device_has_the_same_words_as_an_option(
    parse: Callable[[list[str]], argparse.Namespace], needed: list[str], monkeypatch
):
    assert parse(needed).device == "cpu"
    for there, found in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert parse([*needed, "--device", "auto"]).device == found


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    for there, found in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert [resolve_device(device) for device in ("auto", "cpu", "cuda")] == [found, "cpu", "cuda"]
        config = load_config(ExtractConfig, [*COMMANDS["ExtractConfig"][2], "device=auto"])
        assert config.resolved_precision() == {"cpu": "fp32", "cuda": "tf32"}[found]


@ON_A_GPU
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_tf32_without_a_gpu_is_refused(device: str, refusal: Callable):
    told = "tf32 needs a GPU (device cuda), the device is cpu\n"
    assert refusal(extract, *COMMANDS["ExtractConfig"][2], "precision=tf32", f"device={device}") == f"precision {told}"
    assert (
        refusal(pretrain, *COMMANDS["PretrainConfig"][2], "trainer.precision=tf32", f"device={device}")
        == f"trainer.precision {told}"
    )
    assert refusal(step_benchmark, "--precision", "tf32", "--device", device) == f"mert bench step: --precision {told}"
    codec = "teachers=[{kind: encodec, weights: foundry-small, precision: tf32}]"
    assert refusal(label, "manifest=m", "out=o", codec, f"device={device}") == f"arguments: teachers.0.precision {told}"


@ON_A_GPU
def test_the_step_bench_takes_fp32_on_a_cpu_for_auto():
    assert step_benchmark.parse([]).precision == step_benchmark.parse(["--precision", "auto"]).precision == "fp32"
    assert step_benchmark.parse(["--precision", "bf16"]).precision == "bf16"

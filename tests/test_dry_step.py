"""`mert bench step CONFIG --dry`: what a step takes, which the heads of the big configs say."""

import json
import re
from pathlib import Path

import pytest

from mert_foundry.jobs import bench
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.planning.dry_step import gpus_of

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = {
    "mert_95m_1gpu": 24e9,
    "mert_95m_8gpu": 80e9,
    "mert_330m_8gpu": 80e9,
    "mert_1b_64gpu": 80e9,
    "long_context_30s": 80e9,
}
SMALL = [
    "encoder.frontend={kind: log_mel}",
    "encoder.transformer={layers: 4, width: 64, heads: 4, feed_forward: 128, norm: pre, position: rope}",
    "stream={batch_size: 8, crop_samples: 48000}",
]


@pytest.fixture
def dry(capsys):
    """Run the command in this process; gives exit code, stdout and stderr."""

    def dry(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(bench.main, ["step", "--dry", *arguments], bench.__doc__)
        return code, *capsys.readouterr()

    return dry


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_head_of_a_config_says_what_its_step_takes(dry, name: str):
    path = CONFIGS / f"{name}.yaml"
    code, said, error = dry(str(path))
    assert (code, error) == (0, "")
    assert f"# mert bench step --dry: {said.strip()}\n" in path.read_text()
    assert 1e9 * float(re.findall(r"([\d.]+) GB a GPU", said)[0]) < 0.8 * RECIPES[name]


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text("# For trying out, on 2 GPUs.\nstream: {batch_size: 8, crop_samples: 48000}\n")
    return str(path)


def figures(dry, small: str, *changes: str) -> dict[str, float]:
    code, said, error = dry(small, "--gpus=4", *SMALL, *changes, "--json")
    assert (code, error) == (0, ""), error
    document = json.loads(said)
    assert document["missing"] == []
    return {each["name"]: each["value"] for each in document["figures"]}


def test_ranks_that_divide_a_model_need_less_and_layers_computed_again_too(dry, small: str):
    whole = figures(dry, small)
    assert whole["audio"] == pytest.approx(8 * 2 / 3600)
    divided = figures(dry, small, "trainer.parallel=fsdp")
    replicated = figures(dry, small, "trainer.parallel=hsdp", "trainer.replicas=2")
    again = figures(dry, small, "encoder.transformer.activation_checkpointing=true")
    some = figures(dry, small, "encoder.transformer.activation_checkpointing=2")
    peak = "peak of one GPU"
    assert divided[peak] < replicated[peak] < whole[peak]
    assert again["activations"] < some["activations"] < whole["activations"]
    assert {each["operations of a step"] for each in (whole, divided, again)} == {whole["operations of a step"]}


def test_a_step_of_a_later_stage_is_told_by_its_number(dry, small: str):
    schedules = ["stream.batch_size_schedule=[[100,4]]", "stream.crop_samples_schedule=[[100,288000]]"]
    stages = [figures(dry, small, *schedules, "--step", step) for step in ("99", "100")]
    plain = [figures(dry, small), figures(dry, small, "stream.batch_size=4", "stream.crop_samples=288000")]
    assert stages == plain and stages[1]["audio"] == pytest.approx(4 * 12 / 3600)


def test_what_is_not_counted_says_so(dry, small: str):
    frontend = "encoder.frontend={kind: convolution, channels: 16, activation_checkpointing: true}"
    code, said, error = dry(small, frontend)
    assert code == 0 and "activation_checkpointing of the front-end it is not counted" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "one config of mert pretrain is needed, not 0"),
        (["{small}", "--gpus", "0"], "--gpus is 0, at least 1 is needed"),
        (["{small}", "--gpus", "3"], "stream.batch_size 8 is not a multiple of the 3 ranks"),
    ],
)
def test_bad_usage(dry, small: str, arguments: list[str], words: str):
    code, _, error = dry(*(word.format(small=small) for word in arguments))
    assert code == 2 and words in error


def test_gpus_are_those_of_the_comment_that_begins_a_config(dry):
    assert gpus_of("# MERT on 8 GPUs of 80 GB.\nstream: {}\n") == 8
    assert gpus_of("# A run on 1 GPU.\n") == 1
    assert gpus_of("stream: {}  # on 64 GPUs\n") == 1

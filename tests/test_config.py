"""Configs from YAML files and overrides: every value arrives, every mistake is named."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.jobs.command.config import UsageError, load_config
from mert_foundry.jobs.label import LabelConfig
from mert_foundry.jobs.pretraining.run_description import PretrainConfig
from mert_foundry.pipeline.fitting.codec_training import CodecTrainingConfig
from mert_foundry.pipeline.manifest.scan import ManifestConfig

CONFIGS = Path(__file__).parent.parent / "configs"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = 3
    names: list[str] = []


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str | None = None
    flag: bool = False
    share: float = Field(default=0.5, ge=0, le=1)
    inner: Inner = Inner()
    layers: list[Inner] = []
    shares: dict[str, float] = {}


PLAIN = {
    "title": st.one_of(st.none(), st.text()),
    "flag": st.booleans(),
    "share": st.floats(0, 1),
    "inner.width": st.integers(-(2**63), 2**63),
    "inner.names": st.lists(st.text(max_size=5), max_size=3),
    "layers": st.lists(st.fixed_dictionaries({"width": st.integers()}), max_size=3),
    "shares": st.dictionaries(st.text(max_size=5), st.floats(0, 9)),
}


def scalar(value: object) -> str:
    """A value as one would type it on a command line, in YAML's flow style."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("...\n").strip("\n")


@given(values=st.fixed_dictionaries({}, optional=PLAIN))
def test_overrides_arrive_as_they_were_typed(values: dict):
    config = load_config(Outer, [f"{key}={scalar(value)}" for key, value in values.items()])
    for key, value in values.items():
        place = config
        for part in key.split("."):
            place = getattr(place, part)
        if key == "layers":
            place = [layer.model_dump(include={"width"}) for layer in place]
        assert place == value


@given(values=st.fixed_dictionaries({}, optional={key: PLAIN[key] for key in ("title", "flag", "share", "layers")}))
def test_a_dumped_config_loads_as_itself(values: dict, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    config = Outer(**values)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(Outer, [str(path)]) == config


def test_later_values_win(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("inner: {width: 7, names: [a]}\nlayers: [{width: 1}, {width: 2}]\n")
    config = load_config(
        Outer, [str(path), "inner.width=8", "layers.1.width=9", "inner.width=10", "shares.b=0.1", "title=a=b"]
    )
    assert (config.inner.width, config.inner.names, [layer.width for layer in config.layers]) == (10, ["a"], [1, 9])
    assert config.shares == {"b": 0.1} and config.title == "a=b"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["titel=x"], ["titel", "title"]),
        (["inner.widht=3"], ["inner.widht", "'width'"]),
        (["layers=[{widht: 3}]"], ["layers.0.widht", "'width'"]),
        (["layers=[{width: 1}]", "layers.0.nam=3"], ["layers.0.nam", "'names'"]),
        (["layers=[{width: 1}]", "layers.1.width=3"], ["layers.1.width=3", "no such place"]),
        (["layers=[{width: 1}]", "layers.x.width=3"], ["layers.x.width=3", "no such place"]),
        (["title=a", "title.b=3"], ["title.b=3", "no such place"]),
        (["inner.width=wide"], ["inner.width", "'wide'"]),
        (["share=2"], ["share", "2"]),
        (["flag=maybe"], ["flag", "'maybe'"]),
        (["inner=3"], ["inner", "3"]),
        (["title={a: "], ["title={a: ", "not a YAML value"]),
        (["no-such.yaml"], ["no-such.yaml", "No such file"]),
        (["a.yaml", "b.yaml"], ["a.yaml", "b.yaml"]),
        (["/"], ["/", "directory"]),
    ],
)
def test_mistakes_are_named(arguments: list[str], words: list[str]):
    with pytest.raises(UsageError) as caught:
        load_config(Outer, arguments)
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"a: [1, 2", "not valid YAML"),
        (b"a: b: c", "not valid YAML"),
        (b"- 1\n- 2\n", "list"),
        (b"", "NoneType"),
        (b"text", "str"),
        (b"\xff\xfe\x00", "config.yaml"),
        (b"title: !!python/object:os.system x", "not valid YAML"),
        (b"titel: x", "'title'"),
        (b"3: x", "3: Keys should be strings"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, word: str):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_config(Outer, [str(path)])
    assert str(path) in str(caught.value) and word in str(caught.value) and "\n" not in str(caught.value)


def test_every_fault_has_its_line():
    with pytest.raises(UsageError) as caught:
        load_config(ManifestConfig, ["rot=x", "seed=many"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 4 and sum("missing" in line for line in lines) == 2
    assert any("'rot'" in line and "'root'" in line for line in lines) and any("seed" in line for line in lines)


@pytest.mark.parametrize(
    ("model", "name", "overrides"),
    [
        (ManifestConfig, "manifest", ["root=r", "out=o"]),
        (LabelConfig, "label", ["manifest=m", "out=o"]),
        (CodecTrainingConfig, "codec", ["manifest=m", "out=o"]),
        (PretrainConfig, "tiny", ["shards=s", "out=o"]),
        (PretrainConfig, "mert_95m", ["shards=s", "out=o"]),
        (PretrainConfig, "mert_330m", ["shards=s", "out=o"]),
    ],
)
def test_shipped_configs_fit_their_models(model: type[BaseModel], name: str, overrides: list[str]):
    config = load_config(model, [str(CONFIGS / f"{name}.yaml"), *overrides])
    assert (
        load_config(
            model,
            [
                f"{key}={value if isinstance(value, str) else scalar(value)}"
                for key, value in config.model_dump(mode="json").items()
            ],
        )
        == config
    )


@pytest.mark.parametrize(
    "argument", ["teachers.0.codebook=4", "teachers.1.bin=4", "segments.segment_second=4", "teachers.0.bins=3"]
)
def test_unknown_keys_of_a_teacher_are_refused(argument: str):
    with pytest.raises(UsageError, match="unknown key .*nearest known key is"):
        load_config(LabelConfig, [str(CONFIGS / "label.yaml"), "manifest=m", "out=o", argument])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["encoder.frontend.kind=log_mel", "encoder.frontend.channels=3"],
            "'encoder.frontend(log_mel).channels'; the nearest known key is 'bands'",
        ),
        (
            ["encoder.frontend={convolution: {chanels: 3}, kind: convolution_cqt}"],
            "'encoder.frontend(convolution_cqt).convolution.chanels'; the nearest known key is 'channels'",
        ),
        (
            ["encoder.frontend.chanels=3"],
            "'encoder.frontend(convolution).chanels'; the nearest known key is 'channels'",
        ),
        (["trainer.mixture.volum=3"], "'trainer.mixture.volum'; the nearest known key is 'volume'"),
    ],
)
def test_the_nearest_key_is_one_that_may_stand_there(arguments: list[str], line: str):
    with pytest.raises(UsageError) as caught:
        load_config(PretrainConfig, ["shards=s", "out=o", "stream={batch_size: 2}", *arguments])
    assert str(caught.value) == f"arguments: unknown key {line}"


def test_a_teacher_of_unknown_kind_is_refused():
    with pytest.raises(UsageError, match="wav2vec"):
        load_config(LabelConfig, [str(CONFIGS / "label.yaml"), "manifest=m", "out=o", "teachers.0.kind=wav2vec"])


@pytest.mark.parametrize("text", ["/music/Best of #2", "2024", "on", "@home", "a: b", "null", "'quoted'"])
def test_texts_such_as_paths_are_taken_as_they_are(text: str):
    assert load_config(ManifestConfig, [f"root={text}", "out=o"]).root == text
    arguments = ["manifest=m", "out=o", "teachers=[{kind: encodec, weights: x}]", f"teachers.0.weights={text}"]
    assert load_config(LabelConfig, arguments).teachers[0].weights == text


def test_a_key_given_twice_is_refused(tmp_path: Path):
    path = tmp_path / "twice.yaml"
    path.write_text("root: r\nout: o\nsplits: {valid: 0.1, valid: 0.2}\n")
    with pytest.raises(UsageError, match="'valid' stands twice"):
        load_config(ManifestConfig, [str(path)])


class Flagged(Outer):
    out: str = ""
    tasks: tuple[str, ...] = ()
    splits: list[str] | None = None


@given(values=st.fixed_dictionaries({}, optional={key: PLAIN[key] for key in ("title", "flag", "share", "layers")}))
def test_an_option_is_its_key(values: dict):
    as_keys = load_config(Outer, [f"{key}={scalar(value)}" for key, value in values.items()])
    assert load_config(Outer, [f"--{key}={scalar(value)}" for key, value in values.items()]) == as_keys


def test_options_lists_and_the_first_word(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("share: 0.25\n")
    config = load_config(Flagged, ["runs/here", "--tasks", "a,b", str(path), "--title", "runs/rate=3"], first="out")
    assert (config.out, config.tasks, config.share, config.title) == ("runs/here", ("a", "b"), 0.25, "runs/rate=3")
    assert load_config(Flagged, ["--tasks=[a, b]"]).tasks == load_config(Flagged, ["--tasks", "a,b"]).tasks
    assert load_config(Flagged, ["--splits", "train"]).splits == ["train"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--titel", "x"], "unknown option --titel; the nearest known key is 'title'"),
        (["--title"], "--title needs a value"),
        (["--title="], "--title needs a value"),
        (["--title", "--flag", "true"], "--title needs a value"),
        (["--title", "inner.width=3"], "--title needs a value"),
        (["runs/here"], "config runs/here: No such file or directory"),
    ],
)
def test_mistakes_with_options_are_named(arguments: list[str], line: str):
    with pytest.raises(UsageError) as caught:
        load_config(Flagged, arguments)
    assert str(caught.value) == line


def test_an_option_of_an_old_name_is_told_the_new_one():
    with pytest.raises(UsageError, match="relabel is now called overwrite"):
        load_config(LabelConfig, ["--relabel", "true"])

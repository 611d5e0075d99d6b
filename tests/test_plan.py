"""mert plan: what it says against what labelling and training then make, its formulas, and what it refuses."""

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from audio_files import MUSIC
from fsspec.implementations.memory import MemoryFileSystem

from mert_foundry.jobs import plan
from mert_foundry.jobs.benchmarks.step_variant import HEADS, LAYOUTS, StepSettings, measure
from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.demo import LABEL, PRETRAIN
from mert_foundry.jobs.label import LabelConfig
from mert_foundry.jobs.planning.figures import evaluate
from mert_foundry.jobs.planning.gpus import GPUS
from mert_foundry.jobs.planning.model_size import measure_activations, measure_model
from mert_foundry.jobs.planning.settings import Prices
from mert_foundry.jobs.pretraining.run_description import PretrainConfig, heads_of
from mert_foundry.model.frontend.log_mel import LogMelFrontendConfig
from mert_foundry.model.objective.pretrain_model import build_pretrain_model
from mert_foundry.model.objective.span_mask import MaskConfig
from mert_foundry.model.runs.checkpoint import CheckpointState, save_checkpoint
from mert_foundry.model.training.optimizer import build_optimizer
from mert_foundry.pipeline.labelling.plan import SegmentConfig, plan_shards
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan, write_manifest
from mert_foundry.pipeline.shards.index import build_index, load_index
from mert_foundry.pipeline.shards.record import ShardRecord
from mert_foundry.pipeline.stream.batch_stream import BatchStream, StreamConfig
from mert_foundry.pipeline.teachers.cqt import CqtTeacherConfig
from mert_foundry.pipeline.teachers.encodec import EncodecTeacherConfig
from mert_foundry.pipeline.teachers.registry import build_teachers

SEGMENTS = {"segment_seconds": 5.0, "shortest_seconds": 2.0, "examples_per_shard": 8}
RATES = ["flac_bytes_per_second=30000", "labelling_rate=5"]
DOCS = Path(__file__).parents[1] / "docs" / "measurements.md"
Plan = Callable[..., tuple[int, str, str]]
Labelled = Callable[[str, str], tuple[Path, list[ShardRecord]]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture) -> Plan:
    """Run `mert plan` in this process; gives its exit code, stdout and stderr."""

    def say(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(plan.main, [str(argument) for argument in arguments], plan.__doc__, plan.CONFIG)
        output = capsys.readouterr()
        return code, output.out, output.err

    return say


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips of two collections, a fourth of them to validate on; read only."""
    folder = tmp_path_factory.mktemp("plan")
    for collection in ("asc-music", "hyperrogue-music"):
        shutil.copytree(MUSIC / collection, folder / "music" / collection)
    out = str(folder / "manifest")
    config = ManifestConfig(root=str(folder / "music"), out=out, splits={"valid": 0.25}, group_by="track")
    write_manifest(config, scan(config))
    return Path(out)


@pytest.fixture(scope="module")
def label_yaml(tmp_path_factory: pytest.TempPathFactory, tiny_codec: Path) -> Path:
    """A config of mert label with a codec and a CQT of four octaves."""
    path = tmp_path_factory.mktemp("configs") / "label.yaml"
    teachers = [
        {"kind": "encodec", "weights": str(tiny_codec), "codebooks": 4},
        {"kind": "cqt", "lowest_frequency": 110.0, "bins": 48, "bins_per_octave": 12},
    ]
    path.write_text(yaml.safe_dump({"teachers": teachers, "segments": SEGMENTS}))
    return path


@pytest.fixture(scope="module")
def labelled(manifest: Path, tiny_codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """Really label the manifest, by how audio and CQT are stored: the folder, and the records of its shards."""

    @cache
    def label(audio: str, storage: str) -> tuple[Path, list[ShardRecord]]:
        teachers = [
            EncodecTeacherConfig(kind="encodec", weights=str(tiny_codec), codebooks=4),
            CqtTeacherConfig(kind="cqt", lowest_frequency=110.0, bins=48, bins_per_octave=12, storage=storage),
        ]
        listing = load_manifest(str(manifest))
        built = build_teachers(teachers, "cpu")
        out = tmp_path_factory.mktemp("shards")
        tasks = plan_shards(listing, SegmentConfig(**SEGMENTS, audio=audio))
        records = [process_shard(task, built, listing.root, str(out), {}) for task in tasks]
        build_index(
            str(out),
            [task.name for task in tasks],
            [teacher.spec for teacher in built],
            name="test",
            manifest_sha256=listing.sha256,
            segment_seconds=SEGMENTS["segment_seconds"],
            audio_member=audio,
        )
        return out, records

    return label


@pytest.fixture(scope="module")
def pretrain_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU-sized recipe, with crops that are longer than some examples."""
    values = yaml.safe_load((Path(__file__).parents[1] / "configs" / "tiny.yaml").read_text())
    values["stream"] |= {"batch_size": 4, "crop_samples": 4 * 24_000, "shuffle_window": 1}
    path = tmp_path_factory.mktemp("configs") / "pretrain.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def values(document: dict) -> dict[str, float]:
    return {f"{line['section']}/{line['name']}": line["value"] for line in document["figures"]}


def in_json(say: Plan, *arguments: object) -> dict:
    code, out, err = say(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize(("audio", "storage"), [("flac", "uint8"), ("pcm.npy", "float16")])
def test_the_plan_says_what_labelling_makes(
    audio: str, storage: str, say: Plan, manifest: Path, label_yaml: Path, labelled: Labelled
):
    settings = [f"manifest={manifest}", f"segments.audio={audio}", f"teachers.1.storage={storage}", "labelling_rate=1"]
    told = values(in_json(say, label_yaml, *settings))
    folder, records = labelled(audio, storage)
    members: Counter[str] = Counter()
    for record in records:
        for entry in record.members:
            members.update({suffix: size for suffix, (_, size, _) in entry.members.items()})
    for split in ("train", "valid"):
        made = [record for record in records if record.split == split]
        assert told[f"shards/{split}: shards"] == len(made) > 0
        assert told[f"shards/{split}: examples"] == sum(record.examples for record in made)
        assert told[f"shards/{split}: hours"] == pytest.approx(sum(record.seconds for record in made) / 3600)
    on_disk = sum((folder / record.url).stat().st_size for record in records)
    exact = 0.03 if audio == "flac" else 0.0
    for suffix, size in members.items():
        assert told[f"bytes/{suffix}"] == pytest.approx(size, rel=exact if suffix == "flac" else 1e-12), suffix
    assert told["bytes/all shards"] == pytest.approx(on_disk, rel=exact, abs=1e-6)
    assert told[f"bytes/all shards, stored as {audio}, cqt {storage}"] == told["bytes/all shards"]


@pytest.mark.slow
def test_the_demo_makes_what_the_plan_says(say: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The demo's settings for labels and run, on its music: within 3 %; on half of it within the error that the plan
    names.
    """
    monkeypatch.chdir(Path(__file__).parents[1])
    manifest = str(tmp_path / "manifest")
    config = ManifestConfig(root=str(MUSIC), out=manifest, splits={"valid": 0.2}, group_by="track")
    write_manifest(config, scan(config))
    settings = [word for word in LABEL if not word.startswith(("manifest=", "out="))] + [f"manifest={manifest}"]
    run = PRETRAIN[PRETRAIN.index("mert_foundry.jobs.pretrain") + 1 :]
    recipe = [word for word in run if not word.startswith(("shards=", "out="))]
    told = values(in_json(say, *settings, *recipe, "labelling_rate=10", "gpus=2"))
    of_half = in_json(say, *settings, "labelling_rate=10", "calibration_tracks=10")
    label = load_config(LabelConfig, [*settings, "out=shards"])
    listing, teachers = load_manifest(manifest), build_teachers(label.teachers, "cpu")
    tasks = plan_shards(listing, label.segments)
    records = [process_shard(task, teachers, listing.root, str(tmp_path), {}) for task in tasks]
    assert told["bytes/all shards"] == pytest.approx(sum(record.bytes for record in records), rel=0.03)
    assert told["shards/train: shards"] == sum(record.split == "train" for record in records)
    assert told["run/crops of a step on each GPU"] == 4 and told["run/steps"] == 100
    flac = sum(entry.members["flac"][1] for record in records for entry in record.members)
    assert told["bytes/flac"] == pytest.approx(flac, rel=1e-9)
    note = next(line["note"] for line in of_half["figures"] if line["name"] == "flac")
    error = float(re.search(r"on 10 tracks, .* two standard errors are ([\d.]+) %", note)[1]) / 100
    assert 0.01 < error < 0.3 and values(of_half)["bytes/flac"] == pytest.approx(flac, rel=error)


def test_one_track_says_nothing_of_others(say: Plan, manifest: Path, label_yaml: Path):
    settings = [f"manifest={manifest}", "labelling_rate=1", "calibration_tracks=1"]
    flac = next(line for line in in_json(say, label_yaml, *settings)["figures"] if line["name"] == "flac")
    assert "on 1 track, " in flac["note"] and "how others differ is not known" in flac["note"]


def test_every_formula_gives_its_figure(say: Plan, manifest: Path, label_yaml: Path, pretrain_yaml: Path):
    """By Python's own arithmetic; the plan's reads the same formulas."""
    prices = [f"prices.{name}=2" for name in Prices.model_fields]
    settings = ["calibration_seconds=10", "audio_seconds_per_second=100", "gpus=2", "gpu=h100", *prices]
    document = in_json(say, label_yaml, pretrain_yaml, f"manifest={manifest}", *settings)
    assert not document["missing"] and len(document["figures"]) > 50
    for line in document["figures"]:
        functions = {"ceil": math.ceil, "floor": math.floor, "min": min, "max": max}
        assert eval(line["formula"], {"__builtins__": {}}, functions | line["inputs"]) == line["value"], line["name"]
        assert line["value"] >= 0
    assert len(values(document)) == len(document["figures"])


def test_explain_shows_formulas_inputs_and_their_source(say: Plan, manifest: Path, label_yaml: Path):
    stated = [f"manifest={manifest}", "flac_bytes_per_second=30000", "labelling_rate=5", "workers=4"]
    code, out, _ = say(label_yaml, *stated, "--explain")
    assert code == 0
    lines = [line.strip() for line in out.splitlines()]
    at = lines.index("= track_seconds / (labelling_rate) / 3600 / workers")
    assert lines[at - 1].startswith("hours, all workers at once: ") and "workers = 4" in lines[at : at + 4]
    assert "flac_bytes_per_second as stated" in lines
    code, out, _ = say(label_yaml, *stated)
    assert code == 0 and "workers = 4" not in out and "hours, all workers at once" in out


def test_stated_rates_need_no_audio(say: Plan, manifest: Path, label_yaml: Path, tmp_path: Path):
    gone = tmp_path / "manifest"
    gone.mkdir()
    document = yaml.safe_load((manifest / "manifest.yaml").read_text())
    (gone / "manifest.yaml").write_text(yaml.safe_dump(document | {"root": str(tmp_path / "gone")}))
    (gone / "manifest.jsonl").write_bytes((manifest / "manifest.jsonl").read_bytes())
    stated = ["flac_bytes_per_second=30000", "labelling_rate=5"]
    told = values(in_json(say, label_yaml, f"manifest={gone}", *stated))
    tracks = load_manifest(str(manifest)).tracks
    assert told["labelling/hours of one worker"] == pytest.approx(sum(track.seconds for track in tracks) / 5 / 3600)
    seconds = 3600 * (told["shards/train: hours"] + told["shards/valid: hours"])
    assert told["bytes/flac"] == pytest.approx(30000 * seconds)
    code, _, err = say(label_yaml, f"manifest={gone}", "labelling_rate=5")
    assert code == 1 and str(tmp_path / "gone") in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that the test wants to be missing")
def test_a_worker_on_a_gpu_is_not_guessed(say: Plan, manifest: Path, label_yaml: Path):
    settings = [f"manifest={manifest}", "device=cuda", "flac_bytes_per_second=30000"]
    (missing,) = [line for line in in_json(say, label_yaml, *settings)["missing"] if line["section"] == "labelling"]
    assert "labelling_rate=" in missing["needs"] and "h100" in missing["needs"]
    told = values(in_json(say, label_yaml, *settings, "gpu=h100", "actors=16", "prices.gpu_hour=3"))
    assert told["labelling/rate of one GPU, times real time"] == 1_900
    assert told["cost/GPUs for labelling"] == pytest.approx(3 * told["labelling/hours of one GPU"])


def test_an_epoch_of_the_stream_is_as_the_plan_says(
    say: Plan,
    manifest: Path,
    label_yaml: Path,
    pretrain_yaml: Path,
    labelled: Labelled,
    monkeypatch: pytest.MonkeyPatch,
):
    """Crops, and the requests of one rank, read through a store that counts them."""
    folder, _ = labelled("flac", "uint8")
    store = MemoryFileSystem()
    for path in folder.iterdir():
        store.pipe(f"/plan/{path.name}", path.read_bytes())
    index = load_index("memory://plan")
    train = index.totals["train"]
    settings = [
        f"manifest={manifest}",
        *RATES,
        "trainer.schedule={warmup_steps: 0, total_steps: 6}",
        "valid_split=null",
    ]
    told = values(in_json(say, label_yaml, pretrain_yaml, *settings, "splits=[train]"))
    requests = Counter()
    read = MemoryFileSystem.cat_file

    def count(store: MemoryFileSystem, path: str, *arguments: object, **options: object) -> bytes:
        requests[Path(path).suffix] += 1
        return read(store, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", count)
    frames = 0
    config = StreamConfig(batch_size=1, crop_samples=4 * 24_000, shuffle_window=1, threads=1, prefetch=1)
    with BatchStream("memory://plan", index, "train", config, seed=0) as stream:
        for _ in range(train.examples):
            frames += int(next(stream)[0]["valid"].sum())
        stream.close()
    assert told["run/audio of a crop, on average"] == pytest.approx(frames / train.examples / 75)
    assert told["run/hours heard"] == pytest.approx(6 * 4 * frames / train.examples / 75 / 3600)
    assert told["run/epochs"] == pytest.approx(6 * 4 / train.examples)
    assert told["shards against ranks and window/windows of an epoch"] == train.shards
    ahead = requests[".tar"] / 3 - train.examples  # crops that were read ahead
    assert ahead == int(ahead) and 0 <= ahead <= 2
    assert requests[".json"] == train.shards
    # Six steps of four crops, each an audio member and two targets; records are read once, since all shards stay open.
    assert told["requests to an object store/training: requests that read, at most"] == 6 * 4 * 3 + train.shards


def test_files_written_are_as_the_plan_says(say: Plan, manifest: Path, label_yaml: Path, labelled: Labelled):
    folder, records = labelled("flac", "uint8")
    told = values(in_json(say, label_yaml, f"manifest={manifest}", *RATES))
    written = len(list(folder.iterdir())) + 1  # label.yaml, which the command writes
    assert told["requests to an object store/labelling: files written"] == written == 2 * len(records) + 2


def test_a_checkpoint_is_as_large_as_the_plan_says(
    say: Plan, manifest: Path, label_yaml: Path, pretrain_yaml: Path, labelled: Labelled, tmp_path: Path
):
    told = values(in_json(say, label_yaml, pretrain_yaml, f"manifest={manifest}", *RATES, "trainer.ema=0.9"))
    config = load_config(PretrainConfig, [str(pretrain_yaml), "shards=shards", "out=run"])
    index = load_index(str(labelled("flac", "uint8")[0]))
    model = build_pretrain_model(config.encoder, heads_of(index.targets), config.objective, seed=0)
    optimizer = build_optimizer(model, config.trainer.optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = CheckpointState(step=1, position=None, seed=0, world_size=1)
    weights = model.state_dict()
    folder = save_checkpoint(tmp_path, state, weights, optimizer.state_dict(), {}, average=weights)
    assert told["checkpoints/parameters"] == sum(parameter.numel() for parameter in model.parameters())
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert told["checkpoints/one checkpoint"] == pytest.approx(size, rel=0.03)
    assert told["checkpoints/weights"] == pytest.approx((folder / "model.safetensors").stat().st_size, rel=0.03)


@pytest.mark.parametrize(("layout", "batch"), [("95m", 16), ("95m", 64), ("330m", 8), ("330m", 64)])
def test_memory_is_what_was_measured_less_temporaries(layout: str, batch: int):
    encoder, objective = LAYOUTS[layout]
    size = measure_model(encoder, HEADS, objective)
    activations = measure_activations(encoder, HEADS, objective, MaskConfig(), batch, 120_000, bf16=True)
    peak = size.weight_bytes + size.moment_bytes + activations
    assert 0.91 * measured(layout, batch)[1] < peak < 1.01 * measured(layout, batch)[1]


def measured(layout: str, batch: int) -> tuple[float, float]:
    """Audio seconds per second, and bytes, of a row of the table of steps on an H100."""
    (row,) = re.findall(
        rf"^\| {layout} \| {batch} \| ([\d,]+) \| .* \| ([\d.]+) GB \|$", DOCS.read_text(), re.MULTILINE
    )
    return float(row[0].replace(",", "")), 1e9 * float(row[1])


def test_rates_are_those_of_the_measurements():
    checked = 0
    for step in GPUS["h100"].steps:
        layout = f"{step.layout}, checkpointed, the day before" if step.checkpointed else step.layout
        assert measured(layout, step.batch)[0] == step.rate
        checked += 1
    for labelling in GPUS["h100"].labelling:
        assert f"| {labelling.workers} | {labelling.rate:,.0f} |" in DOCS.read_text()
    assert checked > 8


def test_autocast_is_as_before_after_counting():
    encoder, objective = LAYOUTS["small"]
    sizes = [
        measure_activations(encoder, HEADS, objective, MaskConfig(), 2, 24_000, bf16) for bf16 in (False, True, False)
    ]
    assert sizes[0] == sizes[2] > sizes[1] and not torch.is_autocast_enabled("cuda")


@pytest.mark.parametrize("frontend", ["log_mel", "convolution"])
def test_activations_grow_with_the_batch(frontend: str):
    encoder, objective = LAYOUTS["small"]
    config = LogMelFrontendConfig(kind="log_mel") if frontend == "log_mel" else encoder.frontend
    encoder = encoder.model_copy(update={"frontend": config})
    two, four, six = (
        measure_activations(encoder, HEADS, objective, MaskConfig(), rows, 24_000, bf16=True) for rows in (2, 4, 6)
    )
    assert two < four and six - four == pytest.approx(four - two, rel=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_is_that_of_a_step_on_this_gpu():
    encoder, objective = LAYOUTS["95m"]
    size = measure_model(encoder, HEADS, objective)
    activations = measure_activations(encoder, HEADS, objective, MaskConfig(), 8, 120_000, bf16=True)
    peak = measure(StepSettings(layout="95m", batch=8, device="cuda", precision="bf16"))["peak_bytes"]
    assert size.weight_bytes + size.moment_bytes + activations == pytest.approx(peak, rel=0.1)


def test_a_known_gpu_gives_rates_and_prices_a_cost(say: Plan, manifest: Path, label_yaml: Path):
    recipe = Path(__file__).parents[1] / "configs" / "mert_95m.yaml"
    settings = [f"manifest={manifest}", "flac_bytes_per_second=30000", "device=cuda", "--gpu", "h100", "--gpus=8"]
    told = values(in_json(say, label_yaml, recipe, *settings, "labelling_rate=100", "prices.gpu_hour=2.5"))
    hours = 400_000 * 1024 * 5 / measured("95m", 128)[0] / 3600
    assert told["time/GPU hours at that rate"] == pytest.approx(hours)
    assert told["time/training at that rate"] == pytest.approx(hours / 8)
    assert told["cost/GPUs for training"] == pytest.approx(2.5 * hours)
    assert "cost/labelling workers" not in told


@pytest.mark.parametrize(
    ("settings", "section", "needs"),
    [
        ([], "time", "gpu= names a GPU that was measured (h100)"),
        (["gpu=h100"], "time", "a model of these sizes was not measured"),
        (["gpu=h100", "trainer.precision=fp32"], "time", "trainer.precision fp32 was not measured on h100"),
        (["encoder.frontend.activation_checkpointing=true"], "memory", "activation_checkpointing"),
        (["trainer.parallel=hsdp"], "memory", "it depends on trainer.replicas"),
        (["prices.gpu_hour=1"], "cost", "what is not known under time"),
        ([], "cost", "prices.NAME="),
    ],
)
def test_what_is_not_known_is_not_guessed(
    settings: list[str],
    section: str,
    needs: str,
    say: Plan,
    manifest: Path,
    label_yaml: Path,
    pretrain_yaml: Path,
):
    document = in_json(say, label_yaml, pretrain_yaml, f"manifest={manifest}", *RATES, *settings)
    (line,) = [line for line in document["missing"] if line["section"] == section]
    assert needs in line["needs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{label}", "{label}"], "label.yaml are both configs of mert label"),
        (["{pretrain}"], "a config of mert label is needed"),
        (["{other}"], "other.yaml: by its keys (root) it is neither of mert label"),
        (["{label}", "stream.batch_size=4"], "is a setting of mert pretrain"),
        (["{label}", "out=shards"], "out=shards: a plan writes nothing"),
        (["{label}", "{pretrain}", "seeed=1"], "unknown key 'seeed'"),
        (["{label}", "segments.audio=mp3"], "label.yaml: segments.audio"),
        (["{label}", "{pretrain}", "stream.batch_size=0"], "pretrain.yaml: stream.batch_size"),
        (["{label}", "splits=[test]"], "no track in 'test'"),
        (["{label}", "labelling_rate=0"], "labelling_rate"),
        (["{label}", "--gpus"], "--gpus needs a value"),
        (["{label}", "--gpus", "2.5"], "gpus: Input should be a valid integer"),
        (["{label}", "gpu=a100"], "gpu: not measured; known are h100"),
        (["{label}", "prices.gpu=1"], "unknown key 'prices.gpu'"),
        (["{label}", "{pretrain}", "gpus=3"], "stream.batch_size 4 is not a multiple of the 3 ranks"),
        (["{label}", "{pretrain}", "gpus=2", "trainer.accumulation=4"], "2 crops, fewer than trainer.accumulation 4"),
        (["{label}", "{pretrain}", "stream.batch_size_schedule=[[9,8]]"], "a plan counts steps of one size"),
        (["{label}", "{pretrain}", "splits=[train]"], "no split 'valid' to validate on, only train"),
    ],
)
def test_what_is_refused(
    arguments: list[str], message: str, say: Plan, manifest: Path, label_yaml: Path, tmp_path: Path
):
    (tmp_path / "pretrain.yaml").write_text("stream: {batch_size: 4}\n")
    (tmp_path / "other.yaml").write_text("root: music\n")
    places = {"label": label_yaml, "pretrain": tmp_path / "pretrain.yaml", "other": tmp_path / "other.yaml"}
    code, _, err = say(*[argument.format(**places) for argument in arguments], f"manifest={manifest}")
    assert code == 2 and message in err


def test_a_formula_is_arithmetic_only():
    assert evaluate("ceil(a / 2) * 3 - min(a, 1)", {"a": 5}) == 8
    with pytest.raises(KeyError, match="b"):
        evaluate("a + b", {"a": 1})
    with pytest.raises(TypeError, match="no arithmetic"):
        evaluate("a if a else 1", {"a": 1})

"""Tell what labels and a run will come to, before anything is spent.

    mert plan configs/label.yaml configs/mert_95m.yaml manifest=MANIFEST_FOLDER
    mert plan configs/label.yaml configs/mert_95m.yaml manifest=MANIFEST_FOLDER gpus=8 gpu=h100 prices.gpu_hour=2.5
    mert plan configs/label.yaml manifest=MANIFEST_FOLDER segments.audio=pcm.npy labelling_rate=5 --explain

The first file is a config of mert label, the second, which may be left out, one of mert pretrain; which is which is
seen by their keys. Settings of both may follow, as their own commands take them: segments.examples_per_shard=64,
stream.batch_size=64. Nothing is written. FLAC and a worker's speed are measured on some tracks of the manifest unless
they are stated, so without a stated rate the audio must be there.

--explain shows the formula of every figure, its inputs and where they are from.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mert_foundry.jobs.command.config import UsageError, load_config, read_yaml
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import resolve_device
from mert_foundry.jobs.command.progress import Progress
from mert_foundry.jobs.command.text import human_bytes, table
from mert_foundry.jobs.label import LabelConfig, describe_contents, plan_tasks
from mert_foundry.jobs.planning.calibration import (
    choose_for_labelling,
    evenly,
    measure_flac,
    measure_labelling,
)
from mert_foundry.jobs.planning.cost_figures import cost_figures, labelling_requests, training_requests
from mert_foundry.jobs.planning.figures import Figure, Line, Missing
from mert_foundry.jobs.planning.settings import PlanConfig
from mert_foundry.jobs.planning.shard_figures import (
    FlacRate,
    PlannedSet,
    byte_figures,
    corpus_figures,
    count_examples,
    gpu_labelling_figures,
    measured_flac,
    plan_set,
    stated_flac,
    worker_figures,
)
from mert_foundry.jobs.planning.training_figures import (
    PlannedRun,
    check_run,
    checkpoint_figures,
    memory_figures,
    operation_figures,
    order_figures,
    run_figures,
    time_figures,
)
from mert_foundry.jobs.pretraining.run_description import PretrainConfig
from mert_foundry.model.teacher.registry import TEACHERS
from mert_foundry.pipeline.labelling.plan import ShardTask
from mert_foundry.pipeline.labelling.process_shard import LABELLERS_PER_GPU
from mert_foundry.pipeline.manifest.rows import Manifest, check_root, load_manifest
from mert_foundry.pipeline.teachers.registry import build_teachers

CONFIG = PlanConfig
EXPLAIN = "--explain"
NOWHERE = "nowhere"  # in place of folders that a config must name and a plan does not touch


@dataclass(frozen=True)
class Request:
    """What a plan is asked for: its own settings and the configs of the commands it plans."""

    plan: PlanConfig
    label: LabelConfig
    pretrain: PretrainConfig | None
    explain: bool


def main(arguments: list[str]) -> int:
    request = load(arguments)
    manifest = load_manifest(request.plan.manifest)
    lines = plan(request, manifest)
    figures = [line for line in lines if isinstance(line, Figure)]
    missing = [line for line in lines if isinstance(line, Missing)]
    document = {
        "figures": [figure.model_dump() for figure in figures],
        "missing": [line.model_dump() for line in missing],
    }
    console.answer(document, show(lines, request.explain))
    return 0


def load(arguments: list[str]) -> Request:
    """The configs that arguments name, each with its own settings.

    Raises:
        UsageError: a file that is neither config, two of one kind, no label config, an unknown key; and as
            `load_config` does, naming the file.
    """
    words = list(join_options(argument for argument in arguments if argument != EXPLAIN))
    settings = [word for word in words if "=" in word]
    places: dict[type, str] = {}
    for path in (word for word in words if "=" not in word):
        kind = recognise(path)
        if kind in places:
            raise UsageError(f"{places[kind]} and {path} are both configs of mert {COMMANDS[kind]}; one is planned for")
        places[kind] = path
    if LabelConfig not in places:
        raise UsageError("a config of mert label is needed, such as configs/label.yaml")
    chosen = {model: [text for text in settings if owner(text) is model] for model in OWNERS}
    if PretrainConfig not in places and chosen[PretrainConfig]:
        raise UsageError(f"{chosen[PretrainConfig][0]} is a setting of mert pretrain, and no config of it was given")
    own = load_config(PlanConfig, chosen[PlanConfig])
    folders = [f"manifest={own.manifest}", f"out={NOWHERE}"]
    label = load_config(LabelConfig, [places[LabelConfig], *chosen[LabelConfig], *folders])
    pretrain = None
    if PretrainConfig in places:
        folders = [f"shards={NOWHERE}", "mixing_temperature=1", f"out={NOWHERE}"]
        pretrain = load_config(PretrainConfig, [places[PretrainConfig], *chosen[PretrainConfig], *folders])
    return Request(own, label, pretrain, EXPLAIN in arguments)


def join_options(arguments: Iterable[str]) -> Iterator[str]:
    """The arguments with `--key value` as `--key=value`. Raises UsageError for an option without value."""
    waiting = iter(arguments)
    for argument in waiting:
        if argument.startswith("--") and "=" not in argument:
            value = next(waiting, "")
            if not value or value.startswith("--") or "=" in value:
                raise UsageError(f"{argument} needs a value")
            argument = f"{argument}={value}"
        yield argument


OWNERS = (PlanConfig, LabelConfig, PretrainConfig)  # whose settings are looked at in this order
COMMANDS: dict[type, str] = {LabelConfig: "label", PretrainConfig: "pretrain"}
MARKS: dict[type, set[str]] = {LabelConfig: {"teachers", "segments"}, PretrainConfig: {"stream", "encoder", "trainer"}}


def recognise(path: str) -> type:
    """Whose config a file is, by keys that only it has. Raises UsageError when it is neither or both."""
    keys = set(read_yaml(Path(path)))
    found = [kind for kind, marks in MARKS.items() if keys & marks]
    if len(found) != 1:
        wanted = " nor ".join(f"of mert {COMMANDS[kind]} ({', '.join(sorted(marks))})" for kind, marks in MARKS.items())
        raise UsageError(f"config {path}: by its keys ({', '.join(map(str, sorted(keys)))}) it is neither {wanted}")
    return found[0]


def owner(setting: str) -> type:
    """Which config a setting belongs to. Raises UsageError for the folders that a plan does not touch."""
    key = setting.removeprefix("--").partition("=")[0].partition(".")[0]
    if key in PlanConfig.model_fields:
        return PlanConfig
    if key in ("out", "shards"):
        raise UsageError(f"{setting}: a plan writes nothing and reads no shards; leave it out")
    found = [model for model in OWNERS[1:] if key in model.model_fields]
    # `device`, the one key that both have, is labelling's: a run is planned for GPUs.
    return found[0] if found else PlanConfig  # which names the nearest key it knows


def plan(request: Request, manifest: Manifest) -> list[Line]:
    """All lines of the plan, in their order. Raises as planning and measuring do."""
    own, label = request.plan, request.label
    tasks = plan_tasks(own.manifest, manifest, label)
    contents = describe_contents(label)
    planned = plan_set(tasks, contents.specs, label.segments.audio, contents.tokenizer)
    run = plan_run(own, request.pretrain, planned) if request.pretrain is not None else None
    flac = flac_rate(request, manifest, planned)
    lines = [*corpus_figures(planned), *byte_figures(planned, flac), *time_labelling(request, manifest, planned)]
    if run is not None:
        lines += describe_run(own, run)
    lines += labelling_requests(planned)
    if run is not None:
        lines += training_requests(run, planned, flac)
    return [*lines, *cost_figures(own.prices, lines)]


def plan_run(own: PlanConfig, pretrain: PretrainConfig, planned: PlannedSet) -> PlannedRun:
    """The run on the planned shards. Raises UsageError for what `mert pretrain` would refuse."""
    shards = [shard for shard in planned.of(pretrain.train_split) if shard.examples]
    run = PlannedRun(pretrain, planned.specs, count_examples(planned, pretrain.train_split), len(shards), own.gpus)
    if pretrain.memory is not None:
        raise UsageError("memory: a plan does not count a text memory; memory=null plans the run without it")
    if len(pretrain.stream.stages()) > 1:
        raise UsageError(
            "stream.batch_size_schedule, stream.crop_samples_schedule: a plan counts steps of one size; set both to"
            " [] to plan a run of stream.batch_size and stream.crop_samples"
        )
    filled = [split for split in planned.splits if count_examples(planned, split)]
    try:
        check_run(run, filled, own.manifest)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return run


def describe_run(own: PlanConfig, run: PlannedRun) -> Iterator[Line]:
    """The lines about training."""
    yield from run_figures(run)
    yield from order_figures(run)
    yield from checkpoint_figures(run)
    yield from operation_figures(run)
    yield from time_figures(run, own.gpu, own.audio_seconds_per_second)
    yield from memory_figures(run, own.gpu)


def flac_rate(request: Request, manifest: Manifest, planned: PlannedSet) -> FlacRate:
    """FLAC bytes of an audio second, stated or measured."""
    stated = request.plan.flac_bytes_per_second
    if stated is not None:
        return stated_flac(stated)
    check_root(manifest, request.plan.manifest)
    tracks = evenly([track for task in planned.tasks for track in task.tracks], request.plan.calibration_tracks)
    console.say(f"FLAC is measured on {len(tracks)} tracks")
    with Progress("FLAC", sum(track.seconds for track in tracks)) as progress:
        return measured_flac(measure_flac(tracks, manifest.root, request.label.segments, progress.update))


def time_labelling(request: Request, manifest: Manifest, planned: PlannedSet) -> Iterator[Line]:
    """Hours of labelling: at a stated rate, as measured here, or as measured on a GPU that this machine
    does not have.
    """
    own, label = request.plan, request.label
    device = resolve_device(label.device)
    if own.labelling_rate is not None:
        return worker_figures(planned, own.labelling_rate, own.workers)
    if device == "cuda" and resolve_device("auto") == "cpu":
        return gpu_labelling_figures(planned, own.gpu, label.actors or LABELLERS_PER_GPU)
    check_root(manifest, own.manifest)
    tracks = [track for task in planned.tasks for track in task.tracks]
    chosen = choose_for_labelling(tracks, own.calibration_seconds)
    console.say(f"a worker is measured on {sum(track.seconds for track in chosen) / 60:.1f} minutes")
    task = ShardTask(name="calibration-000000", tracks=chosen, config=label.segments)
    teachers = build_teachers(label.teachers, device, TEACHERS)
    sample = measure_labelling(task, teachers, manifest.root, device, label.decode_threads)
    return worker_figures(planned, sample, own.workers)


def show(lines: list[Line], explain: bool) -> Iterator[str]:
    """The plan for people: a table for each section, with formulas where they are asked for."""
    for section in dict.fromkeys(line.section for line in lines):
        yield section
        members = [line for line in lines if line.section == section]
        if not explain:
            yield from table(["figure", "value", "basis"], [cells(line) for line in members])
            continue
        for line in members:
            name, value, basis = cells(line)
            yield f"  {name}: {value} ({basis})"
            if isinstance(line, Figure):
                yield f"      = {line.formula}"
                yield from (f"        {key} = {amount:.12g}" for key, amount in line.inputs.items())
                if line.note:
                    yield f"      {line.note}"
    if not explain:
        yield "estimates leave something out; --explain says what, and shows every formula with its inputs"


def cells(line: Line) -> tuple[str, str, str]:
    """Name, value with its unit, and how sure it is."""
    if isinstance(line, Missing):
        return line.name, "not known", line.needs
    if line.unit == "B":
        return line.name, human_bytes(line.value), line.basis
    whole = line.value == int(line.value)
    value = f"{line.value:,.0f}" if whole else f"{line.value:,.4g}" if abs(line.value) < 1000 else f"{line.value:,.0f}"
    return line.name, f"{value} {line.unit}".rstrip(), line.basis


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))

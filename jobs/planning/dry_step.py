"""Tell what a step of a config takes, without a GPU, shards or any memory for the model.

    mert bench step configs/mert_330m_8gpu.yaml --dry
    mert bench step configs/mert_330m_8gpu.yaml --dry --gpus 16 stream.batch_size=1024 --json

Parameters, operations, audio and memory of one GPU of a step on a set with the targets of MERT: eight EnCodec codebooks
of 1,024 codes and a CQT of 336 bins, 75 frames a second. `mert plan` tells the same for a corpus and its own targets,
and more.

    --gpus N    GPUs, one rank each; as the config's first lines say where not given, else 1
    --step N    the step that is told of, where batch size or crops change by schedule; the first where not given
    --json      the figures as JSON, with their formulas
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mert_foundry.jobs.command.config import UsageError, load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.text import human_bytes
from mert_foundry.jobs.planning.figures import Figure, Line, Missing, figure
from mert_foundry.jobs.planning.training_figures import (
    PlannedRun,
    check_run,
    memory_figures,
    operation_figures,
)
from mert_foundry.jobs.pretraining.run_description import PretrainConfig
from mert_foundry.pipeline.frames import FRAME_RATE, SAMPLE_RATE
from mert_foundry.pipeline.shards.target import TargetSpec

DRY = "--dry"
STEP = "a step"
NOWHERE = "nowhere"  # in place of folders that a config must name
TARGETS = (
    TargetSpec(
        name="codes",
        kind="discrete",
        dtype="uint16",
        frame_rate=FRAME_RATE,
        size=8,
        codebook_size=1024,
        fingerprint="",
        teacher={},
    ),
    TargetSpec(
        name="cqt", kind="continuous", dtype="float16", frame_rate=FRAME_RATE, size=336, fingerprint="", teacher={}
    ),
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mert bench step CONFIG --dry", add_help=False)
    parser.add_argument(DRY, action="store_true")
    parser.add_argument("--gpus", type=int)
    parser.add_argument("--step", type=int, default=1)
    options, rest = parser.parse_known_args(arguments)
    places = [word for word in rest if "=" not in word]
    if len(places) != 1:
        raise UsageError(f"mert bench step --dry: one config of mert pretrain is needed, not {len(places)}")
    folders = [f"shards={NOWHERE}", "mixing_temperature=1", f"out={NOWHERE}"]
    config = load_config(PretrainConfig, [*rest, *folders])
    gpus = options.gpus if options.gpus is not None else gpus_of(Path(places[0]).read_text())
    if gpus < 1:
        raise UsageError(f"mert bench step --dry: --gpus is {gpus}, at least 1 is needed")
    if options.step < 1:
        raise UsageError(f"mert bench step --dry: --step is {options.step}, steps count from 1")
    config = config.model_copy(update={"stream": config.stream.at_step(options.step)})
    run = PlannedRun(config, TARGETS, Counter(), 0, gpus)
    try:
        check_run(run, [config.train_split, config.valid_split or ""], places[0])
    except ValueError as error:
        raise UsageError(str(error)) from error
    lines = list(dry_lines(run))
    document = {
        "figures": [line.model_dump() for line in lines if isinstance(line, Figure)],
        "missing": [line.model_dump() for line in lines if isinstance(line, Missing)],
    }
    console.answer(document, [summary(run, lines)])
    return 0


def gpus_of(text: str) -> int:
    """What the comment that begins a config says: `# ... on 8 GPUs ...` or `on 1 GPU`; 1 where it says nothing."""
    head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    found = re.search(r"\bon (\d+) GPUs?\b", head)
    return int(found[1]) if found else 1


def dry_lines(run: PlannedRun) -> Iterator[Line]:
    """Parameters, audio, operations and memory of a step."""
    size = run.size
    yield figure(STEP, "parameters", "", "parameters", {"parameters": size.parameters}, "counted")
    inputs = {
        "batch_size": run.config.stream.batch_size,
        "crop_samples": run.config.stream.crop_samples,
        "sample_rate": SAMPLE_RATE,
    }
    yield figure(STEP, "audio", "h", "batch_size * crop_samples / sample_rate / 3600", inputs, "counted")
    yield from operation_figures(run)
    yield from memory_figures(run, None)


def summary(run: PlannedRun, lines: list[Line]) -> str:
    """The figures in a line, as the head of a config has them."""
    found = {line.name: line.value for line in lines if isinstance(line, Figure)}
    why = [line.needs for line in lines if isinstance(line, Missing)]
    memory = f"{human_bytes(found['peak of one GPU'])} a GPU" if not why else f"memory: {why[0]}"
    return (
        f"{found['parameters'] / 1e6:.1f} M parameters; a step on {run.gpus} GPU{'s' if run.gpus > 1 else ''}:"
        f" {found['audio']:.3g} h of audio, {found['operations of a step']:,.4g} T operations, {memory}"
    )

"""A checkpoint to a folder that transformers.AutoModel opens as native `hubert`.

    mert export RUN_FOLDER OUT_FOLDER
    mert export RUN_FOLDER/checkpoints/step_1000 OUT_FOLDER
    mert export RUN_FOLDER@ema OUT_FOLDER
    mert export IMPORTED_FOLDER OUT_FOLDER
    mert export foundry-encoder OUT_FOLDER

A run folder means its newest whole checkpoint, @ema after it the averaged weights of a run with trainer.ema. An encoder
with options that Hubert lacks is written as a folder of our own class, which model.interop.load.load_encoder opens;
what prevents the native class is reported.
"""

import argparse
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.pretraining.run_description import RunDescription
from mert_foundry.model.interop.export import export_model
from mert_foundry.model.interop.load import model_folder, read_checkpoint, read_model
from mert_foundry.model.interop.stored_model import StoredModel
from mert_foundry.model.runs.checkpoint import find_checkpoint, load_config, load_state, split_average
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import CHECKPOINT, MODEL, RUN, check_input, check_output


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mert export", add_help=False)
    parser.add_argument("source")
    parser.add_argument("out")
    options = parser.parse_args(arguments)
    source = model_folder(options.source)
    check_input(str(split_average(source)[0]), RUN, CHECKPOINT, MODEL)
    check_output(options.out, MODEL)
    model, card, named = read(Path(source))
    unsupported = list(export_model(files.local_path(options.out), model, card))
    for reason in unsupported:
        print(f"no native hubert folder: {reason}", file=sys.stderr)
    console.finish({"out": options.out, "not_native_because": unsupported}, [f"exported {named} to {options.out}"])
    return 0


def read(named: Path) -> tuple[StoredModel, dict, str]:
    """The model of a run, a checkpoint or an exported folder; what its card says; what it is, in words."""
    source, averaged = split_average(named)
    if (source / "config.json").is_file():
        return read_model(named), {"Source": f"{source.resolve().name}, exported again"}, str(source)
    checkpoint, faults = find_checkpoint(source)
    for fault in faults:
        print(f"passed over: {fault}", file=sys.stderr)
    state, description = load_state(checkpoint), RunDescription(**load_config(checkpoint))
    config = description.config
    stages = [stage for step, stage in config.stream.stages().items() if step <= max(state.step, 1)]
    card = {
        "Data": without_paths(description.data),
        "Training": {
            "steps": state.step,
            "seed": config.seed,
            "initial weights": Path(config.initial).name if config.initial else "random",
            "examples a step": in_order(stage.batch_size for stage in stages),
            "crop samples": in_order(stage.crop_samples for stage in stages),
            "skipped steps": state.skipped_steps,
            "objective": config.objective.model_dump(mode="json"),
            "trainer": config.trainer.model_dump(mode="json"),
            **({"weights": "exponential moving average"} if averaged else {}),
        },
    }
    words = f"{'averaged weights at ' if averaged else ''}step {state.step} of {checkpoint}"
    return read_checkpoint(checkpoint, averaged), card, words


def in_order(values: Iterable[int]) -> int | str:
    """A value that held throughout, or those that held one after another."""
    different = [value for value, _ in groupby(values)]
    return different[0] if len(different) == 1 else ", then ".join(map(str, different))


def without_paths(data: dict) -> dict:
    """What a card says of the data: not where several sets lie."""
    if "sets" not in data:
        return data
    sets = [{name: value for name, value in each.items() if name != "path"} for each in data["sets"]]
    return {**data, "sets": sets}


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))

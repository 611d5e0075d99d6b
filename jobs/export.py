"""A checkpoint to a folder that transformers.AutoModel opens as native `hubert`.

    mert export RUN_FOLDER OUT_FOLDER
    mert export RUN_FOLDER/checkpoints/step_1000 OUT_FOLDER

A run folder means its newest whole checkpoint.
"""

import argparse
import sys
from pathlib import Path

from jobs.command_line import run
from jobs.pretrain import RunDescription
from model.checkpoint import CHECKSUMS, find_fault, latest_checkpoint, load_config, load_state, load_weights
from model.export import export_hubert
from pipeline.storage import local_path


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mert export", add_help=False)
    parser.add_argument("source", type=Path)
    parser.add_argument("out")
    options = parser.parse_args(arguments)
    checkpoint = find_checkpoint(options.source)
    description = RunDescription(**load_config(checkpoint))
    state = load_state(checkpoint)
    config = description.config
    card = {
        "Data": description.data,
        "Training": {
            "steps": state.step,
            "seed": config.seed,
            "examples a step": config.stream.batch_size,
            "crop samples": config.stream.crop_samples,
            "skipped steps": state.skipped_steps,
            "objective": config.objective.model_dump(mode="json"),
            "trainer": config.trainer.model_dump(mode="json"),
        },
    }
    export_hubert(
        local_path(options.out), load_weights(checkpoint), config.encoder, description.heads, description.data["sample_rate"], card
    )
    print(f"exported step {state.step} of {checkpoint} to {options.out}")
    return 0


def find_checkpoint(source: Path) -> Path:
    """The newest whole checkpoint of a run folder, or the checkpoint folder itself.

    Raises:
        ValueError: neither, or a torn checkpoint.
    """
    if (source / "checkpoints").is_dir():
        checkpoint, faults = latest_checkpoint(source / "checkpoints")
        if checkpoint is None:
            raise ValueError(f"{source}: no whole checkpoint{''.join('; ' + fault for fault in faults)}")
        for fault in faults:
            print(f"passed over: {fault}", file=sys.stderr)
        return checkpoint
    if not (source / CHECKSUMS).is_file():
        raise ValueError(f"{source} is neither a run folder nor a whole checkpoint: it has no checkpoints/ and no {CHECKSUMS}")
    fault = find_fault(source)
    if fault:
        raise ValueError(f"torn checkpoint: {fault}")
    return source


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))

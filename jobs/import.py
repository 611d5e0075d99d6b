"""Weights of others, made a folder that `mert pretrain initial=...` and `mert export` begin from.

    mert import MERT-v1-95M OUT_FOLDER
    mert import HUBERT_FOLDER OUT_FOLDER
    mert import FAIRSEQ_CHECKPOINT.pt OUT_FOLDER [--sample-rate 24000]

SOURCE is a Hugging Face folder of Hubert or MERT, or a fairseq checkpoint of HuBERT or MERT; no code of it is run. OUT
is what `mert export` writes. Lines beginning with `not imported` name weights that were left out, such as heads; a
missing weight of the encoder, or one of another shape, is an error.
"""

import argparse
import sys
from pathlib import Path

from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.model.interop.export import export_model
from mert_foundry.model.interop.import_fairseq import import_fairseq
from mert_foundry.model.interop.import_hugging_face import Imported, import_hugging_face
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import MODEL, check_input, check_output


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mert import", add_help=False)
    parser.add_argument("source", type=Path)
    parser.add_argument("out")
    parser.add_argument("--sample-rate", type=int)
    options = parser.parse_args(arguments)
    check_input(str(options.source), MODEL)
    check_output(options.out, MODEL)
    imported = read(options.source, options.sample_rate)
    card = {"Source": {"imported from": options.source.resolve().name, "notes": imported.notes}}
    unsupported = export_model(files.local_path(options.out), imported.model, card)
    for note in imported.notes:
        print(note, file=sys.stderr)
    for reason in unsupported:
        print(f"no native hubert folder: {reason}", file=sys.stderr)
    transformer, heads = imported.model.encoder.transformer, len(imported.model.heads)
    line = (
        f"imported {len(imported.model.weights)} weights ({transformer.layers} layers of width {transformer.width}, "
        f"{imported.model.sample_rate} Hz, {heads or 'no'} heads) from {options.source} to {options.out}"
    )
    console.finish({"out": options.out, "notes": imported.notes, "not_native_because": list(unsupported)}, [line])
    return 0


def read(source: Path, sample_rate: int | None) -> Imported:
    """The encoder of a source. Raises ValueError when it is none of those named above."""
    if source.is_file():
        return import_fairseq(source, sample_rate)
    if (source / "config.json").is_file():
        return import_hugging_face(source, sample_rate)
    raise ValueError(f"{source}: neither a file nor a folder with config.json")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))

"""Measure how much audio our stream delivers per second of CPU time, against other loaders on the same examples.

    mert bench loader
    mert bench loader --peers --rounds 3 --json

The figure is trained audio seconds per CPU second: user and system time of the whole process tree, since wall time says
little on a machine that others use. A batch is measured in two forms: `stored`, in the types of the shards, for a device
to convert, and `converted` on the CPU. All loaders take the same random crop of each 30 s example. They take turns, each in a
process of its own, from a local folder whose files are in the page cache. Quote ratios of one run. Files are written
below TMPDIR: 7 MB an example, about 17 MB with --peers (1.3 and 3.3 GB by default). Needs the extra `label`; --peers needs `bench`.

    --examples 192   how many
    --cqt uint8 | float16   how the CQT is stored; uint8
    --batch 16       crops a batch
    --seconds 2      time to measure each form for, in each turn
    --rounds 3       turns of each loader; medians are reported
    --peers          besides memory-mapped .npy files also webdataset, Hugging Face Arrow and litData
    --json           the report as JSON
"""

import argparse
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from mert_foundry.jobs.benchmarks.loader_examples import Storage, make_examples, write_arrays, write_shards
from mert_foundry.jobs.benchmarks.loader_peers import ARRAYS, PEERS
from mert_foundry.jobs.benchmarks.loader_variant import OURS
from mert_foundry.jobs.benchmarks.measurement import Figures, in_own_process, median, take_turns
from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.pipeline.frames import FRAME_RATE
from mert_foundry.pipeline.shards.format import AudioMember

SEGMENT_FRAMES = 30 * FRAME_RATE
MEMBERS: dict[str, AudioMember] = {"PCM": "pcm.npy", "FLAC": "flac"}
FORMS = ("stored", "converted")
RATE = "audio_seconds_per_cpu_second"


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="mert-bench-") as folder:
        prepare(Path(folder), options)
        report = compare(Path(folder), options)
    console.answer(report, [as_table(report)])
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options; ends the process with code 2 on bad ones, as argparse does."""
    parser = argparse.ArgumentParser(prog="mert bench loader", add_help=False)
    parser.add_argument("--examples", type=int, default=192)
    parser.add_argument("--cqt", choices=get_args(Storage), default="uint8")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args(arguments)
    for name in ("batch", "rounds", "seconds"):
        if getattr(options, name) <= 0:
            raise UsageError(f"mert bench loader: --{name} is {getattr(options, name)}, it must be above 0")
    if options.examples < options.batch:
        raise UsageError(f"mert bench loader: --examples is {options.examples}, a batch takes {options.batch}")
    for package in ("datasets", "litdata") if options.peers else ():
        if find_spec(package) is None:  # imported by other processes alone
            raise ModuleNotFoundError(name=package)
    return options


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """The same examples in the form of each loader."""
    examples = make_examples(options.examples, SEGMENT_FRAMES, options.cqt)
    for member in MEMBERS.values():
        write_shards(folder / member, examples, options.cqt, member)
    write_arrays(folder / "arrays", examples)
    if options.peers:
        try:
            in_own_process("mert_foundry.jobs.benchmarks.loader_peers", {"folder": str(folder)})
        except RuntimeError as error:
            raise ValueError(f"the examples cannot be written for the peers: {error}") from error


def compare(folder: Path, options: argparse.Namespace) -> Figures:
    """Medians of every loader by audio member and form, and how ours compares with the best of the others."""
    loaders = [OURS, *(name for name in PEERS if options.peers or name.startswith(ARRAYS))]
    report: Figures = {"settings": vars(options), "loaders": {}, "ours_to_best_peer": {}}
    for audio, member in MEMBERS.items():
        settings = {"folder": str(folder), "audio_member": member, "batch": options.batch, "seconds": options.seconds}
        results = take_turns(loaders, options.rounds, partial(measure, settings))
        rows = {name: summarise(figures) for name, figures in results.items()}
        report["loaders"][audio] = rows
        report["ours_to_best_peer"][audio] = {form: compare_form(rows, form) for form in FORMS}
    return report


def measure(settings: dict[str, Any], loader: str) -> Figures:
    """One turn of a loader."""
    return in_own_process("mert_foundry.jobs.benchmarks.loader_variant", {**settings, "loader": loader})


def summarise(figures: list[Figures]) -> Figures:
    """One loader's medians by form."""
    if "failed" in figures[0]:
        return figures[0]
    return {form: {key: median([turn[form] for turn in figures], key) for key in figures[0][form]} for form in FORMS}


def compare_form(rows: dict[str, Figures], form: str) -> float | None:
    """Our rate over the best of the others; None when there is nothing to compare."""
    rates = {name: row[form][RATE] for name, row in rows.items() if "failed" not in row}
    ours = rates.pop(OURS, None)
    return ours / max(rates.values()) if ours and rates else None


def as_table(report: Figures) -> str:
    """The report for a terminal."""
    settings = report["settings"]
    lines = [
        f"{settings['examples']} examples of 30 s, CQT {settings['cqt']}, batches of {settings['batch']} crops of 5 s,"
        f" medians of {settings['rounds']} rounds",
    ]
    for audio, rows in report["loaders"].items():
        lines.append(
            f"{audio + ', audio seconds per CPU second':36} {'stored':>8} {'converted':>10} {'ms/example':>11}"
            f" {'reads/example':>14} {'kB read/audio s':>16}"
        )
        for name, row in rows.items():
            if "failed" in row:
                lines.append(f"  {name:34} not measured: {row['failed']}")
                continue
            stored = row["stored"]
            lines.append(
                f"  {name:34} {stored[RATE]:8.0f} {row['converted'][RATE]:10.0f} {stored['cpu_milliseconds_per_example']:11.3f}"
                f" {stored['read_calls_per_example']:14.1f} {stored['bytes_read_per_audio_second'] / 1000:16.0f}"
            )
        ratios = report["ours_to_best_peer"][audio]
        found = ", ".join(f"{form} {ratio:.2f}" for form, ratio in ratios.items() if ratio is not None)
        lines.append(f"  ours to the best of the others: {found or 'nothing to compare'}")
    lines.append("Reads are calls of the system; memory maps are read without one.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))

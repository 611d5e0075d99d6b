"""Measure how much audio our stream delivers per second of CPU time, against other loaders on the same examples.

    mert bench loader
    mert bench loader --peers --rounds 3 --json
    mert bench loader --store --latency 30

The figure is trained audio seconds per CPU second: user and system time of the whole process tree, since wall time says
little on a machine that others use. A batch is measured in two forms: `stored`, in the types of the shards, for a
device to convert, and `converted` on the CPU. All loaders take the same random crop of each 30 s example; ours is
measured besides with four crops of each visit (`stream.crops_per_visit`), if the batch is a multiple of 4. They take
turns, each in a process of its own, from a local folder whose files are in the page cache. Quote ratios of one run.
Files are written below TMPDIR: 7 MB an example, about 17 MB with --peers (1.3 and 3.3 GB by default). Needs the extra
`label`; --peers and --store need `bench`. With --store our stream is also measured over an epoch from an S3 server on
loopback (moto): with `stream.cache`, while it is filled and once all shards are there, without it, and from the local
folder, in the stored types. The server's CPU time does not count. It keeps all shards in memory.

    --examples 192   how many
    --cqt uint8 | float16   how the CQT is stored; uint8
    --batch 16       crops a batch
    --seconds 2      time to measure each form for, in each turn
    --rounds 3       turns of each loader; medians are reported
    --peers          besides memory-mapped .npy files also webdataset, Hugging Face Arrow and litData
    --store          also ours from an object store
    --latency 30     milliseconds after which the store answers a request
    --json           the report as JSON
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from mert_foundry.jobs.benchmarks.loader_examples import Storage, make_examples, write_arrays, write_shards
from mert_foundry.jobs.benchmarks.loader_peers import ARRAYS, PEERS
from mert_foundry.jobs.benchmarks.loader_store import running_store
from mert_foundry.jobs.benchmarks.loader_store_variant import WAYS, upload
from mert_foundry.jobs.benchmarks.loader_variant import OURS, OURS_BY_VISITS
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
        if options.store:
            report["store"] = compare_store(Path(folder), options)
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
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--latency", type=float, default=30.0)
    options = parser.parse_args(arguments)
    for name in ("batch", "rounds", "seconds"):
        if getattr(options, name) <= 0:
            raise UsageError(f"mert bench loader: --{name} is {getattr(options, name)}, it must be above 0")
    if options.examples < options.batch:
        raise UsageError(f"mert bench loader: --examples is {options.examples}, a batch takes {options.batch}")
    if options.latency < 0:
        raise UsageError(f"mert bench loader: --latency is {options.latency}, it must be 0 or more")
    for_peers = ["datasets", "litdata"] if options.peers else []
    for_store = ["moto", "s3fs", "obstore"] if options.store else []
    for package in for_peers + for_store:
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
    by_visits = [] if options.batch % 4 else [OURS_BY_VISITS]
    loaders = [OURS, *by_visits, *(name for name in PEERS if options.peers or name.startswith(ARRAYS))]
    report: Figures = {"settings": vars(options), "loaders": {}, "ours_to_best_peer": {}}
    for audio, member in MEMBERS.items():
        settings = {"folder": str(folder), "audio_member": member, "batch": options.batch, "seconds": options.seconds}
        results = take_turns(loaders, options.rounds, partial(measure, settings))
        rows = {name: summarise(figures) for name, figures in results.items()}
        report["loaders"][audio] = rows
        report["ours_to_best_peer"][audio] = {form: compare_form(rows, form) for form in FORMS}
    return report


def compare_store(folder: Path, options: argparse.Namespace) -> Figures:
    """Medians of our stream from the store by audio member and way, over an epoch."""
    report: Figures = {}
    with running_store(options.latency / 1000) as address:
        upload([folder / member for member in MEMBERS.values()], address)
        for audio, member in MEMBERS.items():
            settings = {"folder": str(folder), "address": address, "audio_member": member, "batch": options.batch}
            settings |= {"batches": options.examples // options.batch}
            results = take_turns(WAYS, options.rounds, partial(measure_store, settings))
            report[audio] = {way: summarise_way(figures) for way, figures in results.items()}
    return report


def measure_store(settings: dict[str, Any], way: str) -> Figures:
    """One turn of one way."""
    return in_own_process("mert_foundry.jobs.benchmarks.loader_store_variant", {**settings, "way": way})


def summarise_way(figures: list[Figures]) -> Figures:
    """Medians of one way."""
    return figures[0] if "failed" in figures[0] else {key: median(figures, key) for key in figures[0]}


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
    rates.pop(OURS_BY_VISITS, None)
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
                f"  {name:34} {stored[RATE]:8.0f} {row['converted'][RATE]:10.0f}"
                f" {stored['cpu_milliseconds_per_example']:11.3f} {stored['read_calls_per_example']:14.1f}"
                f" {stored['bytes_read_per_audio_second'] / 1000:16.0f}"
            )
        ratios = report["ours_to_best_peer"][audio]
        found = ", ".join(f"{form} {ratio:.2f}" for form, ratio in ratios.items() if ratio is not None)
        lines.append(f"  ours to the best of the others: {found or 'nothing to compare'}")
    lines.append("Reads are calls of the system; memory maps are read without one.")
    return "\n".join(lines + list(describe_store(report)))


def describe_store(report: Figures) -> Iterator[str]:
    """The lines of the store, if it was measured."""
    for audio, rows in report.get("store", {}).items():
        title = f"{audio}, {report['settings']['latency']:g} ms a request"
        yield (
            f"{title:36} {'audio s/CPU s':>13} {'to local':>9} {'ms/example':>11} {'requests/audio s':>17}"
            f" {'kB/audio s':>11} {'bytes to shards':>16}"
        )
        local = rows[WAYS[0]].get(RATE)
        for way, row in rows.items():
            if "failed" in row:
                yield f"  {way:34} not measured: {row['failed']}"
                continue
            ratio = f"{row[RATE] / local:9.2f}" if local else f"{'':9}"
            yield (
                f"  {way:34} {row[RATE]:13.0f} {ratio} {row['cpu_milliseconds_per_example']:11.3f}"
                f" {row['requests_per_audio_second']:17.3f} {row['bytes_per_audio_second'] / 1000:11.0f}"
                f" {row['bytes_to_those_of_the_shards']:16.3f}"
            )


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))

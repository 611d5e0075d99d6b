"""Time the published labelling path and ours on the same files, batch after batch in turn, and compare their labels.

    mert bench label tests/data/music
    mert bench label --codec official --backend openvino --minutes 60 --json MUSIC_FOLDER

The published path labels one file after the other, with all cores in each operation; ours runs one labeller a
core with one thread each, as `mert label` does; on a GPU, one labeller that batches several files (`mert label` runs up
to 8 of these per GPU). Rates are
seconds of audio per second of time; that of a stage counts the time of the stage alone. Both label exactly the same
samples: ours, rounded to 16 bits. On a GPU the published path computes in full fp32, since its labels
are what ours are compared with; torch by itself would let it use TF32, which is faster.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from mert_foundry.jobs.benchmarks.code_agreement import CodeAgreement, compare_codes
from mert_foundry.jobs.benchmarks.label_workers import (
    STAGES,
    Contender,
    FileLabels,
    Job,
    OurLabeller,
    ReferenceLabeller,
)
from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import check_cuda, resolve_device
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.media_file import AUDIO_EXTENSIONS
from mert_foundry.pipeline.teachers.codec.encoder import BATCH_SLOTS, Backend, Precision
from mert_foundry.pipeline.teachers.cqt import CqtTeacherConfig
from mert_foundry.pipeline.teachers.encodec import EncodecTeacherConfig
from mert_foundry.pipeline.teachers.registry import build_teachers

# Files of a batch for each batch slot: few, so that the paths alternate often, and enough to keep all slots busy.
FILES_A_SLOT = 2
COMPARED_ROWS = 1 << 14  # at a time


class Agreement:
    """How far the labels of the two paths agree, over all files so far."""

    def __init__(self, codebooks: np.ndarray, cqt: CqtTeacherConfig):
        self.codebooks = codebooks
        self.codes: CodeAgreement | None = None
        self.audio_steps = 0
        self.squared_error, self.squared = np.zeros(cqt.bins), np.zeros(cqt.bins)
        self.bins_per_octave = cqt.bins_per_octave

    def add(self, ours: FileLabels, reference: FileLabels) -> None:
        """Compare the labels of one file."""
        found = compare_codes(
            ours.load("codes").T, reference.load("codes").T, reference.load("latents"), self.codebooks
        )
        self.codes = found if self.codes is None else self.codes + found
        for mine, theirs in _pieces(ours.load("audio"), reference.load("audio")):
            self.audio_steps = max(self.audio_steps, int(np.abs(mine - theirs.astype(np.int32)).max()))
        for mine, theirs in _pieces(ours.load("cqt"), reference.load("cqt")):
            self.squared_error += np.square(mine - theirs.astype(np.float64)).sum(axis=0)
            self.squared += np.square(theirs.astype(np.float64)).sum(axis=0)

    def summarise(self) -> dict[str, Any]:
        """Plain figures; empty before the first file."""
        if self.codes is None:
            return {}
        starts = range(0, len(self.squared), self.bins_per_octave)
        squared = np.maximum(self.squared, np.finfo(float).tiny)  # of silence, where both have nothing
        errors, squares = np.add.reduceat(self.squared_error, starts), np.add.reduceat(squared, starts)
        return {
            "code_frames": self.codes.frames,
            "code_frames_equal": self.codes.equal_share,
            "code_frames_differing": self.codes.differing_frames,
            "code_frames_near_ties": self.codes.near_ties,
            "cqt_relative_error": float(np.sqrt(self.squared_error.sum() / squared.sum())),
            "cqt_relative_error_by_octave": np.sqrt(errors / squares).tolist(),
            "audio_largest_difference_16_bit_steps": self.audio_steps,
        }


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    files = find_audio(options.files)
    codec = EncodecTeacherConfig(
        kind="encodec",
        weights=options.codec,
        codebooks=options.codebooks,
        backend=options.backend,
        precision=options.precision,
    )
    report = compare(files, codec, CqtTeacherConfig(kind="cqt"), options.device, options.minutes * 60)
    console.answer(report, [as_text(report)])
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options; ends the process with code 2 on bad ones, as argparse does."""
    parser = argparse.ArgumentParser(prog="mert bench label", add_help=False)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--codec", default="foundry-small")
    parser.add_argument("--codebooks", type=int, default=8)
    parser.add_argument("--backend", choices=get_args(Backend), default="torch")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="cpu")
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args(arguments)
    check_cuda(options.device)
    options.device = resolve_device(options.device)
    return options


def find_audio(locations: Sequence[Path]) -> list[Path]:
    """Files as they are given, and the audio of folders by name. Raises UsageError for what is not there."""
    files = []
    for location in locations:
        if not location.exists():
            raise UsageError(f"{location}: no such file or folder")
        found = sorted(location.rglob("*")) if location.is_dir() else [location]
        files += [path for path in found if path == location or path.suffix[1:].lower() in AUDIO_EXTENSIONS]
    if not files:
        raise UsageError(f"{' '.join(map(str, locations))}: no audio file")
    return files


def compare(
    files: Sequence[Path], codec: EncodecTeacherConfig, cqt: CqtTeacherConfig, device: str, seconds: float
) -> dict[str, Any]:
    """Label files by both paths until `seconds` of audio are done, or all files; returns what was found.

    Raises:
        ValueError: no file can be read, our path fails, or as the teachers do.
    """
    encodec, _ = build_teachers([codec, cqt], device)  # here first, so that what is wrong with them is one line
    cores = len(os.sched_getaffinity(0))
    labellers = cores if device == "cpu" else 1
    agreement = Agreement(encodec.quantizer.codebooks.cpu().numpy(), cqt)
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="mert-bench-") as folder, ExitStack() as stack:
        ours = Contender(OurLabeller, labellers, codec, cqt, device)
        stack.callback(ours.close)
        reference = Contender(ReferenceLabeller, 1, codec, cqt, device)
        stack.callback(reference.close)
        for number, batch in enumerate(_batches(files, labellers * BATCH_SLOTS[device] * FILES_A_SLOT)):
            skipped |= _label_batch(batch, Path(folder) / str(number), ours, reference, agreement)
            if ours.audio >= seconds:
                break
        if not ours.audio:
            first = next(": ".join(each) for each in skipped.items())
            raise ValueError(f"none of {len(skipped)} files can be used; {first}")
        return _report(ours, reference, agreement, codec, device, cores) | {"skipped": skipped}


def _label_batch(
    batch: Sequence[Path], folder: Path, ours: Contender, reference: Contender, agreement: Agreement
) -> dict[str, str]:
    """Label files by ours, then by the reference on our audio, and compare; returns the files that cannot be used."""
    folder.mkdir()
    stems = [folder / str(position) for position in range(len(batch))]
    outcomes = ours.label([Job(path, stem.with_suffix(".ours")) for path, stem in zip(batch, stems)])
    if ours.failure:
        raise ValueError(f"{batch[0]} and the files after it: {ours.failure}")
    skipped = {str(path): str(outcome) for path, outcome in zip(batch, outcomes) if isinstance(outcome, DecodeError)}
    labelled = [(path, stem, labels) for path, stem, labels in zip(batch, stems, outcomes) if str(path) not in skipped]
    theirs = reference.label(
        [Job(path, stem.with_suffix(".reference"), labels.folder / "audio") for path, stem, labels in labelled]
    )
    for (_, _, mine), their in zip(labelled, theirs):
        agreement.add(mine, their)
    shutil.rmtree(folder)
    return skipped


def _report(
    ours: Contender, reference: Contender, agreement: Agreement, codec: EncodecTeacherConfig, device: str, cores: int
) -> dict[str, Any]:
    rates, published = ours.rates(), reference.rates()
    return {
        "audio_hours": ours.audio / 3600,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {cores} cores",
        "codec": codec.model_dump(),
        "times_real_time": {
            name: {"reference": published.get(name), "ours": rates[name]} for name in (*STAGES, "teachers", "whole")
        },
        "peak_bytes": {
            "reference": reference.peak_bytes or None,
            "ours": ours.peak_bytes,
            "our_processes": ours.processes,
        },
        "reference_failure": reference.failure,
        "agreement": agreement.summarise(),
    }


def as_text(report: dict[str, Any]) -> str:
    """The report as a table."""
    codec, memory, found = report["codec"], report["peak_bytes"], report["agreement"]
    published_peak = f"{memory['reference'] / 2**30:7.2f}GiB" if memory["reference"] else "-"
    lines = [
        f"{report['audio_hours']:.3f} h on {report['device']}; codec {codec['weights']}, {codec['codebooks']}"
        f" codebooks, {codec['backend']} {codec['precision']}",
        f"{'times real time':16} {'published':>10} {'ours':>10} {'ratio':>7}",
    ]
    for stage, rate in report["times_real_time"].items():
        published, ours = rate["reference"], rate["ours"]
        ratio = f"{ours / published:7.2f}" if published else f"{'-':>7}"
        lines.append(f"{stage:16} {f'{published:9.1f}x' if published else '-':>10} {ours:9.1f}x {ratio}")
    lines.append(
        f"{'peak memory':16} {published_peak:>10} {memory['ours'] / 2**30:7.2f}GiB"
        f"         (the largest of our {memory['our_processes']} processes)"
    )
    lines += [f"skipped {path}: {reason}" for path, reason in report["skipped"].items()]
    if report["reference_failure"]:
        lines.append(f"the published path failed: {report['reference_failure']}")
    if found:
        lines += [
            f"codes: {found['code_frames_equal']:.4%} of {found['code_frames']} frames are equal;"
            f" {found['code_frames_differing']} differ, {found['code_frames_near_ties']} of them near ties",
            f"cqt: relative error {found['cqt_relative_error']:.1e}; by octave "
            + " ".join(f"{error:.1e}" for error in found["cqt_relative_error_by_octave"]),
            f"audio: at most {found['audio_largest_difference_16_bit_steps']} 16-bit steps apart",
        ]
    return "\n".join(lines)


def _batches(files: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(files), size):
        yield files[start : start + size]


def _pieces(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of two arrays side by side, as many as both have, a part at a time."""
    for start in range(0, min(len(first), len(second)), COMPARED_ROWS):
        stop = min(start + COMPARED_ROWS, len(first), len(second))
        yield first[start:stop], second[start:stop]


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))

"""`mert bench label`: both paths on the same files, every stage timed, and labels that agree."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import mert, noise, tone, write_audio

from mert_foundry.jobs.bench import main as bench
from mert_foundry.jobs.benchmarks.gpu_benchmark import read_label
from mert_foundry.jobs.benchmarks.label_benchmark import find_audio
from mert_foundry.jobs.benchmarks.label_workers import STAGES, Contender, FileLabels, Job, OurLabeller
from mert_foundry.jobs.benchmarks.measurement import StageClock
from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.command.line import run
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.teachers.codec.encoder import BATCH_SLOTS
from mert_foundry.pipeline.teachers.cqt import CqtTeacherConfig
from mert_foundry.pipeline.teachers.encodec import EncodecTeacherConfig

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]


GOOD = ["singularity-music/coherence.opus", "wesnoth-1.16-music/transience.flac"]


@pytest.fixture(scope="module")
def report(clips: Path, tmp_path_factory: pytest.TempPathFactory, tiny_codec: Path) -> dict:
    """What the command reports as JSON of a folder with two clips, a file that is no audio and one that
    is too short.
    """
    folder = tmp_path_factory.mktemp("music")
    for name in GOOD:
        shutil.copy(clips / name, folder)
    write_audio(folder / "short one.wav", tone(440.0, 0.01))
    (folder / "noise.mp3").write_bytes(b"no audio" * 99)
    done = mert("bench", "label", "--json", "--codec", tiny_codec, "--codebooks", 4, folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.process
def test_both_paths_are_timed_and_agree(report: dict):
    rates = report["times_real_time"]
    assert set(rates) == {*STAGES, "teachers", "whole"} and all(rate["ours"] > 0 for rate in rates.values())
    assert (
        all(rate["reference"] > 0 for name, rate in rates.items() if name != "flac") and not report["reference_failure"]
    )
    for rate in (side for pair in rates.values() for side in pair.values() if side):
        assert rate > 0
    for path in ("reference", "ours"):
        assert rates["whole"][path] < rates["teachers"][path] < rates["encodec"][path]
    agreement = report["agreement"]
    assert agreement["code_frames"] == pytest.approx(75 * 3600 * report["audio_hours"])
    assert agreement["code_frames_equal"] >= 0.99  # of 900 frames: a near tie or two, as the next line has it
    assert agreement["code_frames_differing"] == agreement["code_frames_near_ties"]
    assert 0 < agreement["cqt_relative_error"] <= 1e-4 and max(agreement["cqt_relative_error_by_octave"]) <= 1e-4
    assert agreement["audio_largest_difference_16_bit_steps"] <= 1
    (row,) = read_label(json.dumps(report))  # of the table of `mert bench gpu`
    assert (
        row["what"].startswith(f"label, fp32, {report['audio_hours']:.2f} h")
        and f"{rates['teachers']['ours']:,.0f}x" in row["result"]
    )


@pytest.fixture
def bench_label(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """The command in this process, which spares it its imports; its sides have processes of their own all the same."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def bench_label(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(bench, ["label", *map(str, arguments)], "")
        return code, *capsys.readouterr()

    return bench_label


@pytest.mark.process
def test_the_table_names_every_stage_and_minutes_end_the_run(tmp_path: Path, tiny_codec: Path, bench_label):
    for number in range(9):
        write_audio(tmp_path / "music" / f"{number}.wav", tone(440.0, 2.0))
    code, out, error = bench_label("--codec", tiny_codec, "--codebooks", 2, "--minutes", 0.01, tmp_path / "music")
    assert code == 0, error
    first, *lines = out.splitlines()
    hours = float(first.split()[0])
    assert hours < 9 * 2 / 3600 and "cpu" in first
    for stage in (*STAGES, "whole", "peak memory", "codes:", "cqt:"):
        assert any(line.startswith(stage) for line in lines), out


@pytest.mark.process
def test_files_that_cannot_be_used_are_skipped_by_name(clips: Path, report: dict):
    seconds = sum(soundfile.info(clips / name).duration for name in GOOD)
    assert report["audio_hours"] == pytest.approx(seconds / 3600, rel=1e-3)
    assert {Path(path).name: reason.split(":")[0] for path, reason in report["skipped"].items()} == {
        "noise.mp3": "unreadable",
        "short one.wav": "too_short",
    }


@pytest.mark.process
def test_no_file_that_can_be_used_is_one_line(tmp_path: Path, tiny_codec: Path, bench_label):
    (tmp_path / "noise.mp3").write_bytes(b"no audio" * 99)
    code, _, error = bench_label("--codec", tiny_codec, "--codebooks", 2, tmp_path / "noise.mp3")
    assert code == 1 and "none of 1 files can be used" in error.splitlines()[-1]


def test_files_labelled_together_get_the_labels_they_get_alone(
    tmp_path: Path, tiny_codec: Path, monkeypatch: pytest.MonkeyPatch
):
    """As a GPU is given them: more files than slots, one of them no audio."""
    monkeypatch.setitem(BATCH_SLOTS, "cpu", 2)
    files = [write_audio(tmp_path / f"{number}.wav", noise(1 + 3 * number, seed=number)) for number in range(3)]
    files.insert(1, tmp_path / "noise.mp3")
    files[1].write_bytes(b"no audio" * 99)
    labeller = OurLabeller(
        EncodecTeacherConfig(kind="encodec", weights=str(tiny_codec), codebooks=4), CqtTeacherConfig(kind="cqt"), "cpu"
    )
    together = labeller.label([Job(path, tmp_path / f"together-{path.name}") for path in files])
    alone = [labeller.label([Job(path, tmp_path / f"alone-{path.name}")])[0] for path in files]
    assert [type(labels) for labels in together] == [FileLabels, DecodeError, FileLabels, FileLabels]
    assert set(labeller.clock.seconds) == set(STAGES)
    for mine, other in zip(together, alone):
        if isinstance(mine, FileLabels):
            for name in ("audio", "codes", "cqt"):
                np.testing.assert_array_equal(mine.load(name), other.load(name))


def test_what_is_wrong_with_the_codec_is_told_in_one_line(
    tmp_path: Path, tiny_codec: Path, capsys: pytest.CaptureFixture
):
    sound = write_audio(tmp_path / "a.wav", tone(440.0, 1.0))
    assert run(bench, ["label", "--codec", str(tiny_codec), "--codebooks", "5", str(sound)], "") == 1
    assert capsys.readouterr().err.splitlines() == [f"error: codec {tiny_codec}: 4 codebooks, 5 asked for"]


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells whether a process is still there")
def test_the_processes_of_a_killed_bench_end():
    code = (
        "import os, time; from mert_foundry.jobs.benchmarks.label_workers import Contender; from test_bench_label"
        " import ForgetfulLabeller\n"
    )
    code += (
        "contender = Contender(ForgetfulLabeller, 1); print(*contender._pool._processes, flush=True); time.sleep(300)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as parent:
        worker = Path("/proc") / parent.stdout.readline().strip()
        assert worker.name.isdigit() and worker.exists()
        parent.kill()
    deadline = time.monotonic() + 20
    while worker.exists() and worker.joinpath("stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the worker is still there"
        time.sleep(0.1)


class ForgetfulLabeller:
    """Asks for more memory than any machine has."""

    clock = StageClock()

    def label(self, jobs: list[Job]):
        raise MemoryError(f"{jobs[0].path}: 10 TB")


@pytest.mark.process
def test_a_path_that_fails_says_so_and_is_left_out():
    contender = Contender(ForgetfulLabeller, 1)
    assert contender.label([Job(Path("a"), Path("b"))]) == [] and "10 TB" in contender.failure
    assert contender.label([Job(Path("c"), Path("d"))]) == [] and contender.rates() == {}
    contender.close()


def test_what_is_asked_for_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "notes.txt").write_text("no audio")
    (tmp_path / "a.FLAC").write_text("audio by name")
    assert find_audio([tmp_path]) == [tmp_path / "a.FLAC"]
    assert find_audio([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]
    with pytest.raises(UsageError, match="missing"):
        find_audio([tmp_path / "missing"])
    assert run(bench, ["labels"], "") == 2 and "'labels' is none of label, step" in capsys.readouterr().err

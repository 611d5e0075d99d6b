"""--quiet and --json mean the same for every job: one JSON object for machines, nothing but errors when quiet."""

import ast
import importlib
import json
import sys
from pathlib import Path

import pytest
from audio_files import mert, tone, write_audio

from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import JOBS, run
from mert_foundry.jobs.command.progress import Progress


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_audio(tmp_path / "music" / "a.wav", tone(440.0, 4.0))
    (tmp_path / "music" / "b.wav").write_bytes(b"")
    return tmp_path


def scan(corpus: Path, capsys: pytest.CaptureFixture, out: str, *options: str) -> tuple[int, str, str]:
    module = importlib.import_module("mert_foundry.jobs.manifest")
    code = run(module.main, [f"root={corpus / 'music'}", f"out={corpus / out}", "splits={}", *options], "")
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.process
def test_a_job_for_people_for_machines_and_without_a_word(corpus: Path, capsys: pytest.CaptureFixture):
    code, out, _ = scan(corpus, capsys, "plain")
    assert code == 0 and "train: 1 tracks" in out and "rejected: 1 unreadable" in out
    code, out, _ = scan(corpus, capsys, "machine", "--json")
    result = json.loads(out)
    assert code == 0 and result["splits"]["train"]["tracks"] == 1 and result["rejected"] == {"unreadable": 1}
    assert scan(corpus, capsys, "quiet", "--quiet") == (0, "", "")
    assert (corpus / "quiet" / "manifest.jsonl").read_bytes() == (corpus / "plain" / "manifest.jsonl").read_bytes()


@pytest.mark.process
def test_errors_are_told_even_when_quiet(corpus: Path, capsys: pytest.CaptureFixture):
    (corpus / "music" / "a.wav").unlink()
    code, out, err = scan(corpus, capsys, "none", "--quiet")
    assert code == 1 and out == "" and err.startswith("error: no usable track")
    code, out, err = scan(corpus, capsys, "wrong", "--quiet", "min_secs=3")
    assert code == 2 and out == "" and "unknown key 'min_secs'" in err


@pytest.mark.process
def test_the_command_takes_them_anywhere(corpus: Path):
    done = mert("manifest", "--json", f"root={corpus / 'music'}", f"out={corpus / 'm'}", "splits={}")
    assert done.returncode == 0 and json.loads(done.stdout)["out"] == str(corpus / "m"), done.stderr


def test_quiet_progress_prints_nothing(capsys: pytest.CaptureFixture):
    console.take_options(["--quiet"])
    try:
        with Progress("label", 10.0) as progress:
            progress.update(5.0)
    finally:
        console.take_options([])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", JOBS)
def test_no_job_prints_past_the_console(name: str):
    """What goes to standard output goes through the console, so that --json leaves one object there."""
    source = Path(importlib.import_module(f"mert_foundry.jobs.{name}").__file__).read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            assert "file=sys.stderr" in ast.unparse(node)


@pytest.mark.parametrize(("error", "is_bug"), [
    (ValueError("no such key"), False), (OSError("disk full"), False), (RuntimeError("no GPU"), False),
    (KeyError("ours"), True),
    (TypeError("ours"), True), (AssertionError("ours"), True),
])  # fmt: skip
def test_a_bug_keeps_its_traceback_and_a_users_mistake_is_one_line(
    error: Exception, is_bug: bool, capsys: pytest.CaptureFixture
):
    def job(arguments: list[str]) -> int:
        raise error

    assert run(job, [], "") == 1
    said = capsys.readouterr().err
    assert ("Traceback" in said) == is_bug and str(error) in said
    assert is_bug or len(said.splitlines()) == 1


@pytest.mark.parametrize(("package", "extra"), [("ray", "label"), ("zarr.storage", "features")])
def test_a_package_that_is_missing_when_it_is_used_is_named_with_its_extra(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setitem(sys.modules, package, None)
    name = package.partition(".")[0]
    assert run(lambda arguments: importlib.import_module(package), [], "") == 1
    assert capsys.readouterr().err == f"error: the package {name} is not installed; pip install '.[{extra}]' adds it\n"


def test_a_missing_module_of_our_own_is_a_bug_and_shows_itself():
    with pytest.raises(ModuleNotFoundError, match="mert_foundry.nowhere"):
        run(lambda arguments: importlib.import_module("mert_foundry.nowhere"), [], "")

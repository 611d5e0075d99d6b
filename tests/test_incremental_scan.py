"""A scan that goes on: what is known is not decoded again, the result is that of a scan from nothing, and faults lose
nothing.
"""

import gzip
import io
import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import soundfile
from audio_files import noise, started_by_fork, wait_until, write_audio
from fault_proxy import FaultProxy
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from mert_foundry.jobs import manifest as command
from mert_foundry.pipeline.manifest.examine import ExamineAll, result_version
from mert_foundry.pipeline.manifest.listing import list_files
from mert_foundry.pipeline.manifest.rows import Reject, load_rejects
from mert_foundry.pipeline.manifest.scan import find_removed, scan, write_manifest
from mert_foundry.pipeline.manifest.scan_parts import ScanParts
from mert_foundry.pipeline.manifest.settings import ManifestConfig
from mert_foundry.pipeline.storage.documents import file_sha256

FILES = ["manifest.jsonl", "rejected.jsonl", "manifest.yaml"]
NAMES = ["a/1.wav", "a/2.wav", "b/1.wav", "b/c/1.wav", "3.wav", "notes.txt"]


class Corpus:
    """A folder of tiny files; whatever happens to one gives it a time of change of its own, long ago."""

    def __init__(self, root: Path):
        self.root = root
        self.clock = 0
        root.mkdir(parents=True)

    def write(self, name: str, content: int) -> None:
        """One of a few sounds, all of the same size, under a name; text under that of a text."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"text" if path.suffix == ".txt" else sound(content))
        self.touch(name)

    def touch(self, name: str) -> None:
        self.clock += 1
        os.utime(self.root / name, (1e9 + self.clock, 1e9 + self.clock))


@cache
def sound(content: int) -> bytes:
    """A WAV file of 0.1 s; that of 0 is silent."""
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(0.1, seed=content) * bool(content), 24_000, "PCM_16", format="WAV")
    return buffer.getvalue()


def configured(corpus: Path, out: Path, **options: object) -> ManifestConfig:
    return ManifestConfig(**{"root": str(corpus), "out": str(out), "min_seconds": 0, "workers": 1} | options)


def counting(decoded: list[str], stop_after: int = 1000) -> ExamineAll:
    def examine_all(examine, paths, workers):
        for number, path in enumerate(paths):
            if number == stop_after:
                raise KeyboardInterrupt
            decoded.append(path)
            yield examine(path)

    return examine_all


def scan_again(config: ManifestConfig, recheck: bool = False, stop_after: int = 1000) -> list[str]:
    """Scan with what is kept, and write the manifest; returns the files that were decoded."""
    decoded: list[str] = []
    parts = ScanParts(config.out, result_version(config), recheck)
    write_manifest(config, scan(config, examine_all=counting(decoded, stop_after), parts=parts))
    return decoded


def written(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in FILES]


def from_nothing(config: ManifestConfig, out: Path) -> list[bytes]:
    config = config.model_copy(update={"out": str(out)})
    write_manifest(config, scan(config))
    return written(out)


CHANGES = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(NAMES), st.integers(0, 4)),
    st.tuples(st.just("touch"), st.sampled_from(NAMES), st.just(0)),
    st.tuples(st.just("remove"), st.sampled_from(NAMES), st.just(0)),
    st.tuples(st.just("rename"), st.sampled_from(NAMES), st.sampled_from(NAMES)),
    st.tuples(st.just("stop"), st.just(""), st.integers(0, 3)),
    st.tuples(st.just("settings"), st.just(""), st.sampled_from([{"seed": 3}, {"group_by": "track"}, {"splits": {}}])),
    st.tuples(st.just("move"), st.just(""), st.just(0)),
)


@settings(max_examples=25, deadline=None)
@given(rounds=st.lists(st.lists(CHANGES, min_size=1, max_size=6), min_size=1, max_size=4))
def test_the_result_is_that_of_a_scan_from_nothing_and_only_what_changed_is_decoded(tmp_path_factory, rounds):
    folder = tmp_path_factory.mktemp("scan")
    corpus, options, seen = Corpus(folder / "corpus"), {}, {}
    for changes in rounds:
        for kind, name, value in changes:
            there = corpus.root / name
            if kind == "write":
                corpus.write(name, value)
            elif kind == "touch" and there.exists():
                corpus.touch(name)
            elif kind == "remove":
                there.unlink(missing_ok=True)
            elif kind == "rename" and there.exists() and value != name:
                (corpus.root / value).parent.mkdir(parents=True, exist_ok=True)
                there.rename(corpus.root / value)
            elif kind == "stop":
                try:
                    decoded: list[str] = []
                    config = configured(corpus.root, folder / "out", **options)
                    parts = ScanParts(config.out, result_version(config))
                    scan(config, examine_all=counting(decoded, value), parts=parts)
                except KeyboardInterrupt:
                    pass
                seen.update((path, content(corpus, path)) for path in decoded)
            elif kind == "settings":
                options = value
            elif kind == "move":
                corpus.root = corpus.root.rename(folder / f"moved{corpus.clock}{len(os.listdir(folder))}")
        config = configured(corpus.root, folder / "out", **options)
        paths = [str(path.relative_to(corpus.root)) for path in corpus.root.rglob("*") if path.is_file()]
        expected = [path for path in sorted(paths) if seen.get(path) != content(corpus, path)]
        assert scan_again(config) == expected
        assert written(folder / "out") == from_nothing(config, folder / "nothing")
        seen.update((path, content(corpus, path)) for path in paths)


def content(corpus: Corpus, path: str) -> bytes:
    return (corpus.root / path).read_bytes()


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    corpus = Corpus(tmp_path / "corpus")
    for number, name in enumerate(NAMES):
        corpus.write(name, number)
    return corpus


def test_settings_and_libraries_that_change_a_result_are_part_of_what_is_known(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = configured(corpus.root, tmp_path / "out")
    assert len(scan_again(config)) == 6 and scan_again(config) == []
    longer = configured(corpus.root, tmp_path / "out", max_seconds=100)
    assert ScanParts(config.out, result_version(longer)).stale == "max_seconds 10800.0, now it is 100.0"
    assert len(scan_again(longer)) == 6 and len(scan_again(config)) == 6
    for thresholds in ({"min_seconds": 0.2}, {"max_clipped_share": 0.0}, {"silence_dbfs": float("-inf")}):
        changed = configured(corpus.root, tmp_path / "out", **thresholds)
        assert scan_again(changed) == [] and written(tmp_path / "out") == from_nothing(changed, tmp_path / "nothing")
    louder = configured(corpus.root, tmp_path / "out", silence_dbfs=-1.0)
    assert scan_again(louder) == []
    assert {json.loads(line)["reason"] for line in written(tmp_path / "out")[1].splitlines()} == {"silent", "not_audio"}
    assert written(tmp_path / "out") == from_nothing(louder, tmp_path / "nothing")
    for module, name in (("examine", "AUDIO_VERSION"), ("examine", "ROW_VERSION")):
        assert scan_again(louder) == []
        monkeypatch.setattr(f"mert_foundry.pipeline.manifest.{module}.{name}", 1000)
        assert len(scan_again(louder)) == 6
    monkeypatch.setattr(soundfile, "__libsndfile_version__", "9.9")
    assert len(scan_again(louder)) == 6


def test_a_damaged_part_is_not_used(corpus: Corpus, tmp_path: Path):
    config = configured(corpus.root, tmp_path / "out")
    scan_again(config)
    (part,) = (tmp_path / "out" / "scan").glob("*.gz")
    whole, text = part.read_bytes(), gzip.decompress(part.read_bytes())
    for damaged in (
        b"",
        whole[:-30],
        whole[:40] + b"damage" + whole[46:],
        b"{}\n",
        gzip.compress(text[:-20]),
        gzip.compress(b"[1]\n"),
        gzip.compress(b"[" * 200_000),
        gzip.compress(text.splitlines()[0] + b'\n{"stamp": "1 2"}'),
    ):
        part.write_bytes(damaged)
        assert len(scan_again(config)) == 6
        assert written(tmp_path / "out") == from_nothing(config, tmp_path / "nothing")
        (part,) = (tmp_path / "out" / "scan").glob("*.gz")


def test_a_recheck_decodes_all_and_goes_on_when_it_was_stopped(corpus: Corpus, tmp_path: Path):
    config = configured(corpus.root, tmp_path / "out")
    scan_again(config)
    with pytest.raises(KeyboardInterrupt):
        scan_again(config, recheck=True, stop_after=4)
    assert scan_again(config, recheck=True) == sorted(NAMES)[4:]
    assert written(tmp_path / "out") == from_nothing(config, tmp_path / "nothing")
    assert len(scan_again(config, recheck=True)) == 6 and scan_again(config) == []


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files that were read; files count as the same by their stamp at once."""
    names: list[str] = []

    def reading(path: Path) -> str:
        names.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr("mert_foundry.pipeline.manifest.examine.file_sha256", reading)
    monkeypatch.setattr("mert_foundry.pipeline.manifest.listing.SETTLED", 0.0)
    return names


def test_a_file_of_equal_name_size_and_time_in_another_root_is_another(corpus: Corpus, tmp_path: Path, read: list[str]):
    """As in zips and reproducible tars, whose files all have one time."""
    other = Corpus(tmp_path / "other")
    for number, name in enumerate(NAMES):
        other.write(name, number + 10)
        for root in (corpus.root, other.root):
            os.utime(root / name, (315_532_800, 315_532_800))
    config, another = (configured(root, tmp_path / "out") for root in (corpus.root, other.root))
    scan_again(config)
    assert len(scan_again(another)) == 5  # the text is the same
    assert written(tmp_path / "out") == from_nothing(another, tmp_path / "nothing")


def test_a_file_written_over_with_equal_size_and_time_is_another(corpus: Corpus, tmp_path: Path, read: list[str]):
    config = configured(corpus.root, tmp_path / "out")
    scan_again(config)
    for name, change in (("a/1.wav", "in place"), ("a/2.wav", "replaced")):
        path, before = corpus.root / name, (corpus.root / name).stat()
        target = path if change == "in place" else path.with_suffix(".new")
        target.write_bytes(sound(12))
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
        target.replace(path)
    assert scan_again(config) == ["a/1.wav", "a/2.wav"]
    assert written(tmp_path / "out") == from_nothing(config, tmp_path / "nothing")


def test_a_corpus_in_its_place_is_not_read_and_a_moved_or_copied_one_is_read_once(
    corpus: Corpus, tmp_path: Path, read: list[str]
):
    scan_again(configured(corpus.root, tmp_path / "out"))
    shutil.copytree(corpus.root, tmp_path / "copy")
    shutil.move(corpus.root, tmp_path / "moved")
    for root in (tmp_path / "copy", tmp_path / "moved"):
        config = configured(root, tmp_path / "out")
        for count in (6, 0):
            read.clear()
            assert scan_again(config) == [] and len(read) == count
        assert written(tmp_path / "out") == from_nothing(config, tmp_path / "nothing")


def test_what_is_found_of_a_file_that_changes_meanwhile_does_not_last(corpus: Corpus, tmp_path: Path, read: list[str]):
    config = configured(corpus.root, tmp_path / "out")

    def writing(path: Path) -> str:
        digest = file_sha256(path)
        if path.name == "3.wav":
            path.write_bytes(sound(13))
        return digest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mert_foundry.pipeline.manifest.examine.file_sha256", writing)
        scan_again(config)
    assert scan_again(config) == ["3.wav"]
    assert written(tmp_path / "out") == from_nothing(config, tmp_path / "nothing")


def test_a_file_that_has_just_changed_is_read_again(corpus: Corpus, tmp_path: Path):
    """A change within the same tick of the file system's clock would not show."""
    config = configured(corpus.root, tmp_path / "out")
    (corpus.root / "fresh.wav").write_bytes(sound(8))
    assert len(scan_again(config)) == 7 and scan_again(config) == []  # it is read
    (corpus.root / "fresh.wav").write_bytes(sound(9))
    assert scan_again(config) == ["fresh.wav"]


def test_a_link_counts_as_the_file_behind_it(corpus: Corpus, tmp_path: Path):
    shutil.move(corpus.root / "3.wav", tmp_path / "behind.wav")
    (corpus.root / "3.wav").symlink_to(tmp_path / "behind.wav")
    config = configured(corpus.root, tmp_path / "out")
    assert len(scan_again(config)) == 6 and scan_again(config) == []
    (tmp_path / "behind.wav").write_bytes(sound(9))
    os.utime(tmp_path / "behind.wav", (5, 5))
    assert scan_again(config) == ["3.wav"]


def test_files_of_others_among_the_parts_are_left_alone(corpus: Corpus, tmp_path: Path):
    config = configured(corpus.root, tmp_path / "out")
    scan_again(config)
    names = {"000002 copy.jsonl.gz", "notes.jsonl.gz", "7.jsonl.gz", "\u0663\u0663\u0663\u0663\u0663\u0663.jsonl.gz"}
    for name in names:
        (tmp_path / "out" / "scan" / name).write_bytes(b"mine")
    corpus.write("new.wav", 9)
    assert scan_again(config) == ["new.wav"] and len(scan_again(config, recheck=True)) == 7
    assert names < set(os.listdir(tmp_path / "out" / "scan"))


def test_files_that_are_gone_for_a_while_are_known_when_they_are_back(corpus: Corpus, tmp_path: Path):
    config = configured(corpus.root, tmp_path / "out")
    scan_again(config)
    before = written(tmp_path / "out")
    corpus.root.rename(tmp_path / "mounted")
    corpus.root.mkdir()
    assert scan_again(config) == [] and written(tmp_path / "out")[0] == b""
    corpus.root.rmdir()
    (tmp_path / "mounted").rename(corpus.root)
    assert scan_again(config) == [] and written(tmp_path / "out") == before


def test_a_file_of_1970_is_known_without_reading_it(corpus: Corpus, tmp_path: Path, read: list[str]):
    for name in NAMES:
        os.utime(corpus.root / name, (0, 0))
    config = configured(corpus.root, tmp_path / "out")
    assert len(scan_again(config)) == 6
    read.clear()
    assert scan_again(config) == [] and read == []


def test_a_file_that_changes_just_before_its_folder_is_listed_has_no_stamp(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
):
    """However long ago the listing of the root began."""
    monkeypatch.setattr("mert_foundry.pipeline.manifest.listing.SETTLED", 0.2)
    time.sleep(0.3)
    ls = LocalFileSystem.ls

    def slow(self, path, detail=False, **options):
        found = ls(self, path, detail=detail, **options)
        if path == str(corpus.root):
            time.sleep(0.5)
            (corpus.root / "a/1.wav").write_bytes(sound(9))
        return found

    monkeypatch.setattr(LocalFileSystem, "ls", slow)
    stamps = list_files(str(corpus.root)).stamps
    assert [path for path, stamp in stamps.items() if stamp is None] == ["a/1.wav"]


def test_a_row_that_is_no_utf_8_or_shares_its_line_is_named(tmp_path: Path):
    first = b'{"path": "a", "reason": "silent", "detail": ""}'
    for fault in (first.replace(b"a", b"\xff", 1), first + first, b""):
        (tmp_path / "rejected.jsonl").write_bytes(first + b"\n" + fault + b"\n")
        with pytest.raises(ValueError, match=r"rejected.jsonl: line 2: "):
            load_rejects(str(tmp_path))


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may become longer than 100 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named(corpus: Corpus, tmp_path: Path, full_disk: None):
    config = configured(corpus.root, tmp_path / "out")
    with pytest.raises(OSError, match="out/scan/000001.jsonl.gz"):
        scan(config, parts=ScanParts(config.out, result_version(config)))
    results = scan(config)
    with pytest.raises(OSError, match="out/manifest.jsonl"):
        write_manifest(config, results)


def test_many_parts_are_put_together(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mert_foundry.pipeline.manifest.scan_parts.MOST_PARTS", 4)
    monkeypatch.setattr("mert_foundry.pipeline.manifest.listing.SETTLED", 0.0)
    config, parts = configured(corpus.root, tmp_path / "out"), tmp_path / "out" / "scan"
    counts = []
    for number in range(9):
        corpus.write(f"new{number}.wav", number)
        assert len(scan_again(config)) == (7 if number == 0 else 1)
        counts.append(len(list(parts.glob("*.gz"))))
    assert max(counts) == 4 and counts.count(1) >= 2 and scan_again(config) == []
    for number in range(9):
        corpus.touch(f"new{number}.wav")
    for number in range(9):
        corpus.touch(f"new{number}.wav")
        assert scan_again(config) == []
    assert count_lines(tmp_path / "out") <= 2 * 15  # lines of no use are not kept for ever


def test_removed_files_are_those_that_no_folder_may_hold():
    def reject(path: str, reason: str = "silent") -> Reject:
        return Reject(path=path, reason=reason, detail="")

    now = [reject("a/1"), reject("closed", "unreachable")]
    assert find_removed(["a/1", "a/2", "closed/1", "closed2"], now) == ["a/2", "closed2"]


@pytest.mark.process
@pytest.mark.slow
def test_a_killed_scan_goes_on(tmp_path: Path, run_here):
    """SIGKILL to all of its processes, as soon as there is a part."""
    root, out = tmp_path / "root", tmp_path / "out"
    first = write_audio(root / "00.wav", noise(10, 48_000, channels=2), 48_000)
    for number in range(1, 12):
        content = bytearray(first.read_bytes())
        content[1000] = number
        (root / f"{number:02}.wav").write_bytes(content)
    for path in root.iterdir():
        os.utime(path, (1e9, 1e9))
    arguments = [f"root={root}", f"out={out}", "workers=1"]
    with started_by_fork(["manifest", *arguments], tmp_path / "log") as process:
        wait_until(process, lambda: count_lines(out) > 0)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    assert not (out / "manifest.yaml").exists()
    kept = count_lines(out)
    code, printed, _ = run_here(command, *arguments, "--json")
    result = json.loads(printed)
    assert code == 0 and result["known"] == kept and result["decoded"] == 12 - kept and 0 < kept < 12
    assert written(out) == from_nothing(configured(root, out, min_seconds=3.0), tmp_path / "nothing")


def count_lines(out: Path) -> int:
    """Results in all parts."""
    return sum(gzip.decompress(part.read_bytes()).count(b"\n") for part in (out / "scan").glob("[!.]*.gz"))


@pytest.mark.process
def test_the_command_tells_what_is_known_decoded_and_removed(corpus: Corpus, tmp_path: Path, run_here):
    arguments = [f"root={corpus.root}", f"out={tmp_path / 'out'}", "min_seconds=0", "workers=1"]
    code, printed, said = run_here(command, *arguments)
    assert code == 0 and "files:" not in printed
    (corpus.root / "a/1.wav").unlink()
    (corpus.root / "notes.txt").unlink()
    corpus.write("a/2.wav", 9)
    code, printed, said = run_here(command, *arguments)
    assert (
        "files: 3 known, 1 decoded, 2 removed since the last scan\n  removed: a/1.wav\n  removed: notes.txt" in printed
    )
    code, printed, said = run_here(command, *arguments, "--recheck")
    assert code == 0 and "files:" not in printed
    before = written(tmp_path / "out")
    code, printed, said = run_here(command, *arguments, "min_seconds=0.2")
    assert code == 1 and "no usable track" in said
    assert written(tmp_path / "out") == before
    code, printed, said = run_here(command, *arguments, "max_seconds=9")
    assert code == 0 and "what was found before is not used: max_seconds 10800.0, now it is 9.0" in printed


@pytest.mark.process
def test_the_command_keeps_a_manifest_when_there_is_no_file(corpus: Corpus, tmp_path: Path, run_here):
    arguments = [f"root={corpus.root}", f"out={tmp_path / 'out'}", "min_seconds=0", "workers=1"]
    assert run_here(command, *arguments)[0] == 0
    before = written(tmp_path / "out")
    corpus.root.rename(tmp_path / "mounted")
    corpus.root.mkdir()
    code, _, said = run_here(command, *arguments)
    assert code == 1 and "which has tracks, stays as it was" in said and said.count("error: ") == 1
    assert written(tmp_path / "out") == before
    corpus.root.rmdir()
    (tmp_path / "mounted").rename(corpus.root)
    code, printed, _ = run_here(command, *arguments, "--json")
    assert code == 0 and json.loads(printed)["known"] == 6
    code, _, said = run_here(command, *arguments[:1], f"out={tmp_path / 'new'}", "min_seconds=9", "workers=1")
    assert code == 1 and "rejected.jsonl says why" in said and (tmp_path / "new" / "rejected.jsonl").exists()


@pytest.mark.process
@pytest.mark.s3
@pytest.mark.slow
def test_what_the_storage_does_not_give_is_retried_listed_and_done_by_the_next_run(
    bucket: str, proxy: FaultProxy, corpus: Corpus, tmp_path: Path
):
    import s3fs

    corpus.write("b/bad.tar.wav", 5)  # the proxy's faults are those of tars
    root = f"{bucket}/corpus"
    s3fs.S3FileSystem().put(f"{corpus.root}/", root, recursive=True)
    config = configured(root, tmp_path / "out", patience=0.5)
    expected = from_nothing(config, tmp_path / "nothing")
    for fault in ("reset", "forbidden"):
        (tmp_path / fault).mkdir()
        config = configured(root, tmp_path / fault / "out", patience=0.5)
        proxy.strike(fault, 600.0, most=2)
        assert len(scan_again(config)) == 7 and proxy.met == 2
        assert written(tmp_path / fault / "out") == expected
        shutil.rmtree(tmp_path / fault)
        proxy.strike(fault, 600.0)
        assert len(scan_again(config)) == 7
        rejected = [json.loads(line) for line in written(tmp_path / fault / "out")[1].splitlines()]
        assert [row["path"] for row in rejected if row["reason"] == "unreachable"] == ["b/bad.tar.wav"]
        proxy.strike(fault, 0.0)
        assert scan_again(config) == ["b/bad.tar.wav"]
        assert written(tmp_path / fault / "out") == expected


@pytest.mark.process
@pytest.mark.s3
@pytest.mark.slow
def test_the_command_fails_when_the_storage_did_not_give_a_file_and_the_next_one_does_just_that(
    bucket: str, proxy: FaultProxy, corpus: Corpus, tmp_path: Path, run_here
):
    import s3fs

    corpus.write("b/bad.tar.wav", 5)
    s3fs.S3FileSystem().put(f"{corpus.root}/", f"{bucket}/corpus", recursive=True)
    arguments = [f"root={bucket}/corpus", f"out={bucket}/out", "min_seconds=0", "workers=1", "patience=0.5"]
    proxy.strike("503", 600.0)
    code, printed, said = run_here(command, *arguments)
    assert code == 1 and "error: b/bad.tar.wav: unreachable: " in said and "again to retry" in said
    proxy.strike("503", 0.0)
    code, printed, said = run_here(command, *arguments, "--json")
    result = json.loads(printed)
    assert code == 0 and (result["known"], result["decoded"], result["removed"]) == (6, 1, [])

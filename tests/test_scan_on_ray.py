"""`mert manifest` on a Ray cluster: real workers and a driver that are killed; the bytes of one process."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from audio_files import noise, started_by_fork, wait_until, write_audio
from deadly_files import killing_all_that_open

from mert_foundry.jobs import manifest as command
from mert_foundry.pipeline.manifest.examine import crashed, result_version
from mert_foundry.pipeline.manifest.scan import check_machine, scan, write_manifest
from mert_foundry.pipeline.manifest.settings import ManifestConfig

FILES = ["manifest.jsonl", "rejected.jsonl", "manifest.yaml"]


def scan_here(root: Path, out: Path, deadly: str) -> None:
    """A scan in this process, in which one file is said to end its process."""
    config = ManifestConfig(root=str(root), out=str(out))

    def examine_all(examine, paths, workers):
        return (crashed(path) if path == deadly else examine(path) for path in paths)

    write_manifest(config, scan(config, examine_all=examine_all))


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_scan_that_loses_its_driver_and_a_worker_writes_the_bytes_of_one_process(
    tmp_path: Path, ray_address: str, run_here: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
):
    """The first worker of the second run dies of a file, the next does the others, and that one with care."""
    root, out = tmp_path / "audio", tmp_path / "out"
    first = write_audio(root / "00.wav", noise(10, 48_000, channels=2), 48_000)
    for number in range(1, 14):
        content = bytearray(first.read_bytes())
        content[1000] = number % 13
        (root / f"{number:02}.wav").write_bytes(content)
    (root / "notes.txt").write_text("text")
    for path in root.iterdir():
        os.utime(path, (1e9, 1e9))
    arguments = [f"root={root}", f"out={out}", "workers=1", f"address={ray_address}"]
    with started_by_fork(["manifest", *arguments], tmp_path / "log") as process:
        wait_until(process, lambda: list((out / "scan").glob("*.jsonl.gz")))
        process.kill()
    assert not (out / "manifest.yaml").exists()

    deadly = write_audio(root / "deadly.flac", noise(100, 48_000, seed=1), 48_000)
    monkeypatch.setattr("mert_foundry.jobs.cluster.ray_tasks.DEATHS_BEFORE_CARE", 1)
    with killing_all_that_open(deadly) as killed:
        code, said, errors = run_here(command, *arguments)
    assert code == 0, errors
    assert len(killed) == 4, "a worker, a process with others, and two of the file alone"
    assert "workers died of it; it is done with care" in errors and " known" in said
    scan_here(root, tmp_path / "here", deadly.name)
    assert [(out / name).read_bytes() for name in FILES] == [(tmp_path / "here" / name).read_bytes() for name in FILES]
    assert b"the decoder crashed" in (out / "rejected.jsonl").read_bytes()


def test_a_node_with_other_decoders_or_without_the_root_is_refused(tmp_path: Path):
    config = ManifestConfig(root=str(tmp_path), out=str(tmp_path / "out"))
    here = result_version(config)
    check_machine(config, here)
    with pytest.raises(ValueError, match=f"libsndfile is {here['libsndfile']} on a node, and 0.9 where"):
        check_machine(config, here | {"libsndfile": "0.9"})
    with pytest.raises(FileNotFoundError, match="none: no such folder"):
        check_machine(config.model_copy(update={"root": str(tmp_path / "none")}), here)


def test_settings_of_the_cluster_change_no_manifest(tmp_path: Path):
    config = ManifestConfig(root=str(tmp_path), out=str(tmp_path / "out"))
    assert config.model_copy(update={"address": "auto", "wait_for_nodes": 60.0}).recorded() == config.recorded()

"""`trainer.probe_every`: a run whose checkpoints a process beside it probes, whatever becomes of either."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import yaml
from audio_files import noise, tone, write_audio
from pretrain_run import Ranks, arguments, output_of, pretrain_here, wait_for_step
from shard_fixtures import write_set

from mert_foundry.jobs import inspect
from mert_foundry.jobs.command.config import UsageError, load_config
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.pretraining.run_description import PretrainConfig
from mert_foundry.jobs.probing.follow import keep_best, record_probe
from mert_foundry.model.runs.checkpoint import CheckpointState, load_state, save_checkpoint
from mert_foundry.model.runs.history import find_best_probe, forget_probes_after, read_probes

QUICK = ["probe.protocol.rates=[0.01]", "probe.protocol.seeds=1", "probe.protocol.epochs=3", "probe.protocol.draws=0"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_set(folder, [4], valid_sizes=[2])
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of twelve tones, whose test clips cannot be decoded: whoever opens one says so."""
    root = tmp_path_factory.mktemp("data")
    lines = []
    for number in range(16):
        path, split = f"{number:02d}.wav", ("train", "train", "valid", "test")[number // 2 % 4]
        write_audio(root / path, 0.3 * tone((220.0, 880.0)[number % 2], 0.3) + noise(0.3, seed=number) / 30)
        if split == "test":
            (root / path).write_bytes(b"no audio")
        label = ("low", "high")[number % 2]
        lines.append({"path": path, "split": split, "track": path, "group": path, "label": label})
    task = {"name": "pitch", "kind": "multiclass", "classes": ["low", "high"], "metrics": ["accuracy"]}
    (root / "task.yaml").write_text(yaml.safe_dump({**task, "clips": "clips.jsonl"}))
    (root / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def probers(out: Path) -> list[psutil.Process]:
    """The processes that probe this run."""
    mine = [
        each for each in psutil.process_iter(["cmdline"]) if str(out / "probe.yaml") in (each.info["cmdline"] or [])
    ]
    return [each for each in mine if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def wait_until_gone(out: Path) -> None:
    deadline = time.monotonic() + 20
    while probers(out):
        assert time.monotonic() < deadline, "the probe outlives its run"
        time.sleep(0.1)


@pytest.mark.process
@pytest.mark.slow
def test_a_run_probes_itself_keeps_the_best_and_waits_for_the_last(
    shards: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "run"
    asked = [f"probe.data={data / 'task.yaml'}", "trainer.probe_every=10", *QUICK]
    assert pretrain_here(shards, out, "trainer.schedule.total_steps=12", *asked) == 0
    assert not probers(out)
    found = read_probes(out)
    # Step 5 has a checkpoint and is not due; the last is always probed.
    assert {record["step"] for record in found} == {10, 12}
    assert all(0 <= record["scores"]["pitch"] <= 1 for record in found)
    best = find_best_probe(out)
    kept = json.loads((out / "best_by_probe" / "state.json").read_text())
    assert best is not None and kept["step"] == best.step
    assert f"best by probe: step {best.step}" in capsys.readouterr().out
    assert run(inspect.main, [str(out), "--json"], inspect.__doc__) == 0
    assert json.loads(capsys.readouterr().out)["best_probe"]["step"] == best.step
    assert run(inspect.main, [str(out)], inspect.__doc__) == 0
    assert f"step {best.step}, mean {best.mean:.4f}" in capsys.readouterr().out
    assert "no audio" not in (out / "probe.log").read_text() and "dropped" not in (out / "probe.log").read_text()

    # Longer: the same command goes on, and so does its probe.
    assert pretrain_here(shards, out, "trainer.schedule.total_steps=15", *asked) == 0
    assert [record["step"] for record in read_probes(out)] == [*(record["step"] for record in found), 15]

    # Shorter than it already is: there is no checkpoint of step 13 to wait for.
    assert pretrain_here(shards, out, "trainer.schedule.total_steps=13", *asked) == 0
    assert not probers(out) and read_probes(out)[-1]["step"] == 15


@pytest.mark.process
@pytest.mark.slow
def test_a_run_goes_on_when_its_probe_is_killed(shards: Path, data: Path, tmp_path: Path):
    out = tmp_path / "run"
    asked = [f"probe.data={data / 'task.yaml'}", "trainer.probe_every=80", "trainer.checkpoint_every=80", *QUICK]
    long = ["trainer.schedule.total_steps=80", "trainer.validate_every=1000"]
    running = Ranks(out, [arguments(shards, out, *long, *asked)])
    try:
        wait_for_step(running.processes[0], out, 1)
        (prober,) = probers(out)
        prober.kill()
        assert running.finish() == [0]
    finally:
        running.kill()
    assert not probers(out) and not read_probes(out)
    (line,) = [line for line in output_of(out, "stderr").read_text().splitlines() if "the probe of this run" in line]
    assert "ended with signal 9" in line


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_no_probe_outlives_its_run(shards: Path, data: Path, tmp_path: Path, by: signal.Signals):
    out = tmp_path / "run"
    asked = [f"probe.data={data / 'task.yaml'}", "trainer.probe_every=1000", "trainer.checkpoint_every=1000", *QUICK]
    running = Ranks(out, [arguments(shards, out, "trainer.schedule.total_steps=100000", *asked)])
    try:
        wait_for_step(running.processes[0], out, 1)
        assert len(probers(out)) == 1
        os.kill(running.processes[0].pid, by)
        assert running.finish() == [1 if by == signal.SIGTERM else -by]
        wait_until_gone(out)
    finally:
        running.kill()
    assert not read_probes(out)
    if by == signal.SIGTERM:  # the checkpoint of the stop is that of no step to probe, but it is whole
        assert "the probe of this run" not in output_of(out, "stderr").read_text()
        assert len(list((out / "checkpoints").iterdir())) == 1


@pytest.mark.process
def test_what_the_probe_does_not_take_is_said_before_the_first_step(
    shards: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "run"
    asked = [f"probe.data={data / 'task.yaml'}", "trainer.probe_every=5", "probe.tasks=[tempo]"]
    assert pretrain_here(shards, out, *asked) == 2
    assert "no task tempo; there is pitch" in capsys.readouterr().err
    assert not (out / "metrics.jsonl").exists() and not probers(out)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["trainer.probe_every=5"], "probe and trainer.probe_every go together: probe is not set"),
        (["probe.data=suite"], "probe and trainer.probe_every go together: trainer.probe_every is not set"),
        (["probe.data=suite", "trainer.probe_every=7"], "probe_every is 7, no multiple of checkpoint_every 5"),
        (["probe.data=suite", "trainer.probe_every=5", "probe.score=test"], "probe.score cannot be set"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path: Path, more: list[str], said: str):
    with pytest.raises(UsageError, match=said):
        load_config(PretrainConfig, arguments(tmp_path / "shards", tmp_path / "run", *more))


def test_probes_of_steps_that_are_lost_are_forgotten(tmp_path: Path):
    lines = [{"kind": "probe", "step": step, "mean": 0.5, "scores": {"pitch": 0.5}} for step in (5, 10, 15)]
    (tmp_path / "probe.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "pro')
    best = tmp_path / "best_by_probe"
    save_checkpoint(tmp_path, CheckpointState(15, None, seed=0, world_size=1), {}, {}, {}).rename(best)
    forget_probes_after(tmp_path, 20)
    assert read_probes(tmp_path) == lines and best.exists()
    forget_probes_after(tmp_path, 10)
    assert read_probes(tmp_path) == lines[:2] and not best.exists()
    forget_probes_after(tmp_path, 0)
    assert read_probes(tmp_path) == []


def test_the_kept_checkpoint_is_the_newest_of_the_highest_over_the_tasks_of_now(tmp_path: Path):
    def probe(step: int, **scores: float | None) -> tuple[int, float] | None:
        """Step and mean of the best after a probe, which is the checkpoint in the folder."""
        held = save_checkpoint(tmp_path / "checkpoints", CheckpointState(step, None, seed=0, world_size=1), {}, {}, {})
        keep_best(tmp_path, held, scores)
        record_probe(tmp_path, step, scores)
        best = find_best_probe(tmp_path)
        assert best is None or load_state(tmp_path / best.checkpoint).step == best.step
        return best and (best.step, best.mean)

    assert find_best_probe(tmp_path) is None
    assert probe(1, pitch=None) is None
    assert probe(2, key=0.9) == (2, 0.9)
    assert probe(5, pitch=0.5) == (5, 0.5)  # of other tasks
    assert probe(10, pitch=0.7) == (10, 0.7)
    assert probe(15, pitch=0.7) == (15, 0.7)
    assert probe(20, pitch=0.6) == (15, 0.7)
    forget_probes_after(tmp_path, 10)
    assert find_best_probe(tmp_path) is None  # the probe of step 10 is known, but no checkpoint of it is kept
    assert probe(16, pitch=0.6) == (16, 0.6)

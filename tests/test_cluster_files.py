"""configs/cluster/: jobs for SLURM and KubeRay.

Their schedulers are stood in for by scripts; the jobs' own commands are checked as typed.
"""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.label import LabelConfig

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "configs" / "cluster"
PRETRAIN = CLUSTER / "pretrain.sbatch"


def executable(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder to submit from, with what SLURM gives: `scontrol` notes what it is asked, `srun` is for the test to
    write.
    """
    executable(
        tmp_path / "bin" / "scontrol",
        'if [ "$2" = hostnames ]; then printf "node1\\nnode2\\n"; else echo "$*" >> scontrol.log; fi',
    )
    executable(tmp_path / ".venv" / "bin" / "activate", "")
    return tmp_path


def submit(folder: Path, *arguments: str) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "16",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    return subprocess.Popen(["bash", str(PRETRAIN), *arguments], cwd=folder, env=environment)


@pytest.mark.process
def test_a_run_gets_its_arguments_and_its_exit_code_is_the_jobs(slurm: Path):
    executable(slurm / "bin" / "srun", 'printf "%s\\n" "$@" > srun.log; exit 3')
    assert submit(slurm, "configs/mert_95m.yaml", "shards=a b", "out=run").wait(30) == 3
    words = (slurm / "srun.log").read_text().splitlines()
    assert words[0] == "torchrun" and "--nnodes=2" in words and "--nproc-per-node=8" in words
    assert "--rdzv-endpoint=node1:29500" in words
    assert words[-6:] == ["--no-python", "mert", "pretrain", "configs/mert_95m.yaml", "shards=a b", "out=run"]
    assert not (slurm / "scontrol.log").exists()  # a run that fails by itself would fail again


@pytest.mark.process
@pytest.mark.parametrize(("code", "asked"), [(1, "requeue 7\n"), (0, "")])
def test_before_the_time_is_over_the_run_is_stopped_and_goes_to_the_queue_unless_it_is_done(
    slurm: Path, code: int, asked: str
):
    executable(
        slurm / "bin" / "srun",
        f'trap "sleep 0.3; echo stopped > stopped; exit {code}" TERM; touch started; while true; do sleep 0.05; done',
    )
    process = submit(slurm, "configs/mert_95m.yaml")
    while not (slurm / "started").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == code
    assert (slurm / "stopped").exists()
    log = slurm / "scontrol.log"
    assert (log.read_text() if log.exists() else "") == asked


def test_what_the_cluster_is_to_run_is_a_command_that_is_understood():
    job = yaml.safe_load((CLUSTER / "label.rayjob.yaml").read_text())
    program, command, config, *rest = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("mert", "label")
    loaded = load_config(LabelConfig, [str(ROOT / Path(config).relative_to("/mert")), *rest])
    assert loaded.address == "auto" and loaded.out.startswith("s3://")
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned.removeprefix("ray==")

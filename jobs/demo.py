"""The whole job on one machine, as `make demo` runs it: every stage is the command a user would type.

    python -m mert_foundry.jobs.demo tests/data/music

Manifest, labels, verification, pre-training on two ranks with one rank killed on the way and a resume, export,
and a summary. Everything goes to runs/demo, which is emptied first. The teacher codec is the small one that
ships with this package; the run is the CPU-sized configs/tiny.yaml.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.pretraining.progress import describe_losses
from mert_foundry.jobs.pretraining.run_description import RunDescription
from mert_foundry.model.runs.stored_config import read_run_config
from mert_foundry.pipeline.shards.index import ShardIndex, load_index

OUT = Path("runs/demo")
STAGES = {
    "manifest": "decodes every file once: one row a track, one line a rejected file.",
    "label": "runs the teachers over the tracks, once, and writes audio and targets into tar shards.",
    "verify": "reads every byte again, runs the teachers again on two examples, and another decoder on four files.",
    "pretrain": "streams the shards into masked prediction on two ranks; one is killed on the way, and the same command goes on.",
    "export": "writes the encoder as a Hugging Face folder that needs no code of ours.",
}
KILL_AFTER_STEP = 100


MANIFEST = ["configs/manifest.yaml", f"out={OUT}/manifest", "group_by=track", "splits={valid: 0.2}"]
LABEL = [
    "configs/label.yaml", f"manifest={OUT}/manifest", f"out={OUT}/shards", "teachers.0.weights=foundry-small",
    "segments.segment_seconds=10", "segments.shortest_seconds=4", "segments.examples_per_shard=8",
]  # fmt: skip
VERIFY = [f"{OUT}/shards", "--manifest", f"{OUT}/manifest", "--relabel", "2", "--corpus", "4"]
TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node=2", "-m", "mert_foundry.jobs.pretrain"]
PRETRAIN = [*TORCHRUN, "configs/tiny.yaml", f"shards={OUT}/shards", f"out={OUT}/run"]


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        raise UsageError(f"demo: one folder of audio is needed, got {' '.join(arguments) or 'nothing'}")
    started = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    print("This demo runs the whole job on one machine, every stage by the command that you would type:")
    for stage, sentence in STAGES.items():
        print(f"  mert {stage:8} {sentence}")
    # The demo shares its cores between processes; each computes with one thread.
    os.environ["OMP_NUM_THREADS"] = "1"
    call("mert", "manifest", *MANIFEST, f"root={arguments[0]}")
    call("mert", "label", *LABEL)
    call("mert", "verify", *VERIFY)
    index = load_index(f"{OUT}/shards")
    is_validated = "valid" in index.totals and index.totals["valid"].examples
    pretrain = PRETRAIN if is_validated else [*PRETRAIN, "valid_split=null"]
    kill_a_rank(pretrain)
    call(*pretrain)
    call("mert", "export", f"{OUT}/run", f"{OUT}/export")
    print(summary(index, time.monotonic() - started))
    return 0


def call(*command: str) -> None:
    """Show and run a command. Raises RuntimeError when it fails."""
    show(command)
    code = subprocess.run(command).returncode
    if code:
        raise RuntimeError(f"exit code {code}: {' '.join(command)}")


def kill_a_rank(command: list[str]) -> None:
    """Start training, SIGKILL one rank once a checkpoint of step 100 is there, and wait for the others to end."""
    show(command)
    print(f"demo: one rank will be killed after step {KILL_AFTER_STEP}", flush=True)
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    killed = False
    assert launcher.stderr is not None
    for line in launcher.stderr:
        # What the other rank and torchrun say about the dead one is no news here.
        if not killed:
            print(line, end="", file=sys.stderr, flush=True)
        if line.startswith("checkpoint:") and f"step_{KILL_AFTER_STEP}" in line:
            psutil.Process(launcher.pid).children()[-1].send_signal(signal.SIGKILL)
            killed = True
            print(f"demo: killed a rank after step {KILL_AFTER_STEP}; the same command goes on", file=sys.stderr)
    if launcher.wait() == 0:
        raise RuntimeError(f"training ended before step {KILL_AFTER_STEP}, no rank could be killed")


def show(command: list[str] | tuple[str, ...]) -> None:
    """Print a command as one would type it."""
    print(f"\n$ {shlex.join(command)}", flush=True)


def summary(index: ShardIndex, seconds: float) -> str:
    """Hours, shards, examples, codes, loss before and after, where everything lies, and how to look at it."""
    validations = [record for record in read_metrics() if record["kind"] == "validation"]
    lines = [f"demo: done in {seconds / 60:.1f} minutes"]
    for split, totals in index.totals.items():
        rate = totals.bytes / totals.seconds / 1000 if totals.seconds else 0.0
        lines.append(
            f"  {split}: {totals.seconds / 3600:.4f} h in {totals.shards} shards, {totals.examples} examples,"
            f" {rate:.1f} kB an audio second"
        )
    for spec in index.targets:
        if spec.kind == "discrete":
            frames = round(sum(totals.seconds for totals in index.totals.values()) * spec.frame_rate)
            lines.append(f"  {spec.name}: {frames * spec.size} codes in {spec.size} codebooks of {spec.codebook_size}")
    if validations:
        trivial = read_description().trivial
        for record in (validations[0], validations[-1]):
            lines.append(f"  validation at step {record['step']}: {describe_losses(record, trivial)}")
    for name in ("manifest", "shards", "run", "export"):
        lines.append(f"  {name}: {OUT / name}")
    lines.append("look at what was made:")
    lines += [f"  mert inspect {OUT / name}" for name in ("manifest", "shards", "run")]
    lines.append(f"  mert inspect {OUT / 'shards'} --manifest {OUT / 'manifest'} --html {OUT / 'shards.html'}")
    return "\n".join(lines)


def read_description() -> RunDescription:
    """What the run's config.yaml says."""
    return RunDescription(**read_run_config(OUT / "run" / "config.yaml"))


def read_metrics() -> list[dict]:
    """The records of the run's metrics.jsonl."""
    return [json.loads(line) for line in (OUT / "run" / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))

"""The whole job on one machine, as `make demo` runs it: every stage is the command a user would type.

    python -m mert_foundry.jobs.demo tests/data/music
    python -m mert_foundry.jobs.demo tests/data/music --probe no

Manifest, labels, verification, pre-training on two ranks with one rank killed on the way and a resume, export, a
probing suite, a probe of the encoder beside the same encoder untrained, and a summary. Everything goes to runs/demo,
which is emptied first; the suite goes to runs/demo-suite and is kept. The teacher codec and the encoder that training
goes on from are the small ones that ship with this package. `--probe no` leaves out suite and probe, which need Debian
packages.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

import psutil

from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.inspection.as_text import table_lines
from mert_foundry.jobs.pretraining.progress import describe_losses
from mert_foundry.jobs.pretraining.run_description import read_description
from mert_foundry.jobs.probing.comparison import comparison_sentence, comparison_table
from mert_foundry.jobs.probing.report import ProbeReport, read_report
from mert_foundry.pipeline.shards.index import ShardIndex, load_index

OUT = Path("runs/demo")
SUITE_OUT = Path("runs/demo-suite")
RECIPE = "configs/small_corpus.yaml"
STAGES = {
    "manifest": "decodes every file once: one row a track, one line a rejected file.",
    "label": "runs the teachers over the tracks, once, and writes audio and targets into tar shards.",
    "verify": "reads every byte again, runs the teachers again on two examples, and another decoder on four files.",
    "pretrain": "streams the shards into masked prediction on two ranks; one is killed on the way, and the same"
    " command goes on.",
    "export": "writes the encoder as a folder that any command takes as a model.",
}
PROBE_STAGES = {
    "suite": "renders labelled music from Debian packages, which it downloads once.",
    "probe": "trains small heads on the features of three models, and scores them on clips that no head has seen.",
}
# The folders of the stages that make one.
MAKES = {
    "manifest": OUT / "manifest",
    "label": OUT / "shards",
    "pretrain": OUT / "run",
    "export": OUT / "export",
    "suite": SUITE_OUT,
    "probe": OUT / "probe",
}
KILL_AFTER_STEP = 50


MANIFEST = ["configs/manifest.yaml", f"out={OUT}/manifest", "group_by=track", "splits={valid: 0.2}"]
LABEL = [
    "configs/label.yaml", f"manifest={OUT}/manifest", f"out={OUT}/shards", "teachers.0.weights=foundry-small",
    "segments.segment_seconds=10", "segments.shortest_seconds=4", "segments.examples_per_shard=8",
]  # fmt: skip
VERIFY = [f"{OUT}/shards", "--manifest", f"{OUT}/manifest", "--relabel", "2", "--corpus", "4"]
TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node=2", "-m", "mert_foundry.jobs.pretrain"]
# For four minutes of music, which a higher rate learns by heart: at 3e-5 the CQT explained on validation falls within
# 25 steps.
PRETRAIN = [
    *TORCHRUN, RECIPE, "initial=foundry-encoder", f"shards={OUT}/shards", f"out={OUT}/run", "stream.batch_size=8",
    "objective.target_weights={codes: 0.01}", "trainer.schedule.learning_rate=0.00001",
    "trainer.schedule.warmup_steps=10",
    "trainer.schedule.total_steps=100", "trainer.log_every=10", "trainer.validate_every=50",
    "trainer.checkpoint_every=50",
]  # fmt: skip
SUITE = ["configs/suite.yaml", f"out={SUITE_OUT}", "size=small", "tasks=[pitch, key, chord, instrument]"]
# Fewer rates, seeds and epochs of heads than the protocol has.
PROBE = [
    "configs/probe.yaml", f"model={{trained: {OUT}/export, random: 'random:{RECIPE}@0'}}", "baselines=[log_mel]",
    "compare_with=random", "pooling=mean_std", f"data={SUITE_OUT}", "tasks=[pitch, key, chord, instrument]",
    f"out={OUT}/probe",
    "protocol.rates=[0.0005, 0.001, 0.005]", "protocol.seeds=2", "protocol.epochs=60",
]  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="demo", add_help=False)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--probe", choices=("yes", "no"), default="yes")
    options = parser.parse_args(arguments)
    if not options.corpus.is_dir():
        raise UsageError(f"demo: a folder of audio is needed, {options.corpus} is none")
    started = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    introduce(STAGES | (PROBE_STAGES if options.probe == "yes" else {}))
    # The demo shares its cores between processes; each computes with one thread.
    os.environ["OMP_NUM_THREADS"] = "1"
    call("mert", "manifest", *MANIFEST, f"root={options.corpus}")
    call("mert", "label", *LABEL)
    call("mert", "verify", *VERIFY)
    index = load_index(f"{OUT}/shards")
    is_validated = "valid" in index.totals and index.totals["valid"].examples
    pretrain = PRETRAIN if is_validated else [*PRETRAIN, "valid_split=null"]
    kill_a_rank(pretrain)
    call(*pretrain)
    call("mert", "export", f"{OUT}/run", f"{OUT}/export")
    if options.probe == "yes":
        call("mert", "suite", *SUITE)
        call("mert", "probe", *PROBE)
    print(summary(index, time.monotonic() - started))
    if options.probe == "yes":
        print(probe_summary(read_report(OUT / "probe")))
    return 0


def introduce(stages: dict[str, str]) -> None:
    """Say what the stages do."""
    print("This demo runs the whole job on one machine, every stage by the command that you would type:")
    for stage, sentence in stages.items():
        print(f"  mert {stage:8} {sentence}")


def call(*command: str) -> None:
    """Show and run a command. Raises RuntimeError when it fails: which stage, and what was made before."""
    show(command)
    code = subprocess.run(command).returncode
    if code:
        stage = "pretrain" if command[0] == TORCHRUN[0] else command[1]
        before = takewhile(lambda name: name != stage, STAGES | PROBE_STAGES)
        made = ", ".join(str(MAKES[name]) for name in before if name in MAKES) or "nothing"
        advice = "; make demo PROBE=no does without it" if stage in PROBE_STAGES else ""
        raise RuntimeError(f"the stage {stage} failed with exit code {code}; made so far: {made}{advice}")


def kill_a_rank(command: list[str]) -> None:
    """Start training, SIGKILL one rank once the checkpoint of step `KILL_AFTER_STEP` is there, and wait for the others
    to end.
    """
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
        trivial = read_description(OUT / "run").trivial
        for record in (validations[0], validations[-1]):
            lines.append(f"  validation at step {record['step']}: {describe_losses(record, trivial)}")
    made = [name for name in ("manifest", "shards", "run", "export", "probe") if (OUT / name).exists()]
    lines += [f"  {name}: {OUT / name}" for name in made]
    lines.append("look at what was made:")
    lines += [f"  mert inspect {OUT / name}" for name in made if name != "export"]
    lines.append(f"  mert inspect {OUT / 'shards'} --manifest {OUT / 'manifest'} --html {OUT / 'shards.html'}")
    return "\n".join(lines)


def probe_summary(report: ProbeReport) -> str:
    """The table of scores with their intervals, and what it says of training."""
    table = comparison_table(report, ("log_mel", "random", "trained"), "trained")
    return "\n".join(["small heads on frozen features:", *table_lines(table), comparison_sentence(report, "trained")])


def read_metrics() -> list[dict]:
    """The records of the run's metrics.jsonl."""
    return [json.loads(line) for line in (OUT / "run" / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))

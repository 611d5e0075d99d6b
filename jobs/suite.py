"""Make the probing suite: eleven kinds of tasks, rendered and labelled by a seed from packages anyone can get.

    mert suite OUT --size small
    mert suite OUT --size full seed=1 sources=FOLDER
    mert suite OUT --size small --tasks pitch,key
    mert suite configs/suite.yaml out=OUT size=small

Downloads the Debian packages that are missing (apt-get, no root needed) into `sources`, then writes a folder for each
task with task.yaml and clips.jsonl, the audio, and suite.yaml. The same command goes on where it was stopped.
"""

import os
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.jobs.cluster.worker_processes import map_in_processes
from mert_foundry.jobs.command.config import UsageError, load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.progress import Progress
from mert_foundry.pipeline.storage.files import sweep_temporary
from mert_foundry.pipeline.suite.clip import AudioPlan, FamilyPlan, Plans
from mert_foundry.pipeline.suite.families import ALL_TASKS, families_of, plan_tasks
from mert_foundry.pipeline.suite.sources import Sources
from mert_foundry.pipeline.suite.write import MakeAudio, Suite, begin, missing_audio, write_tasks


class SuiteConfig(BaseModel):
    """Which suite, and where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: str = Field(description="Folder of the suite")
    size: Literal["small", "full"] = Field(default="small", description="How much of it")
    seed: int = Field(default=0, ge=0, description="Random seed: labels, splits and sound")
    sources: str = Field(default="runs/suite-sources", description="Folder of the unpacked Debian packages")
    tasks: tuple[str, ...] = Field(default=(), description=f"Some of {', '.join(ALL_TASKS)}; none named: all")
    workers: int | None = Field(default=None, ge=1, description="Processes; null: one for each core")


CONFIG = SuiteConfig


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, arguments, first="out")
    out = Path(config.out)
    tasks = config.tasks or ALL_TASKS
    plans = Plans(config.size, config.seed, Sources(Path(config.sources).resolve()))
    try:
        packages = sorted({package for family in families_of(tasks) for package in family.packages})
        found = begin(out, plans)
    except ValueError as error:
        raise UsageError(str(error)) from error
    plans.sources.fetch(packages, console.say)
    console.say(f"planning {len(tasks)} tasks")
    plan = plan_tasks(plans, tasks)
    make_all_audio(out, plans, plan, config.workers or os.cpu_count() or 1)
    suite = write_tasks(out, found, plan, plans.sources.describe(packages))
    report(out, suite)
    return 0


def make_all_audio(out: Path, plans: Plans, plan: FamilyPlan, workers: int) -> None:
    """Make the audio files that are not there yet, in processes, with progress."""
    for folder in sorted({(out / audio.path).parent for audio in plan.audio}):
        sweep_temporary(str(folder))
    missing = missing_audio(out, plan.audio)
    total = sum(audio.seconds for audio in plan.audio)
    done = total - sum(audio.seconds for audio in missing)
    with Progress("suite", total, done) as progress:
        for seconds in map_in_processes(MakeAudio(out, plans), missing, workers, crashed):
            done += seconds
            progress.update(done)


def crashed(plan: AudioPlan) -> float:
    """A process that died twice over one file, such as for want of memory."""
    raise RuntimeError(f"{plan.path}: the process that makes it died; workers=1 needs the least memory")


def report(out: Path, suite: Suite) -> None:
    """Say what the folder holds."""
    lines = [
        f"{name}: {', '.join(f'{count} {part}' for part, count in task.clips.items())}; {task.seconds / 3600:.2f} h"
        for name, task in suite.tasks.items()
    ]
    megabytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    lines.append(f"{out}: {megabytes:.1f} MB, fingerprint {suite.fingerprint[:16]}")
    console.finish({"out": str(out), "megabytes": megabytes, **suite.model_dump(mode="json")}, lines)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))

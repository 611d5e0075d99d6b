"""How far a labelling job is that runs elsewhere, from its folder alone.

    mert status SHARD_FOLDER
    mert status s3://BUCKET/shards --json

Shards and hours done and planned, the rate over the last hour of work and the time left at that rate, when the last
shard was finished, segments dropped by reason, and the shards that failed in the last job that ended. It writes
nothing, and exits with 0 whether the job is done or not.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator

from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.pipeline.labelling.status import JobStatus, read_status
from mert_foundry.pipeline.storage.folder_kinds import SHARDS, check_input


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mert status", add_help=False)
    parser.add_argument("shards")
    options = parser.parse_args(arguments)
    check_input(options.shards, SHARDS)
    status = read_status(options.shards, time.time())
    console.answer(status.model_dump(mode="json"), describe(status))
    return 0


def describe(status: JobStatus) -> Iterator[str]:
    """The status in lines."""
    share = status.shards / status.planned_shards if status.planned_shards else 0.0
    yield (
        f"{status.location}: {status.shards} of {status.planned_shards} shards ({share:.1%}),"
        f" {status.hours:.3f} of about {status.planned_hours:.3f} h{'; complete' if status.is_complete else ''}"
    )
    if status.times_real_time is not None:
        left = "" if status.remaining_hours is None else f"; about {status.remaining_hours:.2f} h left at this rate"
        yield f"{status.times_real_time:.0f} times real time over the last hour of work{left}"
    if status.idle_seconds is not None:
        yield f"the last shard was finished {status.idle_seconds:.0f} s ago"
    dropped = ", ".join(f"{count} {reason}" for reason, count in status.dropped.items())
    yield f"dropped segments: {dropped or 'none'}"
    for reason, count in Counter(status.failed.values()).most_common():
        names = [name for name, message in status.failed.items() if message == reason]
        yield f"failed: {count} shards such as {names[0]}: {reason}"


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))

"""How far a labelling job is, from its folder alone: what it planned, what is finished, and when each record was
written.
"""

from collections import Counter

from pydantic import Field

from mert_foundry.pipeline.frames import FRAME_RATE
from mert_foundry.pipeline.shards.catalogue import read_catalogue
from mert_foundry.pipeline.shards.index import INDEX_NAME
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import Document, json_bytes, parse_model
from mert_foundry.pipeline.storage.folder_kinds import RECORD_SUMS, SHARDS, explain_missing

PLAN_NAME = "plan.json"
RATE_SECONDS = 3600.0  # before the last record, over which the rate is taken
SHORTEST = 1.0  # seconds over which a rate says something: records of a copied folder are all of one moment
MOST_FAILURES = 100  # that are listed


class JobPlan(Document):
    """What a job set out to do; `.records/plan.json` in its folder."""

    shards: int = Field(ge=0, description="Shards of the whole plan")
    seconds: float = Field(ge=0, description="Audio seconds of their tracks")
    expected: dict[str, str] = Field(
        default={}, description="Beginning of the plan_fingerprint of each shard the job had to make, by name"
    )
    failed: dict[str, str] = Field(default={}, description="Why shards failed in the last job that ended, by name")


class JobStatus(Document):
    """What `mert status --json` prints."""

    location: str = Field(description="Shard folder")
    is_complete: bool = Field(description="Whether index.json is there, which is written last")
    shards: int = Field(description="Shards finished")
    planned_shards: int = Field(description="Shards of the plan")
    hours: float = Field(description="Hours of audio in the shards finished")
    planned_hours: float = Field(description="Hours of the tracks of the plan, those that will be dropped included")
    times_real_time: float | None = Field(
        description="Audio seconds per second, over the last hour of work; null below two shards"
    )
    remaining_hours: float | None = Field(description="Hours until the end at this rate; null where it is not known")
    idle_seconds: float | None = Field(description="Since the last shard was finished, seconds; null before the first")
    dropped: dict[str, int] = Field(description="Segments dropped so far, by reason")
    failed: dict[str, str] = Field(description="Why shards failed in the last job that ended, by name; 100 at most")


def write_plan(folder: str, plan: JobPlan) -> None:
    """Publish `.records/plan.json`."""
    files.publish_bytes(files.join(folder, RECORD_SUMS, PLAN_NAME), json_bytes(plan.model_dump(mode="json")))


def read_status(folder: str, now: float) -> JobStatus:
    """The status at a time, in seconds since 1970.

    Raises:
        FileNotFoundError: there is no such folder, or no `.records/plan.json` in it, which `mert label` writes first.
        ValueError: it is damaged.
    """
    location = files.join(folder, RECORD_SUMS, PLAN_NAME)
    try:
        plan = parse_model(location, files.read_bytes(location), JobPlan)
    except (FileNotFoundError, NotADirectoryError):
        if not files.list_names(folder):
            raise explain_missing(folder, SHARDS) from None
        raise FileNotFoundError(
            f"{folder} has no labelling job: {location} is not there, which mert label writes first"
        ) from None
    catalogue = read_catalogue(folder)
    states = [
        state
        for sums in catalogue.parts()
        for state in sums.shards
        if state.plan_fingerprint.startswith(plan.expected.get(state.name, ""))
        and catalogue.sizes.get(f"{state.name}.tar") == state.tar_bytes
    ]
    seconds = sum(state.num_frames for state in states) / FRAME_RATE
    times = files.list_times(folder)
    finished = [
        (times[f"{each.name}.json"], each.num_frames / FRAME_RATE) for each in states if f"{each.name}.json" in times
    ]
    rate = _rate(sorted(finished))
    dropped: Counter[str] = Counter()
    for state in states:
        dropped.update(state.dropped)
    return JobStatus(
        location=folder,
        is_complete=INDEX_NAME in catalogue.sizes,
        shards=len(states),
        planned_shards=plan.shards,
        hours=seconds / 3600,
        planned_hours=plan.seconds / 3600,
        times_real_time=rate,
        remaining_hours=max(0.0, plan.seconds - seconds) / rate / 3600 if rate and len(states) < plan.shards else None,
        idle_seconds=max(0.0, now - max(finished)[0]) if finished else None,
        dropped=dict(sorted(dropped.items())),
        failed=dict(sorted(plan.failed.items())[:MOST_FAILURES]),
    )


def _rate(finished: list[tuple[float, float]]) -> float | None:
    """Audio seconds of the shards finished in the last hour of work, after its first one, per second.

    `finished`: of each shard, when, in that order, and its audio seconds.
    """
    recent = [each for each in finished if each[0] >= finished[-1][0] - RATE_SECONDS]
    passed = recent[-1][0] - recent[0][0] if recent else 0.0
    return sum(seconds for _, seconds in recent[1:]) / passed if passed >= SHORTEST else None

"""What of a plan is already there: finished shards, missing ones, and stale ones that must not be mixed in."""

import re

from pipeline import storage
from pipeline.shard_format import AudioMember
from pipeline.shard_index import INDEX_NAME
from pipeline.shard_plan import ShardTask
from pipeline.shard_record import NAME_PATTERN, ShardRecord, load_record
from pipeline.teacher import TargetSpec


def find_unfinished(
    folder: str, tasks: list[ShardTask], specs: list[TargetSpec], audio: AudioMember, relabel: bool
) -> list[ShardTask]:
    """The tasks without a valid record and a tar of the recorded size.

    With `relabel`, stale shards count as unfinished (each stays until its successor is published), and shards
    outside the plan are removed, the index first.

    Raises:
        ValueError: without `relabel`, a shard of another plan, teacher or audio member; both values are named.
    """
    unfinished = [task for task in tasks if not _is_finished(folder, task, specs, audio, relabel)]
    for name in sorted(shard_names(folder) - {task.name for task in tasks}):
        if not relabel:
            raise ValueError(f"{folder}/{name}: a shard this plan does not have; relabel=true removes it")
        storage.remove(storage.join(folder, INDEX_NAME))
        storage.remove(storage.join(folder, f"{name}.tar"))
        storage.remove(storage.join(folder, f"{name}.json"))
    return unfinished


def shard_names(folder: str) -> set[str]:
    """Names of the shards with a tar or a record in the folder; other files are nobody's business here."""
    files = (name.rpartition(".") for name in storage.list_names(folder))
    return {name for name, _, kind in files if kind in ("tar", "json") and re.fullmatch(NAME_PATTERN, name)}


def _is_finished(folder: str, task: ShardTask, specs: list[TargetSpec], audio: AudioMember, relabel: bool) -> bool:
    try:
        record = load_record(folder, task.name)
        difference = _difference(record, task, specs, audio)
    except FileNotFoundError:
        return False
    except ValueError as error:
        difference = str(error)
    if difference and not relabel:
        raise ValueError(f"{folder}/{task.name}.json is stale: {difference}; relabel=true makes it anew")
    tar = storage.join(folder, f"{task.name}.tar")
    return not difference and storage.exists(tar) and storage.size(tar) == record.bytes


def _difference(record: ShardRecord, task: ShardTask, specs: list[TargetSpec], audio: AudioMember) -> str:
    for spec in specs:
        found = record.teachers.get(spec.name)
        if found != spec.fingerprint:
            return f"target {spec.name} was labelled by teacher {found}, this teacher is {spec.fingerprint}"
    extra = set(record.teachers) - {spec.name for spec in specs}
    if extra:
        return f"it has targets {sorted(extra)} that this configuration does not have"
    if record.audio_member != audio:
        return f"audio is stored as {record.audio_member}, this configuration asks for {audio}"
    if record.plan_fingerprint != task.fingerprint():
        return f"its plan was {record.plan_fingerprint}, this plan is {task.fingerprint()}"
    return ""

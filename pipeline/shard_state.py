"""What of a plan is already there: finished shards, missing ones, and stale ones that must not be mixed in."""

from pipeline import storage
from pipeline.shard_format import AudioMember
from pipeline.shard_index import INDEX_NAME
from pipeline.shard_plan import ShardTask
from pipeline.shard_record import ShardRecord, load_record
from pipeline.teacher import TargetSpec


def find_unfinished(folder: str, tasks: list[ShardTask], specs: list[TargetSpec], audio: AudioMember) -> list[ShardTask]:
    """The tasks without a valid record and a tar of the recorded size.

    Raises:
        ValueError: a record of another plan, teacher or audio member stands in the folder; both values are named.
    """
    unfinished = [task for task in tasks if not _is_finished(folder, task, specs, audio)]
    planned = {task.name for task in tasks}
    for name in recorded_names(folder):
        if name not in planned:
            raise ValueError(f"{folder}/{name}.json: a shard this plan does not have; relabel=true removes it")
    return unfinished


def clear_shards(folder: str, tasks: list[ShardTask], specs: list[TargetSpec], audio: AudioMember) -> None:
    """Remove every shard that is not exactly what the plan and the teachers ask for, the index first."""
    planned = {task.name: task for task in tasks}
    storage.remove(storage.join(folder, INDEX_NAME))
    for name in recorded_names(folder):
        try:
            keep = name in planned and not _difference(load_record(folder, name), planned[name], specs, audio)
        except ValueError:
            keep = False
        if not keep:
            storage.remove(storage.join(folder, f"{name}.json"))
            storage.remove(storage.join(folder, f"{name}.tar"))


def recorded_names(folder: str) -> list[str]:
    """Names of the shards with a record in the folder."""
    names = storage.list_names(folder)
    return [name.removesuffix(".json") for name in names if name.endswith(".json") and name != INDEX_NAME]


def _is_finished(folder: str, task: ShardTask, specs: list[TargetSpec], audio: AudioMember) -> bool:
    try:
        record = load_record(folder, task.name)
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise ValueError(f"{error}; relabel=true makes the shard anew") from error
    difference = _difference(record, task, specs, audio)
    if difference:
        raise ValueError(f"{folder}/{task.name}.json is stale: {difference}; relabel=true makes it anew")
    tar = storage.join(folder, record.url)
    return storage.exists(tar) and storage.size(tar) == record.bytes


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

"""What of a plan is already there: finished shards, missing ones, and stale ones that must not be mixed in."""

import re
from concurrent.futures import ThreadPoolExecutor

from mert_foundry.pipeline.labelling.plan import ShardTask
from mert_foundry.pipeline.shards.format import AudioMember
from mert_foundry.pipeline.shards.index import INDEX_NAME
from mert_foundry.pipeline.shards.record import NAME_PATTERN, ShardRecord, find_misfits, load_record
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import FolderError
from mert_foundry.pipeline.storage.ownership import find_document_fault, find_tar_fault

RECORD_KEYS = {"schema_version", "url", "plan_fingerprint", "members"}
INDEX_KEYS = {"schema_version", "shardlist", "targets"}
THREADS = 16  # that wait for an object store


def find_unfinished(
    folder: str, tasks: list[ShardTask], specs: list[TargetSpec], audio: AudioMember, overwrite: bool
) -> list[ShardTask]:
    """The tasks without a valid record and a tar of the recorded size; writes and removes nothing.

    With `overwrite`, stale shards count as unfinished (each stays until its successor is published).

    Raises:
        FolderError: a file under the name of a shard or the index that `mert label` did not write.
        ValueError: without `overwrite`, a shard of another plan, teacher or audio member; both values are named.
    """
    refuse_foreign_files(folder)
    unfinished = [task for task in tasks if not _is_finished(folder, task, specs, audio, overwrite)]
    unplanned = find_unplanned(folder, tasks)
    if unplanned and not overwrite:
        raise ValueError(f"{folder}/{unplanned[0]}: a shard this plan does not have; overwrite=true removes it")
    return unfinished


def remove_unplanned(folder: str, tasks: list[ShardTask]) -> None:
    """Remove the shards outside the plan, the index first, once `find_unfinished` has seen whose they are."""
    for name in find_unplanned(folder, tasks):
        files.remove(files.join(folder, INDEX_NAME))
        files.remove(files.join(folder, f"{name}.tar"))
        files.remove(files.join(folder, f"{name}.json"))


def find_unplanned(folder: str, tasks: list[ShardTask]) -> list[str]:
    """Names of the shards in the folder that no task makes."""
    return sorted(shard_names(folder) - {task.name for task in tasks})


def refuse_foreign_files(folder: str) -> None:
    """Look at the header of every tar, at every record and at the index, where they have the names of ours.

    Raises:
        FolderError: one that `mert label` did not write; it is named with the reason.
    """
    names = files.list_names(folder)
    with ThreadPoolExecutor(THREADS) as threads:
        for name, fault in zip(names, threads.map(lambda name: _find_fault(folder, name), names)):
            if fault:
                raise FolderError(
                    f"{folder}/{name} was not written by mert label: {fault}; move it away, or use another out folder"
                )


def _find_fault(folder: str, name: str) -> str:
    """Why a file that has a name of ours is not ours, or an empty string."""
    location = files.join(folder, name)
    try:
        if name == INDEX_NAME:
            return find_document_fault(location, INDEX_KEYS)
        if re.fullmatch(NAME_PATTERN + r"\.json", name):
            return find_document_fault(location, RECORD_KEYS)
        return find_tar_fault(location) if re.fullmatch(NAME_PATTERN + r"\.tar", name) else ""
    except FileNotFoundError:  # another process is at work in the folder
        return ""


def shard_names(folder: str) -> set[str]:
    """Names of the shards with a tar or a record in the folder; other files are nobody's business here."""
    parts = (name.rpartition(".") for name in files.list_names(folder))
    return {name for name, _, kind in parts if kind in ("tar", "json") and re.fullmatch(NAME_PATTERN, name)}


def _is_finished(folder: str, task: ShardTask, specs: list[TargetSpec], audio: AudioMember, overwrite: bool) -> bool:
    try:
        record = load_record(folder, task.name)
        difference = _difference(record, task, specs, audio)
    except FileNotFoundError:
        return False
    except ValueError as error:
        difference = str(error)
    if difference and not overwrite:
        raise ValueError(f"{folder}/{task.name}.json is stale: {difference}; overwrite=true replaces it")
    tar = files.join(folder, f"{task.name}.tar")
    return not difference and files.exists(tar) and files.size(tar) == record.bytes


def _difference(record: ShardRecord, task: ShardTask, specs: list[TargetSpec], audio: AudioMember) -> str:
    misfit = next(find_misfits(record, specs, audio), "")
    if misfit or record.plan_fingerprint == task.fingerprint():
        return misfit
    return f"its plan was {record.plan_fingerprint}, this plan is {task.fingerprint()}"

"""What of a plan is already there: finished shards, missing ones, and stale ones that must not be mixed in."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from mert_foundry.pipeline.shards.catalogue import THREADS, Catalogue, foreign, read_catalogue
from mert_foundry.pipeline.shards.format import AudioMember
from mert_foundry.pipeline.shards.index import INDEX_NAME
from mert_foundry.pipeline.shards.record import NAME_PATTERN, find_misfits
from mert_foundry.pipeline.shards.record_sums import RecordSums, ShardState
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.shards.text import TextSpec
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import FolderError
from mert_foundry.pipeline.storage.ownership import find_content_fault, find_tar_fault

INDEX_KEYS = {"schema_version", "shardlist", "targets"}


class Planned(Protocol):
    """One shard of a plan."""

    @property
    def name(self) -> str: ...

    def fingerprint(self) -> str:
        """SHA-256 over everything that decides its examples but the teachers and the tokenizer."""
        ...


Task = TypeVar("Task", bound=Planned)


def find_unfinished(
    folder: str,
    tasks: Sequence[Task],
    specs: list[TargetSpec],
    audio: AudioMember | None,
    overwrite: bool,
    catalogue: Catalogue | None = None,
    text: TextSpec | None = None,
) -> list[Task]:
    """The tasks without a valid record and a tar of the recorded size; writes and removes nothing.

    With `overwrite`, stale shards count as unfinished (each stays until its successor is published). `catalogue` is of
    the folder as it is now, where one is at hand; else it is read.

    Raises:
        FolderError: a file under the name of a shard or the index that `mert label` did not write.
        ValueError: without `overwrite`, a shard of another plan, teacher, tokenizer or audio member; both values are
            named.
    """
    catalogue = read_catalogue(folder) if catalogue is None else catalogue
    refuse_foreign_files(catalogue)
    unfinished = [task for task in tasks if not _is_finished(catalogue, task, specs, audio, text, overwrite)]
    unplanned = find_unplanned(catalogue, tasks)
    if unplanned and not overwrite:
        raise ValueError(f"{folder}/{unplanned[0]}: a shard this plan does not have; overwrite=true removes it")
    return unfinished


def remove_unplanned(catalogue: Catalogue, tasks: Sequence[Planned]) -> None:
    """Remove the shards outside the plan, the index first, once `find_unfinished` has seen whose they are."""
    unplanned, folder = find_unplanned(catalogue, tasks), catalogue.folder
    if not unplanned:
        return
    files.remove(files.join(folder, INDEX_NAME))
    catalogue.forget(unplanned)
    with ThreadPoolExecutor(THREADS) as threads:
        for kind in ("tar", "json"):
            list(threads.map(lambda name: files.remove(files.join(folder, name)), [f"{n}.{kind}" for n in unplanned]))


def find_unplanned(catalogue: Catalogue, tasks: Sequence[Planned]) -> list[str]:
    """Names of the shards in the folder that no task makes."""
    return sorted(catalogue.shard_names - {task.name for task in tasks})


def refuse_foreign_files(catalogue: Catalogue) -> None:
    """Look at the index and at the header of every tar that no record tells to be ours, where they have the names of
    ours.

    Raises:
        FolderError: one that `mert label` did not write; it is named with the reason.
    """
    names = [name for name in sorted(catalogue.sizes) if name == INDEX_NAME or _is_unknown_tar(catalogue, name)]
    with ThreadPoolExecutor(THREADS) as threads:
        for name, fault in zip(names, threads.map(lambda name: _find_fault(catalogue.folder, name), names)):
            if fault:
                raise FolderError(foreign(f"{catalogue.folder}/{name}", fault))


def _is_unknown_tar(catalogue: Catalogue, name: str) -> bool:
    """Whether a file has the name of a tar, and not the size that a record states."""
    if not re.fullmatch(NAME_PATTERN + r"\.tar", name):
        return False
    found = catalogue.find(name.removesuffix(".tar"))
    return found is None or found[0].tar_bytes != catalogue.sizes[name]


def _find_fault(folder: str, name: str) -> str:
    """Why the index or a tar is not ours, or an empty string."""
    location = files.join(folder, name)
    try:
        if name == INDEX_NAME:
            return find_content_fault(files.read_bytes(location), INDEX_KEYS)
        return find_tar_fault(location)
    except FileNotFoundError:  # another process is at work in the folder
        return ""


def shard_names(folder: str) -> set[str]:
    """Names of the shards with a tar or a record in the folder; other files are nobody's business here."""
    return Catalogue(folder, files.list_sizes(folder)).shard_names


def _is_finished(
    catalogue: Catalogue,
    task: Planned,
    specs: list[TargetSpec],
    audio: AudioMember | None,
    text: TextSpec | None,
    overwrite: bool,
) -> bool:
    found = catalogue.find(task.name)
    difference = _difference(*found, task, specs, audio, text) if found else catalogue.faults.get(task.name, "")
    if difference and not overwrite:
        raise ValueError(f"{catalogue.folder}/{task.name}.json is stale: {difference}; overwrite=true replaces it")
    return not difference and found is not None and catalogue.sizes.get(f"{task.name}.tar") == found[0].tar_bytes


def _difference(
    state: ShardState,
    sums: RecordSums,
    task: Planned,
    specs: list[TargetSpec],
    audio: AudioMember | None,
    text: TextSpec | None,
) -> str:
    misfit = next(find_misfits(sums, specs, audio, text), "")
    if misfit or state.plan_fingerprint == task.fingerprint():
        return misfit
    return f"its plan was {state.plan_fingerprint}, this plan is {task.fingerprint()}"

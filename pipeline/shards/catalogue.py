"""Which shards of a folder are finished, and what their records say, from one listing and a few documents.

To read 150,000 records of 130 KB from an object store takes hours. So what they say is kept in `.records/`, up to a
thousand shards a document. A record that is in none is read, in threads: deleting the folder loses nothing but time.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mert_foundry.pipeline.shards.record import NAME_PATTERN, parse_record
from mert_foundry.pipeline.shards.record_sums import (
    RecordSums,
    ShardState,
    join_sums,
    parse_sums,
    summarise_record,
)
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import RECORD_SUMS, FolderError
from mert_foundry.pipeline.storage.ownership import find_content_fault

MOST_SHARDS = 1000  # of a document
THREADS = 32  # that wait for an object store
READ_AT_ONCE = 1024  # records whose sums wait in memory to be joined
DOCUMENT_PATTERN = r"[0-9a-f]{16}\.json"
RECORD_KEYS = {"schema_version", "url", "plan_fingerprint", "members"}


class Catalogue:
    """The shards of a folder, as its listing was when this was made.

    `sizes` bytes of the files right in the folder; `faults` of records that cannot be used, by name of the shard.
    """

    def __init__(self, folder: str, sizes: dict[str, int]):
        self.folder = folder
        self.sizes = sizes
        self.faults: dict[str, str] = {}
        self.documents: dict[str, RecordSums] = {}  # of `.records/`, by file name
        self.obsolete: list[str] = []  # file names there
        self.unpublished: list[RecordSums] = []
        self._states: dict[str, tuple[ShardState, RecordSums]] = {}

    @property
    def shard_names(self) -> set[str]:
        """Names of the shards with a tar or a record."""
        return {name.rpartition(".")[0] for name in self.sizes if re.fullmatch(NAME_PATTERN + r"\.(tar|json)", name)}

    def find(self, name: str) -> tuple[ShardState, RecordSums] | None:
        """What the record of a shard says, and the sums it is a part of; None without a record that can be used."""
        return self._states.get(name)

    def parts(self) -> Iterator[RecordSums]:
        """All that is known, each shard once."""
        yield from self.documents.values()
        yield from self.unpublished

    def add(self, sums: RecordSums) -> None:
        """Note shards that have been finished since."""
        self._take(sums)
        self.unpublished.append(sums)
        for state in sums.shards:
            self.sizes |= {f"{state.name}.tar": state.tar_bytes, f"{state.name}.json": state.record_bytes}

    def forget(self, names: Collection[str]) -> None:
        """Take shards out that are about to change, in the folder too; what was summed with them is read again."""
        away = set(names)
        self.faults = {name: fault for name, fault in self.faults.items() if name not in away}
        for name in away:
            self.sizes.pop(f"{name}.json", None)
        found = {location: sums for location, sums in self.documents.items() if _names(sums) & away}
        loose = [sums for sums in self.unpublished if _names(sums) & away]
        self.unpublished = [sums for sums in self.unpublished if not _names(sums) & away]
        for location in found:
            files.remove(files.join(self.folder, RECORD_SUMS, location))
            del self.documents[location]
        others = set[str]()
        for sums in (*found.values(), *loose):
            others |= _names(sums) - away
            for name in _names(sums):
                del self._states[name]
        self.read_records(sorted(others))

    def publish(self) -> None:
        """Write what is in no document yet, with what is in documents that have room; those it replaces
        go afterwards.
        """
        folder = files.join(self.folder, RECORD_SUMS)
        if self.unpublished:
            replaced = {name: sums for name, sums in self.documents.items() if len(sums.shards) < MOST_SHARDS}
            written = {}
            for sums in _in_documents([*replaced.values(), *self.unpublished]):
                content = sums.to_bytes()
                files.publish_bytes(files.join(folder, _document_name(content)), content)
                written[_document_name(content)] = sums
            # Not before all are there: what fails on the way can be tried again.
            self.documents = {name: sums for name, sums in self.documents.items() if name not in replaced} | written
            self.obsolete += replaced
            self.unpublished = []
            for sums in written.values():
                self._take(sums)
        for name in set(self.obsolete) - self.documents.keys():  # a damaged one may have been written again
            files.remove(files.join(folder, name))
        self.obsolete = []

    def read_documents(self) -> None:
        """Read `.records/`; of what lies twice there, or is not what the folder holds now, the records are read."""
        location = files.join(self.folder, RECORD_SUMS)
        names = [name for name in files.list_names(location) if re.fullmatch(DOCUMENT_PATTERN, name)]
        with ThreadPoolExecutor(THREADS) as threads:
            found = dict(zip(names, threads.map(partial(_read_document, location), names)))
        whole = {name: sums for name, sums in found.items() if sums is not None}
        for name, sums in sorted(whole.items(), key=lambda item: -len(item[1].shards)):
            if all(self._is_new_and_there(state) for state in sums.shards):
                self.documents[name] = sums
                self._take(sums)
        self.obsolete = sorted(found.keys() - self.documents.keys())

    def take_known(self, known: Sequence[RecordSums]) -> None:
        """Take what has been read of records before, and is in no document, if it is of what the folder holds now."""
        for sums in known:
            if all(self._is_new_and_there(state) for state in sums.shards):
                self._take(sums)
                self.unpublished.append(sums)

    def read_records(self, names: Sequence[str]) -> None:
        """Read the records of these shards. Raises FolderError for a file that `mert label` did not write."""
        with ThreadPoolExecutor(THREADS) as threads:
            for start in range(0, len(names), READ_AT_ONCE):
                batch = names[start : start + READ_AT_ONCE]
                read = []
                for name, found in zip(batch, threads.map(partial(_read_record, self.folder), batch)):
                    if isinstance(found, RecordSums):
                        read.append(found)
                    elif found:
                        self.faults[name] = found
                for sums in _in_documents(read):
                    self._take(sums)
                    self.unpublished.append(sums)

    def unread(self) -> list[str]:
        """Names of the shards with a record that is not known yet."""
        names = (name.removesuffix(".json") for name in self.sizes if re.fullmatch(NAME_PATTERN + r"\.json", name))
        return sorted(name for name in names if name not in self._states and name not in self.faults)

    def _is_new_and_there(self, state: ShardState) -> bool:
        return state.name not in self._states and self.sizes.get(f"{state.name}.json") == state.record_bytes

    def _take(self, sums: RecordSums) -> None:
        self._states.update((state.name, (state, sums)) for state in sums.shards)


def read_catalogue(folder: str, known: Sequence[RecordSums] = ()) -> Catalogue:
    """The shards of a folder; an empty one where there is no folder. Writes nothing.

    Args:
        known: what has been read of records before; it is taken as long as they have the same sizes.

    Raises:
        FolderError: a file has the name of a record, and `mert label` did not write it.
    """
    catalogue = Catalogue(folder, files.list_sizes(folder))
    if any(name.endswith(".json") for name in catalogue.sizes):
        catalogue.read_documents()
        catalogue.take_known(known)
        catalogue.read_records(catalogue.unread())
    return catalogue


def read_sums(folder: str, names: Sequence[str]) -> list[RecordSums]:
    """The sums of these shards alone, whose records can be used."""
    catalogue = Catalogue(folder, {})
    catalogue.read_records(names)
    return catalogue.unpublished


def _read_document(folder: str, name: str) -> RecordSums | None:
    """None for one that is gone, damaged or of another version: the records say the same."""
    location = files.join(folder, name)
    try:
        content = files.read_bytes(location)
        return parse_sums(location, content) if _document_name(content) == name else None
    except (FileNotFoundError, ValueError):
        return None


def _read_record(folder: str, name: str) -> RecordSums | str:
    """What a record says; why it cannot be used; empty when it is gone. Raises FolderError for a file of others."""
    location = files.join(folder, f"{name}.json")
    try:
        content = files.read_bytes(location)
        return summarise_record(parse_record(location, content, name), content)
    except FileNotFoundError:  # another process is at work in the folder
        return ""
    except ValueError as error:
        if fault := find_content_fault(content, RECORD_KEYS):
            raise FolderError(foreign(location, fault)) from None
        return str(error)


def _document_name(content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()[:16]}.json"


def foreign(location: str, fault: str) -> str:
    """The line on a file that is not ours."""
    return f"{location} was not written by mert label: {fault}; move it away, or use another out folder"


def _names(sums: RecordSums) -> set[str]:
    return {state.name for state in sums.shards}


def _in_documents(parts: Sequence[RecordSums]) -> list[RecordSums]:
    """The same shards in as few parts as documents may hold; what is unlike stays apart."""
    groups: dict[tuple, list[list[RecordSums]]] = {}
    for sums in parts:
        of_kind = groups.setdefault(sums.likeness, [[]])
        if sum(len(each.shards) for each in of_kind[-1]) + len(sums.shards) > MOST_SHARDS:
            of_kind.append([])
        of_kind[-1].append(sums)
    return [join_sums(group) for of_kind in groups.values() for group in of_kind if group]

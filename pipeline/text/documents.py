"""Documents: the text files below a folder, each with the split it belongs to, or why it is rejected."""

import hashlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mert_foundry.pipeline.manifest.listing import check_folder, list_files
from mert_foundry.pipeline.manifest.placement import choose_split, track_key
from mert_foundry.pipeline.manifest.rows import Row
from mert_foundry.pipeline.manifest.settings import check_shares
from mert_foundry.pipeline.storage import files

PATIENCE = 60.0  # seconds that a storage is asked again when it does not answer


class DocumentFolder(BaseModel):
    """Which files are documents, and which split each belongs to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = Field(description="Folder or fsspec URL with the documents; read with all folders below it")
    names: list[str] = Field(
        default=["*"], min_length=1, description="Names of the files to take, such as ['*.txt', copyright]"
    )
    seed: int = Field(default=0, description="Seed of the split")
    splits: dict[str, float] = Field(
        default={"valid": 0.05}, description="Share of the documents per split, met on average; what is left is train"
    )

    @model_validator(mode="after")
    def _check_splits(self) -> "DocumentFolder":
        check_shares(self.splits)
        return self


class DocumentRow(Row, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One line of documents.jsonl."""

    key: Annotated[str, Meta(description="Stable id made from the path relative to the root")]
    path: Annotated[str, Meta(description="Path relative to the root")]
    bytes: Annotated[int, Meta(description="Size, bytes")]
    sha256: Annotated[str, Meta(description="SHA-256 of the file")]
    split: Annotated[str, Meta(description="Split it belongs to, from a hash of the seed and its path")]


class DocumentReject(Row, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One line of rejected.jsonl."""

    path: Annotated[str, Meta(description="Path relative to the root")]
    reason: Annotated[
        Literal["unreadable", "unreachable", "not_utf8", "not_text", "empty", "duplicate"],
        Meta(description="Why it is no document"),
    ]
    detail: Annotated[str, Meta(description="In one line")]


class Documents(NamedTuple):
    """What was found: documents sorted by key, and what was rejected, sorted by path."""

    rows: list[DocumentRow]
    rejects: list[DocumentReject]


def find_documents(folder: DocumentFolder) -> Documents:
    """Read every file of these names once. Of files with the same content the first path is taken.

    Raises OSError when the root or a file cannot be reached.
    """
    check_folder(folder.root, PATIENCE)
    found = list_files(folder.root, PATIENCE)
    rows: list[DocumentRow] = []
    rejects = [DocumentReject(path=each.path, reason="unreachable", detail=each.detail) for each in found.unlisted]
    first: dict[str, str] = {}  # path by content
    for path in found.stamps:
        if not any(fnmatchcase(path.rsplit("/", 1)[-1], name) for name in folder.names):
            continue
        examined = _examine(folder, path)
        if isinstance(examined, DocumentRow) and (earlier := first.setdefault(examined.sha256, path)) != path:
            examined = DocumentReject(path=path, reason="duplicate", detail=f"the same bytes as {earlier}")
        if isinstance(examined, DocumentReject):
            rejects.append(examined)
        else:
            rows.append(examined)
    return Documents(sorted(rows, key=lambda row: row.key), sorted(rejects, key=lambda each: each.path))


def _examine(folder: DocumentFolder, path: str) -> DocumentRow | DocumentReject:
    try:
        content = _read(folder.root, path)
        path.encode()
        text = content.decode("utf-8-sig")
    except OSError as error:
        if not (files.is_local(folder.root) and files.is_fault_of_file(error)):
            raise
        return DocumentReject(path=path, reason="unreadable", detail=error.strerror or str(error))
    except UnicodeDecodeError as error:
        return DocumentReject(path=path, reason="not_utf8", detail=f"byte {error.start}: {error.reason}")
    except UnicodeEncodeError:
        return DocumentReject(path=path, reason="unreadable", detail="its name is no UTF-8")
    if "\0" in text:
        return DocumentReject(path=path, reason="not_text", detail=f"a null character at {text.index(chr(0))}")
    if not text.strip():
        return DocumentReject(path=path, reason="empty", detail=f"{len(content)} bytes, no character but white space")
    return DocumentRow(
        key=track_key(path),
        path=path,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        split=choose_split(path, folder.seed, folder.splits),
    )


def read_texts(root: str, rows: list[DocumentRow]) -> Iterator[str]:
    """The text of each document, in order.

    Raises OSError, and ValueError for a file that has changed since it was found.
    """
    for row in rows:
        content = _read(root, row.path)
        if (digest := hashlib.sha256(content).hexdigest()) != row.sha256:
            raise ValueError(f"{files.join(root, row.path)} has changed: SHA-256 {digest}, it was {row.sha256}")
        yield content.decode("utf-8-sig")


def _read(root: str, path: str) -> bytes:
    """The content of a file; what is no file, such as a pipe, is refused as a folder is."""
    with files.local_copy(root, path) as local:
        if local.exists() and not local.is_file():
            raise IsADirectoryError(None, "no file but a folder, a pipe or a device")
        return local.read_bytes()

"""Tables as data sets come with them, CSV, TSV and JSON, read with the file and line in every complaint."""

import csv
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from mert_foundry.pipeline.storage.folder_kinds import FolderError

Row = dict[str, str]


def find(root: Path, *names: str) -> Path:
    """The first of `names` that is in a folder. Raises FolderError naming all of them."""
    for name in names:
        if (root / name).exists():
            return root / name
    raise FolderError(f"{' or '.join(str(root / name) for name in names)} is not there")


def find_clone(root: Path, name: str) -> Path:
    """The folder of a repository: its name, or what an archive of it unpacks to, such as `NAME-master`."""
    found = [folder for folder in (root / name, *sorted(root.glob(f"{name}-*"))) if folder.is_dir()]
    if not found:
        raise FolderError(f"{root / name} is not there")
    return found[0]


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark. Raises ValueError naming it when it is in another encoding."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error


def read_rows(path: Path, columns: tuple[str, ...], delimiter: str = ",") -> Iterator[tuple[int, Row]]:
    """Rows of a table with a header line, each with the number of its line; values without white space around them.

    Raises:
        ValueError: a column of `columns` is missing, or a line has more or fewer fields than the header.
    """
    reader = csv.reader(StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        lacking = [column for column in columns if column not in header]
        if lacking:
            raise ValueError(f"{path}: no column {', '.join(lacking)} among {', '.join(header[:12])}")
        if len(set(header)) < len(header):
            raise ValueError(f"{path}: two columns of the same name among {', '.join(header)}")
        for fields in reader:
            if fields:
                if len(fields) != len(header):
                    raise ValueError(
                        f"{path} line {reader.line_num}: {len(fields)} fields, the header has {len(header)}"
                    )
                yield reader.line_num, dict(zip(header, (field.strip() for field in fields)))
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num}: {error}") from error


def read_json(path: Path) -> object:
    """A JSON document. Raises ValueError naming the file."""
    return _parse(read_text(path), str(path))


def read_json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """Objects of a JSONL file, each with the number of its line. Raises ValueError for a line that holds none."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            value = _parse(line, f"{path} line {number}")
            if not isinstance(value, dict):
                raise ValueError(f"{path} line {number}: no JSON object, but {line.strip()[:40]}")
            yield number, value


def _parse(text: str, place: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: no JSON ({error})") from error

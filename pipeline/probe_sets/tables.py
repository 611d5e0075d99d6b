"""Files that data sets come with: folders and tables (CSV, TSV, JSON), with the file and line in every complaint."""

from collections.abc import Iterator
from pathlib import Path

from mert_foundry.pipeline.storage.folder_kinds import FolderError
from mert_foundry.pipeline.storage.tables import parse_csv, parse_json, parse_json_lines

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
    """A text file in UTF-8, with or without a byte order mark.

    Raises ValueError naming it when it is in another encoding.
    """
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error


def read_rows(path: Path, columns: tuple[str, ...], delimiter: str = ",") -> Iterator[tuple[int, Row]]:
    """Rows of a table with the numbers of their lines; values without white space around them.

    Raises as `parse_csv`.
    """
    yield from parse_csv(str(path), read_text(path), columns, delimiter, clean=str.strip)


def read_json(path: Path) -> object:
    """A JSON document. Raises ValueError naming the file."""
    return parse_json(str(path), read_text(path))


def read_json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """Objects of a JSONL file with the numbers of their lines. Raises as `parse_json_lines`."""
    yield from parse_json_lines(str(path), read_text(path))

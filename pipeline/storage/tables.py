"""Rows of tables, CSV and JSON lines; every complaint names the file and the line."""

import csv
import json
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any


def parse_csv(
    location: str,
    text: str,
    columns: tuple[str, ...] = (),
    delimiter: str = ",",
    clean: Callable[[str], str] = str,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table with a header line, each with the number of its last line; empty lines are skipped.

    Args:
        location: what messages call the file.
        columns: names that the header must have.
        clean: applied to every name and value, such as `str.strip`.

    Raises:
        ValueError: a column of `columns` is missing, a name stands twice, or a line has more or fewer fields than the
            header.
    """
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [clean(name) for name in next(reader, [])]
        if lacking := [column for column in columns if column not in header]:
            raise ValueError(f"{location}: no column {', '.join(lacking)} among {', '.join(header[:12])}")
        if repeated := [name for name in dict.fromkeys(header) if header.count(name) > 1]:
            raise ValueError(f"{location}: two columns of the same name {repeated[0]!r} among {', '.join(header)}")
        for fields in filter(None, reader):
            if len(fields) != len(header):
                found = f"{len(fields)} fields, the header has {len(header)}"
                raise ValueError(f"{location} line {reader.line_num}: {found}")
            yield reader.line_num, dict(zip(header, map(clean, fields)))
    except csv.Error as error:
        raise ValueError(f"{location} line {reader.line_num}: {error}") from error


def parse_json_lines(location: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of JSON lines, each with the number of its line; empty lines are skipped.

    Raises ValueError for a line that holds no object.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            value = parse_json(f"{location} line {number}", line)
            if not isinstance(value, dict):
                raise ValueError(f"{location} line {number}: no JSON object, but {line.strip()[:40]}")
            yield number, value


def parse_json(where: str, text: str) -> object:
    """A JSON document. Raises ValueError that begins with `where`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: no JSON ({error})") from error

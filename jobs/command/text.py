"""Plain text for people: aligned tables, and numbers with their units."""

import re
import unicodedata
from collections.abc import Sequence

_NUMBER = re.compile(r"[-+]?[\d.,]*\d(e[-+]\d+)?( ?(%|B|kB|MB|GB|TB))?( \(.+ to .+\))?|nan|-?inf")


def table(header: Sequence[str], rows: Sequence[Sequence[object]], indent: str = "  ") -> list[str]:
    """Aligned lines; a column of numbers (see `is_number`) is aligned to the right."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(terminal_width(row[column]) for row in [header, *cells]) for column in range(len(header))]
    right = [all(is_number(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in [list(header), *cells]:
        spaces = [" " * (width - terminal_width(cell)) for cell, width in zip(row, widths, strict=True)]
        aligned = [
            space + cell if to_right else cell + space for cell, space, to_right in zip(row, spaces, right, strict=True)
        ]
        lines.append((indent + "  ".join(aligned)).rstrip())
    return lines


def pairs(rows: Sequence[tuple[str, object]], indent: str = "  ") -> list[str]:
    """Lines of name and value, the values in one column."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{indent}{name.ljust(width)}  {value}".rstrip() for name, value in rows]


def terminal_width(text: str) -> int:
    """Columns that a text takes on a terminal: East Asian letters take two, accents on their own none."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else not unicodedata.combining(char) for char in text)


def human_bytes(count: float) -> str:
    """Bytes in the unit that fits, powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the last unit holds everything")


def human_duration(seconds: float) -> str:
    """Seconds in the two units that fit, such as `3 d 4 h`."""
    for unit, size, lesser, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // part)} {lesser}"
    return f"{seconds:.0f} s"


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits; `-` for none."""
    return "-" if value is None else f"{value:.{digits}g}"


def printable(text: object) -> str:
    """Text of unknown origin in one line: control characters, such as would steer a terminal, as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def is_number(cell: str) -> bool:
    """Whether a cell reads as a number, such as `12,000`, `-1.5e-05`, `3.1 %`, `1.2 MB`, or `-` for none."""
    return cell == "-" or _NUMBER.fullmatch(cell) is not None

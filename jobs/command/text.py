"""Plain text for people: aligned tables, and numbers with their units."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]], indent: str = "  ") -> list[str]:
    """Aligned lines; a column whose cells are all numbers (or `-`) stands to the right."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(name), *(len(row[column]) for row in cells), 0) for column, name in enumerate(header)]
    right = [all(_is_number(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in [list(header), *cells]:
        aligned = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        lines.append((indent + "  ".join(aligned)).rstrip())
    return lines


def pairs(rows: Sequence[tuple[str, object]], indent: str = "  ") -> list[str]:
    """Lines of name and value, the values in one column."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{indent}{name.ljust(width)}  {value}".rstrip() for name, value in rows]


def human_bytes(count: float) -> str:
    """Bytes in the unit that fits, powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the last unit holds everything")


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits; `-` for none."""
    return "-" if value is None else f"{value:.{digits}g}"


def printable(text: object) -> str:
    """Text of unknown origin in one line: control characters, such as would steer a terminal, as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def _is_number(cell: str) -> bool:
    return (
        cell == "-" or cell.replace(".", "", 1).replace("-", "").replace("e", "").replace("+", "").rstrip("%").isdigit()
    )

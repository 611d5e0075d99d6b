"""Writes the cells of tables and facts, for text and pages alike."""

from collections.abc import Sequence

from mert_foundry.jobs.command.text import number
from mert_foundry.jobs.inspection.view import Cell, Estimate


def row_texts(rows: Sequence[Sequence[Cell]]) -> list[list[str]]:
    """The cells of a table as text. In a table with estimates, floats have three digits too."""
    measured = any(isinstance(cell, Estimate) for row in rows for cell in row)
    return [
        [_three_digits(cell) if measured and isinstance(cell, float) else cell_text(cell) for cell in row]
        for row in rows
    ]


def cell_text(cell: Cell) -> str:
    """Text of a cell, such as `0.5214`, `0.520 (0.480 to 0.550)`, `12,000` or `-`."""
    match cell:
        case bool():
            return "yes" if cell else "no"
        case Estimate():
            return f"{_three_digits(cell.value)} ({_three_digits(cell.low)} to {_three_digits(cell.high)})"
        case int():
            return f"{cell:,}"
        case float() | None:
            return number(cell)
        case _:
            return cell


def _three_digits(value: float) -> str:
    """Three significant digits with their zeros, so that the decimals of a column line up."""
    return f"{value:#.3g}".removesuffix(".").replace(".e", "e")

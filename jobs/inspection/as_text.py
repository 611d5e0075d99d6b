"""Renders a view as lines of plain text, for a terminal or a pipe."""

from mert_foundry.jobs.command.text import pairs, printable, table
from mert_foundry.jobs.inspection.cells import cell_text, row_texts
from mert_foundry.jobs.inspection.view import Block, Facts, Figures, Note, Table, View

MOST_ROWS = 20
INDENT = "  "


def as_text(view: View) -> list[str]:
    """The lines of a view, without control characters. Sections that only a page shows are left out."""
    lines = [f"{view.kind} {view.title}"]
    for index, section in enumerate(view.sections):
        paragraphs = [(block, found) for block in section.blocks if (found := block_lines(block))]
        if paragraphs and index:
            lines += ["", section.title]
        previous: Block | None = None
        for block, found in paragraphs:
            apart = previous is not None and not (isinstance(previous, Note) and isinstance(block, Note))
            lines += ["", *found] if apart else found
            previous = block
    return [printable(line) for line in lines]  # so that no name and no file can control the terminal


def block_lines(block: Block) -> list[str]:
    """The lines of one block; no lines for a block that only a page shows."""
    match block:
        case Note():
            return [INDENT + block.text]
        case Figures():
            return pairs([(label, value) for value, label in block.figures], INDENT)
        case Facts():
            return pairs([(name, cell_text(value)) for name, value in block.facts], INDENT)
        case Table():
            return table_lines(block)
        case _:
            return []


def table_lines(block: Table) -> list[str]:
    """The caption if there is one, the header, and the rows; of many rows the first ones."""
    if not block.rows:
        return []
    shown = block.rows[:MOST_ROWS] if block.may_be_long else block.rows
    lines = [INDENT + block.caption] if block.caption else []
    lines += table(block.header, row_texts(shown), INDENT)
    hidden = len(block.rows) - len(shown)
    return [*lines, f"{INDENT}and {hidden:,} more; --json names all"] if hidden else lines

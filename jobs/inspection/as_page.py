"""Renders a view as one HTML file that opens from disk and loads nothing.

The template escapes all text. The script gets its data as JSON and writes text nodes alone, so nothing in a file name
is ever markup. A Content-Security-Policy allows this page's own script and style by their hashes, and no network.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.text import is_number
from mert_foundry.jobs.inspection.cells import cell_text, row_texts
from mert_foundry.jobs.inspection.view import (
    Block,
    ExamplePlayers,
    Facts,
    Figures,
    Note,
    OnPage,
    Plots,
    Table,
    View,
)

MOST_BYTES = 12_000_000
ROOM_OF_THE_REST = 300_000  # bytes reserved for template and tables when examples are counted
MOST_ROWS = 100
FOLDER = Path(__file__).parent / "page"
SCRIPTS = ("plots.js", "heatmaps.js", "examples.js", "page.js")


def as_page(view: View, command: str) -> bytes:
    """The page of a view. It shows the command that made it. Warnings of the view are also printed to standard error.

    Raises:
        ValueError: the page would have more than 12 MB.
    """
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    style = (FOLDER / "report.css").read_text()
    script = "\n".join((FOLDER / name).read_text() for name in SCRIPTS)
    data: dict[str, Any] = {"plots": {}, "examples": []}
    written = [(section.title, list(write_blocks(section.blocks, data))) for section in view.sections]
    page = environment.get_template("page.html").render(
        view=view,
        command=command,
        sections=[(title, blocks) for title, blocks in written if blocks],
        data=data,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    content = page.encode("utf-8", "backslashreplace")  # a file name may hold bytes that are no UTF-8
    if len(content) > MOST_BYTES:
        raise ValueError(f"the report has {len(content)} bytes, the most is {MOST_BYTES}; show fewer examples or runs")
    return content


def write_blocks(blocks: Iterable[Block], data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The values of each block, under the names that the template uses.

    Plots and examples go into `data`, for the script.
    """
    for block in blocks:
        match block:
            case OnPage():
                yield from write_blocks(block.make(), data)
            case Note():
                yield {"note": block.text}
                if block.warning:
                    console.warn(block.text)
            case Figures():
                yield {"figures": block.figures}
            case Facts():
                yield {"facts": [(name, cell_text(value)) for name, value in block.facts]}
            case Table() if block.rows:
                yield write_table(block)
            case Plots() if block.plots:
                names = [f"plot-{len(data['plots']) + number}" for number in range(len(block.plots))]
                data["plots"] |= zip(names, map(script_value, block.plots), strict=True)
                yield {"plots": names}
            case ExamplePlayers():
                yield from write_blocks(write_examples(block, data), data)
                yield {"examples": True}


def write_table(block: Table) -> dict[str, Any]:
    """A table with text in its cells. A long one is cut, and its caption says how many rows there are."""
    rows = row_texts(block.rows[:MOST_ROWS] if block.may_be_long else block.rows)
    caption = block.caption
    if block.may_be_long and (caption or len(rows) < len(block.rows)):
        caption = f"{caption} ({len(rows):,} of {len(block.rows):,})".strip()
    numeric = [column > 0 and all(is_number(row[column]) for row in rows) for column in range(len(block.header))]
    return {"header": block.header, "rows": rows, "caption": caption, "numeric": numeric}


def write_examples(block: ExamplePlayers, data: dict[str, Any]) -> Sequence[Block]:
    """Put examples into `data` while the page has room. If it has no room for all of them, a warning says so."""
    data["shares"] = script_value(block.shares)
    room = MOST_BYTES - ROOM_OF_THE_REST - len(json.dumps(data))
    for example in block.make():
        described = script_value(example)
        room -= len(json.dumps(described))
        if room < 0:
            limit = f"the next would make the page larger than {MOST_BYTES / 1e6:g} MB"
            return [Note(f"{len(data['examples'])} of {block.count} examples are shown: {limit}.", warning=True)]
        data["examples"].append(described)
    return []


def script_value(value: Any) -> Any:
    """A value in the form that the script reads: a dataclass becomes an object without empty fields, bytes become
    base64.
    """
    if dataclasses.is_dataclass(value):
        named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: script_value(field) for name, field in named.items() if field is not None}
    if isinstance(value, Mapping):
        return {name: script_value(item) for name, item in value.items()}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [script_value(item) for item in value]
    return value


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

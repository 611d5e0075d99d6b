"""A report as one HTML file that opens from disk and loads nothing: sections of figures, tables, plots and examples.

The template escapes all text. The script gets its data as JSON and writes text nodes alone, so nothing in a file name
is ever markup. A Content-Security-Policy allows this page's own script and style by their hashes, and no network.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from mert_foundry.jobs.command.text import number
from mert_foundry.pipeline.inspection.spread import Spread, histogram
from mert_foundry.pipeline.shards.target import TargetSpec, octave_layout

MOST_BYTES = 12_000_000
FOLDER = Path(__file__).parent / "page"
SCRIPTS = ("plots.js", "heatmaps.js", "examples.js", "page.js")


@dataclass
class Section:
    """A heading and what stands below it; the template knows the kinds of block by their keys."""

    title: str
    blocks: list[dict[str, Any]] = field(default_factory=list)

    def figures(self, *figures: tuple[str, str]) -> None:
        """Large numbers, each with its label."""
        self.blocks.append({"figures": [{"value": value, "label": label} for value, label in figures]})

    def facts(self, *facts: tuple[str, object]) -> None:
        """Names and values."""
        self.blocks.append({"facts": facts})

    def table(self, caption: str, header: tuple[str, ...], rows: list[tuple[object, ...]], numbers: str) -> None:
        """A table; `numbers` has a letter a column, `n` for numbers that stand to the right, `t` for text."""
        self.blocks.append(
            {"caption": caption, "header": header, "rows": rows, "numeric": [kind == "n" for kind in numbers]}
        )

    def note(self, text: str) -> None:
        """A paragraph."""
        self.blocks.append({"note": text})


@dataclass
class ReportPage:
    """What a page shows. `data` is what its script reads: plots by name, and the examples."""

    kind: str
    title: str
    command: str
    sections: list[Section] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=lambda: {"plots": {}, "examples": []})

    def section(self, title: str) -> Section:
        """Begin a section."""
        self.sections.append(Section(title))
        return self.sections[-1]

    def plots(self, section: Section, *plots: dict[str, Any]) -> None:
        """Put plots side by side; see plots.js for what a plot is."""
        names = [f"plot-{len(self.data['plots']) + number}" for number in range(len(plots))]
        self.data["plots"] |= dict(zip(names, plots, strict=True))
        section.blocks.append({"plots": names})

    def examples(self, section: Section, examples: list[dict[str, Any]]) -> None:
        """The players; see examples.js for what an example is."""
        self.data["examples"] = examples
        section.blocks.append({"examples": True})

    def render(self) -> bytes:
        """The file. Raises ValueError when it would have more than 12 MB."""
        environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True)
        environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
        style = (FOLDER / "report.css").read_text()
        script = "\n".join((FOLDER / name).read_text() for name in SCRIPTS)
        content = (
            environment.get_template("page.html")
            .render(page=self, style=style, script=script, style_hash=_hash(style), script_hash=_hash(script))
            .encode("utf-8", "backslashreplace")  # a file name may hold bytes that are no UTF-8
        )
        if len(content) > MOST_BYTES:
            raise ValueError(
                f"the report has {len(content)} bytes, the most is {MOST_BYTES}; show fewer examples or runs"
            )
        return content


def histogram_plot(
    title: str, label: str, unit: str, counted: str, values: Sequence[float], quantiles: Spread | None
) -> dict[str, Any]:
    """A histogram for plots.js."""
    bars = histogram(values)
    hint = (
        f"median {number(quantiles.median)} {unit}, {number(quantiles.minimum)} to {number(quantiles.maximum)} {unit}"
        if quantiles
        else ""
    )
    return {
        "title": title,
        "hint": hint,
        "kind": "histogram",
        "edges": bars.edges,
        "counts": bars.counts,
        "x": {"label": label, "unit": unit},
        "y": {"label": counted, "format": "count"},
    }


def reason_plot(title: str, counted: str, counts: Mapping[str, int]) -> dict[str, Any]:
    """Bars by reason, the longest first."""
    reasons = sorted(counts, key=lambda reason: (-counts[reason], reason))
    return {
        "title": title,
        "kind": "bars",
        "sideways": True,
        "labels": reasons,
        "x": {"label": "reason"},
        "y": {"label": counted, "format": "count"},
        "series": [{"label": counted, "values": [counts[reason] for reason in reasons]}],
    }


def pitch_axis(spec: TargetSpec) -> dict[str, float] | None:
    """What plots.js needs to name bins as notes; None when the bins are no pitches."""
    layout = octave_layout(spec)
    return {"lowest": layout[0], "perOctave": layout[1]} if layout else None


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

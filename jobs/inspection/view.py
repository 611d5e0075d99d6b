"""A view: the findings of a command, in sections of figures, tables, plots and sounds, and once more as data.

A command that has something to show builds one `View`. `as_text.py` prints it, `as_page.py` makes an HTML page of it,
and `--json` prints its `data`. Text shows names, values, tables and notes; only a page shows plots and examples. Blocks
that are slow to make and that only a page shows go into `OnPage` or `ExamplePlayers`, which are not made for text.

    View("probe", "runs/mine/probe", data=report.model_dump(mode="json"), sections=[
        Section("Key", [
            Table(("model", "accuracy"), [("log_mel", Estimate(0.31, 0.28, 0.35)), ("trained", Estimate(0.52, 0.48,
            0.55))]), Plots([BarPlot("Accuracy", ["log_mel", "trained"], [Bars("accuracy", [0.31, 0.52], low=[0.28,
            0.48], high=[0.35, 0.55])])]),
        ]),
    ])
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue


@dataclass(frozen=True)
class Estimate:
    """A measured value and the ends of its interval, all in one unit."""

    value: float
    low: float
    high: float


# A float is shown with four significant digits (three in a table with estimates), a whole number with commas, None as
# `-`, text as it is.
Cell = str | int | float | Estimate | None
Number = float | None  # None where there is no finite value


@dataclass(frozen=True)
class Note:
    """A sentence. A warning is also printed to standard error when a page is made."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Figures:
    """The few numbers that a reader should see first, as pairs of the value and what it counts."""

    figures: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Facts:
    """Names and values, one line for each pair."""

    facts: Sequence[tuple[str, Cell]]


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first of which names the row. Columns of numbers are aligned to the right.

    If a table `may_be_long`, text shows its first 20 rows and a page its first 100; both say how many more there are.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    may_be_long: bool = False


@dataclass(frozen=True)
class Pitch:
    """What turns the number of a bin into a note: the centre of bin 0 in Hz, and bins per octave."""

    lowest: float
    per_octave: int


@dataclass(frozen=True)
class Axis:
    """An axis; `zero` makes it begin at 0, `most` is its least upper end, `pitch` names bins as notes."""

    label: str
    format: Literal["percent", "count"] | None = None
    unit: str = ""
    zero: bool = False
    log: bool = False
    most: float | None = None
    pitch: Pitch | None = None


@dataclass(frozen=True)
class Line:
    """A curve of points `x`, `y`, within the band `low` to `high` where these are given.

    Its colour is that of its position among the lines, else `color` (which of eight) or `shade` (0 to 1, for ordered
    lines).
    """

    label: str
    x: Sequence[float]
    y: Sequence[Number]
    low: Sequence[Number] | None = None
    high: Sequence[Number] | None = None
    color: int | None = None
    shade: float | None = None
    faint: bool = False


@dataclass(frozen=True)
class LinePlot:
    """Curves over one axis."""

    title: str
    series: Sequence[Line]
    x: Axis
    y: Axis
    hint: str = ""
    wide: bool = False
    kind: Literal["lines"] = "lines"


@dataclass(frozen=True)
class Bars:
    """One bar for each label of the plot, with whiskers from `low` to `high` where these are given."""

    label: str
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class BarPlot:
    """Bars by label; `sideways` has one series, a row for each label, for labels that are long."""

    title: str
    labels: Sequence[str]
    series: Sequence[Bars]
    x: Axis = Axis("")
    y: Axis = Axis("")
    hint: str = ""
    wide: bool = False
    sideways: bool = False
    kind: Literal["bars"] = "bars"


@dataclass(frozen=True)
class HistogramPlot:
    """Counts `[n]` between edges `[n + 1]`."""

    title: str
    edges: Sequence[float]
    counts: Sequence[int]
    x: Axis
    y: Axis
    hint: str = ""
    kind: Literal["histogram"] = "histogram"


@dataclass(frozen=True)
class Points:
    """Points of one colour, each with its name."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    names: Sequence[str]


@dataclass(frozen=True)
class PointPlot:
    """Points in a plane."""

    title: str
    series: Sequence[Points]
    x: Axis
    y: Axis
    hint: str = ""
    kind: Literal["points"] = "points"


Plot = LinePlot | BarPlot | HistogramPlot | PointPlot


@dataclass(frozen=True)
class Plots:
    """Plots side by side."""

    plots: Sequence[Plot]


@dataclass(frozen=True)
class Sound:
    """A sound as MP3, and its outline to draw, a zlib stream of int8 `[2, outline_per_frame * frames]`."""

    label: str
    audio: bytes
    outline: bytes
    type: str = "audio/mpeg"


@dataclass(frozen=True)
class LevelScale:
    """The meaning of levels 0 to `last`.

    With `decibels`, a level is `step` dB above the one below, and `last` is `top`. Else levels run from `bottom` to
    `top`.
    """

    last: int
    decibels: bool
    step: float
    bottom: float
    top: float


@dataclass(frozen=True)
class LevelPanel:
    """A picture of levels; `data` is a zlib stream of uint8 `[rows, columns]`, the lowest bin first."""

    name: str
    title: str
    rows: int
    columns: int
    data: bytes
    scale: LevelScale
    pitch: Pitch | None
    kind: Literal["levels"] = "levels"


@dataclass(frozen=True)
class CodePanel:
    """A picture of codes, a colour each; `data` is a zlib stream of uint16 `[rows, columns]`."""

    name: str
    title: str
    rows: int
    columns: int
    data: bytes
    entries: int
    kind: Literal["codes"] = "codes"


@dataclass(frozen=True)
class ExamplePlayer:
    """Audio to hear with pictures on the same time axis, which has `frames` at `frame_rate` Hz."""

    title: str
    meta: str
    seconds: float
    frames: int
    frame_rate: int
    outline_per_frame: int
    sources: Sequence[Sound]
    panels: Sequence[LevelPanel | CodePanel]


@dataclass(frozen=True)
class ExamplePlayers:
    """Up to `count` examples, made one after the other while the page has room; at most one such block on a page.

    `shares` has for each name of a `CodePanel` a zlib stream of float32 `[rows, entries]`: how frequent each code is.
    """

    count: int
    make: Callable[[], Iterable[ExamplePlayer]]
    shares: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class OnPage:
    """Blocks that only a page shows. They are made when the page is made."""

    make: Callable[[], Iterable["Block"]]


Block = Note | Figures | Facts | Table | Plots | ExamplePlayers | OnPage


@dataclass(frozen=True)
class Section:
    """A heading and the blocks below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class View:
    """The findings. `kind` and `title` name their subject, the sections are for people, `data` is for machines."""

    kind: str
    title: str
    sections: Sequence[Section]
    data: Mapping[str, JsonValue]

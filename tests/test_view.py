"""One view as text and as a page: the same figures, tables and notes in both; plots and what is slow on
the page alone.
"""

import html
import json
import re
import unicodedata

import pytest
from shard_fixtures import as_dropped, index_shards, make_track, write_examples
from test_inspect import write_run

from mert_foundry.jobs.command.text import is_number, table
from mert_foundry.jobs.inspection.as_page import as_page
from mert_foundry.jobs.inspection.as_text import as_text
from mert_foundry.jobs.inspection.view import (
    Axis,
    BarPlot,
    Bars,
    Estimate,
    Facts,
    Figures,
    Line,
    LinePlot,
    Note,
    OnPage,
    Plots,
    Section,
    Table,
    View,
)
from mert_foundry.pipeline.shards.record import DroppedTrack

ESTIMATES = [Estimate(0.3123, 0.2811, 0.3456), Estimate(0.5214, 0.4799, 0.5501)]


def probe_report() -> View:
    """What a probing report could be: scores with their intervals, by model and by layer."""
    low, high = [each.low for each in ESTIMATES], [each.high for each in ESTIMATES]
    values = [each.value for each in ESTIMATES]
    axis = Axis("accuracy", format="percent", most=1)
    plots = [
        BarPlot("Accuracy", ["log_mel", "trained"], [Bars("accuracy", values, low, high)], Axis("model"), axis),
        BarPlot(
            "Best", ["log_mel", "trained"], [Bars("accuracy", values, low, high)], Axis("model"), axis, sideways=True
        ),
        LinePlot("By layer", [Line("trained", [0, 1], values, low, high)], Axis("layer", format="count"), axis),
    ]
    blocks = [
        Figures([("2", "models")]),
        Facts([("folder", "runs/<b>probe"), ("clips", 12_000), ("seed", None)]),
        Table(("model", "accuracy", "layer"), [("log_mel", ESTIMATES[0], 0), ("trained", ESTIMATES[1], 1)], "Key"),
        Note("Intervals hold 95 % of 1,000 bootstrap samples.\x1b[31m"),
        OnPage(lambda: [Plots(plots)]),
    ]
    return View("probe", "runs/<b>probe", [Section("Scores", blocks)], {"accuracy": values})


def script_data(page: str) -> dict:
    """What the page's script reads."""
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


def test_a_document_as_text():
    assert as_text(probe_report()) == [
        "probe runs/<b>probe",
        "  models  2",
        "",
        "  folder  runs/<b>probe",
        "  clips   12,000",
        "  seed    -",
        "",
        "  Key",
        "  model                  accuracy  layer",
        "  log_mel  0.312 (0.281 to 0.346)      0",
        "  trained  0.521 (0.480 to 0.550)      1",
        "",
        "  Intervals hold 95 % of 1,000 bootstrap samples.\\x1b[31m",
    ]


def test_the_same_document_as_a_page():
    page = as_page(probe_report(), "mert probe <i>").decode()
    assert "<b>probe" not in page and "runs/&lt;b&gt;probe" in page and "mert probe &lt;i&gt;" in page
    assert "0.312 (0.281 to 0.346)" in page and "<dd>12,000</dd>" in page
    bars, sideways, lines = script_data(page)["plots"].values()
    assert bars["series"][0] == {
        "label": "accuracy", "values": [0.3123, 0.5214], "low": [0.2811, 0.4799], "high": [0.3456, 0.5501],
    }  # fmt: skip
    assert sideways["sideways"] is True and lines["series"][0]["high"] == [0.3456, 0.5501]


def test_text_makes_nothing_of_what_is_for_the_page_alone(capsys: pytest.CaptureFixture):
    made = []

    def make() -> list[Note]:
        made.append("block")
        return [Note("slow to find out", warning=True)]

    view = View("probe", "x", [Section("First", [Note("a")]), Section("Slow", [OnPage(make)])], {})
    assert as_text(view) == ["probe x", "  a"] and made == []
    assert "slow to find out" in as_page(view, "mert").decode() and made == ["block"]
    assert capsys.readouterr().err == "slow to find out\n"


@pytest.mark.parametrize(("rows", "in_text", "on_page"), [(3, 3, 3), (150, 20, 100)])
def test_how_much_of_a_long_table_is_shown_is_said(rows: int, in_text: int, on_page: int):
    table = Table(("key",), [(f"key-{number}",) for number in range(rows)], "Keys", may_be_long=True)
    view = View("probe", "x", [Section("All", [table])], {})
    lines, page = as_text(view), as_page(view, "mert").decode()
    assert sum("key-" in line for line in lines) == in_text and page.count("key-") == on_page
    assert (f"  and {rows - in_text} more; --json names all" in lines) == (rows > in_text)
    assert f"Keys ({on_page} of {rows})" in page


def test_a_section_and_a_table_without_content_are_not_shown():
    empty = [Section("Empty", [Table(("a", "b"), []), Plots([])]), Section("Later", [OnPage(list)])]
    view = View("probe", "x", [Section("All", [Note("a")]), *empty], {})
    page = as_page(view, "mert").decode()
    assert as_text(view) == ["probe x", "  a"] and "Empty" not in page and "Later" not in page


@pytest.fixture
def folders(tmp_path):
    """A shard folder with drops, and two runs."""
    drop = DroppedTrack(track="gone", reason="truncated", detail="3 s of 9 s", segments=2)
    first, last = make_track("one", 75, 150)
    write_examples(tmp_path / "shards", "train-000000", [first, as_dropped(last), drop, *make_track("two", 75)])
    index_shards(tmp_path / "shards", ["train-000000"])
    write_run(tmp_path / "run")
    write_run(tmp_path / "second", rate=0.002)
    return tmp_path


@pytest.mark.parametrize("names", [["shards"], ["run"], ["run", "second"]], ids=" ".join)
def test_all_that_text_says_is_on_the_page(names, folders, say):
    locations = [folders / name for name in names]
    code, text, _ = say(*locations)
    assert code == 0
    assert say(*locations, "--html", folders / "page.html")[0] == 0
    page = html.unescape(re.sub(r"</?[a-z][^>]*>", "\n", (folders / "page.html").read_text())).replace("/\n", "/")
    cells = {cell for line in text.splitlines()[1:] for cell in re.split(r"  +", line.strip()) if cell}
    assert len(cells) > 25
    assert not [cell for cell in cells if cell not in page]


def test_columns_are_aligned_on_a_terminal_whatever_the_letters():
    names = ["plain", "日本語の曲", unicodedata.normalize("NFD", "Élégie"), "Ｗide"]
    lines = table(("track", "hours"), [(name, "1.5") for name in names])
    # Columns before the number, counted by hand: a Japanese or full-width letter has two, an accent on its own none.
    columns = [len("  plain"), 2 + 2 * 5, len("  Élégie"), len("  Wide") + 1]
    for name, line, column in zip(names, lines[1:], columns, strict=True):
        gap = line.removeprefix(f"  {name}").removesuffix("1.5")
        assert gap.strip() == "" and column + len(gap) == 2 + 10 + 2 + len("hours") - len("1.5")


@pytest.mark.parametrize("cell", ["12,000", "-1.5e-05", "3.1 %", "99%", "1.2 MB", "0.312 (0.281 to 0.346)", "-", "inf"])
def test_what_reads_as_a_number(cell: str):
    assert is_number(cell) and not is_number(f"a {cell}") and not is_number(f"{cell} x")

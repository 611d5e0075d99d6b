"""The HTML report in a real browser, offline: it plays, draws, answers to mouse and keys; nothing in a name runs."""

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from labelled_set import HOSTILE
from PIL import Image
from test_inspect import write_run
from test_view import probe_report

from mert_foundry.jobs import inspect
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.inspection.as_page import as_page
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.shards.reader import ShardReader

playwright = pytest.importorskip("playwright.sync_api", reason="needs the playwright package (the dev extra)")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the path (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def report_path(labelled: Path, tmp_path_factory) -> Path:
    """The report of the labelled set; read only."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    make(labelled / "shards", "--manifest", labelled / "manifest", "--html", path, "--examples", 99)
    return path


def make(*arguments: object) -> None:
    """Run the command in this process; it must succeed."""
    assert run(inspect.main, [str(argument) for argument in arguments], inspect.__doc__) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium without a sandbox where root runs the tests."""
    arguments = ["--mute-audio"] + (["--no-sandbox"] if os.geteuid() == 0 else [])
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield launched
        launched.close()


class Opened:
    """A page from disk with all that it complained of, and all that it asked for."""

    def __init__(self, browser, path: Path, width: int = 1280, **options):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def load_examples(self) -> int:
        """Scroll to every example until it is drawn; returns how many there are."""
        examples = self.page.locator(".example")
        for number in range(examples.count()):
            examples.nth(number).scroll_into_view_if_needed()
            self.wait_for(f"document.querySelectorAll('.example')[{number}].dataset.ready === 'yes'")
        return examples.count()

    def wait_for(self, condition: str) -> None:
        """Poll a JavaScript condition; the browser's own way to wait would need an eval that the page forbids."""
        for _ in range(400):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(25)
        raise AssertionError(f"not within ten seconds: {condition}; {self.complaints}")

    def check(self) -> None:
        """Nothing complained, nothing but the file itself and its own sounds was asked for."""
        assert self.complaints == []
        assert all(url.startswith(("file:", "blob:", "data:")) for url in self.requests), self.requests


@pytest.fixture
def opened(browser, report_path) -> Iterator[Opened]:
    """The report of the shard set; afterwards nothing may have complained."""
    report = Opened(browser, report_path)
    report.load_examples()
    yield report
    report.check()
    report.context.close()


def test_players_play_and_the_playhead_follows(opened):
    page = opened.page
    first = page.locator(".example").first
    first.scroll_into_view_if_needed()
    before = playhead(first)
    first.get_by_role("button", name="Play").click()
    opened.wait_for("document.querySelector('.example audio').currentTime > 0.4")
    assert first.get_by_role("button", name="Pause").count() == 1
    assert playhead(first) > before + 5
    # The other sound goes on from the same moment, and the first falls silent.
    first.get_by_role("button", name="From codes").click()
    seconds = "document.querySelectorAll('.example')[0].querySelectorAll('audio')[{}].currentTime"
    first_at, second_at = (page.evaluate(seconds.format(number)) for number in (0, 1))
    assert first_at > 0.4 and second_at == pytest.approx(first_at, abs=0.25)
    opened.wait_for(f"{seconds.format(1)} > {second_at + 0.1}")
    paused = page.evaluate(
        "[...document.querySelectorAll('.example')[0].querySelectorAll('audio')].map(each => each.paused)"
    )
    assert paused == [True, False]
    # Another example takes over.
    page.locator(".example").nth(1).get_by_role("button", name="Play").click()
    opened.wait_for("document.querySelectorAll('.example')[1].querySelector('audio').currentTime > 0.1")
    playing = page.evaluate("[...document.querySelectorAll('audio')].filter(each => !each.paused).length")
    assert playing == 1


def playhead(example) -> float:
    """Horizontal place of an example's playhead, pixels."""
    return example.locator(".playhead").bounding_box()["x"]


def test_every_sound_has_the_length_of_its_example(opened):
    lengths = opened.page.evaluate(
        "[...document.querySelectorAll('.example')].map(each => [each.view.example.seconds,"
        " ...[...each.querySelectorAll('audio')].map(audio => audio.duration)])"
    )
    assert len(lengths) == 8
    for seconds, *durations in lengths:
        assert len(durations) == 2 and all(
            abs(duration - seconds) < 0.08 for duration in durations
        )  # an MP3 ends with a block


def test_heatmaps_show_what_the_shards_hold(opened, labelled):
    """Every panel is drawn; brightness of the CQT rises with its values, and a tone is bright at its own pitch."""
    index = load_index(str(labelled / "shards"))
    reader = ShardReader(str(labelled / "shards"), index, index.shardlist)
    clips = {
        reader.entries(shard)[number].key: reader.read(shard, number)
        for shard in range(len(index.shardlist))
        for number in range(len(reader.entries(shard)))
    }
    for number in range(8):
        example = opened.page.locator(".example").nth(number)
        example.scroll_into_view_if_needed()
        clip = clips[example.locator(".meta").inner_text().split(" ")[0]]
        for name in ("waveform", "codes", "cqt", "random_projection"):
            pixels = canvas_pixels(example, name)
            assert len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) > 2, (clip.key, name)
        cqt = canvas_pixels(example, "cqt")[:, 36:, :3].sum(axis=2).astype(float)
        values = index.targets[1].values(clip.targets["cqt"])
        rows = cqt.shape[0] / 48
        drawn = np.array([cqt[round(rows * (47 - band)) : round(rows * (48 - band))].mean() for band in range(48)])
        assert np.corrcoef(drawn, np.log(values + 1e-3).mean(axis=0))[0, 1] > 0.9, clip.key
        codes = canvas_pixels(example, "codes")
        assert (codes[:, 36:, 3] == 255).all()


def canvas_pixels(example, name: str) -> np.ndarray:
    """RGBA of a panel, uint8 `[height, width, 4]`."""
    picture = example.locator(f"canvas[data-panel='{name}']").evaluate("canvas => canvas.toDataURL('image/png')")
    return np.array(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))).convert("RGBA"))


def test_hover_tells_the_value_under_the_pointer(opened, labelled):
    index = load_index(str(labelled / "shards"))
    reader = ShardReader(str(labelled / "shards"), index, index.shardlist)
    example = opened.page.locator(".example").first
    key = example.locator(".meta").inner_text().split(" ")[0]
    clip = next(
        reader.read(shard, number)
        for shard in range(len(index.shardlist))
        for number, entry in enumerate(reader.entries(shard))
        if entry.key == key
    )
    canvas = example.locator("canvas[data-panel='codes']")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    frame, level, frames = 101, 2, clip.targets["codes"].shape[1]
    x = box["x"] + 36 + (frame + 0.5) / frames * (box["width"] - 36)
    opened.page.mouse.move(x, box["y"] + (level + 0.5) / 4 * box["height"])
    tip = example.locator(".tip")
    assert f"frame {frame}\n" in tip.inner_text()
    assert f"codes codebook {level}: code {clip.targets['codes'][level, frame]} of 64" in tip.inner_text()

    canvas = example.locator("canvas[data-panel='cqt']")
    box = canvas.bounding_box()
    band = 24  # two octaves above 110 Hz
    opened.page.mouse.move(x, box["y"] + (1 - (band + 0.5) / 48) * box["height"])
    value = index.targets[1].values(clip.targets["cqt"])[frame, band]
    decibels = max(round(20 * np.log10(value / index.statistics["cqt"].maximum) * 2) / 2, -90)
    assert "cqt A4 (440.0 Hz): " in tip.inner_text()
    assert f"({decibels:.1f} dB)".replace("-", "−") in tip.inner_text()
    opened.page.mouse.move(5, 5)
    assert not tip.is_visible()


def test_keys_seek_and_play(opened):
    page, example = opened.page, opened.page.locator(".example").first
    seconds = "document.querySelector('.example audio').currentTime"
    length = page.evaluate("document.querySelector('.example').view.example.seconds")
    figure = example.get_by_role("slider")
    figure.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate(seconds) == pytest.approx(min(1, length), abs=0.02)
    page.keyboard.press("Shift+ArrowLeft")
    assert page.evaluate(seconds) == pytest.approx(1 - 1 / 75, abs=0.005)
    page.keyboard.press("End")
    assert page.evaluate(seconds) == pytest.approx(length, abs=0.02)
    page.keyboard.press("Home")
    assert page.evaluate(seconds) == 0
    page.keyboard.press("Space")
    opened.wait_for(f"{seconds} > 0.2")
    page.keyboard.press("Space")
    assert page.evaluate("document.querySelector('.example audio').paused")
    assert float(figure.get_attribute("aria-valuenow")) == pytest.approx(page.evaluate(seconds), abs=0.06)
    page.keyboard.press("x")
    assert example.get_by_role("button", name="From codes").get_attribute("aria-pressed") == "true"


def test_a_click_seeks_and_zoom_keeps_the_moment(opened):
    page, example = opened.page, opened.page.locator(".example").first
    example.scroll_into_view_if_needed()
    box = example.locator("canvas[data-panel='waveform']").bounding_box()
    page.mouse.click(box["x"] + 36 + 0.75 * (box["width"] - 36), box["y"] + 5)
    length = page.evaluate("document.querySelector('.example').view.example.seconds")
    assert page.evaluate("document.querySelector('.example audio').currentTime") == pytest.approx(
        0.75 * length, abs=0.03
    )
    before = canvas_pixels(example, "codes")
    example.get_by_role("button", name="3 s").click()
    assert (canvas_pixels(example, "codes") != before).any()
    assert playhead(example) > box["x"] + 36


def test_hostile_names_are_shown_and_do_nothing(opened):
    assert opened.page.title().endswith("/shards")
    assert opened.page.locator("h3", has_text=HOSTILE).count() >= 1
    assert opened.page.locator("img, b").count() == 0


def test_plots_tell_their_values_to_mouse_and_keys(opened, labelled):
    index = load_index(str(labelled / "shards"))
    figure = opened.page.locator("figure", has_text="codes: use of each codebook")
    figure.scroll_into_view_if_needed()
    bars = figure.locator("rect.bar")
    assert bars.count() == 8
    figure.focus()
    opened.page.keyboard.press("ArrowRight")
    opened.page.keyboard.press("ArrowRight")
    usage = index.statistics["codes"].usage[1]
    assert f"codebook 1\nentries in use: {float(f'{100 * usage:.3g}'):g} %" in figure.locator(".tip").inner_text()
    line = opened.page.locator("figure", has_text="cqt: mean and standard deviation by bin")
    line.scroll_into_view_if_needed()
    line.locator("svg.drawing").hover()
    assert "Hz)\nmean: " in line.locator(".tip").inner_text()
    assert {"C3", "C4", "C5"} <= set(line.locator("svg.drawing text").all_text_contents())


def test_intervals_are_drawn_and_reported(browser, tmp_path):
    (tmp_path / "probe.html").write_bytes(as_page(probe_report(), "mert probe"))
    report = Opened(browser, tmp_path / "probe.html")
    figures = {
        title: report.page.locator("figure", has=report.page.get_by_text(title, exact=True))
        for title in ("Accuracy", "Best", "By layer")
    }
    assert [figures[title].locator("path.whisker").count() for title in figures] == [2, 2, 0]
    assert figures["By layer"].locator("path.band").count() == 1
    box = "each => [each.getBBox().y, each.getBBox().height]"
    (top, height), (whisker_top, whisker_height) = (
        figures["Accuracy"].locator(name).first.evaluate(box) for name in ("rect.bar", "path.whisker")
    )
    # The whisker of 0.2811 to 0.3456 lies about the end of a bar of 0.3123.
    assert whisker_height / height == pytest.approx((0.3456 - 0.2811) / 0.3123, rel=1e-3)
    assert (top - whisker_top) / height == pytest.approx((0.3456 - 0.3123) / 0.3123, rel=1e-3)
    for title in ("Accuracy", "By layer"):
        figures[title].focus()
        report.page.keyboard.press("End")
        assert "52.1 % (48 % to 55 %)" in figures[title].locator(".tip").inner_text()
    report.check()
    report.context.close()


def test_dark_light_and_phone(browser, report_path):
    grounds = {}
    for scheme in ("light", "dark"):
        report = Opened(browser, report_path, width=390, color_scheme=scheme, has_touch=True)
        assert report.load_examples() == 8
        ground = "getComputedStyle(document.body).backgroundColor"
        grounds[scheme] = report.page.evaluate(ground)
        assert report.page.evaluate("document.documentElement.scrollWidth") == 390  # nothing sticks out
        assert report.page.locator(".example .play").first.bounding_box()["height"] >= 32
        report.page.get_by_role("button", name="Switch between light and dark").click()
        grounds[f"{scheme} switched"] = report.page.evaluate(ground)
        report.check()
        report.context.close()
    assert grounds["light"] == grounds["dark switched"] != grounds["dark"] == grounds["light switched"]


def test_curves_of_two_runs(browser, tmp_path):
    first, second = write_run(tmp_path / "<i>first"), write_run(tmp_path / "second", rate=0.002, offset=1.0)
    make(first, second, "--html", tmp_path / "runs.html")
    report = Opened(browser, tmp_path / "runs.html")
    figure = report.page.locator("figure", has=report.page.locator("figcaption", has_text="loss")).first
    assert figure.locator("path.curve").count() == 4
    assert "<i>first, validation" in figure.locator(".legend").inner_text()
    figure.focus()
    report.page.keyboard.press("End")
    assert figure.locator(".tip").inner_text().splitlines() == ["step 30", "<i>first, train: 6", "second, train: 7"]
    titles = report.page.locator("figcaption").all_text_contents()
    assert {
        "loss of cqt",
        "learning rate",
        "gradient norm",
        "audio seconds a second",
        "share of time waiting for data",
    } <= set(titles)
    assert {f"validation accuracy of codes, codebook {level}" for level in (0, 1)} <= set(titles)
    assert report.page.locator("i").count() == 0
    report.check()
    report.context.close()

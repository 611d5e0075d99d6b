"""The end of the demo: its table and its sentence follow the report, whichever way that goes; a stage that fails is
named.
"""

import re

import pytest

from mert_foundry.jobs import demo
from mert_foundry.jobs.probing.comparison import judge
from mert_foundry.jobs.probing.report import DifferenceRow, ModelRow, ProbeReport, ScoreRow, TaskRow
from mert_foundry.model.probing.protocol import ProbeProtocol

Interval = tuple[float, float, float]  # value, low, high
CHANCE = 0.25
COMMON = {"metric": "accuracy", "layer": "1", "rate": "0.001", "step": None, "seeds": (), "tracks": 9, "groups": 9}


def score(task: str, model: str, interval: Interval, condition: str = "") -> ScoreRow:
    value, low, high = interval
    references = {"chance": CHANCE, "constant": 0.3, "classes": 4}
    return ScoreRow(
        task=task, model=model, value=value, low=low, high=high, condition=condition, **references, **COMMON
    )


def report(tasks: dict[str, tuple[Interval, Interval]]) -> ProbeReport:
    """By task: the score of the trained encoder, and its difference from the random one, which has 0.5."""
    rows, differences = [], []
    for task, (trained, (value, low, high)) in tasks.items():
        rows += [score(task, "trained", trained), score(task, "trained", (0.9, 0.8, 1.0), "opl3")]
        rows += [score(task, "random", (0.5, 0.4, 0.6)), score(task, "log_mel", (0.45, 0.35, 0.55))]
        for model, shift in (("trained", 0.0), ("log_mel", -9.0)):
            ends = {"value": value + shift, "low": low + shift, "high": high + shift}
            above = {"compared_with": "random", "above": 0.5}
            differences.append(DifferenceRow(task=task, model=model, metric="accuracy", **ends, **above))
    described = {"kind": "multiclass", "published_as": "", "metrics": ("accuracy",), "classes": 4, "clips": {}}
    models = [
        ModelRow(name=name, location=name, step=None, is_baseline=name == "log_mel", fingerprint="")
        for name in ("trained", "random", "log_mel")
    ]
    return ProbeReport(
        version="0",
        data="suite",
        score="test",
        pooling="mean",
        protocol=ProbeProtocol(),
        compared_with="random",
        models=tuple(models),
        tasks=tuple(TaskRow(name=name, fingerprint="", unusable={}, **described) for name in tasks),
        rows=tuple(rows),
        layers=(),
        differences=tuple(differences),
    )


AHEAD = ((0.7, 0.6, 0.8), (0.2, 0.1, 0.3))
BEHIND = ((0.4, 0.3, 0.5), (-0.1, -0.2, -0.01))
OPEN = ((0.52, 0.2, 0.8), (0.02, -0.1, 0.1))  # its own interval holds chance as well


def test_the_table_has_a_row_for_each_task_with_the_figures_of_the_report():
    lines = demo.probe_summary(report({"pitch": AHEAD, "key": BEHIND})).splitlines()
    columns = [re.split(r"\s{2,}", line.strip()) for line in lines[1:4]]
    assert columns == [
        ["task", "metric", "chance", "log_mel", "random", "trained", "trained - random"],
        [
            "pitch",
            "accuracy",
            "0.250",
            "0.450 (0.350 to 0.550)",
            "0.500 (0.400 to 0.600)",
            "0.700 (0.600 to 0.800)",
            "0.200 (0.100 to 0.300)",
        ],
        [
            "key",
            "accuracy",
            "0.250",
            "0.450 (0.350 to 0.550)",
            "0.500 (0.400 to 0.600)",
            "0.400 (0.300 to 0.500)",
            "-0.100 (-0.200 to -0.0100)",
        ],
    ]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (
            {"pitch": AHEAD, "key": AHEAD, "chord": OPEN},
            "trained is above chance in 2 of 3 tasks, ahead of random in pitch and key and not told from random in"
            " chord, where the interval of the difference holds 0: training without a label has taught it more about"
            " music than its architecture hears untrained.",
        ),
        (
            {"pitch": AHEAD, "chord": OPEN, "key": OPEN},
            "has taught it something that its architecture does not hear untrained, in part of the tasks.",
        ),
        (
            {"pitch": BEHIND, "key": BEHIND, "chord": AHEAD},
            "trained is above chance in 3 of 3 tasks, ahead of random in chord and behind random in pitch and key:"
            " training has cost it at least as much",
        ),
        ({"pitch": BEHIND}, "trained is above chance in 1 of 1 tasks and behind random in pitch: training has cost it"),
        ({"pitch": OPEN, "key": OPEN}, "above chance in 0 of 2 tasks and not told from random in pitch and key, where"),
        ({"pitch": OPEN, "key": OPEN}, "so few clips do not show whether training taught it anything"),
    ],
)
def test_the_sentence_says_what_the_intervals_say(tasks, words):
    *_, sentence = demo.probe_summary(report(tasks)).splitlines()
    assert words in sentence
    verdict = judge(report(tasks), "trained")
    assert set(verdict.ahead) == {name for name, given in tasks.items() if given is AHEAD}
    assert set(verdict.behind) == {name for name, given in tasks.items() if given is BEHIND}


@pytest.mark.process
def test_a_stage_that_fails_is_named_with_what_was_made_before(capfd):
    with pytest.raises(RuntimeError) as caught:
        demo.call("false", "suite", "size=small")
    assert str(caught.value) == (
        "the stage suite failed with exit code 1; made so far: runs/demo/manifest, runs/demo/shards, runs/demo/run,"
        " runs/demo/export; make demo PROBE=no does without it"
    )
    with pytest.raises(
        RuntimeError, match="the stage verify failed .* made so far: runs/demo/manifest, runs/demo/shards$"
    ):
        demo.call("false", "verify")
    assert capfd.readouterr().out == "\n$ false suite size=small\n\n$ false verify\n"

"""What a probe says of a trained encoder beside an untrained one: a table and a sentence, both read from the report
alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mert_foundry.jobs.inspection.view import Cell, Estimate, Table
from mert_foundry.jobs.probing.report import DifferenceRow, ProbeReport, ScoreRow


@dataclass(frozen=True)
class Verdict:
    """Names of tasks, by what the paired interval of trained minus untrained says.

    ahead, behind: the interval lies above 0, or below. open: it holds 0, or there is none. above_chance: the trained
    encoder's own interval lies above chance.
    """

    ahead: tuple[str, ...]
    behind: tuple[str, ...]
    open: tuple[str, ...]
    above_chance: tuple[str, ...]


def comparison_table(report: ProbeReport, models: Sequence[str], trained: str) -> Table:
    """A row for each task by its first metric: chance, a column for each model, and trained minus what the report
    compares with.
    """
    differences = _differences(report, trained)
    rows: list[list[Cell]] = []
    for task in report.tasks:
        scores = {row.model: row for row in report.main_rows(task)}
        chance = next((row.chance for row in scores.values()), None)
        difference = _estimate(differences.get(task.name))
        rows.append([task.name, task.metrics[0], chance, *(_estimate(scores.get(name)) for name in models), difference])
    return Table(("task", "metric", "chance", *models, f"{trained} - {report.compared_with}"), rows)


def judge(report: ProbeReport, trained: str) -> Verdict:
    """What the intervals say of an encoder beside the one that the report compares with."""
    differences = _differences(report, trained)
    ahead, behind, undecided, above_chance = [], [], [], []
    for task in report.tasks:
        difference = differences.get(task.name)
        if difference and difference.low is not None and difference.low > 0:
            ahead.append(task.name)
        elif difference and difference.high is not None and difference.high < 0:
            behind.append(task.name)
        else:
            undecided.append(task.name)
        score = next((row for row in report.main_rows(task) if row.model == trained), None)
        if score and score.low is not None and score.chance is not None and score.low > score.chance:
            above_chance.append(task.name)
    return Verdict(tuple(ahead), tuple(behind), tuple(undecided), tuple(above_chance))


def comparison_sentence(report: ProbeReport, trained: str) -> str:
    """The verdict in words, and what it means."""
    verdict, other = judge(report, trained), report.compared_with
    parts = [f"is above chance in {len(verdict.above_chance)} of {len(report.tasks)} tasks"]
    if verdict.ahead:
        parts.append(f"ahead of {other} in {_and(verdict.ahead)}")
    if verdict.behind:
        parts.append(f"behind {other} in {_and(verdict.behind)}")
    if verdict.open:
        parts.append(f"not told from {other} in {_and(verdict.open)}, where the interval of the difference holds 0")
    return f"{trained} {_and(parts)}: {_meaning(verdict)}"


def _meaning(verdict: Verdict) -> str:
    tasks = len(verdict.ahead) + len(verdict.behind) + len(verdict.open)
    if not verdict.ahead and not verdict.behind:
        return (
            "so few clips do not show whether training taught it anything that its architecture does not hear"
            " untrained."
        )
    if len(verdict.behind) >= len(verdict.ahead):
        return "training has cost it at least as much of what these heads can read as it has added."
    if 2 * len(verdict.ahead) > tasks:
        return "training without a label has taught it more about music than its architecture hears untrained."
    return (
        "training without a label has taught it something that its architecture does not hear untrained, in part"
        " of the tasks."
    )


def _differences(report: ProbeReport, trained: str) -> dict[str, DifferenceRow]:
    return {row.task: row for row in report.differences if row.model == trained}


def _estimate(row: ScoreRow | DifferenceRow | None) -> Cell:
    if row is None or row.value is None or row.low is None or row.high is None:
        return None if row is None else row.value
    return Estimate(row.value, row.low, row.high)


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

"""The past of a run's stream: its sets as they lie now, and every position that the run kept."""

from collections.abc import Sequence
from typing import Any

from mert_foundry.model.runs.checkpoint import CHECKPOINTS, list_checkpoints, load_state
from mert_foundry.model.runs.history import RunHistory
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.stream.past_rows import PastRows
from mert_foundry.pipeline.stream.set_mixture import ShardSet


def load_past(history: RunHistory, folders: Sequence[str] = ()) -> PastRows:
    """The rows of a run, of the sets in `folders`, or in those that its config names. Raises as `load_index` and `PastRows`."""
    config = history.config.get("config", {})
    sets = [ShardSet(folder, load_index(folder)) for folder in folders or named_folders(config.get("shards"))]
    try:
        return PastRows(sets, positions(history), config["stream"]["batch_size"])
    except ValueError as error:
        raise ValueError(f"{history.folder}: {error}") from error


def named_folders(shards: Any) -> list[str]:
    """The folders that `shards` of a config names."""
    return [each["path"] for each in shards] if isinstance(shards, list) else [shards]


def positions(history: RunHistory) -> dict[int, dict[str, Any]]:
    """The position after each step that is known: of records of training, and of checkpoints, whole or not."""
    records = {record["step"]: record.get("position") for record in history.of_kind("train")}
    saved = {}
    for path in list_checkpoints(history.folder / CHECKPOINTS):
        if (path / "state.json").is_file():
            state = load_state(path)
            saved[state.step] = state.position
    return {step: place for step, place in (records | saved).items() if place}

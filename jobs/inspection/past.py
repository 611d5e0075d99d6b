"""The past of a run's stream: its sets as they lie now, and every position that the run kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mert_foundry.model.runs.checkpoint import (
    CHECKPOINTS,
    CheckpointState,
    checkpoint_step,
    find_fault,
    list_checkpoints,
    load_state,
)
from mert_foundry.model.runs.history import RunHistory
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.storage.documents import parse_values
from mert_foundry.pipeline.stream.past_rows import PastRows
from mert_foundry.pipeline.stream.set_mixture import ShardSet
from mert_foundry.pipeline.stream.stream_config import StreamConfig


def load_past(history: RunHistory, folders: Sequence[str] = ()) -> PastRows:
    """The rows of a run, of the sets in `folders`, or in those that its config names.

    Raises ValueError for a config.yaml without shards or stream, and for what is no position; and as `load_index` and
    `PastRows`.
    """
    stream = stream_of(history)
    folders = folders or named_folders(history.config["config"]["shards"])
    known = positions(history)
    for step, place in known.items():
        if not isinstance(place, dict):
            raise ValueError(f"{history.folder}: step {step}: the position is {place!r}, a mapping is needed")
    sets = [ShardSet(folder, load_index(folder)) for folder in folders]
    try:
        return PastRows(sets, known, [(step, stage.visits) for step, stage in stream.stages().items()])
    except ValueError as error:
        raise ValueError(f"{history.folder}: {error}") from error


def stream_of(history: RunHistory) -> StreamConfig:
    """How a run reads, as config.yaml says now. Raises ValueError where it does not say so."""
    config = history.config.get("config") or {}
    if not ("shards" in config and "batch_size" in (config.get("stream") or {})):
        raise ValueError(f"{history.folder}: no config.yaml with config.shards and config.stream.batch_size")
    return parse_values(str(history.folder / "config.yaml"), config["stream"], StreamConfig)


def named_folders(shards: Any) -> list[str]:
    """The folders that `shards` of a config names."""
    return [each["path"] for each in shards] if isinstance(shards, list) else [shards]


def positions(history: RunHistory) -> dict[int, Any]:
    """The position after each step that is known: of records of training, and of whole checkpoints at other steps."""
    known = {record["step"]: record["position"] for record in history.of_kind("train") if record.get("position")}
    for path in list_checkpoints(history.folder / CHECKPOINTS):
        if checkpoint_step(path) not in known and (state := read_state(path)) and state.position:
            known[state.step] = state.position
    return known


def read_state(checkpoint: Path) -> CheckpointState | None:
    """The state in a checkpoint; None where it is damaged, which the run did not go on from, or has a state that is not
    read.
    """
    if find_fault(checkpoint) is not None:
        return None
    try:
        return load_state(checkpoint)
    except (OSError, ValueError, KeyError, TypeError):
        return None

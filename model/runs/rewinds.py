"""Rewinds of a run: from which step it went back to which checkpoint, and where its stream goes on from there, in
`rewinds.json`.

Written before anything else of a rewind is done. A run that goes on from that checkpoint, at once or after a kill,
takes the stream's position from here, not from the checkpoint: it passes over the batches between.
"""

import json
from pathlib import Path
from typing import Any

from mert_foundry.model.runs.checkpoint import CHECKPOINTS, checkpoint_step, find_fault, list_checkpoints
from mert_foundry.model.runs.publish import retire_folder
from mert_foundry.pipeline.storage.files import publish_bytes

REWINDS = "rewinds.json"


def read_rewinds(run: Path) -> list[dict[str, Any]]:
    """`checkpoint`: the step gone back to; `spike`: the step gone back from; `position`: of the stream after that
    step's batch.
    """
    path = run / REWINDS
    return json.loads(path.read_text()) if path.exists() else []


def position_after(run: Path, step: int, position: Any) -> Any:
    """The position from which a run goes on at a checkpoint: that of the last rewind to it, else the checkpoint's own,
    which is given.
    """
    found = [each["position"] for each in read_rewinds(run) if each["checkpoint"] == step]
    return found[-1] if found else position


def find_target(run: Path, step: int) -> int:
    """The step of the newest whole checkpoint that is not after `step`; -1 where there is none."""
    older = [path for path in list_checkpoints(run / CHECKPOINTS) if checkpoint_step(path) <= step]
    return next((checkpoint_step(path) for path in older if find_fault(path) is None), -1)


def rewind(run: Path, checkpoint: int, spike: int, position: Any) -> int:
    """Note a rewind, and remove the checkpoints after the one gone back to.

    Returns how many rewinds to it there have been.
    """
    rewinds = [*read_rewinds(run), {"checkpoint": checkpoint, "spike": spike, "position": position}]
    _write(run, rewinds)
    for path in list_checkpoints(run / CHECKPOINTS):
        if checkpoint_step(path) > checkpoint:
            retire_folder(path)
    return sum(each["checkpoint"] == checkpoint for each in rewinds)


def forget_rewinds_after(run: Path, step: int) -> None:
    """Remove rewinds to later checkpoints: a run that goes on from this one comes there with other batches."""
    rewinds = read_rewinds(run)
    kept = [each for each in rewinds if each["checkpoint"] <= step]
    if len(kept) < len(rewinds):
        _write(run, kept)


def _write(run: Path, rewinds: list[dict[str, Any]]) -> None:
    publish_bytes(str(run / REWINDS), (json.dumps(rewinds, indent=2) + "\n").encode())

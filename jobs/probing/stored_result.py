"""Stores the result of one model on one task, so that a stopped probe can go on.

result.json      the ProbeResult without its predictions, and the fingerprint of its inputs
CONDITION.npz    predictions of the chosen heads for the test clips of a condition; `-plain.npz` for those without one
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mert_foundry.jobs.probing.settings import ProbeConfig
from mert_foundry.model.probing.protocol import ProbeProtocol
from mert_foundry.model.probing.result import CHOSEN, Choice, Predictions, ProbeResult, Score
from mert_foundry.model.runs.publish import publish_folder, retire_folder
from mert_foundry.pipeline.probe_sets.checks import paths_of
from mert_foundry.pipeline.probe_sets.task import LabelledSet, ProbeTask
from mert_foundry.pipeline.storage.documents import fingerprint

RESULT = "result.json"
PLAIN = "-plain"  # no condition can have this name


class StoredResult(BaseModel):
    """What result.json holds; "NaN", "Infinity" and "-Infinity" stand for the numbers that JSON does not have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    task: ProbeTask
    protocol: ProbeProtocol
    chosen: tuple[str, ...]
    choices: tuple[Choice, ...]
    scores: tuple[Score, ...]
    conditions: tuple[str, ...]


def result_fingerprint(features: dict[str, Any], labelled: LabelledSet, config: ProbeConfig) -> str:
    """SHA-256 over all inputs of a result.

    Args:
        features: the attributes of the feature store, which say when the clips' files changed last. Stems have no
            features.
    """
    is_separation = labelled.task.kind == "separation"
    stems = [path for clip in labelled.clips for path in paths_of(clip)] if is_separation else []
    found = [(Path(labelled.root) / path).stat() for path in stems]
    return fingerprint(
        {
            "features": features,
            "labelled": labelled.model_dump(mode="json", exclude={"root"}),
            "protocol": config.protocol.model_dump(mode="json"),
            "separation": config.separation.model_dump(mode="json") if is_separation else None,
            "stems": [(each.st_size, each.st_mtime_ns) for each in found],
        }
    )


def save_result(folder: Path, result: ProbeResult, fingerprint: str) -> None:
    """Publish the result; it replaces an older one."""
    stored = StoredResult(
        fingerprint=fingerprint,
        task=result.task,
        protocol=result.protocol,
        chosen=result.chosen,
        choices=result.choices,
        scores=result.scores,
        conditions=tuple(sorted(condition for heads, condition in result.predictions if heads == CHOSEN)),
    )
    if folder.exists():
        retire_folder(folder)
    with publish_folder(folder) as unpublished:
        for condition in stored.conditions:
            result.predictions[CHOSEN, condition].save(unpublished / f"{condition or PLAIN}.npz")
        (unpublished / RESULT).write_text(stored.model_dump_json(indent=1))


def load_result(folder: Path, fingerprint: str) -> ProbeResult | None:
    """The stored result; None when there is none, or it has another fingerprint."""
    path = folder / RESULT
    if not path.exists():
        return None
    text = path.read_text()
    if json.loads(text)["fingerprint"] != fingerprint:
        return None
    stored = StoredResult.model_validate_json(text)
    return ProbeResult(
        task=stored.task,
        protocol=stored.protocol,
        chosen=stored.chosen,
        choices=stored.choices,
        scores=stored.scores,
        predictions={
            (CHOSEN, condition): Predictions.load(folder / f"{condition or PLAIN}.npz")
            for condition in stored.conditions
        },
    )

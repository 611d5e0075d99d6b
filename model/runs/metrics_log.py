"""The metrics of a run: metrics.jsonl and TensorBoard."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from mert_foundry.pipeline.storage.files import publish_bytes, sweep_temporary


class MetricsLog:
    """One JSON object a line in `metrics.jsonl`, the same numbers in TensorBoard events under `tensorboard/`.

    Opening it at `step` removes every line after that step: they are from steps that a kill lost, which will be
    done again. Non-finite numbers are written as null.
    """

    def __init__(self, run_folder: Path, step: int):
        run_folder.mkdir(parents=True, exist_ok=True)
        sweep_temporary(str(run_folder))
        self.path = run_folder / "metrics.jsonl"
        self._held = _forget_after(self.path, step)
        self._file = open(self.path, "a")
        self._board = SummaryWriter(str(run_folder / "tensorboard"), purge_step=step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record; it needs `kind` and `step`. Nested mappings become `a/b` in TensorBoard."""
        self._file.write(json.dumps(_finite_or_null(record)) + "\n")
        self._file.flush()
        for name, value in _flatten(record):
            if name != "step":
                self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def holds(self, kind: str, step: int) -> bool:
        """Whether a record was there when the log was opened, and was kept."""
        return (kind, step) in self._held

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        self._board.close()


def _forget_after(path: Path, step: int) -> set[tuple[str, int]]:
    """Keep whole lines up to `step`; the last line of a killed run may be cut off. Returns kind and step of those kept."""
    if not path.exists():
        return set()
    parsed = [(line, _parse(line)) for line in path.read_text().splitlines()]
    kept = [(line, record) for line, record in parsed if record is not None and record["step"] <= step]
    publish_bytes(str(path), "".join(line + "\n" for line, _ in kept).encode())
    return {(record["kind"], record["step"]) for _, record in kept}


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _finite_or_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite_or_null(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite_or_null(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flatten(value: Any, name: str = "") -> list[tuple[str, float]]:
    """Numbers of a nested record with their paths; strings, booleans and nulls are skipped."""
    parts: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    else:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return [(name, value)] if is_number else []
    return [pair for key, part in parts for pair in _flatten(part, f"{name}/{key}" if name else str(key))]

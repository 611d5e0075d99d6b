"""The metrics of a run: metrics.jsonl and TensorBoard."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mert_foundry.model.runs.scalar_board import ScalarBoard
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
        self._file = open(self.path, "ab", buffering=0)
        self._pending = b""
        self._board = ScalarBoard(run_folder / "tensorboard", step)
        self.fault: str | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record; it needs `kind` and `step`. Nested mappings become `a/b` in TensorBoard.

        What a full disk does not take is kept, and written with the records that follow once it does; `fault` says why
        it was not, or why TensorBoard lacks it.
        """
        self._pending += json.dumps(_finite_or_null(record)).encode() + b"\n"
        self.fault = self._append()
        scalars = {f"{record['kind']}/{name}": value for name, value in _flatten(record) if name != "step"}
        if self.fault is None:
            self.fault = self._board.add(scalars, record["step"])

    def _append(self) -> str | None:
        """Write what is pending; why not all of it could be written."""
        try:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]
        except OSError as error:
            return f"{self.path}: {error.strerror}; {len(self._pending)} bytes of records wait to be written"
        return None

    def holds(self, kind: str, step: int) -> bool:
        """Whether a record was there when the log was opened, and was kept."""
        return (kind, step) in self._held

    def close(self) -> None:
        """Close both files. Raises OSError when records still wait to be written."""
        fault = self._append()
        self._file.close()
        self._board.close()
        if fault is not None:
            raise OSError(fault)


def _forget_after(path: Path, step: int) -> set[tuple[str, int]]:
    """Keep whole lines up to `step`; the last line of a killed run may be cut off.

    Returns kind and step of those kept.
    """
    if not path.exists():
        return set()
    parsed = [(line, _parse(line)) for line in path.read_text().splitlines()]
    kept = [(line, record) for line, record in parsed if record is not None and record["step"] <= step]
    content = "".join(line + "\n" for line, _ in kept).encode()
    if content != path.read_bytes():  # so that a start on a full disk needs no room
        publish_bytes(str(path), content)
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

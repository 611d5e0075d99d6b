"""Documents on disk: their one JSON form, how they are parsed, and digests."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

Model = TypeVar("Model", bound=BaseModel)


class Document(BaseModel):
    """A document on disk, or a part of one: unknown keys are refused, and nothing changes once it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def json_bytes(value: object) -> bytes:
    """The one JSON form of this project: keys sorted, one space of indent, ASCII, newline at the end."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()


def first_error(error: ValidationError) -> str:
    """The first complaint of pydantic in one line: where, and what."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def parse_model(location: str, content: bytes, model: type[Model]) -> Model:
    """Parse JSON into a model. Raises ValueError with the file and the first complaint in one line."""
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(f"{location}: {first_error(error)}") from error


def parse_values(location: str, values: object, model: type[Model]) -> Model:
    """The same for what is parsed already, such as YAML."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{location}: {first_error(error)}") from error


def fingerprint(settings: dict, weights: dict[str, np.ndarray] | None = None) -> str:
    """SHA-256 over settings (canonical JSON) and weights (name, dtype, shape, bytes; by name)."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, weight in sorted((weights or {}).items()):
        array = np.ascontiguousarray(weight)
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str | None:
    """`key value, now it is value` of the first setting, by its dotted key, that differs; None when all are alike."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if inner := first_difference(old, new, f"{prefix}{key}."):
                return inner
        elif old != new:
            return f"{prefix}{key} {old!r}, now it is {new!r}"
    return None


def file_sha256(path: Path) -> str:
    """SHA-256 of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

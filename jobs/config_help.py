"""The keys of a typed config as text for `--help`: made from the models, so it cannot differ from what they do."""

import textwrap
import typing
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from jobs.config import models_in

WIDTH = 110
INDENT = " " * 6


def describe_keys(model: type[BaseModel]) -> str:
    """Every key with its default and description, keys of inner models in dotted form, one below the other."""
    lines = ["keys (in the YAML file, or as key=value behind it):"]
    for key, default, description in _keys(model, ""):
        lines.append(f"  {key}{f' = {default}' if default is not None else '   (required)'}")
        lines += textwrap.wrap(description, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
    return "\n".join(lines)


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str | None, str]]:
    """(dotted key, default as text or None when required, description) of all that is no model itself."""
    for name, field in model.model_fields.items():
        key = prefix + name
        inner = models_in(field.annotation)
        many = typing.get_origin(field.annotation) in (list, dict)
        if not inner or many:
            yield key, _default(field), _sentence(field)
        for alternative in inner:
            kind = alternative.model_fields.get("kind")
            choice = f"({_default(kind) or '|'.join(typing.get_args(kind.annotation))})" if kind else ""
            yield from _keys(alternative, f"{key}{'.N' if many else ''}{choice}.")


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sentence(field: FieldInfo) -> str:
    choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
    description = field.description or ""
    return f"{description}; {' | '.join(map(str, choices))}" if len(choices) > 1 else description

"""Typed configs from YAML, `dotted.key=value` and `--key value`; unknown keys are refused by name."""

import difflib
import fnmatch
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

WIDTH = 110
INDENT = " " * 6

Config = TypeVar("Config", bound=BaseModel)

# Names of before and of now, by config: dotted keys (`*` is any text), or `key=value` for one value of a key. Whoever
# gives an old one is given the new one. Documents that were stored with old names are translated where they are read:
# model/runs/stored_config.py, pipeline/features/older_names.py.
RENAMED = {
    "LabelConfig": {"relabel": "overwrite"},
    "ExtractConfig": {
        "replace": "overwrite",
        "precision=float32": "precision=fp32",
        "precision=bfloat16": "precision=bf16",
        "pooling=mean_deviation": "pooling=mean_std",
    },
    "FitConfig": {"feature": "teacher.feature", "clusters": "teacher.clusters"},
    "PretrainConfig": {"encoder.transformer.*attention.temperature": "learnable_temperature"},
}


ALTERNATIVES = (
    "folder",
    "sets",
)  # tags of a key that takes a text or a list, which pydantic puts into the place of a fault


class UsageError(Exception):
    """Bad usage or config: exit code 2."""


def load_config(model: type[Config], arguments: list[str], first: str | None = None) -> Config:
    """Build a config from `CONFIG.yaml key=value --key value ...`; the file may be left out, later values win.

    `first` names the key that a bare word stands for, such as the folder of `mert suite FOLDER`; without it, and when
    the word ends in .yaml or .yml, the word is the config file.

    Raises:
        UsageError: a file that is not there or not YAML, an argument of another form, a name of before (that of now is
            given), an unknown key (the nearest known one is named), a missing key or a value of the wrong kind.
    """
    arguments = list(_as_settings(model, arguments, first))
    paths = [argument for argument in arguments if "=" not in argument]
    if len(paths) > 1:
        raise UsageError(f"one config file is read, {len(paths)} were given: {' '.join(paths)}")
    values = read_yaml(Path(paths[0])) if paths else {}
    for argument in arguments:
        if "=" in argument:
            key, text = argument.split("=", 1)
            set_value(values, key, text, is_text=_is_text(model, key.split("."), text))
    source = paths[0] if paths else "arguments"
    if old := find_old_names(model, values):
        raise UsageError("\n".join(f"{source}: {line}" for line in old))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError("\n".join(f"{source}: {line}" for line in explain(error, model))) from error


def _as_settings(model: type[BaseModel], arguments: list[str], first: str | None) -> Iterator[str]:
    """The arguments as config files and `key=value`.

    Raises UsageError for an option without value or of no key's name.
    """
    waiting = iter(arguments)
    for argument in waiting:
        if argument.startswith("--"):
            key, equals, value = argument.removeprefix("--").partition("=")
            _check_option(model, key)
            value = value if equals else next(waiting, "")
            if not value or not equals and _is_option_or_setting(model, value):
                raise UsageError(f"--{key} needs a value")
            yield f"{key}={_as_list(model, key, value)}"
        elif first and "=" not in argument and not argument.endswith((".yaml", ".yml")):
            yield f"{first}={argument}"
        else:
            yield argument


def _check_option(model: type[BaseModel], key: str) -> None:
    """Raise UsageError when neither a key of now nor one of before has this name."""
    if key not in model.model_fields and key not in RENAMED.get(model.__name__, {}):
        nearest = difflib.get_close_matches(key, model.model_fields, n=1, cutoff=0.0)
        raise UsageError(f"unknown option --{key}; the nearest known key is {nearest[0]!r}")


def _is_option_or_setting(model: type[BaseModel], word: str) -> bool:
    """Whether a word is the next argument rather than the value of the option before it, such as `runs/rate=3`."""
    key, equals, _ = word.partition("=")
    return word.startswith("--") or bool(equals) and key.partition(".")[0] in model.model_fields


def _as_list(model: type[BaseModel], key: str, value: str) -> str:
    """`a,b` of an option as the YAML list `[a,b]`, where the key takes a list, or null, and nothing else."""
    field = model.model_fields.get(key)
    kinds = {field.annotation} if field is not None else set()
    if field is not None and typing.get_origin(field.annotation) is types.UnionType:
        kinds = set(typing.get_args(field.annotation)) - {types.NoneType}
    is_list = {typing.get_origin(kind) for kind in kinds} in ({list}, {tuple})
    return f"[{value}]" if is_list and not value.startswith("[") else value


def read_yaml(path: Path) -> dict:
    """A YAML mapping. Raises UsageError naming the file."""
    try:
        values = yaml.load(path.read_text(), StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"config {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"config {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"config {path}: a mapping of keys is needed, not {type(values).__name__}")
    return values


class StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, where the standard loader takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.constructor.ConstructorError(None, None, f"key {repeated[0]!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def set_value(values: dict, key: str, text: str, is_text: bool = False) -> None:
    """Set `a.b.0.c` in nested mappings and lists to a YAML value, or to the text itself. Raises UsageError."""
    *parents, last = key.split(".")
    branch = values
    try:
        for parent in parents:
            branch = branch[int(parent)] if isinstance(branch, list) else branch.setdefault(parent, {})
        value = text if is_text else yaml.load(text, StrictLoader)
        branch[int(last) if isinstance(branch, list) else last] = value
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"{key}={text}: there is no such place in the config") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{key}={text}: not a YAML value") from error


def find_old_names(model: type[BaseModel], values: dict) -> list[str]:
    """One line for each key and value of RENAMED that the config holds, with the name of now."""
    lines = []
    for key, value in _leaves(values):
        for pattern, name in RENAMED.get(model.__name__, {}).items():
            if fnmatch.fnmatchcase(f"{key}={value}" if "=" in pattern else key, pattern):
                *parents, _ = key.split(".")
                old = pattern if "=" in pattern else key
                lines.append(f"{old} is now called {name if '=' in pattern else '.'.join([*parents, name])}")
    return lines


def _leaves(values: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """All that is no mapping, by dotted key."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each fault, with the key, the value, and for an unknown key the nearest known one."""
    lines = []
    for fault in error.errors(include_url=False):
        key, beside = _place(fault["loc"], model)
        if fault["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(str(fault["loc"][-1]), beside, n=1, cutoff=0.0)
            lines.append(f"unknown key {key!r}; the nearest known key is {nearest[0]!r}")
        elif fault["type"] == "missing":
            lines.append(f"key {key!r} is missing")
        else:
            shown = f" (got {fault['input']!r})" if key and not isinstance(fault["input"], dict) else ""
            lines.append(f"{key + ': ' if key else ''}{fault['msg'].removeprefix('Value error, ')}{shown}")
    return lines


def _place(location: Sequence[str | int], model: type[BaseModel]) -> tuple[str, list[str]]:
    """The dotted key of a fault, a kind in brackets as `--help` shows it, and the known names beside its last part."""
    key, models, beside = "", [model], [model]
    for part in location:
        beside = models
        if part in ALTERNATIVES and not any(part in inner.model_fields for inner in models):
            continue
        of_kind = [inner for inner in models if part in _kinds(inner)] if len(models) > 1 else []
        key += f"({part})" if of_kind else f".{part}"
        if of_kind:
            models = of_kind
        elif not isinstance(part, int):
            found = [inner.model_fields[part].annotation for inner in models if part in inner.model_fields]
            models = [inner for annotation in found for inner in models_in(annotation)]
    return key.removeprefix("."), [name for inner in beside for name in inner.model_fields]


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    """The values of `kind` by which a model is chosen among others."""
    return typing.get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def known_keys(model: type[BaseModel]) -> list[str]:
    """Names of all fields of a model and of the models within it."""
    names: dict[str, None] = {}
    for name, field in model.model_fields.items():
        names[name] = None
        for inner in models_in(field.annotation):
            names.update(dict.fromkeys(known_keys(inner)))
    return list(names)


def _is_text(model: type[BaseModel], parts: list[str], text: str) -> bool:
    """Whether the key is a plain text such as a path, which must not be read as YAML (` #` would end it).

    Where a key takes a text or a list, `[` begins a list.
    """
    models, annotation = [model], None
    for part in parts:
        if part.isdigit():
            continue
        found = [inner.model_fields[part].annotation for inner in models if part in inner.model_fields]
        if not found:
            return False
        annotation = found[0]
        models = [inner for each in found for inner in models_in(each)]
    return annotation is str or is_text_or_list(annotation) and not text.startswith("[")


def is_text_or_list(annotation: object) -> bool:
    """Whether a key takes a text, or a list instead."""
    bare = [
        each.__origin__ if typing.get_origin(each) is typing.Annotated else each for each in typing.get_args(annotation)
    ]
    return {typing.get_origin(each) or each for each in bare} == {str, list}


def models_in(annotation: object) -> list[type[BaseModel]]:
    """The models an annotation lets in: itself, an alternative, or what a list or mapping holds."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in typing.get_args(annotation) for model in models_in(argument)]


def describe_keys(model: type[BaseModel]) -> str:
    """Every key with its default and description, keys of inner models in dotted form, one below the other."""
    lines = ["keys (in the YAML file, or after it as key=value or --key value):"]
    for key, default, description in list_keys(model):
        lines.append(f"  {key}{f' = {default}' if default is not None else '   (required)'}")
        lines += textwrap.wrap(description, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
    return "\n".join(lines)


def list_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None, str]]:
    """(dotted key, default as text or None when required, description) of all that is no model itself."""
    for name, field in model.model_fields.items():
        key = prefix + name
        inner = models_in(field.annotation)
        many = typing.get_origin(field.annotation) in (list, dict) or is_text_or_list(field.annotation)
        if not inner or many:
            yield key, _default(field), _sentence(field)
        for alternative in inner:
            kind = alternative.model_fields.get("kind")
            choice = f"({_default(kind) or '|'.join(typing.get_args(kind.annotation))})" if kind else ""
            yield from list_keys(alternative, f"{key}{'.N' if many else ''}{choice}.")


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

"""The text of a track: columns of the manifest, from the user's own list of files or the files' tags, made into one
text.
"""

import string
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mert_foundry.pipeline.manifest.rows import Track

SEPARATOR = ", "


class TextColumns(BaseModel):
    """Which columns of the manifest are the text of a track, and how they are joined."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: list[str] = Field(
        min_length=1,
        description="Columns of the manifest's list of files, or tags of the files, such as [title, genre]",
    )
    template: str | None = Field(
        default=None,
        description="How they are joined, such as '{title}. {tags}'; a column that a track lacks is empty there."
        " null: those a track has, with commas",
    )

    @model_validator(mode="after")
    def _check_template(self) -> "TextColumns":
        if self.template is not None and (names := set(_placeholders(self.template))) != set(self.columns):
            raise ValueError(f"template {self.template!r} names {sorted(names)}, columns are {sorted(self.columns)}")
        return self

    def text_of(self, track: Track) -> str:
        """The text of a track; empty when it has none of the columns.

        Raises ValueError naming track and column for a value that is no text, number or list of these.
        """
        values = {name: _as_text(track, name, (track.extra or {}).get(name)) for name in self.columns}
        if not any(values.values()):
            return ""
        if self.template is None:
            return SEPARATOR.join(filter(None, values.values()))
        return self.template.format_map(values).strip()


def check_columns(columns: TextColumns, tracks: Iterable[Track]) -> None:
    """Raise ValueError naming a column that no track has, and those there are."""
    known: set[str] = set()
    for track in tracks:
        known.update(track.extra or {})
    for name in columns.columns:
        if name not in known:
            found = (
                ", ".join(sorted(known))
                or "none; mert manifest takes them from files=LIST.csv, or from the files' tags=[title, artist]"
            )
            raise ValueError(f"no track has a column {name!r}; columns are {found}")


def _placeholders(template: str) -> list[str]:
    """Names in braces. Raises ValueError for what is no plain `{name}`."""
    names = []
    for _, name, form, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if form or conversion or not name.isidentifier():
            raise ValueError(f"template {template!r}: only a plain {{column}} may stand in braces")
        names.append(name)
    return names


def _as_text(track: Track, column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return SEPARATOR.join(filter(None, (_as_text(track, column, item) for item in value)))
    if not isinstance(value, str | int | float):
        raise ValueError(f"track {track.key} ({track.path}): column {column} is {value!r}, which is no text")
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"track {track.key} ({track.path}): column {column} is {value!r}, no UTF-8") from error
    return text

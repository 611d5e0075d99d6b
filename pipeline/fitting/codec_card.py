"""The model card of a codec: data, settings, reconstruction of held-out music, use of every codebook."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mert_foundry.pipeline.frames import SAMPLE_RATE
from mert_foundry.pipeline.manifest.rows import Track

TEMPLATE = "codec_card.md.jinja"


@dataclass(frozen=True)
class Sample:
    """Tracks of one split and their audio, int16 `[T]` each, 24 kHz."""

    tracks: list[Track]
    audio: list[np.ndarray]

    @property
    def hours(self) -> float:
        """Hours of audio."""
        return sum(map(len, self.audio)) / SAMPLE_RATE / 3600

    @property
    def folders(self) -> list[str]:
        """The folders right below the root that the tracks come from, sorted."""
        return sorted({track.path.split("/")[0] for track in self.tracks})


def render_card(
    settings: Mapping[str, Any], trained: Mapping[str, Any], untrained: Mapping[str, Any], train: Sample, valid: Sample
) -> str:
    """Markdown.

    `settings`: of the training; `trained`, `untrained`: what `evaluate_codec` says of the codec after and before.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["zip"] = zip
    return environment.get_template(TEMPLATE).render(
        settings=settings, trained=trained, untrained=untrained, train=train, valid=valid
    )

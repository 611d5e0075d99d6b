"""Hidden states of windows, as they come, into the rows of a part: every frame, or pooled over a track."""

from typing import Protocol

import numpy as np
from torch import Tensor

from mert_foundry.pipeline.features.plan import Part, StoreLayout, TrackSpan


class PartRows(Protocol):
    """Takes the states of a part's spans, in any order of spans, and gives the part's arrays."""

    def add(self, span: TrackSpan, first_frame: int, states: Tensor) -> None:
        """Frames of the span's track from `first_frame` on: float32 `[n, layers, dim]` on any device, none twice."""
        ...

    def finish(self) -> dict[str, np.ndarray]:
        """The arrays by name; rows that got nothing are NaN."""
        ...


def part_rows(part: Part, layout: StoreLayout) -> PartRows:
    """Rows of frames or pooled rows, as the layout says."""
    return FrameRows(part, layout) if layout.row == "frame" else PooledRows(part, layout)


class FrameRows:
    """Every frame is a row; frames of the track outside the span are ignored."""

    def __init__(self, part: Part, layout: StoreLayout):
        self._arrays = layout.empty_part(part.rows)
        (self._values,) = self._arrays.values()

    def add(self, span: TrackSpan, first_frame: int, states: Tensor) -> None:
        assert span.stop is not None  # where every frame has a row, lengths are known
        skipped = max(0, span.start - first_frame)
        kept = states[skipped : span.stop - first_frame].cpu().numpy()
        row = span.row + first_frame + skipped - span.start
        self._values[row : row + len(kept)] = stored(kept, self._values.dtype, span.track.key)

    def finish(self) -> dict[str, np.ndarray]:
        return self._arrays


class PooledRows:
    """A track is a row: mean and, where the layout has it, standard deviation over its frames, summed in float64 on the
    device of the states.
    """

    def __init__(self, part: Part, layout: StoreLayout):
        self._part = part
        self._layout = layout
        shape = (part.rows, len(layout.layers), layout.width)
        self._sums, self._squares = np.zeros(shape), np.zeros(shape)
        self._counts = np.zeros((part.rows, 1, 1))

    def add(self, span: TrackSpan, first_frame: int, states: Tensor) -> None:
        states = states.double()
        self._sums[span.row] += states.sum(dim=0).cpu().numpy()
        self._squares[span.row] += states.square().sum(dim=0).cpu().numpy()
        self._counts[span.row] += len(states)

    def finish(self) -> dict[str, np.ndarray]:
        with np.errstate(invalid="ignore"):  # 0 / 0 of a track without frames
            mean = self._sums / self._counts
            std = np.sqrt(np.maximum(self._squares / self._counts - np.square(mean), 0.0))
        # Stores of version 0.1 call the second array `deviation`.
        pooled = {"mean": mean, "std": std, "deviation": std}
        arrays = self._layout.empty_part(self._part.rows)
        for span in self._part.spans:
            for name, values in arrays.items():
                if self._counts[span.row]:
                    values[span.row] = stored(pooled[name][span.row], values.dtype, span.track.key)
        return arrays


def stored(values: np.ndarray, dtype: np.dtype, key: str) -> np.ndarray:
    """Values in the type of the store. Raises ValueError when one is not finite, or too large for it."""
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if not np.isfinite(cast).all():
        largest = np.abs(values).max()
        if np.isfinite(largest):
            raise ValueError(
                f"{key}: a feature of {largest:.6g}, {dtype} ends at {np.finfo(dtype).max:.6g}; use dtype=float32"
            )
        raise ValueError(f"{key}: the model gives features that are not finite")
    return cast

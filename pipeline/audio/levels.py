"""How loud a track is, as it will be stored, and how much of it clips; measured as the blocks pass."""

from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.filter import Graph

from mert_foundry.pipeline.audio.blocks import peak_of, to_dbfs
from mert_foundry.pipeline.frames import SAMPLE_RATE

OVERSHOOT = 10 ** (1 / 20)  # decoders of loud music go beyond full scale by less than this
GATE_LUFS = -70.0  # of ITU-R BS.1770; ffmpeg gives this for audio that is nowhere louder


class Levels:
    """Peak, loudness and clipped share of a track."""

    def __init__(self) -> None:
        self._clipped = self._mixed = self._peak = self._stored = 0
        self._loudness = GATE_LUFS
        self._graph = Graph()
        self._source = self._graph.add_abuffer(sample_rate=SAMPLE_RATE, format="s16", layout="mono")
        meter = self._graph.add("ebur128", "metadata=1")
        self._sink = self._graph.add("abuffersink")
        self._source.link_to(meter)
        meter.link_to(self._sink)
        self._graph.configure()

    def follow_mix(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass the mono mix `[n]` through at the file's own rate, counting samples beyond full scale by
        more than 1 dB.
        """
        for block in blocks:
            self._clipped += int(np.count_nonzero(np.abs(block) > OVERSHOOT))
            self._mixed += len(block)
            yield block

    def follow_stored(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass int16 blocks `[n]`, 24 kHz, through."""
        for block in blocks:
            if len(block):
                self._peak = max(self._peak, peak_of(block))
                self._measure(block)
            yield block

    @property
    def peak_dbfs(self) -> float:
        """The highest sample that is stored, dB full scale; -200 for digital silence."""
        return to_dbfs(self._peak)

    @property
    def clipped_share(self) -> float:
        """Share of the mono mix's samples more than 1 dB beyond full scale, before it is resampled."""
        return self._clipped / max(1, self._mixed)

    def loudness_lufs(self) -> float | None:
        """Integrated loudness (EBU R 128, ITU-R BS.1770) of all that passed; None where nothing is above -70 LUFS."""
        self._source.push(None)
        self._take()
        return self._loudness if self._loudness > GATE_LUFS else None

    def _measure(self, block: np.ndarray) -> None:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block[None], np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, self._stored
        self._stored += len(block)
        self._source.push(frame)
        self._take()

    def _take(self) -> None:
        while True:
            try:
                metadata = self._sink.pull().metadata
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            self._loudness = float(
                metadata.get("lavfi.r128.I", self._loudness)
            )  # the last frame may be too short for one

"""The mono mix of a track shifted in pitch, at its own tempo, in a stream.

Sound that is played f times as fast is f times as high and 1/f as long. So the mix is first stretched to f times its
length at its own pitch, by ffmpeg's `atempo` (overlap-add of similar waveforms, WSOLA: Verhelst and Roelands, ICASSP
1993). The result is then taken for audio of f times its rate, and resampled to 24 kHz, as audio that is to be stored is
anyway. So a shift down brings what the file has above 12 kHz into the band, and no other filter is needed.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import cast

import av
import numpy as np
from av.filter import Graph
from av.filter.context import FilterContext

from mert_foundry.pipeline.audio.blocks import fixed_blocks
from mert_foundry.pipeline.audio.resample import mono_to_int16
from mert_foundry.pipeline.frames import nearest_rate, resampled_length

# Of the resampling filters of one rate and shift: 8 MB. The rate with so few is within 2 cents of the one meant, for
# files of 16 kHz and more.
MOST_TAPS = 1 << 18
# `atempo` is given blocks of one size, however the file was decoded: after small first blocks its first samples are
# others.
BLOCK_SAMPLES = 1 << 16
WINDOWS_AFTER = 4  # of silence after the end, by which `atempo` gives all that comes before


def shift_to_int16(
    mono: Iterable[np.ndarray], source_rate: int, semitones: int, device: str = "cpu"
) -> Iterator[np.ndarray]:
    """The mono mix of a track, float32 blocks `[n]` of any sizes, shifted in pitch, to int16 blocks `[n]` at 24 kHz.

    As many samples as `mono_to_int16` gives, and the same for blocks of any sizes.

    Args:
        semitones: of equal temperament, up where positive; magnitude at most 11.
    """
    source_rate = nearest_rate(source_rate)  # as which it is resampled without a shift
    rate = nearest_rate(round(source_rate * 2 ** (semitones / 12)), most_taps=MOST_TAPS)
    heard, given = _Count(), 0
    stretched = stretch(heard.follow(mono), source_rate, rate / source_rate)
    for block in mono_to_int16(stretched, rate, device=device):
        # Until the end a stretched signal is behind the one heard, so this cuts only what the silence after it became.
        yield block[: resampled_length(heard.num_samples, source_rate) - given]
        given += len(block)
    assert given >= resampled_length(heard.num_samples, source_rate), "the silence after the end was too short"


def stretch(mono: Iterable[np.ndarray], sample_rate: int, factor: float) -> Iterator[np.ndarray]:
    """Blocks `[n]` of any sizes to blocks that last `factor` times as long, of the same pitch; more than 0.5, at most
    2.

    What is at a time t is at `factor` * t, give or take half a window. Some silence follows the end.
    """
    window = _window(sample_rate)
    # The first output is what lies half a window after the first input, so half a window of silence comes first.
    before, after = (np.zeros(length, np.float32) for length in (window // 2, WINDOWS_AFTER * window))
    graph = Graph()
    source = graph.add_abuffer(sample_rate=sample_rate, format="flt", layout="mono")
    tempo, sink = graph.add("atempo", repr(1 / factor)), graph.add("abuffersink")
    source.link_to(tempo)
    tempo.link_to(sink)
    graph.configure()
    pushed = 0
    for block in fixed_blocks(chain([before], mono, [after]), BLOCK_SAMPLES):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block[None], np.float32), format="flt", layout="mono")
        frame.sample_rate, frame.pts = sample_rate, pushed
        pushed += len(block)
        source.push(frame)
        yield from _pull(sink)
    source.push(None)
    yield from _pull(sink)


def _pull(sink: FilterContext) -> Iterator[np.ndarray]:
    """What a filter graph gives of what it has got."""
    while True:
        try:
            frame = cast(av.AudioFrame, sink.pull())
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        yield frame.to_ndarray()[0]


def _window(sample_rate: int) -> int:
    """Samples of the windows of `atempo`: the power of two from a 24th of a second on (libavfilter/af_atempo.c)."""
    return 1 << (sample_rate // 24 - 1).bit_length()


class _Count:
    """Samples that have passed."""

    num_samples = 0

    def follow(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            self.num_samples += len(block)
            yield block

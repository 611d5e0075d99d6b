"""Landmarks of a recording: pairs of spectral peaks, hashed (Wang, An industrial-strength audio search algorithm, ISMIR
2003).

A peak is the loudest point of its neighbourhood in a spectrogram. Codecs keep it, a gain moves none, and trimming moves
all by the same time. A pair is hashed from the pitch of its first peak, the step in pitch and the step in time, so a
hash says nothing about when it is, and the same music gives the same hashes at another time.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from mert_foundry.pipeline.audio.blocks import recut
from mert_foundry.pipeline.frames import SAMPLE_RATE

WINDOW, STEP = 2048, 512  # samples of a spectrum, and from one to the next
FRAMES_PER_SECOND = SAMPLE_RATE / STEP
LOWEST_BIN, HIGHEST_BIN = 26, 342  # 305 to 4,000 Hz: what small loudspeakers and poor codecs keep
REACH_FRAMES, REACH_BINS = 10, 15  # half of a neighbourhood: 0.21 s, 176 Hz
QUIETEST = 40.0  # magnitude of a peak in units of a 16-bit sample: a sine at -90 dBFS has 512
BELOW_LOUDEST = 1e-3  # a peak may be 60 dB below the loudest of the frames in its reach
PARTNERS = 4  # pairs that a peak begins
NEXT_PEAKS = 32  # among which its partners are looked for
LONGEST_STEP, WIDEST_STEP = 63, 63  # of a pair, in frames and bins
SHORTEST_STEP = 2  # frames: peaks of one moment tell little
CHUNK_FRAMES = 1024  # 22 s worked on at a time

Landmarks = tuple[np.ndarray, np.ndarray]  # hashes, uint32 `[n]`, and the frames of their first peaks, int32 `[n]`


def landmarks(blocks: Iterable[np.ndarray]) -> Iterator[Landmarks]:
    """Landmarks of mono audio at 24 kHz, int16 blocks `[n]` of any sizes; memory is bounded for any length.

    Yields hashes in the order of their frames. How the audio is cut into blocks changes nothing.
    """
    frames, bins = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for known, more_frames, more_bins in _peaks(blocks):
        frames, bins = np.concatenate([frames, more_frames]), np.concatenate([bins, more_bins])
        # Whose partners are all known: those up to the longest step before the last known frame.
        ready = int(np.searchsorted(frames, known - LONGEST_STEP))
        yield _pairs(frames, bins, ready)
        frames, bins = frames[ready:], bins[ready:]
    yield _pairs(frames, bins, len(frames))


def thin_out(found: Landmarks, most: int) -> Landmarks:
    """About `most` landmarks of a stretch that has more: those whose hash a divisor divides, so the same ones of every
    copy.
    """
    hashes, frames = found
    divisor = -(-len(hashes) // most)
    if divisor <= 1:
        return found
    # Bits of all three numbers of a hash, mixed: Knuth's multiplicative hashing.
    kept = (hashes * np.uint32(2_654_435_761) >> np.uint32(16)) % np.uint32(divisor) == 0
    return hashes[kept], frames[kept]


def _pairs(frames: np.ndarray, bins: np.ndarray, count: int) -> Landmarks:
    """Landmarks that begin at the first `count` of the peaks."""
    if not count:
        return np.zeros(0, np.uint32), np.zeros(0, np.int32)
    later = np.arange(count)[:, None] + np.arange(1, NEXT_PEAKS + 1)
    is_there = later < len(frames)
    later = np.minimum(later, len(frames) - 1)
    steps, rises = frames[later] - frames[:count, None], bins[later] - bins[:count, None]
    fits = is_there & (steps >= SHORTEST_STEP) & (steps <= LONGEST_STEP) & (np.abs(rises) <= WIDEST_STEP)
    fits &= np.cumsum(fits, axis=1) <= PARTNERS
    first, _ = np.nonzero(fits)
    # 9 bits of pitch, 7 of its step, 6 of time.
    hashes = (bins[first] << 13) | ((rises[fits] + WIDEST_STEP) << 6) | steps[fits]
    return hashes.astype(np.uint32), frames[first].astype(np.int32)


def _peaks(blocks: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Peaks chunk by chunk: the frame before which all are known, frames and bins (from the lowest) in their order."""
    held = torch.zeros(0, HIGHEST_BIN - LOWEST_BIN)
    first = 0  # frame of held[0]
    for spectra, is_last in _with_last(_spectra(blocks)):
        held = torch.cat([held, spectra])
        # A frame is settled when all of its neighbourhood is there.
        start = REACH_FRAMES if first else 0
        stop = len(held) - (0 if is_last else REACH_FRAMES)
        if stop > start:
            frames, bins = _loudest(held, start, stop)
            yield first + stop, frames + first, bins
            kept = max(0, stop - REACH_FRAMES)
            held, first = held[kept:], first + kept


def _loudest(magnitudes: torch.Tensor, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames and bins of the peaks of `[frames, bins]`, of frames in [start, stop)."""
    pool = torch.nn.functional.max_pool2d
    # One direction after the other gives the same maximum, many times faster.
    around = pool(magnitudes[None], (2 * REACH_FRAMES + 1, 1), stride=1, padding=(REACH_FRAMES, 0))
    around = pool(around, (1, 2 * REACH_BINS + 1), stride=1, padding=(0, REACH_BINS))[0]
    loudest = around.amax(dim=1, keepdim=True)
    is_peak = (magnitudes == around) & (magnitudes > QUIETEST) & (magnitudes > BELOW_LOUDEST * loudest)
    frames, bins = is_peak[start:stop].nonzero(as_tuple=True)
    return frames.numpy() + start, bins.numpy()


def _spectra(blocks: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
    """Magnitudes `[frames, bins]` of all whole windows."""
    window = torch.hann_window(WINDOW)
    tail = np.zeros(0, np.int16)
    for block in recut(blocks, iter(lambda: CHUNK_FRAMES * STEP, None)):
        samples = np.concatenate([tail, block])
        count = max(0, (len(samples) - WINDOW) // STEP + 1)
        if count:
            frames = torch.from_numpy(samples.astype(np.float32)).unfold(0, WINDOW, STEP)[:count]
            yield torch.fft.rfft(frames * window)[:, LOWEST_BIN:HIGHEST_BIN].abs()
        tail = samples[count * STEP :]


def _with_last(spectra: Iterator[torch.Tensor]) -> Iterator[tuple[torch.Tensor, bool]]:
    """Each with whether it is the last."""
    before = next(spectra, None)
    while before is not None:
        after = next(spectra, None)
        yield before, after is None
        before = after

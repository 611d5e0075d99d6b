"""Room, noise, loudness and codec of every clip after it is rendered, so that neither level nor codec
tells the label.
"""

import io
from dataclasses import dataclass

import numpy as np
import pyloudnorm
import soundfile
from scipy.signal import fftconvolve

from mert_foundry.pipeline.frames import SAMPLE_RATE

LOUDNESS_LUFS = -23.0
LOUDNESS_SPREAD = 3.0
PEAK = 0.98
SILENT_PEAK = 1e-6
FADE_SECONDS = 0.01
# (container, subtype, compression level of libsndfile from 0 to 1) of a pass through a lossy codec.
CODECS = (
    ("MP3", "MPEG_LAYER_III", 0.5),
    ("MP3", "MPEG_LAYER_III", 0.9),
    ("OGG", "VORBIS", 0.7),
    ("OGG", "VORBIS", 1.0),
    ("OGG", "OPUS", 0.8),
)


@dataclass(frozen=True)
class Finish:
    """How a clip is finished.

    reverberation: share of the clips that stand in a synthetic room. noise_db: range of the signal-to-noise ratio; None
    adds no noise. codec_share: share of the clips that pass a random codec.
    """

    reverberation: float = 0.0
    noise_db: tuple[float, float] | None = None
    codec_share: float = 1 / 3


CLEAN = Finish()
ROOM = Finish(reverberation=0.5, noise_db=(10.0, 30.0))
NOISY = Finish(reverberation=0.8, noise_db=(3.0, 20.0))
REAL = Finish(codec_share=1.0)


def finish(audio: np.ndarray, how: Finish, random: np.random.Generator) -> np.ndarray:
    """Room, noise, loudness, fades and codec; float32 `[T]` to `[T]` at 24 kHz.

    Raises:
        ValueError: the audio is silent, so it has no loudness.
    """
    if random.random() < how.reverberation:
        audio = reverberate(audio, random)
    if how.noise_db is not None:
        audio = add_noise(audio, random.uniform(*how.noise_db), random)
    audio = fade(set_loudness(audio, random.uniform(-LOUDNESS_SPREAD, LOUDNESS_SPREAD) + LOUDNESS_LUFS))
    if random.random() < how.codec_share:
        audio = pass_codec(audio, *CODECS[random.integers(len(CODECS))])
    return audio


def reverberate(audio: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Add the sound of a room: noise that decays by 60 dB in 0.3 to 1.5 s, 0 to 12 dB below the direct sound."""
    seconds = random.uniform(0.3, 1.5)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    response = random.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    wet = fftconvolve(audio, response)[: len(audio)]
    return (audio + wet * _ratio(audio, wet) * 10 ** (-random.uniform(0.0, 12.0) / 20)).astype(np.float32)


def add_noise(audio: np.ndarray, ratio_db: float, random: np.random.Generator) -> np.ndarray:
    """Add noise whose spectrum falls by 0 to 6 dB an octave, at a signal-to-noise ratio in dB."""
    spectrum = np.fft.rfft(random.standard_normal(len(audio)))
    frequency = np.maximum(np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE), 20.0)
    noise = np.fft.irfft(spectrum * frequency ** -random.uniform(0.0, 1.0), len(audio))
    return (audio + noise * _ratio(audio, noise) * 10 ** (-ratio_db / 20)).astype(np.float32)


def mix(foreground: np.ndarray, background: np.ndarray, ratio_db: float) -> np.ndarray:
    """Add a background whose energy lies `ratio_db` below that of the foreground."""
    return (foreground + background * _ratio(foreground, background) * 10 ** (-ratio_db / 20)).astype(np.float32)


def _ratio(audio: np.ndarray, other: np.ndarray) -> float:
    """The gain that gives `other` the energy of `audio`; 0 for silence."""
    energy = float(np.square(other, dtype=np.float64).mean())
    return float(np.sqrt(np.square(audio, dtype=np.float64).mean() / energy)) if energy else 0.0


def set_loudness(audio: np.ndarray, lufs: float) -> np.ndarray:
    """Scale to a loudness (ITU-R BS.1770), less where a peak would pass full scale. Raises ValueError for silence."""
    peak = float(np.abs(audio).max())
    if peak < SILENT_PEAK:
        raise ValueError(f"a clip of {len(audio)} samples is silent")
    even = audio.astype(np.float64) / peak  # the meter ignores everything below -70 LUFS
    loudness = pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(even)
    scaled = even * 10 ** ((lufs - loudness) / 20)
    return (scaled * min(1.0, PEAK / np.abs(scaled).max())).astype(np.float32)


def fade(audio: np.ndarray) -> np.ndarray:
    """Fade in and out over 10 ms."""
    ramp = np.linspace(0, 1, round(FADE_SECONDS * SAMPLE_RATE), dtype=np.float32)
    faded = audio.copy()
    faded[: len(ramp)] *= ramp
    faded[-len(ramp) :] *= ramp[::-1]
    return faded


def encode(file: soundfile.SoundFile, samples: np.ndarray) -> None:
    """Write samples `[T]` second by second: libsndfile's stack overflows on long blocks of Vorbis."""
    for start in range(0, len(samples), SAMPLE_RATE):
        file.write(samples[start : start + SAMPLE_RATE])


def pass_codec(audio: np.ndarray, container: str, subtype: str, compression: float) -> np.ndarray:
    """Encode and decode, at the same length."""
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", SAMPLE_RATE, 1, subtype, format=container, compression_level=compression
    ) as encoder:
        encode(encoder, audio)
    file.seek(0)
    decoded = soundfile.read(file, dtype="float32")[0]
    return np.pad(decoded, (0, max(0, len(audio) - len(decoded))))[: len(audio)]

"""A track's audio at another rate than the 24 kHz at which tracks are decoded and stored."""

from pipeline.frames import SAMPLE_RATE
from pipeline.resample import resample_to_int16
from pipeline.shard_tracks import SegmentedAudio
from pipeline.track_audio import TrackAudio


def audio_at(audio: TrackAudio | SegmentedAudio, sample_rate: int) -> TrackAudio:
    """Resample a track, Hz, cut to multiples of 320 samples; the audio given is closed."""
    with audio:
        return TrackAudio(resample_to_int16((block[None] for block in audio.blocks()), SAMPLE_RATE, sample_rate))

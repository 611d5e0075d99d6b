"""A track's audio at another rate than the 24 kHz at which tracks are decoded and stored."""

from mert_foundry.pipeline.audio.resample import resample_to_int16
from mert_foundry.pipeline.audio.track_audio import TrackAudio
from mert_foundry.pipeline.features.shard_tracks import SegmentedAudio
from mert_foundry.pipeline.frames import SAMPLE_RATE


def audio_at(audio: TrackAudio | SegmentedAudio, sample_rate: int) -> TrackAudio:
    """Resample a track, Hz, cut to multiples of 320 samples; the audio given is closed."""
    with audio:
        return TrackAudio(resample_to_int16((block[None] for block in audio.blocks()), SAMPLE_RATE, sample_rate))

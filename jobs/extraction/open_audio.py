"""The audio of an input's tracks, opened: of shards, a manifest, a folder or a table, at the model's rate; of text
alone the tokens.
"""

from typing import Literal, Protocol

import numpy as np

from mert_foundry.pipeline.audio.track_audio import TrackAudio
from mert_foundry.pipeline.features.plan import ClipPlace, SourceTrack
from mert_foundry.pipeline.features.shard_tracks import SegmentedAudio, ShardTracks
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE

InputKind = Literal["shards", "documents", "manifest", "folder", "table"]  # documents: shards of text alone


class TrackOpener(Protocol):
    """Opens the tracks of an input."""

    def open(self, track: SourceTrack) -> TrackAudio | SegmentedAudio:
        """The audio of a track at 24 kHz."""
        ...


def open_tracks(kind: InputKind, audio: str) -> TrackOpener:
    """What opens the tracks of an input of a kind; `audio` is the shard folder, or the root of the files."""
    if kind in ("shards", "documents"):
        return ShardTracks(audio)
    # Only here are decoders of audio files needed.
    from mert_foundry.pipeline.features.clip_tracks import ClipTracks
    from mert_foundry.pipeline.features.file_tracks import FileTracks

    return ClipTracks(audio) if kind == "table" else FileTracks(audio)


class OpenAudio:
    """The audio of a track, or of the file that it is a stretch of, at a rate; a context manager that closes it.

    Args:
        audio: at 24 kHz; it is closed with this.
        sample_rate: Hz.
    """

    def __init__(self, audio: TrackAudio | SegmentedAudio, sample_rate: int):
        self.sample_rate = sample_rate
        if sample_rate != SAMPLE_RATE:
            # Resampling comes with the decoders of the `label` extra, which shards at 24 kHz do without.
            from mert_foundry.pipeline.audio.track_audio import audio_at

            audio = audio_at(audio, sample_rate)
        self._audio = audio

    def __enter__(self) -> "OpenAudio":
        return self

    def __exit__(self, *exception: object) -> None:
        self._audio.__exit__(*exception)

    def stretch(self, track: SourceTrack) -> tuple[int, int]:
        """First sample of the track in this audio, and its samples, cut to whole hops of 320 and to what is there."""
        if isinstance(track.place, ClipPlace):
            assert isinstance(self._audio, TrackAudio)
            there = self._audio.num_frames * HOP
            count = track.place.num_samples(self.sample_rate, there)
            assert count is not None
            return track.place.first_sample(self.sample_rate), count
        count = track.samples_at(self.sample_rate)
        assert count is not None  # a manifest and shards know it
        return 0, count

    def read(self, start: int, count: int) -> np.ndarray:
        """int16 samples [start, start + count), as many of them as there are; of a document its tokens, uint16, one for
        320.
        """
        samples: np.ndarray = self._audio.read(start, count)
        return samples

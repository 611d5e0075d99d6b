"""One part of a feature store, from audio to published shards; knows neither Ray nor torchrun."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.jobs.extraction.batches import (
    HELD_BATCHES,
    WindowAudio,
    batches_of_like_length,
    made_ahead,
    padded,
)
from mert_foundry.jobs.extraction.memory import keep_memory
from mert_foundry.jobs.extraction.models import model_fingerprint, open_model
from mert_foundry.jobs.extraction.open_audio import InputKind, OpenAudio, open_tracks
from mert_foundry.model.features.feature_model import Precision
from mert_foundry.model.features.windows import Window, plan_windows
from mert_foundry.pipeline.audio.blocks import to_float
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.read_ahead import read_ahead
from mert_foundry.pipeline.features.plan import Part, SourceTrack, StoreLayout, TrackSpan
from mert_foundry.pipeline.features.rows import PartRows, part_rows
from mert_foundry.pipeline.features.store import publish_part
from mert_foundry.pipeline.frames import HOP


class ExtractionOrder(BaseModel):
    """What a worker must know besides its parts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="Folder of the encoder, or name of a baseline")
    model_fingerprint: str = Field(description="What it was when the work was planned")
    audio: str = Field(description="Shard folder, or root of the files")
    kind: InputKind = Field(description="What the input is")
    out: str = Field(description="Feature store")
    layout: StoreLayout = Field(description="Its arrays")
    digest: str = Field(description="Digest of its description")
    window_frames: int = Field(gt=0, description="Frames of a window")
    overlap_frames: int = Field(ge=0, description="Frames that two windows share")
    batch_samples: int = Field(gt=0, description="Samples that are encoded together; at least one window")
    precision: Precision = Field(description="Arithmetic of the encoder")
    decode_threads: int = Field(gt=0, description="Threads that read ahead")


@dataclass
class TrackFindings:
    """What decoding a part's tracks shows.

    dropped: tracks that cannot be used, by key, with the reason. samples: of tracks whose length at the model's rate
    was not known, or another one.
    """

    dropped: dict[str, str] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)


class PartExtractor:
    """Holds the model of one process and does one part at a time.

    Raises ValueError when the model is not the one the work was planned for.
    """

    def __init__(self, order: ExtractionOrder, device: str):
        # With another number of threads sums have another order, so the bytes would differ.
        torch.set_num_threads(1)
        self.order = order
        self.device = torch.device(device)
        if self.device.type == "cpu":
            keep_memory()
        self.model = open_model(order.model, self.device, order.precision, order.layout.layers)
        found = model_fingerprint(self.model)
        if found != order.model_fingerprint:
            raise ValueError(f"{order.model}: fingerprint {found}, the work was planned for {order.model_fingerprint}")
        self.tracks = open_tracks(order.kind, order.audio)
        self.per_entry = HOP if order.kind == "documents" else 1  # samples that an entry of what is read stands for
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else device
        self.backend = {"device": name, "torch": str(torch.__version__)}
        self.seconds = 0.0

    def run(self, part: Part, report: Callable[[float], None] = lambda seconds: None) -> dict[str, str]:
        """Compute and publish a part; returns the tracks it had to drop, with the reason.

        `report` is called with the audio seconds of each batch.

        Raises:
            OSError: audio or store cannot be reached.
            ValueError: a damaged shard, or features that the store's type cannot hold.
        """
        self.seconds = 0.0
        rows, found = part_rows(part, self.order.layout), TrackFindings()
        batches = batches_of_like_length(self._windows(part, found), self.order.batch_samples // self.per_entry)
        for batch in made_ahead(batches, HELD_BATCHES):
            self._encode(batch, rows)
            seconds = sum(self._kept_seconds(item) for item in batch)
            self.seconds += seconds
            report(seconds)
        publish_part(
            self.order.out,
            self.order.layout,
            part.number,
            rows.finish(),
            digest=self.order.digest,
            dropped=found.dropped,
            backend=self.backend,
            samples=found.samples,
        )
        self.seconds = 0.0
        return found.dropped

    def seconds_done(self) -> float:
        """Audio seconds done of the part at work."""
        return self.seconds

    def _encode(self, batch: list[WindowAudio], rows: PartRows) -> None:
        samples, lengths = padded(batch)
        inputs = to_float(samples) if self.per_entry == 1 else samples.astype(np.int64)
        states = self.model.encode(torch.from_numpy(inputs), lengths)
        for (span, window, _), own in zip(batch, states):
            first, stop = window.keep_start - window.start_frame, window.keep_stop - window.start_frame
            rows.add(span, window.keep_start, own[first:stop])

    def _windows(self, part: Part, found: TrackFindings) -> Iterator[WindowAudio]:
        """The windows of a part. A file is decoded once for all spans of it, short files first."""
        by_source: dict[str, list[TrackSpan]] = {}
        for span in part.spans:
            by_source.setdefault(span.track.source, []).append(span)
        rate = self.model.sample_rate
        sources = sorted(by_source.values(), key=lambda spans: spans[0].track.samples_at(rate) or 0)
        opened = read_ahead(sources, lambda spans: self._open(spans[0].track), self.order.decode_threads)
        for spans, audio in opened:
            if isinstance(audio, DecodeError):
                found.dropped |= {span.track.key: str(audio) for span in spans}
                continue
            with audio:
                for span in spans:
                    yield from self._windows_of(span, audio, found)

    def _windows_of(self, span: TrackSpan, audio: OpenAudio, found: TrackFindings) -> Iterator[WindowAudio]:
        """The windows of the track that give frames of the span, from the track's audio or that of its file."""
        planned = span.track.samples_at(self.model.sample_rate)
        first, count = audio.stretch(span.track)
        if count != planned:
            found.samples[span.track.key] = count
        windows = plan_windows(count, self.model.geometry, self.order.window_frames, self.order.overlap_frames)
        if not windows:
            found.dropped[span.track.key] = f"too_short: {count} samples are there, too few for a frame of the model"
        for window in windows:
            if not (span.start < window.keep_stop and (span.stop is None or window.keep_start < span.stop)):
                continue
            samples = audio.read(first + window.start_sample, window.num_samples)
            if len(samples) != window.num_samples // self.per_entry:
                raise ValueError(f"{span.track.key}: shorter than the {planned} samples it was planned with")
            yield WindowAudio(span, window, samples)

    def _kept_seconds(self, item: WindowAudio) -> float:
        window: Window = item.window
        stop = window.keep_stop if item.span.stop is None else min(window.keep_stop, item.span.stop)
        frames = max(0, stop - max(window.keep_start, item.span.start))
        return frames * self.model.geometry.hop / self.model.sample_rate

    def _open(self, track: SourceTrack) -> OpenAudio | DecodeError:
        try:
            return OpenAudio(self.tracks.open(track), self.model.sample_rate)
        except DecodeError as error:
            return error

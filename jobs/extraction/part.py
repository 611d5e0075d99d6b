"""One part of a feature store, from audio to published shards; knows neither Ray nor torchrun."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.model.features.feature_encoder import FeatureEncoder, Precision
from mert_foundry.model.features.windows import Window, plan_windows
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.pcm import to_float
from mert_foundry.pipeline.audio.read_ahead import read_ahead
from mert_foundry.pipeline.features.plan import Part, Piece, SourceTrack, StoreLayout
from mert_foundry.pipeline.features.rows import part_rows
from mert_foundry.pipeline.features.shard_tracks import ShardTracks
from mert_foundry.pipeline.features.store import publish_part
from mert_foundry.pipeline.frames import SAMPLE_RATE
from mert_foundry.pipeline.storage.documents import fingerprint


class WorkOrder(BaseModel):
    """What a worker must know besides its parts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="Folder of the encoder")
    model_fingerprint: str = Field(description="What the folder held when the work was planned")
    audio: str = Field(description="Shard folder, or root of the files")
    from_shards: bool = Field(description="Which of the two `audio` is")
    out: str = Field(description="Feature store")
    layout: StoreLayout = Field(description="Its arrays")
    digest: str = Field(description="Digest of its description")
    window_frames: int = Field(gt=0, description="Frames of a window")
    overlap_frames: int = Field(ge=0, description="Frames that two windows share")
    batch_samples: int = Field(gt=0, description="Samples that are encoded together; at least one window")
    precision: Precision = Field(description="Arithmetic of the encoder")
    decode_threads: int = Field(gt=0, description="Threads that read ahead")


class _Item(NamedTuple):
    """A window to encode: audio int16 `[num_samples]`."""

    piece: Piece
    window: Window
    audio: np.ndarray


class PartExtractor:
    """Holds the encoder of one process and does one part at a time.

    Raises ValueError when the model is not the one the work was planned for.
    """

    def __init__(self, order: WorkOrder, device: str):
        # Another number of threads would add in another order, and so write other bytes.
        torch.set_num_threads(1)
        self.order = order
        self.encoder = FeatureEncoder(Path(order.model), torch.device(device), order.precision, order.layout.layers)
        found = model_fingerprint(self.encoder)
        if found != order.model_fingerprint:
            raise ValueError(f"{order.model}: fingerprint {found}, the work was planned for {order.model_fingerprint}")
        self.tracks = ShardTracks(order.audio) if order.from_shards else _file_tracks(order.audio)
        name = torch.cuda.get_device_name(self.encoder.device) if device.startswith("cuda") else device
        self.backend = {"device": name, "torch": torch.__version__}
        self.seconds = 0.0

    def run(self, part: Part, report: Callable[[float], None] = lambda seconds: None) -> dict[str, str]:
        """Compute and publish a part; returns the tracks it had to drop, with the reason.

        `report` is called with the audio seconds of each batch.

        Raises:
            OSError: audio or store cannot be reached.
            ValueError: a damaged shard, or features that the store's type cannot hold.
        """
        self.seconds = 0.0
        order = self.order
        rows, dropped = part_rows(part, order.layout), {}
        for batch in one_ahead(same_lengths(self._items(part, dropped), order.batch_samples)):
            audio = torch.from_numpy(to_float(np.stack([item.audio for item in batch])))
            states = self.encoder.encode(audio).cpu().numpy()
            for (piece, window, _), own in zip(batch, states):
                first, stop = window.keep_start - window.start_frame, window.keep_stop - window.start_frame
                rows.add(piece, window.keep_start, own[first:stop])
            seconds = sum(self._kept_seconds(item) for item in batch)
            self.seconds += seconds
            report(seconds)
        publish_part(
            order.out,
            order.layout,
            part.number,
            rows.finish(),
            digest=order.digest,
            dropped=dropped,
            backend=self.backend,
        )
        self.seconds = 0.0
        return dropped

    def seconds_done(self) -> float:
        """Audio seconds done of the part at work."""
        return self.seconds

    def _items(self, part: Part, dropped: dict[str, str]) -> Iterator[_Item]:
        """The windows of a part, those of one length one after another; tracks that cannot be used go to `dropped`."""
        planned = [(piece, self._windows(piece)) for piece in part.pieces]
        planned.sort(key=lambda item: item[1][0].num_samples)
        windows = {piece.track.key: windows for piece, windows in planned}
        pieces = [piece for piece, _ in planned]
        for piece, audio in read_ahead(pieces, lambda piece: self._open(piece.track), self.order.decode_threads):
            if isinstance(audio, DecodeError):
                dropped[piece.track.key] = str(audio)
                continue
            with audio:
                for window in windows[piece.track.key]:
                    samples = audio.read(window.start_sample, window.num_samples)
                    if len(samples) != window.num_samples:
                        planned = piece.track.samples_at(self.encoder.sample_rate)
                        raise ValueError(f"{piece.track.key}: shorter than the {planned} samples it was planned with")
                    yield _Item(piece, window, samples)

    def _windows(self, piece: Piece) -> list[Window]:
        """The windows of the track that give frames of the piece."""
        samples = piece.track.samples_at(self.encoder.sample_rate)
        windows = plan_windows(samples, self.encoder.geometry, self.order.window_frames, self.order.overlap_frames)
        return [window for window in windows if window.keep_start < piece.stop and piece.start < window.keep_stop]

    def _kept_seconds(self, item: _Item) -> float:
        frames = min(item.window.keep_stop, item.piece.stop) - max(item.window.keep_start, item.piece.start)
        return frames * self.encoder.geometry.hop / self.encoder.sample_rate

    def _open(self, track: SourceTrack):
        try:
            audio = self.tracks.open(track)
        except DecodeError as error:
            return error
        if self.encoder.sample_rate == SAMPLE_RATE:
            return audio
        # Resampling comes with the decoders of the `label` extra, which shards at 24 kHz do without.
        from mert_foundry.pipeline.features.audio_at_rate import audio_at

        return audio_at(audio, self.encoder.sample_rate)


def same_lengths(items: Iterator[_Item], most_samples: int) -> Iterator[list[_Item]]:
    """Batches of windows that follow one another and have the same number of samples, in all at most so many."""
    for num_samples, group in groupby(items, key=lambda item: item.window.num_samples):
        while batch := list(islice(group, max(1, most_samples // num_samples))):
            yield batch


def one_ahead(batches: Iterator[list[_Item]]) -> Iterator[list[_Item]]:
    """The same batches; while one is worked on, a thread makes the next."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, batches, None)
        while (batch := future.result()) is not None:
            future = pool.submit(next, batches, None)
            yield batch


def model_fingerprint(encoder: FeatureEncoder) -> str:
    """SHA-256 over weights and all else that makes the hidden states what they are."""
    settings = {
        # Hashed under the name that this key had first, so that a model keeps its fingerprint.
        "architecture": {
            key.replace("attention.learnable_temperature", "attention.temperature"): value
            for key, value in encoder.architecture.items()
        },
        "sample_rate": encoder.sample_rate,
        "normalised": encoder.normalised,
    }
    return fingerprint(settings, {name: tensor.numpy() for name, tensor in encoder.weights.items()})


def _file_tracks(root: str):
    from mert_foundry.pipeline.features.file_tracks import FileTracks

    return FileTracks(root)

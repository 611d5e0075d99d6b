"""Probe source separation: from an encoder's frames to the magnitude of a stem's spectrogram, scored by SDR.

The network is MARBLE's, after Open-Unmix (JOSS 2019): a linear layer to 512 units with batch norm and tanh, a 3-layer
LSTM with dropout 0.4, its output beside its input, a linear layer with batch norm and ReLU, and one to the bins of the
spectrogram. The result is a mask: times the magnitude of the mixture it is the stem's, learnt by mean squared error.
The stem is the inverse transform of that magnitude with the phase of the mixture. MARBLE also applies one iteration of
a multichannel Wiener filter, and makes new mixtures of stems of several songs in training. Features are computed
beforehand here, so new mixtures are not possible, and neither is done: compare values between models probed here, not
with MARBLE's table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mert_foundry.model.probing.batches import Scaling
from mert_foundry.model.probing.chance import ReferenceScores
from mert_foundry.model.probing.features import FloatArray, FrameFeatures, IntArray, Partition, partitions, tracks_of
from mert_foundry.model.probing.probe import FoldResult, by_condition, combine_folds
from mert_foundry.model.probing.protocol import WEIGHTED_SUM, ProbeProtocol
from mert_foundry.model.probing.result import Choice, Predictions, ProbeResult
from mert_foundry.pipeline.probe_sets.task import Metric

# MARBLE's: 24 kHz mono, a frame for each of the encoder's.
FFT = 2048  # samples
HOP = 320  # samples
BINS = FFT // 2 + 1


class SeparationProtocol(BaseModel):
    """How separation is learnt, beside the choices of `ProbeProtocol` (of which rates, seeds, epochs and patience
    count).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden: int = Field(512, ge=1, description="Units of the linear layers and of the LSTM")
    layers: int = Field(3, ge=1, description="Layers of the LSTM")
    dropout: float = Field(0.4, ge=0, lt=1, description="Dropout between layers of the LSTM")
    batch_size: int = Field(16, ge=2, description="Excerpts in a batch")
    crop_frames: int = Field(450, ge=2, description="Frames of an excerpt in training, at 75 Hz six seconds")
    crops_per_row: int = Field(64, ge=1, description="Excerpts of each row in an epoch")
    encoder_layer: int | Literal["weighted_sum"] = Field(
        "weighted_sum", description="Layer of the encoder that the network sees, or the weighted sum of all"
    )


@dataclass(frozen=True)
class Stems:
    """Audio of the clips of a `FrameFeatures` of a separation task, 24 kHz mono.

    Attributes:
        mixture: float32 [samples] of each clip; may be memory-mapped.
        stems: float32 [stems, samples] of each clip, in the order of the task's classes.
    """

    mixture: Sequence[FloatArray]
    stems: Sequence[FloatArray]


class SeparationHead(nn.Module):
    """Frames of all layers of an encoder to the magnitude of one stem."""

    def __init__(self, layers: int, dim: int, settings: SeparationProtocol):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(layers))
        self.fc1 = nn.Linear(dim, settings.hidden, bias=False)
        self.bn1 = nn.BatchNorm1d(settings.hidden)
        dropout = settings.dropout if settings.layers > 1 else 0.0
        self.lstm = nn.LSTM(settings.hidden, settings.hidden, settings.layers, batch_first=True, dropout=dropout)
        self.fc2 = nn.Linear(2 * settings.hidden, settings.hidden, bias=False)
        self.bn2 = nn.BatchNorm1d(settings.hidden)
        self.fc3 = nn.Linear(settings.hidden, BINS, bias=False)
        self.bn3 = nn.BatchNorm1d(BINS)
        self.scale, self.shift = nn.Parameter(torch.ones(BINS)), nn.Parameter(torch.ones(BINS))

    def forward(self, features: Tensor, mixture: Tensor) -> Tensor:
        """Magnitude [B, frames, BINS] of the stem, of features [B, frames, layers, dim] and the mixture's magnitude."""
        seen = torch.einsum("l,bfld->bfd", self.mix.softmax(0), features)
        entered = _over_frames(self.bn1, self.fc1(seen)).tanh()
        remembered, _ = self.lstm(entered)
        narrowed = _over_frames(self.bn2, self.fc2(torch.cat([entered, remembered], dim=2))).relu()
        mask = _over_frames(self.bn3, self.fc3(narrowed)) * self.scale + self.shift
        return mask.relu() * mixture


def _over_frames(norm: nn.BatchNorm1d, values: Tensor) -> Tensor:
    normed: Tensor = norm(values.flatten(0, 1))
    return normed.view(values.shape)


def spectrogram(audio: Tensor, frames: int) -> Tensor:
    """Complex [..., frames, BINS] of audio [samples] or [B, samples], frame i centred on sample i * HOP.

    Audio that is too short for so many frames is followed by silence.
    """
    padded = nn.functional.pad(audio, (0, max(0, frames * HOP - audio.shape[-1])))
    window = torch.hann_window(FFT, device=audio.device)
    spectra = torch.stft(padded, FFT, HOP, window=window, pad_mode="constant", normalized=True, return_complex=True)
    return spectra.transpose(-1, -2)[..., :frames, :]


def waveform(spectra: Tensor, samples: int) -> Tensor:
    """The audio [..., samples] that `spectrogram` was made of; silence beyond what the last frame reaches."""
    window = torch.hann_window(FFT, device=spectra.device)
    # The window fades out, and the inverse transform divides by it: its last HOP samples are too close to 0.
    reached = min(samples, (spectra.shape[-2] - 1) * HOP + FFT // 2 - HOP)
    audio = torch.istft(spectra.transpose(-1, -2), FFT, HOP, window=window, normalized=True, length=reached)
    return nn.functional.pad(audio, (0, samples - reached))


def probe_separation(
    features: FrameFeatures,
    audio: Stems,
    protocol: ProbeProtocol,
    settings: SeparationProtocol,
    device: torch.device | str = "cpu",
) -> ProbeResult:
    """One network a stem, rate and seed; validation error chooses epoch and rate; test SDR in dB over whole clips.

    The SDR is global, 10 log10 of the energy of the stem over that of the error, by torchmetrics
    (`signal_noise_ratio`), for each clip and stem. Clips and stems count alike, but a silent stem has no SDR and does
    not count. Chance is a uniformly random mask; the constant answer is the mixture itself.

    Raises:
        ValueError: a kind, frame rate or audio that does not fit; the message names the task.
    """
    _check(features, audio, settings)
    separation = _Separation(features, audio, protocol, settings, torch.device(device))
    parts = partitions(features.labelled)
    folds = [separation.fold(partition, fold) for fold, partition in enumerate(parts)]
    clips = np.concatenate([partition.test for partition in parts])
    chance, constant = separation.references(clips)

    def reference(metric: Metric, condition: str, predictions: Predictions, of: int | None) -> ReferenceScores:
        own = np.array([features.labelled.clips[clip].condition == condition for clip in clips])
        here = [scores[own] for scores in (chance, constant)]
        return ReferenceScores(*(float(np.nanmean(found if of is None else found[:, of])) for found in here))

    return combine_folds(features.labelled.task, protocol, folds, reference)


def find_misfit(frame_rate: float, layers: int, settings: SeparationProtocol) -> str:
    """Why features of a frame rate (Hz) and a number of layers cannot be probed; empty when they can."""
    if frame_rate * HOP != 24_000:
        return f"features at {frame_rate} Hz, not the 75 Hz of the spectrogram"
    layer = settings.encoder_layer
    if layer != WEIGHTED_SUM and not 0 <= int(layer) < layers:
        return f"encoder_layer {layer}, but the features have {layers} layers"
    return ""


def _check(features: FrameFeatures, audio: Stems, settings: SeparationProtocol) -> None:
    task = features.labelled.task
    if task.kind != "separation":
        raise ValueError(f"task {task.name}: {task.kind} is no separation")
    if misfit := find_misfit(features.frame_rate, features.values.shape[1], settings):
        raise ValueError(f"task {task.name}: {misfit}")
    if not len(features.lengths) == len(audio.mixture) == len(audio.stems):
        raise ValueError(
            f"task {task.name}: {len(features.lengths)} clips, {len(audio.mixture)} mixtures, {len(audio.stems)} stems"
        )
    for clip, (mixture, stems) in enumerate(zip(audio.mixture, audio.stems)):
        if stems.shape != (len(task.classes), len(mixture)):
            raise ValueError(
                f"task {task.name}: clip {clip} has stems {stems.shape}, not {(len(task.classes), len(mixture))}"
            )


class _Separation:
    def __init__(
        self,
        features: FrameFeatures,
        audio: Stems,
        protocol: ProbeProtocol,
        settings: SeparationProtocol,
        device: torch.device,
    ):
        self.features, self.audio, self.protocol, self.settings = features, audio, protocol, settings
        self.device = device
        self.offsets = features.offsets
        layer = settings.encoder_layer
        self.layers = slice(None) if layer == WEIGHTED_SUM else slice(int(layer), int(layer) + 1)

    def fold(self, partition: Partition, fold: int) -> FoldResult:
        train, valid, test = partition.train, partition.valid, partition.test
        frames = np.concatenate([np.arange(self.offsets[clip], self.offsets[clip + 1]) for clip in train])
        values = self.features.values
        scaling = Scaling.fitted(values, frames) if self.protocol.standardise else Scaling.none(values)
        best: tuple[float, float, list[list[SeparationHead]], list[tuple[float, ...]]] | None = None
        by_rate = []
        for rate in self.protocol.rates:
            heads, curves = self._train_all(rate, scaling, train, valid)
            by_rate.append(float(np.mean([max(curve) for curve in curves])))
            if best is None or by_rate[-1] > best[0]:
                best = by_rate[-1], rate, heads, curves
        assert best is not None
        name = str(self.settings.encoder_layer)
        choice = Choice(name, fold, best[1], best[0], tuple(by_rate), tuple(best[3]))
        outputs = np.stack([self._sdr(of_seed, scaling, test) for of_seed in best[2]])
        tracks = tracks_of(self.features.labelled, partition.test)
        predictions = by_condition(outputs, np.zeros(outputs.shape[1:]), tracks.of(test), tracks)
        return FoldResult([choice], {(name, condition): own for condition, own in predictions.items()})

    def references(self, clips: IntArray) -> tuple[FloatArray, FloatArray]:
        """SDR [clips, stems] of random masks, and of the mixture taken for each stem."""
        random = torch.Generator().manual_seed(0)
        chance, constant = [], []
        for clip in clips:
            mixture, stems = (
                torch.from_numpy(np.array(found[clip])) for found in (self.audio.mixture, self.audio.stems)
            )
            spectra = spectrogram(mixture, int(self.features.lengths[clip]))
            masks = torch.rand(len(stems), *spectra.shape, generator=random)
            chance.append(sdr(waveform(masks * spectra, len(mixture)), stems))
            constant.append(sdr(mixture.expand_as(stems), stems))
        return torch.stack(chance).numpy(), torch.stack(constant).numpy()

    def _train_all(
        self, rate: float, scaling: Scaling, train: IntArray, valid: IntArray
    ) -> tuple[list[list[SeparationHead]], list[tuple[float, ...]]]:
        """By seed: the heads of all stems, and the mean over stems of minus their validation errors
        after each epoch.
        """
        heads, curves = [], []
        for seed in range(self.protocol.seeds):
            pairs = [self._train(rate, seed, stem, scaling, train, valid) for stem in range(len(self._stems))]
            heads.append([head for head, _ in pairs])
            longest = max(len(curve) for _, curve in pairs)
            # The best state is kept, so a stem that stopped keeps the best of its curve.
            padded = [[*curve, *[max(curve)] * (longest - len(curve))] for _, curve in pairs]
            curves.append(tuple(float(value) for value in np.mean(padded, axis=0)))
        return heads, curves

    @property
    def _stems(self) -> tuple[str, ...]:
        return self.features.labelled.task.classes

    def _train(
        self, rate: float, seed: int, stem: int, scaling: Scaling, train: IntArray, valid: IntArray
    ) -> tuple[SeparationHead, list[float]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = len(range(self.features.values.shape[1])[self.layers])
            head = SeparationHead(layers, self.features.values.shape[2], self.settings).to(self.device)
            optimizer = torch.optim.Adam(head.parameters(), lr=rate)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, "max", self.protocol.plateau_factor, self.protocol.plateau_patience
            )
            best, curve = head.state_dict(), []
            order = np.random.default_rng(seed)
            for epoch in range(self.protocol.epochs):
                head.train()
                for crops in self._crops(order, train):
                    optimizer.zero_grad()
                    loss = self._error(head, stem, scaling, crops)
                    loss.backward()
                    optimizer.step()
                curve.append(-self._validation_error(head, stem, scaling, valid))
                plateau.step(curve[-1])
                if curve[-1] == max(curve) and curve.index(curve[-1]) == epoch:
                    best = {name: value.clone() for name, value in head.state_dict().items()}
                if epoch - int(np.argmax(curve)) >= self.protocol.patience:
                    break
        head.load_state_dict(best)
        return head.eval(), curve

    def _crops(self, order: np.random.Generator, clips: IntArray) -> Iterator[list[tuple[int, int, int]]]:
        """Batches of (clip, first frame, frames): random excerpts of equal length."""
        frames = min(self.settings.crop_frames, int(self.features.lengths[clips].min()))
        chosen = order.permutation(np.repeat(clips, self.settings.crops_per_row))
        firsts = [int(order.integers(0, self.features.lengths[clip] - frames + 1)) for clip in chosen]
        crops = [(int(clip), first, frames) for clip, first in zip(chosen, firsts)]
        for start in range(0, len(crops), self.settings.batch_size):
            batch = crops[start : start + self.settings.batch_size]
            yield batch

    def _error(
        self, head: SeparationHead, stem: int, scaling: Scaling, crops: Sequence[tuple[int, int, int]]
    ) -> Tensor:
        frames = np.array([self.offsets[clip] + first + np.arange(count) for clip, first, count in crops])
        seen = scaling.rows(self.features.values, frames)[:, :, self.layers].to(self.device)
        magnitudes = []
        for sound in (lambda clip: self.audio.mixture[clip], lambda clip: self.audio.stems[clip][stem]):
            pieces = [self._piece(sound(clip), first, count) for clip, first, count in crops]
            magnitudes.append(torch.stack(pieces).to(self.device))
        mixture, wanted = magnitudes
        return nn.functional.mse_loss(head(seen, mixture), wanted)

    def _piece(self, audio: FloatArray, first: int, count: int) -> Tensor:
        """Magnitude [count, BINS] of the frames from `first` on, with the audio around them."""
        around = -(-(FFT // 2) // HOP)  # frames that reach into the excerpt's own
        begin = max(0, first - around)
        end = (first + count + around) * HOP
        piece = torch.from_numpy(np.array(audio[begin * HOP : end], dtype=np.float32))
        return spectrogram(piece, first + count + around - begin)[first - begin : first - begin + count].abs()

    @torch.no_grad()
    def _validation_error(self, head: SeparationHead, stem: int, scaling: Scaling, valid: IntArray) -> float:
        head.eval()
        whole = [(int(clip), 0, int(self.features.lengths[clip])) for clip in valid]
        errors = [float(self._error(head, stem, scaling, [crop])) for crop in whole]
        return float(np.average(errors, weights=self.features.lengths[valid]))

    @torch.no_grad()
    def _sdr(self, heads: Sequence[SeparationHead], scaling: Scaling, clips: IntArray) -> FloatArray:
        """SDR [clips, stems] of the heads of all stems, over whole clips; NaN for a silent stem."""
        found = []
        for clip in clips:
            mixture, stems = (
                torch.from_numpy(np.array(sound[clip])) for sound in (self.audio.mixture, self.audio.stems)
            )
            spectra = spectrogram(mixture, int(self.features.lengths[clip]))
            frames = np.arange(self.offsets[clip], self.offsets[clip + 1])
            seen = scaling.rows(self.features.values, frames)[None, :, self.layers].to(self.device)
            magnitude = spectra.abs()[None].to(self.device)
            estimates = [
                waveform(torch.polar(head(seen, magnitude)[0].cpu(), spectra.angle()), len(mixture)) for head in heads
            ]
            found.append(sdr(torch.stack(estimates), stems))
        return torch.stack(found).numpy()


def sdr(estimates: Tensor, stems: Tensor) -> Tensor:
    """dB [stems] of estimates and stems [stems, samples]; NaN for a silent stem."""
    # Imports all of torchmetrics, and with it torchvision and transformers: 4 seconds that other tasks are spared.
    from torchmetrics.functional.audio import signal_noise_ratio

    ratio: Tensor = signal_noise_ratio(estimates, stems)
    return torch.where(stems.square().sum(dim=-1) > 0, ratio, torch.nan)

"""Train an EnCodec-architecture codec on the music of a manifest.

Recipe of arXiv 2210.13438 without the adversary: waveform and multi-scale mel errors, commitment, EMA
codebooks. The codebooks start from k-means over the latents of a short plain auto-encoder run, and dead
entries are revived by vectors of the current batch. The encodec package's own revival has no effect (it
overwrites the revived entry with the old average in the same step), so it is switched off here.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

import numpy as np
import torch
from encodec.model import EncodecModel
from encodec.quantization.core_vq import EuclideanCodebook
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sklearn.cluster import KMeans
from torch import Tensor, nn

from mert_foundry.pipeline.audio.blocks import to_float
from mert_foundry.pipeline.fitting.codec_quality import MelError
from mert_foundry.pipeline.fitting.codec_state import CodecState, capture_tensors, restore_tensors
from mert_foundry.pipeline.fitting.tracks import whole_track
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.manifest.rows import Track
from mert_foundry.pipeline.teachers.codec.weights import CodecSizes, build_codec

KMEANS_VECTORS = 12_000


class Codebook(Protocol):
    """The buffers of an `EuclideanCodebook`, which it does not declare."""

    cluster_size: Tensor
    embed: Tensor
    embed_avg: Tensor
    inited: Tensor
    codebook_size: int


class CodecTrainingConfig(BaseModel):
    """What `mert codec` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: str = Field(description="Manifest folder; train and valid splits are used")
    out: str = Field(description="Local folder for the codec and its model card")
    seed: int = Field(default=0, description="Seed of weights and crops")
    sizes: CodecSizes = Field(default=CodecSizes(), description="Sizes of the network")
    train_hours: float = Field(default=8.0, gt=0, description="Audio held in memory, hours (173 MB an hour)")
    valid_hours: float = Field(default=0.25, gt=0, description="Held-out audio to evaluate on, hours")
    autoencoder_steps: int = Field(default=1000, ge=0, description="Steps before the codebooks start")
    steps: int = Field(default=10_000, gt=0, description="Steps in all")
    batch_size: int = Field(default=8, gt=0, description="Crops a step")
    crop_seconds: float = Field(default=1.0, gt=0, description="Length of a crop, seconds")
    learning_rate: float = Field(default=1e-3, gt=0, description="Peak of a cosine schedule")
    warmup_steps: int = Field(default=300, gt=0, description="Steps to the peak")
    waveform_weight: float = Field(default=1.0, ge=0, description="Weight of the relative waveform error")
    mel_weight: float = Field(default=1.0, ge=0, description="Weight of the multi-scale mel error")
    commitment_weight: float = Field(default=1.0, ge=0, description="Weight of the commitment error")
    dead_code_share: float = Field(
        default=0.1, ge=0, description="An entry used less than this share of the mean is revived"
    )
    validate_every: int = Field(default=500, gt=0, description="Steps between evaluations on held-out audio")
    checkpoint_every: int = Field(default=100, gt=0, description="Steps between checkpoints, in OUT.training")

    @model_validator(mode="after")
    def _codebooks_start(self) -> "CodecTrainingConfig":
        if self.autoencoder_steps >= self.steps:
            raise ValueError(f"autoencoder_steps {self.autoencoder_steps} is not below steps {self.steps}")
        return self


def load_audio(root: str, tracks: list[Track], report: Callable[[float], None]) -> list[np.ndarray]:
    """Decode tracks under `root` to int16 `[T]` at 24 kHz each, whole frames; `report` is given the seconds decoded so
    far.

    Raises:
        ValueError, OSError: as `whole_track`.
    """

    def decode(track: Track) -> np.ndarray:
        with whole_track(track, root) as audio:
            return audio.read(0, audio.num_frames * HOP)

    decoded, seconds = [], 0.0
    with ThreadPoolExecutor() as threads:
        for track, audio in zip(tracks, threads.map(decode, tracks)):
            decoded.append(audio)
            seconds += track.seconds
            report(seconds)
    return decoded


class Crops(Iterator[Tensor]):
    """Endless batches `[B, 1, T]` of int16 tracks `[T]`; batch n (from 0) is a pure function of (seed, n).

    `taken` counts the batches given, those before the first included. Raises ValueError when no track is as long as a
    crop.
    """

    def __init__(self, tracks: list[np.ndarray], config: CodecTrainingConfig, taken: int = 0):
        self.length = round(config.crop_seconds * SAMPLE_RATE)
        self.tracks = [track for track in tracks if len(track) >= self.length]
        if not self.tracks:
            raise ValueError(f"none of {len(tracks)} training tracks is as long as a crop of {config.crop_seconds} s")
        weights = np.array([len(track) for track in self.tracks], float)
        self.probabilities = weights / weights.sum()
        self.config = config
        self.taken = taken

    def __next__(self) -> Tensor:
        generator = np.random.default_rng([self.config.seed, 1, self.taken])
        self.taken += 1
        rows = []
        for index in generator.choice(len(self.tracks), self.config.batch_size, p=self.probabilities):
            start = generator.integers(len(self.tracks[index]) - self.length + 1)
            rows.append(to_float(self.tracks[index][start : start + self.length]))
        return torch.from_numpy(np.stack(rows))[:, None]


def train_codec(
    config: CodecTrainingConfig,
    tracks: list[np.ndarray],
    report: Callable[[int, dict, EncodecModel], None],
    begin: CodecState | None = None,
    checkpoint: Callable[[CodecState], None] = lambda state: None,
) -> EncodecModel:
    """Train on int16 tracks `[T]`, from the start or from a state of the same settings and tracks.

    `report` is called after every step with its number (from 1), its losses and the model; then `checkpoint` with the
    state, every `checkpoint_every` steps and after the last. From such a state, and with the same number of threads,
    the steps that follow are the same bit for bit.
    """
    training = CodecTraining(config, tracks, begin)
    while training.step < config.steps:
        losses = training.advance()
        report(training.step, losses, training.model)
        if training.step % config.checkpoint_every == 0 or training.step == config.steps:
            checkpoint(training.state())
    return training.model.eval()


class CodecTraining:
    """A codec in training after `step` steps: the model, its optimiser, and the crops to come."""

    def __init__(self, config: CodecTrainingConfig, tracks: list[np.ndarray], begin: CodecState | None):
        self.config = config
        torch.manual_seed(config.seed)
        self.model = build_codec(config.sizes).train()
        self.crops = Crops(tracks, config, begin.batches if begin else 0)
        if begin is None:
            data_dependent_init(self.model, next(self.crops))
        self.inputs = record_inputs([level._codebook for level in self.model.quantizer.vq.layers])
        self.mel_error = MelError()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.step = 0
        if begin is not None:
            self.step = begin.step
            restore_tensors(begin.tensors, self.model, self.optimizer)

    def state(self) -> CodecState:
        """A copy of all that changes from step to step."""
        return CodecState(self.step, self.crops.taken, capture_tensors(self.model, self.optimizer))

    def advance(self) -> dict[str, float]:
        """Do a step; returns its losses by name."""
        config = self.config
        if self.step == config.autoencoder_steps:
            start_codebooks(self.model, self.crops, config)
        quantize = self.step >= config.autoencoder_steps
        losses = codec_losses(self.model, next(self.crops), self.mel_error, quantize)
        total = (
            config.waveform_weight * losses["waveform"]
            + config.mel_weight * losses["mel"]
            + config.commitment_weight * losses["commitment"]
        )
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(self.step, config)
        self.optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if quantize:
            for level in self.model.quantizer.vq.layers:
                revive_dead_codes(cast(Codebook, level._codebook), self.inputs[level._codebook], config.dead_code_share)
        self.step += 1
        return {name: loss.item() for name, loss in losses.items()}


@torch.no_grad()
def data_dependent_init(model: EncodecModel, audio: Tensor) -> None:
    """Scale every convolution so that its output on a batch `[B, 1, T]` has a standard deviation of 1.

    Data-dependent initialisation (Salimans and Kingma 2016, arXiv 1602.07868, section 3): with torch's default
    the signal fades by a factor of about 1000 on its way through, and training starts by collapsing to silence.
    """

    def rescale(convolution: Any, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        scale = output.std()
        convolution.weight_g.div_(scale)
        convolution.bias.div_(scale)
        return output / scale

    hooks = [
        module.register_forward_hook(rescale)
        for module in model.modules()
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d))
    ]
    model.decoder(model.encoder(audio))
    for hook in hooks:
        hook.remove()
    last: Any = [module for module in model.decoder.modules() if isinstance(module, nn.Conv1d)][-1]
    last.weight_g.mul_(audio.std())


def codec_losses(model: EncodecModel, audio: Tensor, mel_error: MelError, quantize: bool) -> dict[str, Tensor]:
    """Losses of one batch `[B, 1, T]`; the waveform error is the squared error relative to the batch's power."""
    latent = model.encoder(audio)
    commitment = audio.new_zeros(())
    if quantize:
        quantized = model.quantizer(latent, model.frame_rate)
        latent, commitment = quantized.quantized, quantized.penalty
    decoded = model.decoder(latent)[..., : audio.shape[-1]]
    waveform = (audio - decoded).pow(2).mean() / audio.pow(2).mean().clamp_min(1e-6)
    return {"waveform": waveform, "mel": mel_error(audio, decoded), "commitment": commitment}


def learning_rate_factor(step: int, config: CodecTrainingConfig) -> float:
    """Linear warm-up to 1, then a cosine to 0.05."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def record_inputs(codebooks: list[EuclideanCodebook]) -> dict[EuclideanCodebook, Tensor]:
    """Keep, for each codebook, the vectors `[N, D]` it was last asked to quantise in training."""
    inputs: dict[EuclideanCodebook, Tensor] = {}

    def keep(codebook: EuclideanCodebook, arguments: tuple[Tensor]) -> None:
        inputs[codebook] = arguments[0].detach().reshape(-1, arguments[0].shape[-1])

    for codebook in codebooks:
        codebook.register_forward_pre_hook(keep)
    return inputs


@torch.no_grad()
def revive_dead_codes(codebook: Codebook, vectors: Tensor, share: float) -> None:
    """Move entries whose running use is under `share` of the mean onto random vectors `[N, D]` of the batch."""
    mean_use = codebook.cluster_size.mean()
    dead = (codebook.cluster_size < share * mean_use).nonzero()[:, 0]
    if not len(dead):
        return
    chosen = vectors[torch.randint(len(vectors), (len(dead),))]
    codebook.embed[dead] = chosen
    codebook.cluster_size[dead] = mean_use
    codebook.embed_avg[dead] = chosen * mean_use


@torch.no_grad()
def start_codebooks(model: EncodecModel, batches: Iterator[Tensor], config: CodecTrainingConfig) -> None:
    """Set every level's entries to k-means centres of what is left of the latents after the levels before."""
    latents, count = [], 0
    while count < KMEANS_VECTORS:
        latent = model.encoder(next(batches))
        latents.append(latent.transpose(1, 2).reshape(-1, latent.shape[1]))
        count += len(latents[-1])
    residual = torch.cat(latents)
    per_step = config.batch_size * config.crop_seconds * model.frame_rate
    for level in model.quantizer.vq.layers:
        codebook = level._codebook
        centres = KMeans(codebook.codebook_size, n_init=1, init="random", max_iter=10, random_state=config.seed)
        labels = torch.from_numpy(centres.fit_predict(residual.numpy())).long()
        codebook.embed.copy_(torch.from_numpy(centres.cluster_centers_))
        counts = torch.bincount(labels, minlength=codebook.codebook_size)
        codebook.cluster_size.copy_(counts * (per_step / len(residual)))
        codebook.embed_avg.copy_(codebook.embed * codebook.cluster_size[:, None])
        codebook.inited.fill_(1)
        residual = residual - codebook.embed[labels]

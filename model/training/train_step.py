"""One optimiser step over one rank's batch, and the forward pass it shares with validation.

A step has three parts, so that the host can work while a GPU does: `prepare` draws masks and brings a batch to the
device, `begin` starts forward and backward pass there, and `finish`, the only part that waits for the device, moves the
optimiser. Between `begin` and `finish` the host prepares the next batch.

The loss is normalised by the frame counts of all ranks and micro-batches, so its gradient does not depend on how a
global batch is split. All randomness is seeded at the start of the step, so there is no generator state to keep.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mert_foundry.model.objective.mixture import MixtureConfig, mix_batch
from mert_foundry.model.objective.noise_fill import fill_with_noise
from mert_foundry.model.objective.pretrain_model import PRESENT, Codebooks, PretrainModel
from mert_foundry.model.objective.seeding import derive_seed
from mert_foundry.model.objective.span_mask import MaskConfig, draw_masking
from mert_foundry.model.objective.target_alignment import align_valid
from mert_foundry.model.objective.text_memory import keep_texts
from mert_foundry.model.training.device_batch import check_batch, check_tokens, copy_to, micro_batches, to_device
from mert_foundry.model.training.diagnostics import diagnose, gradient_norms
from mert_foundry.model.training.optimizer import OptimizerConfig, build_optimizer
from mert_foundry.model.training.ranks import of_this_rank, rank, sum_across_ranks, world_size
from mert_foundry.model.training.sharding import full_tensor, holds_own_shard, is_sharded, unsharded
from mert_foundry.model.training.step_clock import OF_THE_RANK, StepClock
from mert_foundry.model.transformer.masking import Masking

CPU = torch.device("cpu")
VALIDATION_STEP = 0  # the step that validation masks are drawn for: training steps count from 1


@dataclass(frozen=True)
class PreparedBatch:
    """This rank's rows of a global batch, ready for a step.

    inputs: as in model/training/device_batch.py, mixed and filled as the settings ask for; on the device, as `masking`
    is.
    counts: frames of all ranks that the losses are divided by (PretrainModel.count_frames), on the CPU. heard: samples
    of audio, or tokens, without those that pad the rows.
    """

    step: int
    inputs: dict[str, Tensor]
    masking: Masking
    counts: dict[str, Tensor]
    heard: int


@dataclass(frozen=True)
class Gradients:
    """A step whose backward pass is under way on the device: its clipped gradients are the model's.

    sums: this rank's (PretrainModel.forward). norm: before clipping. diagnosed: their norms by part, if they were asked
    for.
    """

    batch: PreparedBatch
    sums: dict[str, Tensor]
    norm: Tensor
    diagnosed: dict[str, Any] | None


@dataclass(frozen=True)
class StepResult:
    """What all ranks know after a step.

    summary: loss, losses and accuracy (PretrainModel.summarise). gradient_norm: before clipping. finite: whether both
    are, on every rank. moved: whether the optimiser moved. totals: every named sum over ranks, with `samples` (of
    audio, or tokens), those of them `heard` (that do not pad) and the caller's extras.
    share: of the loss, that of this rank's rows. diagnostics: as in model/training/diagnostics.py if they were asked
    for, on rank 0 alone.
    """

    summary: dict[str, Any]
    gradient_norm: float
    finite: bool
    totals: dict[str, Tensor]
    share: Tensor
    diagnostics: dict[str, Any] | None
    moved: bool = True


class TrainStep:
    """Trains a model; holds the optimiser and, when there are several ranks and the model is not sharded, its DDP
    wrapper.
    """

    def __init__(
        self,
        model: PretrainModel,
        optimizer: OptimizerConfig,
        mask: MaskConfig,
        mixture: MixtureConfig | None,
        accumulation: int,
        bfloat16: bool,
        seed: int,
        device: torch.device,
    ):
        self.model = model
        self.optimizer = build_optimizer(model, optimizer)
        self.gradient_clip = optimizer.gradient_clip
        self.mask = mask
        self.mixture = mixture
        self.accumulation = accumulation
        self.bfloat16 = bfloat16
        self.seed = seed
        self.device = device
        self.clock = StepClock(device)
        self._parallel = _wrap(model, device)

    def train(
        self,
        batch: Mapping[str, Any],
        step: int,
        rate: float,
        extras: Mapping[str, float | Tensor],
        diagnosed: bool = False,
    ) -> StepResult:
        """The three parts of a step in one; arguments as theirs."""
        return self.finish(self.begin(self.prepare(batch, step), diagnosed), rate, extras)

    def prepare(self, batch: Mapping[str, Any], step: int) -> PreparedBatch:
        """This rank's rows of the global batch of step number `step` (from 1), ready for it.

        All ranks call it together.

        Raises ValueError for a batch that does not fit the model.
        """
        with self.clock.host("prepare"):
            masking, valid = self._draw_masking(batch, step)
        present = {name: batch[name] for name in batch if name.startswith(PRESENT)}
        with self.clock.host("exchange"):
            counts = sum_across_ranks(self.model.count_frames(present, masking.predicted, valid), CPU)
        with self.clock.host("prepare"):
            inputs = to_device(batch, self.model.head_specs, self.device)
            if self.mixture is not None:
                inputs["audio"] = self._mix(self.mixture, inputs["audio"], batch, step)
            self._fill(inputs, masking, batch["key"], step)
            if self.model.memory is not None:
                kept = keep_texts(self.model.memory.config.dropout, self.seed, step, batch["key"])
                inputs["tokens_valid"] = inputs["tokens_valid"] & self._to_device(kept)[:, None]
            return PreparedBatch(step, inputs, masking.each(self._to_device), counts, sum(self._lengths(batch)))

    def begin(self, batch: PreparedBatch, diagnosed: bool = False) -> Gradients:
        """Start the forward and backward pass. All ranks call it together.

        `diagnosed` asks for diagnostics of the gradient, and of the weights after it moved them.
        """
        torch.manual_seed(derive_seed(self.seed, batch.step, "dropout", rank()))
        self.model.train()
        sums = self._backward(batch, self.model.draw_codebooks(self.seed, batch.step))
        # All ranks have the same gradients, so rank 0 reports them; each rank of a sharded model has a shard, so all
        # take part.
        diagnosed = diagnosed and holds_own_shard(self.model)
        diagnostics = {"gradient_norms": gradient_norms(self.model)} if diagnosed else None
        with self.clock.device("optimizer"):
            norm = full_tensor(nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip))
        return Gradients(batch, sums, norm, diagnostics)

    def finish(
        self,
        gradients: Gradients,
        rate: float,
        extras: Mapping[str, float | Tensor],
        skips: Callable[[float, float], bool] = lambda loss, norm: False,
    ) -> StepResult:
        """Wait for the gradients and move the optimiser at learning rate `rate`. All ranks call it together.

        `extras` are numbers the caller wants summed over ranks in the same exchange. A step that is not finite on any
        rank moves no rank's optimiser, nor does one that `skips` says True of, from loss and gradient norm, which all
        ranks have alike.
        """
        batch, sums, norm = gradients.batch, gradients.sums, gradients.norm
        # A loss can be broken on one rank only; gradients, once averaged, are broken on all or none.
        loss = self.model.weighted_loss(self.model.mean_losses(sums, batch.counts))
        broken = ~(torch.isfinite(loss) & torch.isfinite(norm))
        read = batch.inputs[self.model.encoder.input_name]
        sizes = {"rows": float(len(read)), "samples": float(read.numel()), "heard": float(batch.heard)}
        own = {**extras, **sums, **sizes, "broken": broken, "norm": norm / world_size(), **self._times()}
        with self.clock.device("exchange"):
            totals = sum_across_ranks(own, self.device)
        finite = float(totals["broken"]) == 0.0
        summary, norm_of_all = self.model.summarise(totals), float(totals["norm"])
        moved = finite and not skips(summary["loss"], norm_of_all)
        if moved:
            self._move(rate)
        self.optimizer.zero_grad(set_to_none=True)
        diagnostics = self._diagnose(gradients) if gradients.diagnosed is not None else None
        return StepResult(summary, norm_of_all, finite, totals, loss.detach(), diagnostics, moved)

    def _diagnose(self, gradients: Gradients) -> dict[str, Any] | None:
        """Diagnostics of the gradient and of the weights after it moved them, on rank 0."""
        with unsharded(self.model), self._autocast():
            if rank() != 0:
                return None
            return {
                **(gradients.diagnosed or {}),
                **diagnose(self.model, gradients.batch.inputs, gradients.batch.masking),
            }

    def _move(self, rate: float) -> None:
        """The optimiser's step at a learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_multiplier"]
        with self.clock.device("optimizer"):
            self.optimizer.step()
            self.model.limit_temperatures()

    def evaluate(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """This rank's sums over one validation batch (PretrainModel.forward), to be added up by name.

        No dropout, no mixture, all codebooks; masks depend on seed and key only, so that every validation masks alike.
        """
        self.model.eval()
        masking, _ = self._draw_masking(batch, VALIDATION_STEP)
        inputs = to_device(batch, self.model.head_specs, self.device)
        self._fill(inputs, masking, batch["key"], VALIDATION_STEP)
        with torch.no_grad(), self._autocast():
            return self.model(inputs, masking.each(self._to_device))

    def _draw_masking(self, batch: Mapping[str, Any], step: int) -> tuple[Masking, Tensor]:
        """Masks of a batch that fits the model, and its valid frames [B, F]; both on the CPU."""
        encoder = self.model.encoder
        num_frames = encoder.num_frames(batch[encoder.input_name].shape[-1])
        check_batch(batch, self.model.head_specs, num_frames, encoder.hop)
        if self.model.memory is not None:
            check_tokens(batch, self.model.memory.embedding.num_embeddings)
        valid = align_valid(batch["valid"], encoder.hop, num_frames)
        width = len(encoder.mask_embedding)
        return draw_masking(self.mask, self.seed, step, batch["key"], valid.numpy(), width), valid

    def _to_device(self, tensor: Tensor) -> Tensor:
        return copy_to(tensor, self.device)

    def _mix(self, mixture: MixtureConfig, audio: Tensor, batch: Mapping[str, Any], step: int) -> Tensor:
        return mix_batch(audio, self._lengths(batch), batch["row"].tolist(), mixture, self.seed, step)

    def _fill(self, inputs: dict[str, Tensor], masking: Masking, keys: Sequence[str], step: int) -> None:
        """Noise in the masked stretches of the audio, where the mask asks for it; mixed audio lies under it, so it
        comes last.
        """
        if masking.noised is not None:
            hop = self.model.encoder.hop
            inputs["audio"] = fill_with_noise(inputs["audio"], masking.noised, hop, self.seed, step, keys)

    def _lengths(self, batch: Mapping[str, Any]) -> list[int]:
        """Samples, or tokens, of each row that are not padding."""
        per_frame = batch[self.model.encoder.input_name].shape[-1] // batch["valid"].shape[1]
        return (batch["valid"].sum(1) * per_frame).tolist()

    def _backward(self, batch: PreparedBatch, codebooks: Codebooks | None) -> dict[str, Tensor]:
        """Gradients of the global loss on every parameter; returns this rank's sums over all micro-batches."""
        total: dict[str, Tensor] = {}
        exchanged = self.clock.newest("backward")  # of the last micro-batch before these: the only one with an exchange
        parts = zip(micro_batches(batch.inputs, self.accumulation), batch.masking.split(self.accumulation))
        for i, (part, masks) in enumerate(parts):
            last = i == self.accumulation - 1
            with self._synchronised(last):
                with self.clock.device("forward"), self._autocast():
                    sums = self._parallel(part, masks, codebooks)
                if last:
                    self._count_wait_for_gradients(exchanged)
                loss = self.model.weighted_loss(self.model.mean_losses(sums, batch.counts))
                # DDP takes the mean over ranks, where the sum is the gradient of the global loss.
                with self.clock.device("backward"):
                    (loss * world_size()).backward()
            total = add_by_name(total, sums)
        return total

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager:
        """DDP exchanges gradients on the last micro-batch only. A sharded model reduces them on each, and keeps this
        rank's shard alone to save memory; its replicas exchange theirs on the last.
        """
        if is_sharded(self.model):
            self.model.set_requires_all_reduce(last)
        if last or not isinstance(self._parallel, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._parallel.no_sync()

    def _times(self) -> dict[str, float | Tensor]:
        """Seconds of each part since the last step (step_clock.py); `busy`: of this rank's own parts, by rank."""
        seconds = self.clock.take()
        busy = of_this_rank(sum(seconds[part] for part in OF_THE_RANK))
        return {f"seconds/{part}": value for part, value in seconds.items()} | {"busy": busy}

    def _count_wait_for_gradients(self, backward: float) -> None:
        """Count as exchange the seconds in which this rank had its own gradients and waited for those of other ranks.

        backward: seconds of the backward pass before, in which DDP exchanged gradients. DDP says how long the rank
        itself computed in it, from the next forward pass with an exchange on.
        """
        if isinstance(self._parallel, DistributedDataParallel):
            computed = self._parallel._get_ddp_logging_data().get("backward_compute_time", 0) / 1e9
            if computed > 0.0:
                self.clock.move("backward", "exchange", max(backward - computed, 0.0))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)


def _wrap(model: PretrainModel, device: torch.device) -> nn.Module:
    if world_size() == 1 or is_sharded(model):
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    parallel = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
    parallel._set_ddp_runtime_logging_sample_rate(1)  # every step is measured
    return parallel


def add_by_name(total: Mapping[str, Tensor], part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums of two batches, without graph; an empty `total` counts as zeros."""
    return {name: total.get(name, 0) + value.detach() for name, value in part.items()}

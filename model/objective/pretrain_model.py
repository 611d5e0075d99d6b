"""Encoder, heads and losses behind one forward: what the trainer moves.

Which target frames belong to which encoder frame is said in model/objective/target_alignment.py.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, model_validator
from torch import Tensor, nn

from mert_foundry.model.encoder import EncoderConfig, MertEncoder
from mert_foundry.model.objective.heads import (
    MIN_TEMPERATURE,
    CodeHead,
    HeadSpec,
    RegressionHead,
    code_cross_entropy,
    correct_codes,
    feature_energy,
    squared_error,
)
from mert_foundry.model.objective.seeding import derive_seed
from mert_foundry.model.objective.target_alignment import align_codes, align_valid, align_values, target_stride
from mert_foundry.model.objective.text_memory import TextMemory, TextMemoryConfig
from mert_foundry.model.objective.value_scale import Standardise, ValueScaleName
from mert_foundry.model.transformer.masking import Masking, as_masking

FEATURE_PENALTY = "feature_penalty"  # the loss term that belongs to no target
PRESENT = "present/"  # before a target's name: bool [B, 1] in a batch, the rows that have it
UNMASKED = "unmasked/"  # before a target's name: its term over frames that are not masked

Codebooks = Mapping[str, Sequence[int]]  # by target; those not named use all


class ObjectiveConfig(BaseModel):
    """What is predicted how, and how much each term counts; the defaults are MERT 95M's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    final_dim: int = Field(64, ge=1, description="features in which codes are compared, per codebook")
    tied_projection: bool = Field(
        False, description="one projection for all codebooks of a target, instead of one each"
    )
    temperature: float = Field(0.1, gt=0.0, description="divides the cosine logits; where a learnable one starts")
    learnable_temperature: bool = Field(False, description="each codebook learns its temperature, from 0.01 up")
    value_scale: ValueScaleName = Field(
        "raw",
        description="what continuous heads predict: raw: values as stored; standardised: each bin less its mean, over"
        " its standard deviation; log: the same of the logarithm that the target's companding follows; decorrelated:"
        " that logarithm's principal components, each over its standard deviation, so that pitch counts beside level",
    )
    codebooks_per_step: int | None = Field(
        None, ge=1, description="codebooks of each discrete target that a training step draws; null: all"
    )
    target_weights: dict[str, NonNegativeFloat] = Field(
        {}, description="factor on each target's loss by name; 1 where not named"
    )
    masked_weight: float = Field(1.0, ge=0.0, description="factor on the losses over masked frames")
    unmasked_weight: float = Field(0.0, ge=0.0, description="factor on the losses over other valid frames; 0: not made")
    feature_penalty: float = Field(
        10.0,
        ge=0.0,
        description="factor on the mean square of learned front-end features; none with log_mel, which has no weights",
    )

    @model_validator(mode="after")
    def _predicts(self) -> "ObjectiveConfig":
        if self.masked_weight == self.unmasked_weight == 0.0:
            raise ValueError("masked_weight and unmasked_weight are both 0: nothing would be predicted")
        if self.learnable_temperature and self.temperature < MIN_TEMPERATURE:
            raise ValueError(
                f"temperature {self.temperature} is below {MIN_TEMPERATURE}, where a learnable one is kept"
            )
        return self


class PretrainModel(nn.Module):
    """MERT's objective (arXiv 2306.00107): codes and values of masked frames, from the frames around them.

    Without `memory`, layers with `reads_memory` have nothing to read here and their gates stay at zero.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        heads: Sequence[HeadSpec],
        objective: ObjectiveConfig,
        memory: TextMemory | None = None,
    ):
        """Raises ValueError when heads and objective do not fit each other, a target's hop not the encoder's, or a
        memory not the encoder.
        """
        super().__init__()
        _check_heads(heads, objective)
        if memory is not None:
            check_memory(memory.config, encoder)
        self.head_specs = tuple(heads)
        self.objective = objective
        self.memory = memory  # before the encoder, as in the forward pass: FSDP fetches weights in this order
        self.encoder = MertEncoder(encoder)
        self._learned_width = encoder.frontend.learned_width
        self.standardise = nn.ModuleDict(
            {spec.name: Standardise(spec.scale, spec.companding) for spec in heads if spec.scale is not None}
        )
        self._strides = {spec.name: target_stride(spec.name, spec.frame_rate, self.encoder.hop) for spec in heads}
        self.heads = nn.ModuleDict(
            {spec.name: _build_head(spec, encoder.transformer.width, objective) for spec in heads}
        )

    def forward(
        self, batch: Mapping[str, Tensor], mask: Tensor | Masking, codebooks: Codebooks | None = None
    ) -> dict[str, Tensor]:
        """Sums over a batch in its device form (model/training/device_batch.py), to be added up by name and then
        divided.

        `mask` is [B, F] bool, or a Masking, with F the encoder's frames, and must lie inside `valid`. Logits are
        computed on masked frames only, and on the other valid ones if they have a weight. `codebooks` leaves
        codebooks of discrete targets out (`draw_codebooks`). Returns, with gradient where it is a loss:

        loss/{target}            codes: cross-entropy over codebooks and masked frames, times codebooks / codebooks
                                 used; values, in their head's scale: squared error over masked frames, mean over bins;
                                 scalars
        loss/unmasked/{target}   the same over valid frames that are not masked; if unmasked_weight is above 0
        loss/feature_penalty     mean square of the front-end's learned features over valid frames; scalar; if it learns
        correct/{target}         masked frames with the right code, per codebook [K] (NaN where it was left out);
                                 discrete targets only
        masked_frames, valid_frames     what the sums are divided by (`count_frames`); for a partial target /{target} of
                                        both
        """
        masking = as_masking(mask)
        masked = masking.predicted
        valid = align_valid(batch["valid"], self.encoder.hop, masked.shape[1])
        memory, memory_valid = None, None
        if self.memory is not None:
            memory_valid = batch["tokens_valid"]
            memory = self.memory(batch["tokens"], memory_valid)
        frames_valid = None if valid.all() else valid
        encoded = self.encoder(batch[self.encoder.input_name], masking, frames_valid, memory, memory_valid)

        sums = self.count_frames(batch, masked, valid)
        if self._learned_width:
            learned = encoded.frontend_features[:, :, : self._learned_width]
            sums[f"loss/{FEATURE_PENALTY}"] = feature_energy(learned, valid)
        selections = {"": masked, UNMASKED: valid & ~masked} if self.objective.unmasked_weight else {"": masked}
        for prefix, selected in selections.items():
            places = selected.flatten().nonzero().squeeze(1)  # counted once: a GPU must finish the encoder for it
            frames = encoded.last.flatten(0, 1).index_select(0, places)
            for spec in self.head_specs:
                loss, correct = self._compare(spec, batch, places, frames, (codebooks or {}).get(spec.name))
                sums[f"loss/{prefix}{spec.name}"] = loss
                if correct is not None and prefix == "":
                    sums[f"correct/{spec.name}"] = correct
        return sums

    def _compare(
        self,
        spec: HeadSpec,
        batch: Mapping[str, Tensor],
        places: Tensor,
        frames: Tensor,
        codebooks: Sequence[int] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Loss and right codes [K] of one target; `frames` [S, D] are the encoder's at `places` [S] of all rows' frames
        in turn.
        """
        stride, num_frames = self._strides[spec.name], self.encoder.num_frames(batch[self.encoder.input_name].shape[-1])
        if spec.partial:
            present = batch[PRESENT + spec.name].expand(-1, num_frames).flatten()[places]
            frames, places = frames[present], places[present]
        if spec.kind == "continuous":
            values = align_values(batch[spec.name], stride, num_frames).flatten(0, 1)[places]
            if spec.scale is not None:
                values = self.standardise[spec.name](values)
            return squared_error(self.heads[spec.name](frames), values), None
        codes = align_codes(batch[spec.name], stride, num_frames).transpose(1, 2).flatten(0, 1)[places]
        logits = self.heads[spec.name](frames, codebooks)
        if codebooks is None:
            return code_cross_entropy(logits, codes), correct_codes(logits, codes)
        codes = codes[:, codebooks]
        correct = torch.full((spec.size,), torch.nan, device=codes.device)
        correct[codebooks] = correct_codes(logits, codes).float()
        return code_cross_entropy(logits, codes) * (spec.size / len(codebooks)), correct

    def count_frames(self, batch: Mapping[str, Tensor], masked: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """What losses are divided by: masked and valid frames of a batch, [B, F] bool; for a partial target those of
        the rows with it.
        """
        counts = {"masked_frames": masked.sum(), "valid_frames": valid.sum()}
        for name in self._partial_targets():
            present = batch[PRESENT + name]
            counts |= {
                f"masked_frames/{name}": (masked & present).sum(),
                f"valid_frames/{name}": (valid & present).sum(),
            }
        return counts

    def _partial_targets(self) -> list[str]:
        return [spec.name for spec in self.head_specs if spec.partial]

    def draw_codebooks(self, seed: int, step: int) -> Codebooks | None:
        """Codebooks that training step `step` uses, by target: `codebooks_per_step` distinct ones, each alike often.

        A pure function of (seed, step), so all ranks and micro-batches use the same. Their loss is multiplied by
        codebooks / codebooks used: its expectation over steps, and that of its gradient, is the loss over all.
        MERT's own code draws with repetition, so it may use fewer than asked, and does not rescale.
        None when every step uses all.
        """
        if self.objective.codebooks_per_step is None:
            return None
        drawn = {}
        for spec in self.discrete_heads():
            generator = np.random.default_rng(derive_seed(seed, step, "codebooks", spec.name))
            chosen = generator.choice(spec.size, self.objective.codebooks_per_step, replace=False)
            drawn[spec.name] = sorted(chosen.tolist())
        return drawn

    def limit_temperatures(self) -> None:
        """Keep learnt temperatures in their range; to be called after each optimiser step."""
        for head in self.heads.values():
            if isinstance(head, CodeHead):
                head.limit_temperature()

    def zero_sums(self) -> dict[str, Tensor]:
        """What `forward` returns for no frame at all; in float64, so that sums over many batches stay exact."""
        zeros = torch.zeros(1, dtype=torch.float64, device=self.encoder.mask_embedding.device)
        ends = ["", *(f"/{name}" for name in self._partial_targets())]
        sums = {f"{kind}_frames{end}": zeros[0] for kind in ("masked", "valid") for end in ends}
        sums |= {f"loss/{name}": zeros[0] for name in self._weights()}
        return sums | {f"correct/{spec.name}": zeros.repeat(spec.size) for spec in self.discrete_heads()}

    def mean_losses(self, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each term's mean per frame by name, unweighted. `counts` holds the frames of all ranks and micro-batches.

        Masked and unmasked frames have means of their own (fairseq divides their sum by the number of both), so
        neither the masked share nor the unmasked weight changes what the other mean says.
        """
        means = {}
        for name in self._weights():
            masked, valid = self._frames_of(name, counts)
            unmasked = max(valid - masked, 1.0)  # when every frame is masked the sum is 0
            frames = valid if name == FEATURE_PENALTY else unmasked if name.startswith(UNMASKED) else masked
            # Of a partial target, a step may have no frame: then its sum is 0.
            means[name] = sums[f"loss/{name}"] / (frames or 1.0)
        return means

    def _frames_of(self, term: str, counts: Mapping[str, Tensor]) -> tuple[float, float]:
        """Masked and valid frames of a term's target."""
        name = term.removeprefix(UNMASKED)
        end = f"/{name}" if name in self._partial_targets() else ""
        return float(counts[f"masked_frames{end}"]), float(counts[f"valid_frames{end}"])

    def weighted_loss(self, means: Mapping[str, Tensor]) -> Tensor:
        """The training loss from `mean_losses`: sum of weight x mean over all terms; scalar."""
        weights = self._weights()
        return reduce(add, (weights[name] * mean for name, mean in means.items()))

    def _weights(self) -> dict[str, float]:
        """Every loss term by name, with its factor."""
        objective = self.objective
        weights = {spec.name: objective.target_weights.get(spec.name, 1.0) for spec in self.head_specs}
        terms = {name: objective.masked_weight * weight for name, weight in weights.items()}
        if objective.unmasked_weight:
            terms |= {UNMASKED + name: objective.unmasked_weight * weight for name, weight in weights.items()}
        return {**terms, FEATURE_PENALTY: objective.feature_penalty} if self._learned_width else terms

    def discrete_heads(self) -> list[HeadSpec]:
        """The heads that predict codes."""
        return [spec for spec in self.head_specs if spec.kind == "discrete"]

    def summarise(self, totals: Mapping[str, Tensor]) -> dict[str, Any]:
        """Plain numbers from the sums of all ranks.

        loss: weighted sum. losses: mean per frame of each term, without those of a target that no row had. accuracy:
        share of right codes per codebook, a list for each discrete target; NaN for a codebook that was left out, or
        without a frame.
        """
        means = self.mean_losses(totals, totals)
        return {
            "loss": float(self.weighted_loss(means)),
            "losses": {name: float(mean) for name, mean in means.items() if self._frames_of(name, totals)[1]},
            "accuracy": {
                spec.name: (totals[f"correct/{spec.name}"] / self._frames_of(spec.name, totals)[0]).tolist()
                for spec in self.discrete_heads()
                if self._frames_of(spec.name, totals)[0]
            },
        }


def build_pretrain_model(
    encoder: EncoderConfig,
    heads: Sequence[HeadSpec],
    objective: ObjectiveConfig,
    seed: int,
    memory: TextMemoryConfig | None = None,
    vocabulary_size: int = 0,
) -> PretrainModel:
    """A model whose first weights are a pure function of its config and `seed` (the global generator is left alone).

    With a memory, over tokens of a vocabulary, all other weights are those of the same model without one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        if memory is None:
            return PretrainModel(encoder, heads, objective)
        transformer = encoder.transformer.without_memory()
        plain = PretrainModel(encoder.model_copy(update={"transformer": transformer}), heads, objective)
        torch.manual_seed(derive_seed(seed, "weights", "memory"))
        model = PretrainModel(encoder, heads, objective, TextMemory(memory, vocabulary_size))
    model.load_state_dict(plain.state_dict(), strict=False)
    return model


def check_memory(memory: TextMemoryConfig, encoder: EncoderConfig) -> None:
    """Raise ValueError when the encoder does not read a memory of this width, naming both."""
    if memory.width != encoder.transformer.memory_width:
        raise ValueError(
            f"memory.width is {memory.width}, encoder.transformer.memory_width {encoder.transformer.memory_width}:"
            " they must be the same, and some layers have reads_memory"
        )


def _build_head(spec: HeadSpec, width: int, objective: ObjectiveConfig) -> nn.Module:
    if spec.kind == "continuous":
        return RegressionHead(width, spec.predicted)
    assert spec.codebook_size is not None, "HeadSpec asks for it"
    return CodeHead(
        width,
        spec.size,
        spec.codebook_size,
        objective.final_dim,
        objective.temperature,
        objective.tied_projection,
        objective.learnable_temperature,
    )


def _check_heads(heads: Sequence[HeadSpec], objective: ObjectiveConfig) -> None:
    names = [spec.name for spec in heads]
    if not names:
        raise ValueError("no target to predict: heads is empty")
    if len(set(names)) < len(names) or FEATURE_PENALTY in names:
        raise ValueError(f"target names must differ from each other and from {FEATURE_PENALTY}: {names}")
    unknown = sorted(set(objective.target_weights) - set(names))
    if unknown:
        raise ValueError(f"target_weights names {unknown}, but the targets are {names}")
    asked = objective.codebooks_per_step
    for spec in heads:
        if asked is not None and spec.kind == "discrete" and spec.size < asked:
            raise ValueError(f"codebooks_per_step is {asked}, but target {spec.name} has {spec.size} codebooks")

"""Operations that are counted from shapes against those that torch counts while a step runs, on the meta device."""

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mert_foundry.jobs.planning.model_size import build_on_meta
from mert_foundry.model.encoder import EncoderConfig
from mert_foundry.model.objective.heads import HeadSpec, code_cross_entropy, feature_energy, squared_error
from mert_foundry.model.objective.operations import count_operations
from mert_foundry.model.objective.pretrain_model import ObjectiveConfig

HEADS = (
    HeadSpec(name="codes", kind="discrete", size=8, codebook_size=1024),
    HeadSpec(name="cqt", kind="continuous", size=336),
)
ROWS, SAMPLES = 2, 48_000
WIDE = {"layers": 3, "width": 192, "heads": 6, "feed_forward": 768, "layer_drop": 0.0}
CQT = {"lowest_frequency": 220.0, "bins": 60, "bins_per_octave": 12}
MODELS = {
    "base": {},
    "large": {"frontend": {"norm": "layer", "bias": True}, "transformer": {"norm": "pre", "position_groups": 4}},
    "log-mel": {"frontend": {"kind": "log_mel"}, "transformer": {"position": "rope", "activation": "swiglu"}},
    "cqt": {"frontend": {"kind": "convolution_cqt", "convolution": {"channels": 64}, "cqt": CQT}},
    "conformer": {"transformer": {"convolution_kernel": 31, "norm": "sub", "norm_kind": "rms", "position": "none"}},
    "attention": {"transformer": {"attention": {"window": 5, "gate": True, "learnable_temperature": True}}},
    "uneven": {"transformer": {"overrides": {"1": {"heads": 3, "feed_forward": 256, "attention": {"relaxation": 32}}}}},
    "frozen": {"transformer": {"overrides": {"0-1": {"trainable": False}}}},
}
OBJECTIVES = {
    "all codebooks": ObjectiveConfig(),
    "some codebooks": ObjectiveConfig(codebooks_per_step=2),
    "tied": ObjectiveConfig(tied_projection=True, codebooks_per_step=4, learnable_temperature=True),
}


def product_in_place(total: list[int], first: list[int], second: list[int], **other: object) -> int:
    """Operations of addmm_ on these shapes, which torch counts out of place only."""
    return 2 * first[0] * first[1] * second[1]


def gradients_of_convolution(
    gradient: list[int], inputs: list[int], weight: list[int], *other: Any, **more: Any
) -> int:
    """Each takes as much as the forward pass; of a grouped one torch counts that to the weights `groups` times."""
    wanted = other[-1]
    return 2 * math.prod(gradient) * math.prod(weight[1:]) * sum(wanted[:2])


CORRECTED = {
    torch.ops.aten.addmm_: product_in_place,
    torch.ops.aten.convolution_backward: gradients_of_convolution,
}


def encoder_config(name: str) -> EncoderConfig:
    changes = MODELS[name]
    frontend = changes.get("frontend", {"channels": 256})
    return EncoderConfig(frontend=frontend, transformer={**WIDE, **changes.get("transformer", {})})


def counted_by_torch(encoder: EncoderConfig, objective: ObjectiveConfig, predicted: int) -> float:
    """Forward and backward pass of `ROWS` rows, of which `predicted` frames are predicted."""
    model = build_on_meta(encoder, HEADS, objective)
    with torch.device("meta"), FlopCounterMode(display=False, custom_mapping=CORRECTED) as counter:
        encoded = model.encoder(torch.empty(ROWS, SAMPLES), mask=None)
        frames = encoded.last.flatten(0, 1)[:predicted]
        codebooks = objective.codebooks_per_step
        logits = model.heads["codes"](frames, None if codebooks is None else list(range(codebooks)))
        loss = code_cross_entropy(logits, torch.empty(predicted, len(logits), dtype=torch.int64))
        loss = loss + squared_error(model.heads["cqt"](frames), torch.empty(predicted, 336))
        learned = encoder.frontend.learned_width
        valid = torch.empty(encoded.last.shape[:2], dtype=torch.bool)
        (loss + feature_energy(encoded.frontend_features[..., :learned], valid) if learned else loss).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", MODELS)
def test_operations_are_those_that_torch_counts(name):
    encoder = encoder_config(name)
    counted = count_operations(build_on_meta(encoder, HEADS, ObjectiveConfig()), SAMPLES)
    assert counted(ROWS, 100) == pytest.approx(counted_by_torch(encoder, ObjectiveConfig(), 100), rel=0.01)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_heads_count_by_predicted_frames(name):
    objective = OBJECTIVES[name]
    small = EncoderConfig(frontend={"channels": 64}, transformer={**WIDE, "layers": 1})
    model = build_on_meta(small, HEADS, objective)
    more, fewer = (counted_by_torch(small, objective, predicted) for predicted in (120, 20))
    counted = count_operations(model, SAMPLES)
    assert counted(ROWS, 120) - counted(ROWS, 20) == pytest.approx(more - fewer, rel=1e-6)


def test_a_dropped_layer_counts_by_its_share_of_steps():
    encoder = encoder_config("base")
    transformer = {**WIDE, "layer_drop": 0.25}
    shares = [
        count_operations(build_on_meta(each, HEADS, ObjectiveConfig()), SAMPLES).of_row
        for each in (encoder, EncoderConfig(frontend={"channels": 256}, transformer=transformer))
    ]
    without = EncoderConfig(frontend={"channels": 256}, transformer={**WIDE, "layers": 1})
    layer = (shares[0] - count_operations(build_on_meta(without, HEADS, ObjectiveConfig()), SAMPLES).of_row) / 2
    assert shares[0] - shares[1] == pytest.approx(3 * 0.25 * layer)

"""Targets at another frame rate than the encoder's frames."""

import pytest
import torch
from tiny_model import HEADS, HOP, synthetic_batch, tiny_encoder

from mert_foundry.model.frontend.convolution import FrontendConfig
from mert_foundry.model.objective.heads import HeadSpec, squared_error
from mert_foundry.model.objective.pretrain_model import ObjectiveConfig, build_pretrain_model
from mert_foundry.model.objective.span_mask import MaskConfig
from mert_foundry.model.objective.target_alignment import align_codes, align_valid, align_values, target_stride
from mert_foundry.model.training.device_batch import check_batch, to_device
from mert_foundry.model.training.optimizer import OptimizerConfig
from mert_foundry.model.training.train_step import TrainStep

CPU = torch.device("cpu")
AT_25_HZ = FrontendConfig(channels=8, kernels=(10, 3, 3, 3, 3, 2, 6), strides=(5, 2, 2, 2, 2, 2, 6))


def slow_model(heads=HEADS):
    encoder = tiny_encoder(dropout=0.0).model_copy(update={"frontend": AT_25_HZ})
    return build_pretrain_model(encoder, heads, ObjectiveConfig(final_dim=4), seed=1)


@pytest.mark.parametrize("rate, hop, stride", [(75, 320, 1), (75, 960, 3), (75, 1280, 4), (25, 960, 1), (50, 960, 2)])
def test_stride_is_the_ratio_of_hops(rate, hop, stride):
    assert target_stride("codes", rate, hop) == stride


@pytest.mark.parametrize("rate, hop, target_hop", [(75, 480, "320"), (25, 320, "960"), (70, 320, "342.857")])
def test_a_hop_that_is_no_multiple_is_refused_naming_both(rate, hop, target_hop):
    with pytest.raises(ValueError, match=f"target codes has a hop of {target_hop} samples.*hop {hop} is no multiple"):
        target_stride("codes", rate, hop)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_frames_are_aligned_as_stated(stride):
    target_frames, num_frames = 23, 5
    codes = torch.arange(2 * 2 * target_frames).reshape(2, 2, target_frames)
    values = torch.randn(2, target_frames, 4)
    valid = torch.rand(2, target_frames) < 0.8
    aligned = align_codes(codes, stride, num_frames)
    for frame in range(num_frames):
        members = slice(frame * stride, (frame + 1) * stride)
        assert torch.equal(aligned[:, :, frame], codes[:, :, members][:, :, stride // 2])
        assert torch.allclose(align_values(values, stride, num_frames)[:, frame], values[:, members].mean(1))
        assert torch.equal(align_valid(valid, 320 * stride, num_frames)[:, frame], valid[:, members].all(1))
    assert aligned.shape == (2, 2, num_frames)


@torch.no_grad()
def test_the_middle_code_lies_around_the_encoder_frames_centre():
    """Codes that name the time they stand for come out at the time of the frame that predicts them."""
    times = (torch.arange(60) + 0.5) * HOP
    aligned = align_codes(times[None, None], 3, 20)[0, 0]
    assert torch.equal(aligned, (torch.arange(20) + 0.5) * 3 * HOP)


@torch.no_grad()
def test_an_encoder_at_25_hz_learns_from_targets_at_75_hz():
    model = slow_model().eval()
    stored = synthetic_batch(3, frames=61)  # one more than whole encoder frames
    stored["valid"][2, 31:] = False  # cuts encoder frame 10 in two
    check_batch(stored, HEADS, 20, 960)
    batch = to_device(stored, HEADS, CPU)
    num_frames = model.encoder.num_frames(61 * HOP)
    assert num_frames == 20
    mask = torch.zeros(4, 20, dtype=torch.bool)
    mask[:, ::2] = True
    mask[2, 10:] = False
    sums = model(batch, mask)
    assert float(sums["valid_frames"]) == 70 and float(sums["masked_frames"]) == 35
    valid = torch.ones(4, 20, dtype=torch.bool)
    valid[2, 10:] = False
    frames = model.encoder(batch["audio"], mask=mask, valid=valid).last[mask]
    values = torch.stack([batch["cqt"][:, 3 * i : 3 * i + 3].mean(1) for i in range(20)], dim=1)[mask]
    assert float(sums["loss/cqt"]) == pytest.approx(float(squared_error(model.heads["cqt"](frames), values)), rel=1e-5)
    codes = batch["codes"][:, :, 1:60:3].transpose(1, 2)[mask]
    logits = model.heads["codes"](frames)
    loss = torch.nn.functional.cross_entropy(logits.permute(1, 2, 0), codes, reduction="sum")
    assert float(sums["loss/codes"]) == pytest.approx(float(loss), rel=1e-5)


def test_a_training_step_at_25_hz_masks_encoder_frames():
    model = slow_model()
    step = TrainStep(model, OptimizerConfig(), MaskConfig(probability=0.4, span=2), None, 2, False, 11, CPU)
    result = step.train(synthetic_batch(0, frames=60), 1, 1e-3, {})
    assert result.finite and float(result.totals["valid_frames"]) == 4 * 19
    assert 0 < float(result.totals["masked_frames"]) < 4 * 19


def test_targets_of_different_rates_lie_side_by_side():
    heads = (HEADS[0], HeadSpec(name="slow", kind="continuous", size=3, frame_rate=25))
    batch = {**synthetic_batch(0, frames=60), "slow": torch.rand(4, 20, 3)}
    check_batch(batch, heads, 19, 960)
    sums = slow_model(heads)(to_device(batch, heads, CPU), torch.ones(4, 19, dtype=torch.bool))
    assert float(sums["loss/slow"].detach()) > 0
    with pytest.raises(ValueError, match=r"target slow has shape \[4, 60, 3\], expected \[4, 20, 3\]"):
        check_batch({**batch, "slow": torch.rand(4, 60, 3)}, heads, 19, 960)
    with pytest.raises(ValueError, match="target slow has a hop of 960 samples .* the encoder's hop 320"):
        build_pretrain_model(tiny_encoder(), heads, ObjectiveConfig(), seed=0)


def test_a_row_without_a_whole_valid_frame_is_refused():
    batch = synthetic_batch(0, frames=60)
    batch["valid"][1, 2:] = False
    with pytest.raises(ValueError, match="track-0-1 has no valid frame"):
        check_batch(batch, HEADS, 20, 960)

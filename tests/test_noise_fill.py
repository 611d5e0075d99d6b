"""Masked stretches of the wave as noise: against a loop over samples, and as a training step and a
validation use it.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import HEADS, OBJECTIVE, synthetic_batch, tiny_encoder

from mert_foundry.model.frontend.log_mel import LogMelFrontendConfig
from mert_foundry.model.objective.noise_fill import fill_with_noise
from mert_foundry.model.objective.pretrain_model import PretrainModel, build_pretrain_model
from mert_foundry.model.objective.seeding import derive_seed
from mert_foundry.model.objective.span_mask import MaskConfig, draw_masking, draw_masks
from mert_foundry.model.objective.target_alignment import align_valid
from mert_foundry.model.training.device_batch import to_device
from mert_foundry.model.training.optimizer import OptimizerConfig
from mert_foundry.model.training.train_step import TrainStep
from mert_foundry.model.transformer.masking import Masking

CPU = torch.device("cpu")
NOISE = MaskConfig(probability=0.5, span=2, fill="noise")


def naive_fill(audio: np.ndarray, noised: np.ndarray, hop: int, seed: int, step: int, keys: list[str]) -> np.ndarray:
    """Sample by sample, in order."""
    filled = audio.copy()
    for row, key in enumerate(keys):
        generator = np.random.default_rng(derive_seed(seed, step, "mask_noise", key))
        noise = iter(generator.standard_normal(audio.shape[1], dtype=np.float32))
        for sample in range(audio.shape[1]):
            frame = sample // hop
            if frame < noised.shape[1] and noised[row, frame]:
                filled[row, sample] = next(noise) * np.float32(0.1)
    return filled


@settings(max_examples=30, deadline=None)
@given(
    keys=st.lists(st.text(max_size=8), min_size=1, max_size=4, unique=True),
    hop=st.integers(1, 12),
    frames=st.integers(1, 9),
    rest=st.integers(0, 20),
    seed=st.integers(0, 99),
)
def test_noise_stands_in_the_samples_of_masked_frames_alone_whatever_the_other_rows(keys, hop, frames, rest, seed):
    rng = np.random.default_rng(seed)
    audio = rng.random((len(keys), hop * frames + rest), dtype=np.float32)
    noised = rng.random((len(keys), frames)) < 0.5
    filled = fill_with_noise(torch.from_numpy(audio), torch.from_numpy(noised), hop, seed, 3, keys).numpy()
    assert np.array_equal(filled, naive_fill(audio, noised, hop, seed, 3, keys))
    alone = fill_with_noise(torch.from_numpy(audio[-1:]), torch.from_numpy(noised[-1:]), hop, seed, 3, keys[-1:])
    assert np.array_equal(alone[0].numpy(), filled[-1])


def test_the_noise_is_normal_with_deviation_a_tenth_and_another_at_each_step():
    every = torch.ones(2, 300, dtype=torch.bool)
    first, second = (fill_with_noise(torch.ones(2, 96_000), every, 320, 0, step, ["a", "b"]) for step in (1, 2))
    assert float(first.std()) == pytest.approx(0.1, rel=0.01) and float(first.mean()) == pytest.approx(0.0, abs=1e-3)
    together = torch.cat([first, second])
    assert float((torch.corrcoef(together) - torch.eye(4)).abs().max()) < 0.02


def test_noise_takes_the_place_of_the_embedding_and_leaves_shares_and_masks_alone():
    valid = np.ones((300, 100), dtype=bool)
    keys = [str(i) for i in range(300)]
    plain, noisy = (
        draw_masking(MaskConfig(replace=0.2, keep=0.3, fill=fill), 1, 2, keys, valid, 8)
        for fill in ("embedding", "noise")
    )
    assert plain.noised is None and not noisy.embedded.any()
    assert torch.equal(noisy.noised, plain.embedded) and torch.equal(noisy.predicted, plain.predicted)
    assert torch.equal(noisy.source, plain.source)


def model_with(kind: str) -> PretrainModel:
    encoder = tiny_encoder(dropout=0.0)
    if kind == "log_mel":
        encoder = encoder.model_copy(update={"frontend": LogMelFrontendConfig(kind="log_mel", bands=16)})
    return build_pretrain_model(encoder, HEADS, OBJECTIVE, 1)


@pytest.mark.parametrize("kind", ["convolution", "log_mel"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_step_and_a_validation_hear_noise_in_the_masked_stretches(kind, accumulation):
    model = model_with(kind)
    batch = synthetic_batch(5, frames=60)
    batch["valid"][1, 33:] = False
    step = TrainStep(model, OptimizerConfig(), NOISE, None, accumulation, False, 11, CPU)
    hop, frames = model.encoder.hop, model.encoder.num_frames(60 * 320)
    inputs = to_device(batch, HEADS, CPU)
    expected = {}
    for number in (0, 4):  # a validation's masks are those of step 0
        valid = align_valid(batch["valid"], hop, frames).numpy()
        mask = draw_masks(NOISE, 11, number, batch["key"], valid)
        filled = naive_fill(inputs["audio"].numpy(), mask, hop, 11, number, batch["key"])
        assert np.array_equal(filled[1, 33 * 320 :], inputs["audio"][1, 33 * 320 :])
        heard = {**inputs, "audio": torch.from_numpy(filled)}
        predicted = torch.from_numpy(mask)
        with torch.no_grad():
            expected[number] = model.summarise(model(heard, Masking(predicted, torch.zeros_like(predicted))))
    assert model.summarise(step.evaluate(batch))["loss"] == pytest.approx(expected[0]["loss"], rel=1e-5)
    assert step.train(batch, 4, 0.0, {}).summary["loss"] == pytest.approx(expected[4]["loss"], rel=1e-5)

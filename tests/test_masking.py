"""What masking does to frames, and that it reaches the encoder."""

import pytest
import torch
from tiny_model import HEADS, synthetic_batch, tiny_encoder, tiny_model

from mert_foundry.model.encoder import MertEncoder
from mert_foundry.model.objective.pretrain_model import ObjectiveConfig, build_pretrain_model
from mert_foundry.model.training.device_batch import to_device
from mert_foundry.model.transformer.masking import Masking, apply_masking

CPU = torch.device("cpu")


def naive_masking(hidden: torch.Tensor, masking: Masking, embedding: torch.Tensor) -> torch.Tensor:
    """One frame at a time."""
    masked = torch.empty_like(hidden)
    for b in range(hidden.shape[0]):
        for t in range(hidden.shape[1]):
            source = t if masking.source is None else int(masking.source[b, t])
            masked[b, t] = embedding if masking.embedded[b, t] else hidden[b, source]
            if masking.channels is not None:
                masked[b, t, masking.channels[b]] = 0.0
    return masked


def some_masking(rows: int, frames: int, width: int, source: bool, channels: bool) -> Masking:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.rand(rows, frames, generator=generator) < 0.6
    return Masking(
        predicted,
        predicted & (torch.rand(rows, frames, generator=generator) < 0.5),
        torch.randint(frames, (rows, frames), generator=generator) if source else None,
        torch.rand(rows, width, generator=generator) < 0.3 if channels else None,
    )


@pytest.mark.parametrize("source", [False, True])
@pytest.mark.parametrize("channels", [False, True])
def test_masking_does_what_is_said_frame_by_frame(source, channels):
    hidden, embedding = torch.randn(3, 7, 5), torch.randn(5)
    masking = some_masking(3, 7, 5, source, channels)
    assert torch.equal(apply_masking(hidden, masking, embedding), naive_masking(hidden, masking, embedding))


def test_a_plain_mask_sets_the_embedding_on_every_masked_frame():
    hidden, embedding, mask = torch.randn(2, 6, 4), torch.randn(4), torch.rand(2, 6) < 0.5
    masked = apply_masking(hidden, mask, embedding)
    assert torch.equal(masked[~mask], hidden[~mask])
    assert torch.equal(masked[mask], embedding.expand(int(mask.sum()), 4))


def test_parts_and_first_rows_are_cut_alike():
    masking = some_masking(5, 4, 3, source=True, channels=True)
    parts = list(masking.split(2))
    assert [list(part.shape) for part in parts] == [[3, 4], [2, 4]]
    for name in ("predicted", "embedded", "source", "channels"):
        whole = getattr(masking, name)
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), whole)
        assert torch.equal(getattr(masking.first(2), name), whole[:2])
    assert [part.source for part in Masking(masking.predicted, masking.embedded).split(2)] == [None, None]


@torch.no_grad()
def test_the_encoder_applies_all_of_it():
    encoder = MertEncoder(tiny_encoder(dropout=0.0)).eval()
    audio = torch.randn(2, 20 * 320)
    masking = some_masking(2, 19, 16, source=True, channels=True)
    projected = encoder.projection(encoder.frontend(audio))
    expected = encoder.transformer(naive_masking(projected, masking, encoder.mask_embedding)).last
    assert torch.allclose(encoder(audio, mask=masking).last, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"mask has shape \[2, 18\], the encoder's frames \[2, 19\]"):
        encoder(audio, mask=some_masking(2, 18, 16, source=False, channels=False))


def test_kept_and_replaced_frames_are_predicted_too():
    model = tiny_model(dropout=0.0).eval()
    batch = to_device(synthetic_batch(3), HEADS, CPU)
    masking = some_masking(4, 19, 16, source=True, channels=False)
    with torch.no_grad():
        sums = model(batch, masking)
        frames = model.encoder(batch["audio"], mask=masking).last[masking.predicted]
        error = (model.heads["cqt"](frames) - batch["cqt"][:, :19][masking.predicted]).square().mean(1).sum()
    assert float(sums["masked_frames"]) == masking.predicted.sum() > masking.embedded.sum()
    assert float(sums["loss/cqt"]) == pytest.approx(float(error), rel=1e-5)


def test_every_weight_gets_a_gradient_when_no_frame_is_embedded():
    objective = ObjectiveConfig(final_dim=4, codebooks_per_step=1, unmasked_weight=0.5, learnable_temperature=True)
    model = build_pretrain_model(tiny_encoder(), HEADS, objective, seed=1)
    predicted = torch.rand(4, 19) < 0.5
    masking = Masking(predicted, torch.zeros_like(predicted))
    sums = model(to_device(synthetic_batch(0), HEADS, CPU), masking, {"codes": [1]})
    model.weighted_loss(model.mean_losses(sums, sums)).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []

"""The objective against a naive one written from the formula of arXiv 2306.00107."""

import math

import pytest
import torch
from tiny_model import HEADS, slice_rows, synthetic_batch, tiny_encoder, tiny_model

from mert_foundry.model.frontend.convolution_cqt import ConvCqtFrontendConfig
from mert_foundry.model.frontend.log_mel import LogMelFrontendConfig
from mert_foundry.model.objective.heads import (
    CodeHead,
    Companding,
    HeadSpec,
    code_cross_entropy,
    correct_codes,
    feature_energy,
    squared_error,
)
from mert_foundry.model.objective.pretrain_model import ObjectiveConfig, PretrainModel, build_pretrain_model
from mert_foundry.model.training.device_batch import check_batch, to_device

CPU = torch.device("cpu")


def every_other_frame(rows: int, frames: int) -> torch.Tensor:
    return (torch.arange(frames) % 2 == 0)[None].repeat(rows, 1)


def naive_code_loss(head: CodeHead, frames: torch.Tensor, codes: torch.Tensor) -> float:
    """Sum over frames and codebooks of -log softmax(cos(T_k(o), e_kc) / 0.1) at the code, one at a time."""
    total = 0.0
    size = head.embedding.shape[2]
    for frame, row in zip(frames.double(), codes):
        for k, code in enumerate(row):
            weight = head.projection.weight[k * size : (k + 1) * size].double()
            projected = weight @ frame + head.projection.bias[k * size : (k + 1) * size].double()
            scores = [
                (projected @ entry).item() / (projected.norm() * entry.norm()).item() / 0.1
                for entry in head.embedding[k].double()
            ]
            total += math.log(sum(math.exp(score) for score in scores)) - scores[code]
    return total


@torch.no_grad()
def test_loss_equals_the_formula():
    model = tiny_model(dropout=0.0).eval()
    batch = to_device(synthetic_batch(3), HEADS, CPU)
    mask = every_other_frame(4, 19)
    sums = model(batch, mask)
    encoded = model.encoder(batch["audio"], mask=mask)

    frames = encoded.last[mask]
    codes = torch.stack([batch["codes"][b, :, t] for b in range(4) for t in range(0, 19, 2)])
    cqt = torch.stack([batch["cqt"][b, t] for b in range(4) for t in range(0, 19, 2)])
    error = (model.heads["cqt"].linear(frames) - cqt).square().mean(1)
    energy = encoded.frontend_features.square().mean()

    means = model.mean_losses(sums, sums)
    assert float(means["codes"]) == pytest.approx(naive_code_loss(model.heads["codes"], frames, codes) / 40, rel=1e-5)
    assert float(means["cqt"]) == pytest.approx(float(error.mean()), rel=1e-5)
    assert float(means["feature_penalty"]) == pytest.approx(float(energy), rel=1e-5)
    expected = means["codes"] + 0.5 * means["cqt"] + 10 * energy  # tiny_model weighs cqt by 0.5
    assert float(model.weighted_loss(means)) == pytest.approx(float(expected), rel=1e-5)
    assert model.summarise(sums)["loss"] == pytest.approx(float(expected), rel=1e-5)


@torch.no_grad()
def test_constant_q_channels_are_not_penalised():
    """As in MERT's own model, which takes the mean square before it puts the spectra beside."""
    frontend = ConvCqtFrontendConfig(
        kind="convolution_cqt",
        convolution={"channels": 4},
        cqt={"lowest_frequency": 1000.0, "bins": 24, "bins_per_octave": 12},
    )
    encoder = tiny_encoder(dropout=0.0).model_copy(update={"frontend": frontend})
    model = build_pretrain_model(encoder, HEADS, ObjectiveConfig(final_dim=4), 1).eval()
    batch = to_device(synthetic_batch(3), HEADS, CPU)
    sums = model(batch, every_other_frame(4, 19))
    convolved = model.encoder.frontend.convolution(batch["audio"])
    expected = float(convolved.square().mean())
    assert model.summarise(sums)["losses"]["feature_penalty"] == pytest.approx(expected, rel=1e-5)
    assert float(model.encoder.frontend(batch["audio"]).square().mean()) != pytest.approx(expected, rel=0.01)


@torch.no_grad()
def test_a_front_end_without_weights_is_not_penalised():
    encoder = tiny_encoder(dropout=0.0).model_copy(update={"frontend": LogMelFrontendConfig(kind="log_mel", bands=8)})
    model = build_pretrain_model(encoder, HEADS, ObjectiveConfig(final_dim=4), 1)
    sums = model(to_device(synthetic_batch(3, frames=24), HEADS, CPU), every_other_frame(4, 8))
    assert model.summarise(sums)["losses"].keys() == {"codes", "cqt"} and model.zero_sums().keys() == sums.keys()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"target_weights": {"codes": -1.0}}, "greater than or equal to 0"),
        ({"target_weights": {"codes": math.nan}}, "finite"),
        ({"feature_penalty": math.inf}, "finite"),
        ({"learnable_temperature": True, "temperature": 0.001}, "temperature 0.001 is below 0.01"),
    ],
)
def test_an_objective_that_cannot_be_minimised_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        ObjectiveConfig(**values)


@torch.no_grad()
def test_accuracy_counts_the_most_likely_code_per_codebook():
    model = tiny_model(dropout=0.0).eval()
    batch = to_device(synthetic_batch(3), HEADS, CPU)
    mask = every_other_frame(4, 19)
    logits = model.heads["codes"](model.encoder(batch["audio"], mask=mask).last[mask])
    best = logits.argmax(2)
    codes = batch["codes"].transpose(1, 2)  # a view
    codes[:, :19][mask] = best.T
    codes[0, 0, 1] = (codes[0, 0, 1] + 1) % 16
    assert model.summarise(model(batch, mask))["accuracy"] == {"codes": [1.0, pytest.approx(39 / 40)]}


@torch.no_grad()
def test_padding_and_unmasked_frames_do_not_count():
    model = tiny_model(dropout=0.0).eval()
    stored = synthetic_batch(3)
    stored["valid"][1, 12:] = False
    batch = to_device(stored, HEADS, CPU)
    mask = every_other_frame(4, 19)
    mask[1, 12:] = False
    sums = model(batch, mask)
    assert float(sums["masked_frames"]) == mask.sum() and float(sums["valid_frames"]) == 3 * 19 + 12
    encoded = model.encoder(batch["audio"], mask=mask, valid=batch["valid"][:, :19])
    error = squared_error(model.heads["cqt"](encoded.last[mask]), batch["cqt"][:, :19][mask])
    assert float(sums["loss/cqt"]) == pytest.approx(float(error), rel=1e-6)

    spoiled = {name: tensor.clone() for name, tensor in batch.items()}
    hidden = torch.cat([~mask, torch.ones(4, 1, dtype=torch.bool)], dim=1)
    spoiled["codes"].transpose(1, 2)[hidden] = 5
    spoiled["cqt"][hidden] = 1e6
    for name, value in model(spoiled, mask).items():
        assert torch.equal(value, sums[name]), name


@torch.no_grad()
def test_sums_of_parts_are_the_sums_of_the_whole():
    model = tiny_model(dropout=0.0).eval()
    batch, mask = to_device(synthetic_batch(3), HEADS, CPU), every_other_frame(4, 19)
    whole = model(batch, mask)
    parts = [model(slice_rows(batch, rows), mask[rows]) for rows in (slice(0, 1), slice(1, 4))]
    for name, value in whole.items():
        assert torch.allclose(parts[0][name] + parts[1][name], value, rtol=1e-4), name


def test_zero_sums_have_the_names_and_shapes_of_forward():
    model = tiny_model()
    sums = model(to_device(synthetic_batch(0), HEADS, CPU), every_other_frame(4, 19))
    zeros = model.zero_sums()
    assert len(zeros) == 6
    assert {name: value.shape for name, value in zeros.items()} == {name: value.shape for name, value in sums.items()}


def test_every_weight_gets_a_gradient():
    model = tiny_model(layer_drop=0.5)
    sums = model(to_device(synthetic_batch(0), HEADS, CPU), every_other_frame(4, 19))
    model.weighted_loss(model.mean_losses(sums, sums)).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_logits_stay_fp32_under_autocast():
    head = CodeHead(16, codebooks=2, codebook_size=8, final_dim=4, temperature=0.1)
    frames = torch.randn(5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(frames), head.float()(frames)) and head(frames).dtype == torch.float32
    assert head(frames).shape == (2, 5, 8) and head(frames).abs().max() <= 10.0


def test_losses_of_known_values():
    logits = torch.zeros(2, 3, 4)
    logits[0, :, 1] = 50.0
    codes = torch.tensor([[1, 0], [1, 3], [2, 0]])
    assert float(code_cross_entropy(logits, codes)) == pytest.approx(50 + 3 * math.log(4), rel=1e-5)
    assert correct_codes(logits, codes).tolist() == [2, 2]  # argmax of equal logits is code 0
    assert float(squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]]))) == 2.0
    features = torch.tensor([[[1.0, 3.0], [100.0, 100.0]]])
    assert float(feature_energy(features, torch.tensor([[True, False]]))) == 5.0


def test_first_weights_depend_on_the_seed_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = tiny_model(seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    again, other = tiny_model(seed=1).state_dict(), tiny_model(seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.mask_embedding"], other["encoder.mask_embedding"])


def test_to_device_converts_stored_types():
    batch = to_device(synthetic_batch(0), HEADS, CPU)
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "audio": torch.float32,
        "codes": torch.int64,
        "cqt": torch.float32,
        "valid": torch.bool,
        "row": torch.int64,
    }
    audio = torch.tensor([[-32768, 0, 16384]], dtype=torch.int16)
    assert to_device({"audio": audio}, HEADS, CPU)["audio"].tolist() == [[-1.0, 0.0, 0.5]]
    assert to_device({"codes": torch.tensor([65535], dtype=torch.uint16)}, HEADS, CPU)["codes"].tolist() == [65535]
    assert to_device({"audio": torch.tensor([0.25])}, HEADS, CPU)["audio"].tolist() == [0.25]


def test_companded_targets_are_expanded_on_the_device():
    heads = [HEADS[0], HEADS[1].model_copy(update={"companding": Companding(peak=8.0, mu=63.0)})]
    stored = {**synthetic_batch(0), "cqt": torch.full((4, 20, 6), 255, dtype=torch.uint8)}
    stored["cqt"][0] = 0
    check_batch(stored, heads, 19, 320)
    values = to_device(stored, heads, CPU)["cqt"]
    assert values.dtype == torch.float32 and (values[0] == 0).all()
    assert torch.allclose(values[1:], torch.tensor(8.0))
    with pytest.raises(ValueError, match="target cqt is stored as torch.uint8, but its companding is None"):
        check_batch(stored, HEADS, 19, 320)
    with pytest.raises(ValueError, match="target cqt is stored as torch.float16, but its companding is Companding"):
        check_batch(synthetic_batch(0), heads, 19, 320)


@torch.no_grad()
@pytest.mark.parametrize("masked_weight, unmasked_weight", [(1.0, 0.0), (1.0, 0.25), (0.0, 1.0)])
def test_masked_and_unmasked_frames_have_their_own_means_and_weights(masked_weight, unmasked_weight):
    objective = ObjectiveConfig(
        final_dim=4, masked_weight=masked_weight, unmasked_weight=unmasked_weight, target_weights={"cqt": 0.5}
    )
    model = tiny_model(objective=objective, dropout=0.0).eval()
    stored = synthetic_batch(3)
    stored["valid"][1, 12:] = False
    batch, mask = to_device(stored, HEADS, CPU), every_other_frame(4, 19)
    valid = batch["valid"][:, :19]
    mask &= valid
    means = model.mean_losses(*[model(batch, mask)] * 2)
    encoded = model.encoder(batch["audio"], mask=mask, valid=valid)
    expected = 10.0 * float(means["feature_penalty"])
    for prefix, place, weight in (("", mask, masked_weight), ("unmasked/", valid & ~mask, unmasked_weight)):
        if prefix and not weight:
            assert not any(name.startswith("unmasked/") for name in means)
            continue
        codes = batch["codes"].transpose(1, 2)[:, :19][place]
        loss = naive_code_loss(model.heads["codes"], encoded.last[place], codes) / int(place.sum())
        error = (model.heads["cqt"](encoded.last[place]) - batch["cqt"][:, :19][place]).square().mean()
        assert float(means[f"{prefix}codes"]) == pytest.approx(loss, rel=1e-5)
        assert float(means[f"{prefix}cqt"]) == pytest.approx(float(error), rel=1e-5)
        expected += weight * (loss + 0.5 * float(error))
    assert float(model.weighted_loss(means)) == pytest.approx(expected, rel=1e-5)


def test_a_batch_masked_everywhere_has_no_unmasked_loss():
    model = tiny_model(objective=ObjectiveConfig(final_dim=4, unmasked_weight=1.0))
    sums = model(to_device(synthetic_batch(0), HEADS, CPU), torch.ones(4, 19, dtype=torch.bool))
    assert float(model.mean_losses(sums, sums)["unmasked/codes"].detach()) == 0.0


def test_an_objective_that_predicts_nothing_is_refused():
    with pytest.raises(ValueError, match="masked_weight and unmasked_weight are both 0"):
        ObjectiveConfig(masked_weight=0.0)


def spoil(batch: dict, name: str) -> dict:
    if name == "code":
        batch["codes"][2, 1, 5] = 16
    elif name == "codebooks":
        batch["codes"] = batch["codes"][:, :1]
    elif name == "bins":
        batch["cqt"] = batch["cqt"][:, :, :5]
    elif name == "valid":
        batch["valid"][3] = False
    else:
        batch = {key: value[:, :, :18] if key == "codes" else value for key, value in batch.items()}
        batch["valid"] = batch["valid"][:, :18]
    return batch


@pytest.mark.parametrize(
    "name, message",
    [
        ("code", "codes of track-0-2 has code 16, codebook_size is 16"),
        ("codebooks", r"codes has shape \[4, 1, 20\], expected \[4, 2, 20\]"),
        ("bins", r"cqt has shape \[4, 20, 5\], expected \[4, 20, 6\]"),
        ("valid", "track-0-3 has no valid frame"),
        ("length", "targets have 18 frames, fewer than the encoder's 19"),
    ],
)
def test_batches_that_do_not_fit_are_refused(name, message):
    check_batch(synthetic_batch(0), HEADS, 19, 320)
    with pytest.raises(ValueError, match=message):
        check_batch(spoil(synthetic_batch(0), name), HEADS, 19, 320)


@pytest.mark.parametrize(
    "heads, weights, message",
    [
        ([], {}, "heads is empty"),
        ([HEADS[0], HEADS[0]], {}, "must differ"),
        ([HEADS[0].model_copy(update={"name": "feature_penalty"})], {}, "feature_penalty"),
        ([HEADS[0]], {"cqt": 1.0}, r"target_weights names \['cqt'\], but the targets are \['codes'\]"),
    ],
)
def test_heads_that_do_not_fit_are_refused(heads, weights, message):
    with pytest.raises(ValueError, match=message):
        PretrainModel(tiny_encoder(), heads, ObjectiveConfig(target_weights=weights))


def test_head_spec_wants_a_codebook_size_for_codes_only():
    with pytest.raises(ValueError, match="codes is discrete but codebook_size is None"):
        HeadSpec(name="codes", kind="discrete", size=8)
    with pytest.raises(ValueError, match="cqt is continuous but codebook_size is 4"):
        HeadSpec(name="cqt", kind="continuous", size=8, codebook_size=4)


def test_a_few_steps_learn_constant_codes():
    model = build_pretrain_model(tiny_encoder(dropout=0.0), HEADS, ObjectiveConfig(final_dim=4), seed=0)
    batch, mask = to_device(synthetic_batch(0), HEADS, CPU), every_other_frame(4, 19)
    batch["codes"][:] = 7
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        sums = model(batch, mask)
        model.weighted_loss(model.mean_losses(sums, sums)).backward()
        optimizer.step()
    with torch.no_grad():
        assert model.summarise(model(batch, mask))["accuracy"]["codes"] == [1.0, 1.0]

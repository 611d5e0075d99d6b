"""Heads against the formula of arXiv 2306.00107, computed as the field's code does: with expanded code tables."""

import json
import math
from pathlib import Path

import pytest
import torch
from forked import Forked
from tiny_model import HEADS, synthetic_batch, tiny_encoder
from torch import Tensor

from mert_foundry.model.objective.heads import MIN_TEMPERATURE, CodeHead, HeadSpec, code_cross_entropy
from mert_foundry.model.objective.pretrain_model import ObjectiveConfig, build_pretrain_model
from mert_foundry.model.objective.span_mask import MaskConfig
from mert_foundry.model.objective.value_scale import Companding
from mert_foundry.model.training.device_batch import to_device
from mert_foundry.model.training.optimizer import OptimizerConfig
from mert_foundry.model.training.train_step import TrainStep

CPU = torch.device("cpu")
CODEBOOKS, SIZE, FINAL_DIM, WIDTH = 4, 32, 6, 16


def expanded_loss(head: CodeHead, frames: Tensor, codes: Tensor, codebooks: list[int]) -> Tensor:
    """Sum of -log softmax(cos(T_k(o), e_kc) / temperature): for each codebook a [V, S, d] tensor, as
    fairseq makes it.
    """
    projections = head.projection(frames).split(FINAL_DIM, dim=1)
    total = torch.zeros(())
    for k in codebooks:
        projected = projections[0 if head.tied_projection else k]
        table = head.embedding[k][:, None].expand(-1, len(frames), -1)
        temperature = head.temperature if head.log_scale is None else torch.exp(-head.log_scale[k])
        scores = torch.cosine_similarity(projected[None], table, dim=2) / temperature
        chosen = scores.gather(0, codes[None, :, k])
        total = total + (scores.exp().sum(0).log() - chosen[0]).sum()
    return total


def small_head(**options: bool) -> tuple[CodeHead, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    head = CodeHead(WIDTH, CODEBOOKS, SIZE, FINAL_DIM, 0.1, **options)
    torch.nn.init.normal_(head.embedding)
    if head.log_scale is not None:
        torch.nn.init.uniform_(head.log_scale, 0.5, 2.5)
    frames = torch.randn(50, WIDTH, generator=generator)
    return head, frames, torch.randint(SIZE, (50, CODEBOOKS), generator=generator)


def loss_and_gradients(head: CodeHead, loss: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, list(head.parameters()))]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("codebooks", [None, [2], [0, 3]])
def test_loss_and_gradients_equal_the_expanded_form(tied, learnable, codebooks):
    head, frames, codes = small_head(tied_projection=tied, learnable_temperature=learnable)
    chosen = codebooks or list(range(CODEBOOKS))
    fused = loss_and_gradients(head, code_cross_entropy(head(frames, codebooks), codes[:, chosen]))
    expanded = loss_and_gradients(head, expanded_loss(head, frames, codes, chosen))
    for ours, naive in zip(fused, expanded, strict=True):
        assert torch.allclose(ours, naive, rtol=1e-5, atol=1e-5 * float(naive.abs().max()))


def test_codebooks_left_out_get_a_zero_gradient_and_change_no_logit():
    head, frames, _ = small_head(learnable_temperature=True)
    assert torch.allclose(head(frames, [3, 1]), head(frames)[[3, 1]], atol=1e-5)
    head(frames, [3, 1]).square().sum().backward()
    for parameter in head.parameters():
        per_codebook = parameter.grad.reshape(CODEBOOKS, -1).abs().sum(1)
        assert (per_codebook > 0).tolist() == [False, True, False, True]


def test_sizes_of_tied_and_untied_projections():
    shapes = [list(small_head(tied_projection=tied)[0].projection.weight.shape) for tied in (False, True)]
    assert shapes == [[CODEBOOKS * FINAL_DIM, WIDTH], [FINAL_DIM, WIDTH]]


def objective_model(**options: object):
    return build_pretrain_model(tiny_encoder(dropout=0.0), HEADS, ObjectiveConfig(final_dim=4, **options), seed=1)


def code_gradient(model, codebooks) -> tuple[float, Tensor]:
    mask = (torch.arange(19) % 2 == 0)[None].repeat(4, 1)
    sums = model(to_device(synthetic_batch(3), HEADS, CPU), mask, codebooks)
    loss = sums["loss/codes"]
    return loss.item(), torch.autograd.grad(loss, model.encoder.mask_embedding)[0]


def test_a_subset_of_codebooks_has_the_loss_and_gradient_of_all_in_the_mean():
    model = objective_model(codebooks_per_step=1)
    whole = code_gradient(model, None)
    parts = [code_gradient(model, {"codes": [k]}) for k in range(2)]
    assert whole[0] == pytest.approx(sum(loss for loss, _ in parts) / 2, rel=1e-5)
    assert torch.allclose(whole[1], sum(gradient for _, gradient in parts) / 2, rtol=1e-4, atol=1e-6)


def test_drawn_codebooks_are_distinct_equally_frequent_and_belong_to_seed_and_step():
    heads = (HeadSpec(name="codes", kind="discrete", size=8, codebook_size=4), HEADS[1])
    model = build_pretrain_model(tiny_encoder(), heads, ObjectiveConfig(codebooks_per_step=3), seed=0)
    draws = [model.draw_codebooks(5, step)["codes"] for step in range(4_000)]
    assert all(len(set(drawn)) == 3 and drawn == sorted(drawn) for drawn in draws)
    counts = torch.tensor(draws).flatten().bincount(minlength=8)
    deviation = math.sqrt(4_000 * 3 / 8 * 5 / 8)
    assert (counts - 1_500).abs().max() < 4 * deviation
    assert draws[:50] == [model.draw_codebooks(5, step)["codes"] for step in range(50)]
    assert draws[:50] != [model.draw_codebooks(6, step)["codes"] for step in range(50)]
    assert objective_model().draw_codebooks(5, 1) is None


def test_accuracy_of_codebooks_left_out_is_not_a_number():
    model = objective_model(codebooks_per_step=1)
    mask = torch.ones(4, 19, dtype=torch.bool)
    with torch.no_grad():
        accuracy = model.summarise(model(to_device(synthetic_batch(3), HEADS, CPU), mask, {"codes": [1]}))["accuracy"]
    assert math.isnan(accuracy["codes"][0]) and 0 <= accuracy["codes"][1] <= 1


def test_more_codebooks_than_a_target_has_are_refused():
    with pytest.raises(ValueError, match="codebooks_per_step is 3, but target codes has 2 codebooks"):
        objective_model(codebooks_per_step=3)


def test_temperature_is_learnt_from_its_start_and_stays_in_its_range():
    model = objective_model(learnable_temperature=True)
    scale = model.heads["codes"].log_scale
    assert torch.allclose(scale, torch.full((2,), math.log(10.0))) and scale.dtype == torch.float32
    fixed = objective_model()
    fixed.load_state_dict({n: w for n, w in model.state_dict().items() if "log_scale" not in n})
    assert code_gradient(model, None)[0] == pytest.approx(code_gradient(fixed, None)[0], rel=1e-6)

    step = TrainStep(model, OptimizerConfig(), MaskConfig(), None, 1, False, 11, CPU)
    step.train(synthetic_batch(0), 1, 1e-2, {})
    assert ((scale - math.log(10.0)).abs() > 1e-3).all()
    with torch.no_grad():
        scale.fill_(5.0)
    step.train(synthetic_batch(0), 2, 1e-9, {})
    assert torch.allclose(torch.exp(-scale), torch.full((2,), MIN_TEMPERATURE))


@pytest.mark.parametrize("peak, mu", [(1.0, 255.0), (37.5, 50.0), (0.2, 1e4)])
def test_companded_levels_expand_to_the_values_they_stand_for(peak, mu):
    values = torch.linspace(0, peak, 2_001, dtype=torch.float64)
    levels = (255 * torch.log1p(mu * values / peak) / math.log1p(mu)).round().to(torch.uint8)
    expanded = Companding(peak=peak, mu=mu).expand(levels)
    assert expanded.dtype == torch.float32
    assert float(expanded[0]) == 0.0 and float(expanded[-1]) == pytest.approx(peak, rel=1e-5)
    # Half a level up or down: a relative step of log1p(mu) / 510 on top of the scale's origin at peak / mu.
    bound = (values + peak / mu) * math.expm1(math.log1p(mu) / 510) * 1.001
    assert ((expanded - values).abs() <= bound).all()


def test_companding_of_codes_is_refused():
    with pytest.raises(ValueError, match="target codes is discrete but has companding"):
        HeadSpec(name="codes", kind="discrete", size=2, codebook_size=4, companding=Companding(peak=1, mu=255))


MASKED_FRAMES = 70  # a third of those of one 330M crop: the fewer there are, the less is spared


def at_330m() -> tuple[CodeHead, Tensor, Tensor]:
    torch.manual_seed(0)
    head = CodeHead(1024, 8, 1024, 128, 0.1)
    frames = torch.randn(MASKED_FRAMES, 1024, requires_grad=True)
    return head, frames, torch.randint(1024, (MASKED_FRAMES, 8))


def expanded_code_loss(head: CodeHead, frames: Tensor, codes: Tensor) -> Tensor:
    """As the field computes it: the right entry first, then the table once for every frame, the right one left out."""
    total = torch.zeros(())
    for k, projected in enumerate(head.projection(frames).chunk(8, dim=1)):
        right = head.embedding[k][codes[:, k]]
        table = head.embedding[k][:, None].expand(-1, len(frames), -1)
        scores = torch.cosine_similarity(projected, torch.cat([right[None], table]), dim=2) / 0.1
        scores[1:].scatter_(0, codes[None, :, k], -torch.inf)
        total = total + torch.nn.functional.cross_entropy(scores.T, torch.zeros_like(codes[:, k]), reduction="sum")
    return total


def peak_bytes(field: str) -> int:
    """VmHWM (peak) or VmRSS (now) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def measure_code_loss(form: str, out: Path) -> None:
    """Write the loss and the peak memory of one form, forward and backward, in bytes; for a process of its own."""
    torch.set_num_threads(1)
    head, frames, codes = at_330m()
    before = peak_bytes("VmRSS")
    loss = expanded_code_loss(head, frames, codes) if form == "expanded" else code_cross_entropy(head(frames), codes)
    loss.backward()
    out.write_text(json.dumps({"loss": loss.item(), "peak": peak_bytes("VmHWM") - before}))


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_code_loss_needs_a_tenth_of_the_memory_of_the_expanded_form_at_most(tmp_path: Path):
    figures = {}
    for form in ("expanded", "fused"):
        assert Forked(measure_code_loss, form, tmp_path / form).wait(timeout=120) == 0
        figures[form] = json.loads((tmp_path / form).read_text())
    assert figures["fused"]["loss"] == pytest.approx(figures["expanded"]["loss"], rel=1e-5)
    ratio = figures["expanded"]["peak"] / figures["fused"]["peak"]
    print({name: f"{figure['peak'] / 2**20:.0f} MiB" for name, figure in figures.items()}, f"ratio {ratio:.1f}")
    assert ratio >= 10

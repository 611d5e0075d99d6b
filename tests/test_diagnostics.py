"""Diagnostics against naive versions and known values, and that training does not notice them."""

import math
import time

import pytest
import torch
from tiny_model import HEADS, run_ranks, slice_rows, synthetic_batch, tiny_model

from mert_foundry.model.encoder import EncoderConfig
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.pretrain_model import ObjectiveConfig, build_pretrain_model
from mert_foundry.model.objective.span_mask import MaskConfig
from mert_foundry.model.training.device_batch import to_device
from mert_foundry.model.training.diagnostics import (
    attention_statistics,
    code_statistics,
    diagnose,
    effective_rank,
    gradient_norms,
)
from mert_foundry.model.training.optimizer import OptimizerConfig
from mert_foundry.model.training.train_step import TrainStep
from mert_foundry.model.training.trainer_config import TrainerConfig
from mert_foundry.model.transformer.config import TransformerConfig
from mert_foundry.model.transformer.masking import Masking, as_masking

CPU = torch.device("cpu")
NAMES = {
    "gradient_norms",
    "attention_entropy",
    "attention_entropy_lowest",
    "attention_logit_range",
    "code_logit_range",
    "code_entropy",
    "code_usage_entropy",
    "effective_rank",
}


def prepared(rows: int = 4) -> tuple[dict, Masking]:
    batch = to_device(synthetic_batch(3, rows=rows), HEADS, CPU)
    return batch, as_masking((torch.arange(19) % 2 == 0)[None].repeat(rows, 1))


def test_gradient_norms_are_those_of_each_part():
    model = tiny_model()
    batch, masking = prepared()
    sums = model(batch, masking)
    model.weighted_loss(model.mean_losses(sums, sums)).backward()
    norms = gradient_norms(model)
    layer = torch.cat([p.grad.flatten() for p in model.encoder.transformer.layers[1].parameters()])
    assert norms["encoder.transformer.layers.1"] == pytest.approx(float(layer.norm()), rel=1e-5)
    head = torch.cat([p.grad.flatten() for p in model.heads["codes"].parameters()])
    assert norms["heads.codes"] == pytest.approx(float(head.norm()), rel=1e-5)
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    assert math.hypot(*norms.values()) == pytest.approx(float(total), rel=1e-5)
    assert {"encoder.projection", "encoder.frontend.layers.0", "heads.cqt"} <= norms.keys()


def test_attention_statistics_equal_a_naive_version():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 3, 5, 5, generator=generator)
    keys = torch.tensor([[True] * 5, [True, True, True, False, False]])
    maps = logits.masked_fill(~keys[:, None, None], -torch.inf).softmax(3)
    found = attention_statistics([maps, torch.full((2, 3, 5, 5), 0.2)], keys)
    entropies, largest = torch.zeros(3), 0.0
    for b, count in ((0, 5), (1, 3)):
        for head in range(3):
            for query in range(count):
                row = maps[b, head, query, :count]
                entropies[head] -= sum(p * math.log(p) for p in row.tolist()) / 8
                differences = logits[b, head, query, :count]
                largest = max(largest, float(differences.max() - differences.min()))
    assert found["attention_entropy"] == pytest.approx([float(entropies.mean()), math.log(5)], rel=1e-5)
    assert found["attention_entropy_lowest"] == pytest.approx([float(entropies.min()), math.log(5)], rel=1e-5)
    assert found["attention_logit_range"] == pytest.approx([largest, 0.0], rel=1e-4, abs=1e-6)


def test_attention_on_one_frame_has_no_entropy():
    found = attention_statistics([torch.eye(6).expand(1, 2, 6, 6)], torch.ones(1, 6, dtype=torch.bool))
    assert found["attention_entropy"] == [0.0]


def test_code_statistics_tell_sureness_from_variety():
    spread = torch.zeros(2, 8, 8)
    varied = 100 * torch.eye(8).expand(2, 8, 8)
    same = torch.zeros(2, 8, 8)
    same[:, :, 3] = 100.0
    entropy = {name: code_statistics(x) for name, x in (("spread", spread), ("varied", varied), ("same", same))}
    assert entropy["spread"]["code_entropy"] == pytest.approx(math.log(8))
    assert entropy["varied"]["code_entropy"] == pytest.approx(0.0, abs=1e-6)
    assert entropy["varied"]["code_usage_entropy"] == pytest.approx(math.log(8))
    assert entropy["same"]["code_usage_entropy"] == pytest.approx(0.0, abs=1e-6)
    assert [entropy[name]["code_logit_range"] for name in entropy] == [0.0, 100.0, 100.0]


@pytest.mark.parametrize("rank", [1, 2, 5, 16])
def test_effective_rank_counts_equal_directions(rank):
    directions = torch.linalg.qr(torch.randn(16, 16)).Q[:rank]
    frames = torch.cat([directions, -directions]) + torch.randn(16)  # centred, `rank` equal singular values
    assert effective_rank(frames) == pytest.approx(rank, rel=1e-3)


def test_effective_rank_falls_as_frames_collapse():
    torch.manual_seed(0)
    frames, common = torch.randn(2_000, 64), torch.randn(64)
    ranks = [effective_rank(frames * scale * torch.linspace(1, 0, 64) ** power) for scale, power in ((1, 0), (1, 4))]
    assert 64 > ranks[0] > 60 > 30 > ranks[1]
    assert effective_rank(common.expand(700, 64)) == pytest.approx(1.0, abs=0.01)
    assert math.isnan(effective_rank(torch.full((10, 4), torch.nan)))


def test_diagnose_reports_all_of_its_names_for_padded_rows():
    model = tiny_model()
    batch, masking = prepared()
    batch["valid"][1, 12:] = False
    masking.predicted[1, 12:] = False
    values = diagnose(model, batch, masking)
    assert values.keys() == NAMES - {"gradient_norms"}
    assert len(values["attention_entropy"]) == 2 and all(0 < v <= math.log(19) for v in values["attention_entropy"])
    assert values["code_entropy"].keys() == {"codes"} and 0 < values["code_entropy"]["codes"] <= math.log(16) + 1e-6
    assert 1 <= values["effective_rank"] <= 16


def train_steps(diagnosed: bool, rows: slice = slice(None)) -> list:
    model = tiny_model(layer_drop=0.3)
    step = TrainStep(model, OptimizerConfig(), MaskConfig(), None, 1, False, 11, CPU)
    return [step.train(slice_rows(synthetic_batch(i), rows), i, 1e-2, {}, diagnosed) for i in range(1, 5)]


def test_training_is_the_same_to_the_bit_with_and_without():
    with_them, without = train_steps(True), train_steps(False)
    for ours, plain in zip(with_them, without, strict=True):
        assert ours.summary == plain.summary and ours.gradient_norm == plain.gradient_norm
        assert ours.diagnostics.keys() == NAMES and plain.diagnostics is None


def test_norms_are_told_before_clipping():
    model = tiny_model()
    step = TrainStep(model, OptimizerConfig(gradient_clip=1e-3), MaskConfig(), None, 1, False, 11, CPU)
    result = step.train(synthetic_batch(1), 1, 1e-3, {}, True)
    assert math.hypot(*result.diagnostics["gradient_norms"].values()) == pytest.approx(result.gradient_norm, rel=1e-5)


@pytest.mark.slow
def test_diagnostics_take_less_than_a_hundredth_of_the_time_at_their_default_interval():
    """On half of the smallest batch there is use for: on more rows than one of 5 s a step takes longer and diagnostics
    do not.
    """
    heads = (
        HeadSpec(name="codes", kind="discrete", size=8, codebook_size=1024),
        HeadSpec(name="cqt", kind="continuous", size=336),
    )
    encoder = EncoderConfig(transformer=TransformerConfig(layers=2))
    step = TrainStep(
        build_pretrain_model(encoder, heads, ObjectiveConfig(), 0),
        OptimizerConfig(),
        MaskConfig(),
        None,
        1,
        False,
        0,
        CPU,
    )
    batch = {
        "audio": torch.randint(-9_000, 9_000, (1, 375 * 320)).to(torch.int16),
        "codes": torch.randint(1024, (1, 8, 375)),
        "cqt": torch.rand(1, 375, 336),
        "valid": torch.ones(1, 375, dtype=torch.bool),
        "key": ["a"],
        "row": torch.arange(1),
    }
    seconds = []
    for number, with_diagnostics in enumerate((False, False, True)):
        begin = time.process_time()  # one thread, whatever else the machine does
        step.train(batch, number + 1, 1e-4, {}, with_diagnostics)
        seconds.append(time.process_time() - begin)
    _, plain, diagnosed = seconds  # the first is a warm-up; what diagnostics need once counts as theirs
    share = (diagnosed - plain) / (plain * TrainerConfig().diagnostics_every)
    print(f"step {plain:.2f} s, with diagnostics {diagnosed:.2f} s: {share:.3%} of the time")
    assert share < 0.01


def rank_zero_alone(process_rank: int, folder) -> None:
    rows = slice(2 * process_rank, 2 * process_rank + 2)
    results = [train_steps(diagnosed, rows) for diagnosed in (True, False)]
    assert all((result.diagnostics is not None) == (process_rank == 0) for result in results[0])
    assert [result.summary for result in results[0]] == [result.summary for result in results[1]]


@pytest.mark.process
def test_with_two_ranks_rank_zero_tells(tmp_path):
    run_ranks(rank_zero_alone, 2, tmp_path)

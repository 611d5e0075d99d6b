"""Compiled parts of a model: the same losses, whole graphs, and none compiled again once all forms were seen."""

from collections.abc import Iterator

import pytest
import torch
from tiny_model import HEADS, OBJECTIVE, synthetic_batch, tiny_encoder
from torch._dynamo.utils import counters

from mert_foundry.model.objective.pretrain_model import PretrainModel, build_pretrain_model
from mert_foundry.model.objective.span_mask import MaskConfig
from mert_foundry.model.training.compilation import compile_parts
from mert_foundry.model.training.optimizer import OptimizerConfig
from mert_foundry.model.training.train_step import TrainStep

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def build(layer_drop: float = 0.0, checkpointing: bool = False) -> PretrainModel:
    encoder = tiny_encoder(dropout=0.0, layer_drop=layer_drop, layers=4)
    transformer = encoder.transformer.model_copy(update={"activation_checkpointing": checkpointing})
    return build_pretrain_model(encoder.model_copy(update={"transformer": transformer}), HEADS, OBJECTIVE, 1)


def losses(model: PretrainModel, device: torch.device, steps: range, bfloat16: bool = False) -> list[float]:
    step = TrainStep(model.to(device), OptimizerConfig(), MaskConfig(), None, 1, bfloat16, 11, device)
    return [step.train(synthetic_batch(number), number, 1e-2, {}).summary["loss"] for number in steps]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("layer_drop", [0.0, 0.5])
def test_losses_stay_and_no_graph_is_broken_or_made_again(layer_drop: float, checkpointing: bool):
    compiled = build(layer_drop, checkpointing)
    names = list(compiled.state_dict())
    compile_parts(compiled, backend="aot_eager")
    found = losses(compiled, CPU, range(1, 4))
    # The projection, and one for all four layers.
    assert counters["stats"]["unique_graphs"] == 2
    found += losses(compiled, CPU, range(4, 9))
    eager = build(layer_drop, checkpointing)
    assert found == pytest.approx(losses(eager, CPU, range(1, 4)) + losses(eager, CPU, range(4, 9)), rel=1e-5)
    assert list(compiled.state_dict()) == names
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


@pytest.mark.slow
def test_a_stage_with_other_batches_is_compiled_once_and_the_steps_within_it_are_not():
    compiled, eager = build(), build()
    compile_parts(compiled, backend="aot_eager")
    trained = [
        TrainStep(model, OptimizerConfig(), MaskConfig(), None, 1, False, 11, CPU) for model in (compiled, eager)
    ]
    graphs = []
    for step, (rows, frames) in enumerate([(4, 20), (4, 20), (8, 20), (8, 20), (4, 60), (4, 60)], start=1):
        ours, theirs = (one.train(synthetic_batch(step, rows, frames), step, 1e-2, {}) for one in trained)
        assert ours.summary["loss"] == pytest.approx(theirs.summary["loss"], rel=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    # The projection and one for all layers, at most once again in each later stage: the third may fit the form of any
    # size.
    assert graphs[0] == graphs[1] == 2 and graphs[2] == graphs[3] == 4 and graphs[4] == graphs[5] <= 6
    assert not counters["graph_break"]


@pytest.mark.slow
def test_validations_with_batches_of_any_size_go_on_compiled():
    model = build()
    compile_parts(model, backend="eager")
    step = TrainStep(model, OptimizerConfig(), MaskConfig(), None, 1, False, 11, CPU)
    for rows in (3, 4, 1, 2):
        step.evaluate(synthetic_batch(0, rows))
        step.train(synthetic_batch(rows), rows, 1e-2, {})
    padded = synthetic_batch(9)
    padded["valid"][0, 10:] = False
    for number, batch in enumerate((padded, synthetic_batch(5, frames=24)), start=5):
        step.train(batch, number, 1e-2, {})
        step.evaluate(batch)
    assert not counters["graph_break"]


@pytest.mark.gpu
@pytest.mark.process  # the compiler starts some
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bfloat16", [False, True], ids=["fp32", "bf16"])
def test_a_gpu_compiles_and_stays_near_the_cpu(bfloat16: bool):
    compiled = build()
    compile_parts(compiled)
    found = losses(compiled, torch.device("cuda"), range(1, 5), bfloat16)
    assert found == pytest.approx(losses(build(), CPU, range(1, 5)), rel=1e-2 if bfloat16 else 1e-4)

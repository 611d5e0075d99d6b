"""Models divided among ranks (fsdp, hsdp) do as whole ones (ddp): losses, norms, averages, checkpoints, and all that a
run may ask for.
"""

from pathlib import Path

import pytest
import torch
from pretrain_run import final_weights, read_metrics
from pydantic import ValidationError
from tiny_model import HEADS, run_ranks, slice_rows, synthetic_batch, synthetic_stream, tiny_encoder
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor, Replicate, Shard

from mert_foundry.model.frontend.convolution import FrontendConfig
from mert_foundry.model.objective.mixture import MixtureConfig
from mert_foundry.model.objective.pretrain_model import ObjectiveConfig, PretrainModel, build_pretrain_model
from mert_foundry.model.objective.span_mask import MaskConfig
from mert_foundry.model.objective.value_scale import ValueScale
from mert_foundry.model.runs.checkpoint import latest_checkpoint, load_average, load_optimizer_state
from mert_foundry.model.training.compilation import compile_parts
from mert_foundry.model.training.optimizer import OptimizerConfig, ScheduleConfig
from mert_foundry.model.training.ranks import rank, world_size
from mert_foundry.model.training.sharding import shard
from mert_foundry.model.training.train_step import TrainStep
from mert_foundry.model.training.trainer import TrainingData, TrainResult, train
from mert_foundry.model.training.trainer_config import TrainerConfig
from mert_foundry.model.transformer.attention import AttentionConfig

CPU = torch.device("cpu")
CLIP = 0.5  # far below the norms of these models, so that every step is clipped
OBJECTIVE = ObjectiveConfig(final_dim=4, target_weights={"cqt": 0.5}, learnable_temperature=True, codebooks_per_step=1)


def build(regular: bool = True, **transformer: object) -> PretrainModel:
    """Three layers, of which one is frozen and one learns slowly; `regular` has dropout and layer drop."""
    encoder = tiny_encoder(dropout=0.1 if regular else 0.0, layer_drop=0.3 if regular else 0.0, layers=3)
    settings = {"overrides": {"0": {"trainable": False}, "2": {"learning_rate_multiplier": 0.3}}, **transformer}
    frontend = FrontendConfig(channels=8, kernels=(400,), strides=(320,))  # one convolution, to be quick
    layers = encoder.transformer.model_copy(update=settings)
    encoder = encoder.model_copy(update={"frontend": frontend, "transformer": layers})
    return build_pretrain_model(encoder, HEADS, OBJECTIVE, 1)


def trainer(total_steps: int, **changes: object) -> TrainerConfig:
    settings = {
        "optimizer": OptimizerConfig(gradient_clip=CLIP),
        "schedule": ScheduleConfig(learning_rate=3e-3, warmup_steps=2, total_steps=total_steps),
        "mixture": None,
        "log_every": 1,
        "validate_every": 10,
        "checkpoint_every": 100,
    }
    return TrainerConfig(**{**settings, **changes})


def validation() -> list[dict]:
    """One batch on rank 0, none on the others."""
    return [synthetic_batch(1_000)] if rank() == 0 else []


def run(folder: Path, model: PretrainModel, config: TrainerConfig, stop_at: int | None = None) -> TrainResult:
    folder.mkdir(exist_ok=True)
    steps = iter(range(len(read_metrics(folder, "train")) + 1, 1_000))
    return train(
        model=model,
        data=TrainingData(lambda position, step: synthetic_stream(position, rank(), world_size()), validation, 24_000),
        config=config,
        run_folder=folder,
        run_config={},
        seed=11,
        device=CPU,
        stop=lambda: next(steps) == stop_at,
        report=lambda record: None,
    )


def assert_same_numbers(ours: object, theirs: object, relative: float) -> None:
    """Nested records with the same names and nearly the same numbers."""
    if isinstance(ours, dict):
        assert isinstance(theirs, dict) and ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert_same_numbers(value, theirs[name], relative)
    elif isinstance(ours, list):
        assert isinstance(theirs, list) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs):
            assert_same_numbers(one, other, relative)
    elif isinstance(ours, float) and isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=relative, abs=1e-7)
    else:
        assert ours == theirs


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Losses to 1e-5 of their value; the rest, which is less well conditioned, to 1e-3."""
    for one, other in zip(read_metrics(ours), read_metrics(theirs), strict=True):
        losses = [record.get("loss", 0.0) for record in (one, other)]  # diagnostics have none
        assert losses[0] == pytest.approx(losses[1], rel=1e-5), (one["kind"], one["step"])
        assert_same_numbers(one, other, 1e-3)
    assert_close(final_weights(ours), final_weights(theirs))


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=1e-3, atol=1e-4), name


EVERYTHING = {
    "ema": 0.7,
    "accumulation": 2,
    "diagnostics_every": 3,
    "mixture": MixtureConfig(min_samples=500, max_samples=900),
}


def of_two_ranks(process_rank: int, folder: Path) -> None:
    for parallel in ("ddp", "fsdp"):
        run(folder / parallel, build(), trainer(20, parallel=parallel, ema=0.7, diagnostics_every=10))
        model = build(activation_checkpointing=True)
        run(folder / f"{parallel}_everything", model, trainer(4, parallel=parallel, **EVERYTHING))
    for part, stop_at in (("stopped", 2), ("stopped", None), ("unstopped", None)):
        run(folder / part, build(), trainer(4, parallel="fsdp", ema=0.7), stop_at)
    run(folder / "switched", build(regular=False), trainer(7, parallel="fsdp", ema=0.7), stop_at=3)
    first_weights_from_rank_zero()
    parts_are_divided()
    autocast_casts_what_is_gathered()
    compiled_layers()


def first_weights_from_rank_zero() -> None:
    """Rank 1 has its part of the weights that rank 0 drew, bit for bit, and all buffers, though it built the model
    without memory.
    """
    scale = ValueScale(logarithmic=False, mean=(0.5,) * 6, deviation=(0.25,) * 6)
    heads = [HEADS[0], HEADS[1].model_copy(update={"scale": scale})]
    encoder = tiny_encoder(norm="sub", layers=3)
    with torch.device("cpu" if rank() == 0 else "meta"):
        model = build_pretrain_model(encoder, heads, OBJECTIVE, 1)
    shard(model, 1, CPU)
    whole = build_pretrain_model(encoder, heads, OBJECTIVE, 1)
    assert model.state_dict().keys() == whole.state_dict().keys()
    for name, own in model.state_dict().items():
        assert torch.equal(own.full_tensor(), whole.state_dict()[name]), name
    for ours, theirs in zip(model.buffers(), whole.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert losses(model) == pytest.approx(losses(whole), rel=1e-5)


def parts_are_divided() -> None:
    """Every weight, gradient and moment lies on the ranks in parts, none of them on two."""
    model = build()
    names = {name: weight.numel() for name, weight in model.named_parameters()}
    shard(model, 1, CPU)
    step = TrainStep(model, OptimizerConfig(), MaskConfig(), None, 1, False, 11, CPU)
    step.train(share(1), 1, 1e-3, {})
    assert {name: weight.numel() for name, weight in model.named_parameters()} == names
    for parameter in model.parameters():
        assert isinstance(parameter, DTensor) and parameter.placements == (Shard(0),)
    moments = [state["exp_avg"] for state in step.optimizer.state.values()]
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    held = torch.tensor(
        [sum(weight.to_local().numel() for weight in weights) for weights in (list(model.parameters()), moments)]
    )
    torch.distributed.all_reduce(held)
    assert held.tolist() == [sum(names.values()), trained]


def share(number: int) -> dict:
    """This rank's rows of a batch of eight."""
    rows = 8 // world_size()
    return slice_rows(synthetic_batch(number, rows=8), slice(rank() * rows, (rank() + 1) * rows))


def losses(model: PretrainModel, bfloat16: bool = False, accumulation: int = 1) -> list[float]:
    """Of three steps."""
    step = TrainStep(model, OptimizerConfig(gradient_clip=CLIP), MaskConfig(), None, accumulation, bfloat16, 11, CPU)
    return [step.train(share(number), number, 3e-3, {}).summary["loss"] for number in (1, 2, 3)]


def autocast_casts_what_is_gathered() -> None:
    """bf16: norms, gates and temperatures compute with the fp32 weights that are stepped, as under ddp, so losses are
    ddp's.
    """
    attention = AttentionConfig(learnable_temperature=True, gate=True, relaxation=8.0)
    for norm_kind in ("layer", "rms"):
        divided, whole = (build(regular=False, norm_kind=norm_kind, attention=attention) for _ in range(2))
        for model in (divided, whole):
            with_uneven_vectors(model)
        shard(divided, 1, CPU)
        found = losses(divided, bfloat16=True)
        assert {parameter.dtype for parameter in divided.parameters()} == {torch.float32}
        assert found == pytest.approx(losses(whole, bfloat16=True), rel=1e-5)


@torch.no_grad()
def with_uneven_vectors(model: PretrainModel) -> None:
    """Gains, gates and temperatures as after some training: where they are 1 and 0, bf16 rounds nothing."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.encoder.transformer.layers.parameters():
        if parameter.ndim < 2:
            parameter += 0.3 * torch.rand(parameter.shape, generator=generator)


def compiled_layers() -> None:
    """Compiled parts are gathered as others are, and stay whole graphs."""
    model = build(overrides={})
    compile_parts(model, backend="aot_eager")
    shard(model, 1, CPU)
    found = losses(model)
    # The projection, and one for all layers.
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    assert found == pytest.approx(losses(build(overrides={})), rel=1e-5)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_ranks(of_two_ranks, 2, folder)
    return folder


@pytest.mark.process
@pytest.mark.slow
def test_a_model_divided_among_two_ranks_trains_as_a_whole_one(two_ranks: Path):
    """Twenty steps with layer drop, dropout, a frozen layer, a slow layer, every gradient clipped; and what else may be
    asked for.
    """
    assert_same_run(two_ranks / "fsdp", two_ranks / "ddp")
    norms = [record["gradient_norm"] for record in read_metrics(two_ranks / "fsdp", "train")]
    assert len(norms) == 20 and min(norms) > CLIP
    averages = [load_average(latest_checkpoint(two_ranks / part / "checkpoints")[0]) for part in ("fsdp", "ddp")]
    assert_close(*averages)
    frozen = "encoder.transformer.layers.0.attention.query.weight"
    assert torch.equal(final_weights(two_ranks / "fsdp")[frozen], build().state_dict()[frozen])
    assert_same_run(two_ranks / "fsdp_everything", two_ranks / "ddp_everything")


@pytest.mark.process
@pytest.mark.slow
def test_a_divided_run_that_stops_goes_on_to_the_same_bits(two_ranks: Path):
    assert read_metrics(two_ranks / "stopped") == read_metrics(two_ranks / "unstopped")
    ours, theirs = final_weights(two_ranks / "stopped"), final_weights(two_ranks / "unstopped")
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def of_four_ranks(process_rank: int, folder: Path) -> None:
    run(folder / "whole", build(), trainer(20, ema=0.7, diagnostics_every=10))
    run(folder / "hsdp", build(), trainer(20, parallel="hsdp", replicas=2, ema=0.7, diagnostics_every=10))
    run(folder / "switched", build(regular=False), trainer(7, parallel="hsdp", replicas=2, ema=0.7))
    model = build()
    shard(model, 2, CPU)
    assert losses(model, accumulation=2) == pytest.approx(losses(build(), accumulation=2), rel=1e-5)
    for parameter in model.parameters():
        assert isinstance(parameter, DTensor) and parameter.placements == (Replicate(), Shard(0))
    with pytest.raises(ValueError, match="trainer.replicas is 3, which does not divide the 4 ranks"):
        run(folder / "hsdp", build(), trainer(20, parallel="hsdp", replicas=3))


@pytest.mark.process
@pytest.mark.slow
def test_replicas_train_as_a_whole_model_and_a_run_goes_on_in_any_of_the_ways(two_ranks: Path, tmp_path: Path):
    """Three steps as fsdp on 2 ranks, two as ddp on 1, two as hsdp on 4, beside seven on 1."""
    (two_ranks / "switched").rename(tmp_path / "switched")
    run(tmp_path / "switched", build(regular=False), trainer(7, ema=0.7), stop_at=5)
    run_ranks(of_four_ranks, 4, tmp_path)
    assert_same_run(tmp_path / "hsdp", tmp_path / "whole")

    run(tmp_path / "alone", build(regular=False), trainer(7, ema=0.7))
    ours, theirs = read_metrics(tmp_path / "switched", "train"), read_metrics(tmp_path / "alone", "train")
    assert [record["loss"] for record in ours] == pytest.approx([record["loss"] for record in theirs], rel=1e-5)
    checkpoints = [latest_checkpoint(tmp_path / part / "checkpoints")[0] for part in ("switched", "alone")]
    assert_close(*(load_average(path) for path in checkpoints))
    states = [load_optimizer_state(path) for path in checkpoints]
    assert_same_numbers(states[0]["param_groups"], states[1]["param_groups"], 0.0)
    assert list(states[0]["state"]) == list(states[1]["state"])
    for index, state in states[0]["state"].items():
        assert_close(state, states[1]["state"][index])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_replicas_are_hsdps_alone(parallel: str):
    with pytest.raises(ValidationError, match=f"replicas is 2, but parallel is {parallel}: only hsdp has replicas"):
        TrainerConfig(parallel=parallel, replicas=2)


def test_replicas_must_be_known(tmp_path: Path):
    with pytest.raises(ValueError, match="trainer.parallel is hsdp, which needs trainer.replicas"):
        run(tmp_path, build(), trainer(3, parallel="hsdp"))


def test_a_rank_alone_has_nothing_to_divide(tmp_path: Path):
    for parallel in ("ddp", "fsdp"):
        run(tmp_path / parallel, build(), trainer(3, parallel=parallel))
    assert read_metrics(tmp_path / "ddp") == read_metrics(tmp_path / "fsdp")

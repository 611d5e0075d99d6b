import pytest
import torch
from tiny_model import tiny_encoder, tiny_model

from mert_foundry.model.encoder import EncoderConfig, MertEncoder
from mert_foundry.model.training.optimizer import (
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    learning_rate,
    restore_moments,
)
from mert_foundry.model.transformer.config import TransformerConfig


def test_published_schedule_at_its_corners():
    config = ScheduleConfig()
    assert learning_rate(config, 1) == pytest.approx(5e-4 / 32_000)
    assert learning_rate(config, 16_000) == pytest.approx(2.5e-4)
    assert learning_rate(config, 32_000) == pytest.approx(5e-4)
    assert learning_rate(config, 216_000) == pytest.approx(2.5e-4)
    assert learning_rate(config, 400_000) == 0.0


@pytest.mark.parametrize("decay", [{}, {"decay": "cosine"}, {"decay": "wsd", "decay_steps": 15}])
def test_schedule_has_one_peak_and_no_jump_and_ends_at_zero(decay: dict):
    config = ScheduleConfig(learning_rate=1.0, warmup_steps=10, total_steps=50, **decay)
    rates = [learning_rate(config, step) for step in range(1, 51)]
    assert rates.index(max(rates)) == 9 and rates[-1] == 0.0
    assert max(abs(after - before) for before, after in zip(rates, rates[1:])) <= 0.1 + 1e-9


def test_cosine_is_that_of_torch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    torch_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    config = ScheduleConfig(learning_rate=0.5, warmup_steps=10, total_steps=40, decay="cosine")
    for step in range(10, 41):
        assert learning_rate(config, step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        torch_schedule.step()


def test_a_rate_that_falls_last_is_the_same_in_a_longer_run_until_it_falls():
    short, long = (
        ScheduleConfig(learning_rate=1.0, warmup_steps=5, total_steps=total, decay="wsd", decay_steps=10)
        for total in (30, 90)
    )
    assert [learning_rate(short, step) for step in range(1, 21)] == [learning_rate(long, step) for step in range(1, 21)]
    assert [learning_rate(short, step) for step in (20, 25, 30)] == [1.0, 0.5, 0.0]
    assert [learning_rate(long, step) for step in (30, 80, 85)] == [1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": "wsd"}, "decay is wsd, decay_steps None"),
        ({"decay_steps": 5}, "decay is linear, decay_steps 5"),
        ({"decay": "wsd", "decay_steps": 50}, "warmup_steps 10 and decay_steps 50 are more than total_steps 50"),
    ],
)
def test_phases_that_do_not_fit_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(warmup_steps=10, total_steps=50, **settings)


def test_schedule_without_warmup_starts_near_the_peak():
    assert learning_rate(ScheduleConfig(learning_rate=1.0, warmup_steps=0, total_steps=4), 1) == 0.75


def test_warmup_as_long_as_training_is_refused():
    with pytest.raises(ValueError, match="warmup_steps 5 is not below total_steps 5"):
        ScheduleConfig(warmup_steps=5, total_steps=5)


def test_only_matrices_decay():
    model = tiny_model()
    decayed, kept = build_optimizer(model, OptimizerConfig()).param_groups
    names = {id(weight): name for name, weight in model.named_parameters()}
    kept_names = {names[id(weight)] for weight in kept["params"]}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.01, 0.0)
    assert len(decayed["params"]) + len(kept["params"]) == len(names)
    expected = {name for name in names.values() if name.endswith("bias") or "norm." in name or "mask_embedding" in name}
    expected |= {"heads.codes.embedding", "encoder.transformer.position.conv.parametrizations.weight.original0"}
    assert kept_names == expected


def test_tables_of_tokens_do_not_decay():
    model = torch.nn.ModuleDict({"tokens": torch.nn.Embedding(5, 3), "map": torch.nn.Linear(3, 3)})
    decayed, kept = build_optimizer(model, OptimizerConfig()).param_groups
    assert decayed["param_names"] == ["map.weight"] and kept["param_names"] == ["tokens.weight", "map.bias"]


def test_settings_reach_adamw():
    config = OptimizerConfig(betas=(0.5, 0.6), epsilon=1e-3)
    group = build_optimizer(torch.nn.Linear(2, 2), config).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.5, 0.6), 1e-3)


def encoder_with(overrides: dict) -> MertEncoder:
    torch.manual_seed(0)
    shared = tiny_encoder(layers=4, dropout=0.0)
    transformer = TransformerConfig(**{**shared.transformer.model_dump(), "overrides": overrides})
    return MertEncoder(EncoderConfig(**{**dict(shared), "transformer": transformer}))


def test_layers_are_grouped_by_their_multiplier():
    encoder = encoder_with({"0-1": {"learning_rate_multiplier": 0.1}, "3": {"learning_rate_multiplier": 2.0}})
    optimizer = build_optimizer(encoder, OptimizerConfig())
    names = {parameter: name for name, parameter in encoder.named_parameters()}
    groups = {(group["rate_multiplier"], group["weight_decay"]): group["params"] for group in optimizer.param_groups}
    assert list(groups) == [(1.0, 0.01), (1.0, 0.0), (0.1, 0.01), (0.1, 0.0), (2.0, 0.01), (2.0, 0.0)]
    grouped = [parameter for group in groups.values() for parameter in group]
    assert len(grouped) == len(set(grouped)) == len(names)
    for (multiplier, _), parameters in groups.items():
        layers = {name.split(".")[2] for name in map(names.get, parameters) if name.startswith("transformer.layers.")}
        assert layers == {0.1: {"0", "1"}, 2.0: {"3"}, 1.0: {"2"}}[multiplier]


def test_the_multiplier_scales_the_step():
    """Adam's first step has the size of its rate, whatever the gradient."""
    encoder = encoder_with({"2": {"learning_rate_multiplier": 0.25}})
    optimizer = build_optimizer(encoder, OptimizerConfig(weight_decay=0.0, epsilon=1e-30))
    before = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    encoder(torch.randn(1, 4_000)).last.square().sum().backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["rate_multiplier"]
    optimizer.step()
    for layer, expected in ((1, 0.01), (2, 0.0025)):
        name = f"transformer.layers.{layer}.feed_forward.outer.weight"
        step = (encoder.get_parameter(name) - before[name]).abs()
        assert step.median().item() == pytest.approx(expected, rel=1e-3)


def test_frozen_layers_are_left_to_themselves():
    encoder = encoder_with({"0-2": {"trainable": False}})
    optimizer = build_optimizer(encoder, OptimizerConfig())
    before = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    encoder(torch.randn(1, 4_000)).last.square().sum().backward()
    optimizer.step()
    moved = {name for name, parameter in encoder.named_parameters() if not torch.equal(parameter, before[name])}
    assert not any(name.startswith(tuple(f"transformer.layers.{i}." for i in range(3))) for name in moved)
    assert "transformer.layers.3.attention.value.weight" in moved and "projection.linear.weight" in moved


def stepped(overrides: dict) -> torch.optim.Optimizer:
    encoder = encoder_with(overrides)
    optimizer = build_optimizer(encoder, OptimizerConfig())
    encoder(torch.randn(1, 4_000)).last.square().sum().backward()
    optimizer.step()
    return optimizer


def test_moments_come_back_under_the_settings_of_now(tmp_path):
    torch.save(stepped({}).state_dict(), tmp_path / "optimizer.pt")
    state = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    optimizer = build_optimizer(encoder_with({}), OptimizerConfig(betas=(0.5, 0.6)))
    restore_moments(optimizer, state, "step_1")
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.6)
    weight = optimizer.param_groups[0]["params"][3]
    assert torch.equal(optimizer.state[weight]["exp_avg"], state["state"][3]["exp_avg"])


@pytest.mark.parametrize(
    "now", [{}, {"1": {"learning_rate_multiplier": 0.5}}, {"2": {"learning_rate_multiplier": 0.5}}]
)
def test_moments_go_to_the_weights_of_their_names_in_any_grouping(now):
    """Layers of the same shapes change their places in the state: only the names tell them apart."""
    before = stepped({"1": {"learning_rate_multiplier": 0.5}})
    saved = before.state_dict()
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    names = [name for group in saved["param_groups"] for name in group["param_names"]]
    optimizer = build_optimizer(encoder_with(now), OptimizerConfig(weight_decay=0.5))
    restore_moments(optimizer, saved, "step_1")
    for group in optimizer.param_groups:
        assert group["weight_decay"] in (0.5, 0.0)
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            expected = saved["state"].get(numbers[names.index(name)], {})
            found = optimizer.state.get(parameter, {})
            assert found.keys() == expected.keys()
            assert all(torch.equal(value, found[key]) for key, value in expected.items())


@pytest.mark.parametrize(
    ("before", "now", "name", "words"),
    [
        ({"1": {"trainable": False}}, {"2": {"trainable": False}}, 1, "is trained here, but has no moments there"),
        ({}, {"3": {"trainable": False}}, 3, "has moments there, but is not trained here"),
    ],
)
def test_moments_of_other_weights_are_refused(before, now, name, words):
    optimizer = build_optimizer(encoder_with(now), OptimizerConfig())
    line = rf"^runs/step_1: optimiser state: transformer.layers.{name}.attention.\S+ {words}$"
    with pytest.raises(ValueError, match=line):
        restore_moments(optimizer, stepped(before).state_dict(), "runs/step_1")
    assert not optimizer.state


def test_moments_without_names_are_refused_in_one_line():
    """As programs before learning-rate multipliers wrote them."""
    state = stepped({}).state_dict()
    for group in state["param_groups"]:
        del group["param_names"], group["rate_multiplier"]
    with pytest.raises(ValueError, match="^runs/step_1: its optimiser state has no names of weights"):
        restore_moments(build_optimizer(encoder_with({}), OptimizerConfig()), state, "runs/step_1")

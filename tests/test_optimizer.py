import pytest
import torch
from tiny_model import tiny_model

from model.optimizer import OptimizerConfig, build_optimizer
from model.schedule import ScheduleConfig, learning_rate


def test_published_schedule_at_its_corners():
    config = ScheduleConfig()
    assert learning_rate(config, 1) == pytest.approx(5e-4 / 32_000)
    assert learning_rate(config, 16_000) == pytest.approx(2.5e-4)
    assert learning_rate(config, 32_000) == pytest.approx(5e-4)
    assert learning_rate(config, 216_000) == pytest.approx(2.5e-4)
    assert learning_rate(config, 400_000) == 0.0


def test_schedule_has_one_peak_and_no_jump():
    config = ScheduleConfig(learning_rate=1.0, warmup_steps=10, total_steps=50)
    rates = [learning_rate(config, step) for step in range(1, 51)]
    assert rates.index(max(rates)) == 9
    assert max(abs(after - before) for before, after in zip(rates, rates[1:])) <= 0.1 + 1e-9


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
    assert kept_names == expected | {"encoder.transformer.position.conv.parametrizations.weight.original0"}


def test_settings_reach_adamw():
    config = OptimizerConfig(betas=(0.5, 0.6), epsilon=1e-3)
    group = build_optimizer(torch.nn.Linear(2, 2), config).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.5, 0.6), 1e-3)

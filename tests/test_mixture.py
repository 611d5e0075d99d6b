import pytest
import torch
from tiny_model import HEADS, synthetic_batch, tiny_model

from mert_foundry.model.objective.mixture import MixtureConfig, mix_batch
from mert_foundry.model.objective.span_mask import MaskConfig
from mert_foundry.model.training.device_batch import to_device
from mert_foundry.model.training.optimizer import OptimizerConfig
from mert_foundry.model.training.train_step import TrainStep

CONFIG = MixtureConfig(min_samples=20, max_samples=30)


def constant_rows(rows: int, samples: int = 200) -> torch.Tensor:
    """Row i is 10^i everywhere, so that what was added tells where it came from."""
    return (10.0 ** torch.arange(rows))[:, None].repeat(1, samples).double()


def mixed_rows(config: MixtureConfig, rows: int = 1_000) -> float:
    audio = torch.ones(rows, 50)
    mixed = mix_batch(audio, [50] * rows, range(rows), config, seed=1, step=2)
    return (mixed != audio).any(1).float().mean().item()


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_rows_are_mixed_with_the_stated_probability(probability):
    config = CONFIG.model_copy(update={"probability": probability})
    assert mixed_rows(config) == pytest.approx(probability, abs=0.05)


def test_snippets_have_the_stated_number_length_and_volume():
    config = MixtureConfig(probability=1.0, volume=0.5, min_samples=24, max_samples=26)
    audio = torch.ones(200, 20_000)
    added = mix_batch(audio, [20_000] * 200, range(200), config, 1, 1) - audio
    assert set(added.unique().tolist()) <= {0.0, 0.5, 1.0, 1.5}
    assert {round(row.sum().item() / 0.5 / 25) for row in added} == {1, 2, 3}
    lone = [row for row in added if row.max() == 0.5 and len(row.diff().nonzero()) == 2]
    assert {int((row > 0).sum()) for row in lone} == {24, 25, 26}


def test_snippets_come_from_other_rows_and_the_input_stays():
    audio = constant_rows(4)
    before = audio.clone()
    mixed = mix_batch(audio, [200] * 4, range(4), CONFIG.model_copy(update={"probability": 1.0}), 3, 4)
    assert torch.equal(audio, before)
    for row, added in enumerate(mixed - audio):
        sources = {i for sample in added.tolist() for i, digit in enumerate(reversed(f"{sample:.0f}")) if digit != "0"}
        assert sources and row not in sources


def test_a_lone_row_stays_as_it_is():
    audio = torch.randn(1, 100)
    assert torch.equal(mix_batch(audio, [100], [0], CONFIG.model_copy(update={"probability": 1.0}), 0, 0), audio)


def test_padding_gives_and_gets_nothing():
    audio = torch.ones(2, 200)
    audio[0, 50:] = 99.0  # would be seen if it were taken for a snippet
    mixed = mix_batch(audio, [50, 200], [0, 1], CONFIG.model_copy(update={"probability": 1.0}), 0, 0)
    assert torch.equal(mixed[0, 50:], audio[0, 50:])
    assert mixed[1].max() < 99.0 and (mixed != audio).any()


def test_draws_belong_to_seed_step_and_global_row():
    audio = constant_rows(4)
    config = CONFIG.model_copy(update={"probability": 1.0})

    def mix(rows: list[int], seed: int = 0, step: int = 0) -> torch.Tensor:
        return mix_batch(audio, [200] * 4, rows, config, seed, step)

    base = mix([0, 1, 2, 3])
    assert torch.equal(base, mix([0, 1, 2, 3]))
    assert torch.equal(base[0], mix([0, 9, 9, 9])[0])
    for other in (mix([4, 5, 6, 7]), mix([0, 1, 2, 3], seed=1), mix([0, 1, 2, 3], step=1)):
        assert not torch.equal(base, other)


@pytest.mark.parametrize("unit", ["snippets", "samples"])
def test_limits_in_wrong_order_are_refused(unit):
    with pytest.raises(ValueError, match=f"min_{unit} 9 is above max_{unit} 2"):
        MixtureConfig(**{f"min_{unit}": 9, f"max_{unit}": 2})


def test_marginal_probability_holds_for_every_row_over_steps():
    """MERT's code mixes with 1 - p: at 0.2 that would be 0.8."""
    audio, steps, config = torch.ones(6, 60), 1_500, CONFIG.model_copy(update={"probability": 0.2})
    mixed = torch.zeros(6)
    for step in range(steps):
        mixed += (mix_batch(audio, [60] * 6, range(6), config, seed=4, step=step) != audio).any(1)
    deviation = (0.2 * 0.8 / steps) ** 0.5
    assert ((mixed / steps - 0.2).abs() < 4.5 * deviation).all()


def test_sources_and_places_are_uniform():
    config = MixtureConfig(probability=1.0, max_snippets=1, min_samples=1, max_samples=1)
    rows, samples, steps = 4, 10, 1_500
    audio = torch.arange(rows * samples, dtype=torch.float64).reshape(rows, samples)
    sources, places = torch.zeros(rows, rows), torch.zeros(samples)
    for step in range(steps):
        added = mix_batch(audio + 1, [samples] * rows, range(rows), config, 0, step) - (audio + 1)
        for row, place in added.nonzero().tolist():
            sources[row, (int(added[row, place]) - 1) // samples] += 1
            places[place] += 1
    assert (sources.diagonal() == 0).all()
    others = sources[~torch.eye(rows, dtype=torch.bool)]
    assert (others - steps / 3).abs().max() < 4.5 * (steps / 3) ** 0.5
    assert (places - rows * steps / samples).abs().max() < 4.5 * (rows * steps / samples) ** 0.5


def test_targets_stay_those_of_the_clean_audio(monkeypatch):
    """What the model gets in a step with a mixture: other audio, and the stored targets of every row."""
    model, seen = tiny_model(dropout=0.0), {}
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda batch, *rest: seen.update(batch) or forward(batch, *rest))
    mixture = MixtureConfig(probability=1.0, min_samples=500, max_samples=900)
    stored = synthetic_batch(2)
    TrainStep(model, OptimizerConfig(), MaskConfig(), mixture, 1, False, 3, torch.device("cpu")).train(stored, 1, 0, {})
    clean = to_device(stored, HEADS, torch.device("cpu"))
    assert ((seen["audio"] != clean["audio"]).any(1)).all()
    for name in ("codes", "cqt", "valid"):
        assert torch.equal(seen[name], clean[name]), name

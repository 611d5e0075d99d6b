import pytest
import torch

from model.mixture import MixtureConfig, mix_batch

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

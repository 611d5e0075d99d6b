"""Companding: every value to the nearest level of the curve, nothing clipped, and the model's decoder agrees."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from shard_fixtures import CODES, CQT

from mert_foundry.model.objective.value_scale import Companding as ModelCompanding
from mert_foundry.pipeline.shards.companding import Companding
from mert_foundry.pipeline.shards.format import check_specs

CURVE = Companding(peak=225.0, mu=10_000.0)
EVERY_LEVEL = np.arange(256, dtype=np.uint8)
CURVES = st.builds(Companding, peak=st.floats(0.1, 1e4), mu=st.floats(1, 1e5))


@given(curve=CURVES)
def test_levels_come_back(curve: Companding):
    values = curve.expand(EVERY_LEVEL)
    assert values[0] == 0 and values[255] == pytest.approx(curve.peak) and (np.diff(values) > 0).all()
    levels = curve.compress(torch.from_numpy(np.minimum(values, curve.peak)))
    assert levels.dtype == torch.uint8 and levels.tolist() == list(range(256))


@given(curve=CURVES, share=st.floats(0, 1))
def test_a_value_goes_to_the_nearest_level(curve: Companding, share: float):
    """Half a step on the curve is at most (1 + mu)^(1 / 510) - 1 of the value plus peak / mu."""
    value = share * curve.peak
    found = curve.expand(curve.compress(torch.tensor(value, dtype=torch.float64)).numpy())
    assert abs(found - value) <= 1.0001 * np.expm1(np.log1p(curve.mu) / 510) * (value + curve.peak / curve.mu)


def test_the_curve_is_the_one_that_is_written_down():
    values = CURVE.expand(np.array([[0, 1], [128, 255]], np.uint8))
    expected = [[0, 0.0225 * (10_001 ** (1 / 255) - 1)], [0.0225 * (10_001 ** (128 / 255) - 1), 225]]
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, expected, rtol=1e-12)


@given(curve=CURVES)
def test_the_model_decodes_alike(curve: Companding):
    decoder = ModelCompanding(**curve.model_dump())
    np.testing.assert_allclose(
        decoder.expand(torch.from_numpy(EVERY_LEVEL)).numpy(), curve.expand(EVERY_LEVEL), rtol=1e-5
    )


@pytest.mark.parametrize("value", [225.1, -1e-3, float("nan"), float("inf")])
def test_nothing_is_clipped(value: float):
    with pytest.raises(ValueError, match="companding curve holds 0 to 225"):
        CURVE.compress(torch.tensor([1.0, value]))


@pytest.mark.parametrize(
    "fields", [{"peak": 0, "mu": 1}, {"peak": 1, "mu": 0}, {"peak": float("inf"), "mu": 1}, {"peak": 1}]
)
def test_a_curve_needs_a_peak_and_a_bend(fields: dict):
    with pytest.raises(ValidationError):
        Companding(**fields)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (CQT.model_copy(update={"dtype": "uint8"}), "cqt: a continuous target is float16, not uint8"),
        (
            CQT.model_copy(update={"companding": CURVE}),
            "cqt: a continuous target with companding is uint8, not float16",
        ),
        (CODES.model_copy(update={"companding": CURVE}), "codes: a discrete target has no companding"),
    ],
)
def test_a_companded_target_is_uint8_and_continuous(spec, message: str):
    with pytest.raises(ValueError, match=message):
        check_specs([spec])
    check_specs([CODES, CQT.model_copy(update={"dtype": "uint8", "companding": CURVE})])

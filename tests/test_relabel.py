"""Labels made twice: what counts as the same."""

import re

import numpy as np
import pytest
import torch
from shard_fixtures import CODES, CQT

from mert_foundry.pipeline.labelling.relabel import difference
from mert_foundry.pipeline.shards.companding import Companding

COMPANDED = CQT.model_copy(update={"dtype": "uint8", "companding": Companding(peak=225, mu=10_000)})
LEVELS = np.random.default_rng(0).integers(10, 200, (400, 4)).astype(np.uint8)


def with_steps(count: int, step: int) -> np.ndarray:
    changed = LEVELS.copy()
    changed.reshape(-1)[:count] += np.uint8(step)
    return changed


@pytest.mark.parametrize(
    ("count", "step", "message"),
    [
        (0, 0, ""),
        (16, 1, ""),  # 1 %: values that lay between two levels
        (17, 1, "cqt: 1.06% of values on another level, by up to 1 levels"),
        (1, 2, "cqt: 0.06% of values on another level, by up to 2 levels"),
    ],
)
def test_companded_values_may_move_to_the_next_level(count: int, step: int, message: str):
    assert difference(COMPANDED, LEVELS, with_steps(count, step), 0, 400) == message
    assert difference(COMPANDED, with_steps(count, step), LEVELS, 0, 400) == message


def test_a_gain_of_one_percent_is_another_label():
    values = torch.rand(400, 4, generator=torch.manual_seed(0))
    stored, again = (COMPANDED.companding.compress(gain * values).numpy() for gain in (1, 1.01))
    assert re.match(
        r"cqt: 2\d\.\d\d% of values on another level, by up to 1 levels", difference(COMPANDED, stored, again, 0, 400)
    )
    halves = COMPANDED.values(LEVELS).astype(np.float16)
    assert difference(CQT, halves, halves * np.float16(1.01), 0, 400).startswith("cqt: relative error 9.7")
    assert difference(CQT, halves, halves, 0, 400) == ""


def test_only_the_frames_in_question_count():
    changed = LEVELS.copy()
    changed[:100] += 5
    assert difference(COMPANDED, LEVELS, changed, 100, 300) == ""
    assert difference(COMPANDED, LEVELS, changed, 99, 300) != ""
    codes = np.zeros((2, 50), np.uint16)
    other = codes.copy()
    other[1, 10] = 1
    assert difference(CODES, codes, other, 11, 39) == ""
    assert difference(CODES, codes, other, 10, 40) == "codes: 97.50% of frames have the same codes"

"""Statistics: exact whatever the pieces, and the figures of plain NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_fixtures import CODES, CQT

from mert_foundry.pipeline.shards.companding import Companding
from mert_foundry.pipeline.shards.statistics import (
    ContinuousSums,
    DiscreteCounts,
    agree,
    empty,
    measure,
    merge,
    summarise,
)


def total(spec, arrays):
    partial = empty(spec)
    for array in arrays:
        partial = merge(partial, measure(spec, array))
    return partial


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=5), seed=st.integers(0, 100))
def test_pieces_add_up(cuts, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (2, 40)).astype(np.uint16)
    cqt = rng.integers(-8, 8, (40, 4)).astype(np.float16)  # small integers: sums are exact in any order
    assert total(CODES, np.split(codes, sorted(cuts), axis=1)) == measure(CODES, codes)
    assert total(CQT, np.split(cqt, sorted(cuts))) == measure(CQT, cqt)


def test_summary_is_that_of_numpy():
    cqt = np.random.default_rng(0).normal(3, 2, (500, 4)).astype(np.float16)
    summary = summarise(measure(CQT, cqt))
    np.testing.assert_allclose(summary.mean, cqt.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(summary.deviation, cqt.astype(np.float64).std(axis=0), rtol=1e-9)
    assert (summary.minimum, summary.maximum) == (cqt.min(), cqt.max())


def test_companded_targets_are_summed_in_their_own_unit():
    companding = Companding(peak=225, mu=10_000)
    spec = CQT.model_copy(update={"dtype": "uint8", "companding": companding})
    levels = np.random.default_rng(0).integers(0, 256, (500, 4)).astype(np.uint8)
    values = 0.0225 * (10_001 ** (levels / 255) - 1)
    summary = summarise(total(spec, np.split(levels, [100])))
    np.testing.assert_allclose(summary.mean, values.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(summary.deviation, values.std(axis=0), rtol=1e-9)
    assert (summary.minimum, summary.maximum) == (0, pytest.approx(225))


def test_usage_and_perplexity():
    codes = np.stack([np.arange(64) % 16, np.full(64, 7)]).astype(np.uint16)
    summary = summarise(measure(CODES, codes))
    assert summary.usage == [1.0, 1 / 16]
    assert summary.perplexity == [16.0, 1.0]


@pytest.mark.parametrize("spec", [CODES, CQT])
def test_nothing_has_no_summary(spec):
    with pytest.raises(ValueError, match="no frames"):
        summarise(empty(spec))


def test_kinds_and_sizes_do_not_mix():
    with pytest.raises(ValueError, match="discrete and a continuous"):
        merge(empty(CODES), empty(CQT))
    with pytest.raises(ValueError, match=r"\(2, 16\) and \(2, 8\)"):
        merge(empty(CODES), empty(CODES.model_copy(update={"codebook_size": 8})))


def test_statistics_agree_but_for_rounding_and_in_every_count():
    counts = DiscreteCounts(counts=[[10**12, 3], [0, 1]])
    sums = ContinuousSums(count=2, sum=[1.0, 0.0], sum_of_squares=[1.0, 1e-3], minimum=None, maximum=0.5)
    ours = {"codes": counts, "cqt": sums}

    def agrees(**changes: object) -> bool:
        return agree(ours, {"codes": counts, "cqt": sums.model_copy(update=changes)})

    assert agrees() and agrees(sum=[1.0 + 1e-12, 1e-12], maximum=0.5 + 1e-13)
    assert not agrees(sum=[1.0 + 1e-6, 0.0]) and not agrees(sum=[1.0]) and not agrees(count=3)
    assert not agrees(minimum=0.0) and not agrees(maximum=None) and not agrees(sum_of_squares=[1.0, 2e-3])
    assert not agree(ours, {**ours, "codes": DiscreteCounts(counts=[[10**12 + 1, 3], [0, 1]])})
    assert not agree(ours, {**ours, "codes": DiscreteCounts(counts=[[10**12, 3], [0]])})
    assert not agree(ours, {"codes": counts}) and not agree(ours, {"codes": counts, "cqt": counts})

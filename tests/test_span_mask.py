import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mert_foundry.model.objective.span_mask import ChannelMaskConfig, MaskConfig, draw_mask, draw_masking, draw_masks


def masked_share(config: MaskConfig, frames: int) -> np.ndarray:
    """Probability of each frame being masked, from counting: starts that cover it, drawn without replacement."""
    starts = frames - config.span + 1
    mean = config.probability * frames / config.span
    covering = [min(i, starts - 1) - max(0, i - config.span + 1) + 1 for i in range(frames)]

    def share(spans: int) -> np.ndarray:
        return np.array([1 - math.comb(starts - cover, spans) / math.comb(starts, spans) for cover in covering])

    low = int(mean)
    return (low + 1 - mean) * share(low) + (mean - low) * share(low + 1)


@pytest.mark.parametrize("frames", [374, 61])
def test_masked_share_of_each_frame_is_the_expected_one(frames):
    config, draws = MaskConfig(), 4_000
    keys = [str(i) for i in range(draws)]
    masks = draw_masks(config, 7, 1, keys, np.ones((draws, frames), dtype=bool))
    expected = masked_share(config, frames)
    assert masks.mean() == pytest.approx(expected.mean(), abs=0.003)
    error = np.abs(masks.mean(0) - expected)
    assert error.max() < 5 * 0.5 / math.sqrt(draws)


@settings(max_examples=100, deadline=None)
@given(
    frames=st.integers(1, 80),
    probability=st.floats(0.01, 1.0),
    span=st.integers(1, 12),
    min_spans=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_mask_is_made_of_whole_spans(frames, probability, span, min_spans, seed):
    config = MaskConfig(probability=probability, span=span, min_spans=min_spans)
    mask = draw_mask(config, frames, np.random.default_rng(seed))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    runs = edges[1::2] - edges[::2]
    assert len(runs) and all(run >= min(span, frames) for run in runs)
    assert mask.sum() >= min(min_spans, max(frames - span + 1, 1)) + min(span, frames) - 1
    assert mask.sum() <= span * max(min_spans, math.ceil(probability * frames / span))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=6, unique=True), st.integers(0, 99), st.integers(0, 10**6))
def test_a_row_depends_on_seed_step_and_key_alone(keys, seed, step):
    valid = np.ones((len(keys), 60), dtype=bool)
    together = draw_masks(MaskConfig(), seed, step, keys, valid)
    for row, key in enumerate(keys):
        assert np.array_equal(draw_masks(MaskConfig(), seed, step, [key], valid[:1])[0], together[row])
    assert not np.array_equal(draw_masks(MaskConfig(), seed, step + 1, keys, valid), together)
    assert not np.array_equal(draw_masks(MaskConfig(), seed + 1, step, keys, valid), together)


def test_keys_get_different_masks():
    masks = draw_masks(MaskConfig(), 0, 0, [str(i) for i in range(100)], np.ones((100, 100), dtype=bool))
    assert len({mask.tobytes() for mask in masks}) == 100


def test_masks_do_not_change_between_versions():
    mask = draw_masks(MaskConfig(), 3, 14, ["track/0"], np.ones((1, 20), dtype=bool))[0]
    assert "".join("x" if masked else "." for masked in mask) == "xxxxx.....xxxxxxxxxx"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_only_valid_frames_are_masked(valid):
    valid = np.array([valid])
    mask = draw_masks(MaskConfig(), 0, 0, ["key"], valid)
    assert not (mask & ~valid).any()
    assert mask.any() == valid.any()


@settings(max_examples=200)
@given(
    frames=st.integers(1, 80),
    probability=st.floats(0.01, 1.0),
    span=st.integers(1, 12),
    min_spans=st.integers(1, 4),
    min_space=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_spans_that_may_not_overlap_have_their_length_and_space(frames, probability, span, min_spans, min_space, seed):
    config = MaskConfig(probability=probability, span=span, min_spans=min_spans, min_space=min_space)
    mask = draw_mask(config, frames, np.random.default_rng(seed))
    low, fitting = int(probability * frames / span), max((frames + min_space) // (span + min_space), 1)
    counts = {min(max(low + extra, min_spans), fitting) for extra in (0, 1)}
    assert mask.sum() in {min(span, frames) * count for count in counts}
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    lengths, gaps = edges[1::2] - edges[::2], edges[2::2] - edges[1:-1:2]
    assert (lengths % min(span, frames) == 0).all() and (gaps >= min_space).all()
    if min_space:  # with none, spans side by side look like one
        assert set(lengths) == {min(span, frames)}


def test_spans_that_may_not_overlap_are_uniform_over_all_arrangements():
    """Every way of placing 2 spans of 3 in 10 frames with 1 or more between them is drawn alike often."""
    config = MaskConfig(probability=0.01, span=3, min_spans=2, min_space=1)
    draws = 6_000
    masks = draw_masks(config, 0, 1, [str(i) for i in range(draws)], np.ones((draws, 10), dtype=bool))
    arrangements = [(first, second) for first in range(8) for second in range(first + 4, 8)]
    counts = dict.fromkeys(arrangements, 0)
    for mask in masks:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask])) == 1)
        counts[tuple(int(edge) for edge in edges)] += 1
    expected = draws / len(arrangements)
    assert max(abs(count - expected) for count in counts.values()) < 4.5 * math.sqrt(expected)


def test_masked_share_without_overlap_is_the_probability():
    config, draws, frames = MaskConfig(probability=0.5, min_space=1), 2_000, 374
    masks = draw_masks(config, 3, 1, [str(i) for i in range(draws)], np.ones((draws, frames), dtype=bool))
    assert masks.mean() == pytest.approx(0.5, abs=0.001)


def test_masks_of_steps_keys_and_seeds_are_independent():
    """Two masks agree on a frame as often as two independent ones do: the correlation over frames and rows is 0."""
    draws, frames, config = 1_000, 200, MaskConfig(probability=0.4)
    valid, keys = np.ones((draws, frames), dtype=bool), [f"track/{i}" for i in range(draws)]
    base = draw_masks(config, 5, 10, keys, valid)
    other_keys = [f"{key}x" for key in keys]
    others = [draw_masks(config, 5, 11, keys, valid), draw_masks(config, 6, 10, keys, valid)]
    for other in (*others, draw_masks(config, 5, 10, other_keys, valid)):
        centred = (base - base.mean(0)) * (other - other.mean(0))
        per_row = centred.mean(1)
        assert abs(per_row.mean()) < 4.5 * per_row.std() / math.sqrt(draws)


SCHEDULED = MaskConfig(
    probability=0.2, span=2, probability_schedule=((100, 0.5), (300, 0.8)), span_schedule=((200, 5),)
)


@pytest.mark.parametrize(
    "step, probability, span",
    [(0, 0.2, 2), (99, 0.2, 2), (100, 0.5, 2), (200, 0.5, 5), (299, 0.5, 5), (300, 0.8, 5), (10**6, 0.8, 5)],
)
def test_schedules_hold_from_their_steps_on(step, probability, span):
    plain = MaskConfig(probability=probability, span=span)
    valid, keys = np.ones((40, 60), dtype=bool), [str(i) for i in range(40)]
    assert np.array_equal(draw_masks(SCHEDULED, 1, step, keys, valid), draw_masks(plain, 1, step, keys, valid))


@pytest.mark.parametrize(
    "settings_, message",
    [
        ({"probability_schedule": [[0, 0.5]]}, r"probability_schedule must have rising steps above 0, not \[0\]"),
        ({"span_schedule": [[9, 5], [9, 6]]}, r"span_schedule must have rising steps above 0, not \[9, 9\]"),
        ({"probability_schedule": [[5, 1.5]]}, "probability_schedule has probability 1.5 from step 5"),
        ({"span_schedule": [[5, 0]]}, "span_schedule has span 0 from step 5"),
        ({"replace": 0.6, "keep": 0.5}, "replace 0.6 and keep 0.5 are together above 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        MaskConfig(**settings_)


@pytest.mark.parametrize(
    ("seconds", "hop", "frames"), [(0.4, 960, 10), (0.4, 320, 30), (0.067, 320, 5), (0.037, 960, 1), (2.0, 320, 150)]
)
def test_a_span_in_seconds_is_the_same_mask_as_its_frames(seconds, hop, frames):
    config = MaskConfig(span_seconds=seconds, probability=0.6, min_space=0)
    stored = MaskConfig(**config.model_dump(mode="json"))
    assert stored == config and "span" not in config.model_dump()
    by_frames = stored.in_frames(hop, 24_000)
    valid = np.ones((5, 200), dtype=bool)
    masks = draw_masks(MaskConfig(span=frames, probability=0.6, min_space=0), 0, 1, list("abcde"), valid)
    assert np.array_equal(draw_masks(by_frames, 0, 1, list("abcde"), valid), masks)
    assert "span_seconds" not in MaskConfig(span=3).model_dump() and MaskConfig(span=3).in_frames(hop, 24_000).span == 3


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (0.1, "span_seconds 0.1 is 2.5 frames of 0.04 s; whole ones are 0.08 s and 0.12 s"),
        (0.01, "span_seconds 0.01 is 0.25 frames of 0.04 s; whole ones are 0.04 s$"),
    ],
)
def test_a_span_in_seconds_that_is_no_whole_number_of_frames_is_refused(seconds, message):
    with pytest.raises(ValueError, match=message):
        MaskConfig(span_seconds=seconds).in_frames(960, 24_000)


@pytest.mark.parametrize("frames", [{"span": 5}, {"span_schedule": ((3, 4),)}])
def test_a_span_has_one_unit(frames):
    with pytest.raises(
        ValueError, match="span_seconds 0.4 is given, so span and span_schedule, in frames, must not be"
    ):
        MaskConfig(span_seconds=0.4, **frames)


def masking_of(config: MaskConfig, rows: int = 300, frames: int = 100, step: int = 1, width: int = 64):
    return draw_masking(config, 3, step, [str(i) for i in range(rows)], np.ones((rows, frames), dtype=bool), width)


@pytest.mark.parametrize("replace, keep", [(0.1, 0.1), (0.3, 0.0), (0.0, 0.25), (1.0, 0.0), (0.0, 1.0)])
def test_shares_of_replaced_and_kept_frames_are_the_stated_ones(replace, keep):
    masking = masking_of(MaskConfig(replace=replace, keep=keep))
    predicted, embedded = masking.predicted.numpy(), masking.embedded.numpy()
    own = np.tile(np.arange(100), (300, 1))
    moved = np.zeros_like(predicted) if masking.source is None else masking.source.numpy() != own
    count = predicted.sum()
    for share, found in ((replace, moved), (keep, predicted & ~embedded & ~moved)):
        assert not (found & ~predicted).any() and not (found & embedded).any()
        assert found.sum() / count == pytest.approx(share, abs=4.5 * math.sqrt(share * (1 - share) / count) + 1e-9)
    assert np.array_equal(masking_of(MaskConfig()).predicted, predicted)  # what fills a frame does not move the mask


def test_replacements_come_uniformly_from_the_other_frames_of_the_row():
    source = masking_of(MaskConfig(probability=1.0, span=1, replace=1.0), rows=2_000, frames=10).source.numpy()
    moved = source != np.arange(10)
    counts = np.array([[(source[moved[:, t], t] == other).sum() for other in range(10)] for t in range(10)])
    assert (np.diag(counts) == 0).all()
    others = counts[~np.eye(10, dtype=bool)]
    assert np.abs(others - others.mean()).max() < 4.5 * math.sqrt(others.mean())


@settings(max_examples=60)
@given(st.lists(st.booleans(), min_size=1, max_size=40).filter(any), st.integers(0, 10**6))
def test_replacements_are_valid_frames_and_a_lone_frame_stays_masked(valid, step):
    valid = np.array([valid])
    masking = draw_masking(MaskConfig(replace=1.0), 0, step, ["key"], valid, 8)
    source, predicted = masking.source.numpy(), masking.predicted.numpy()
    moved = source != np.arange(valid.shape[1])
    assert valid[0, source[moved]].all()
    assert np.array_equal(moved, predicted if valid.sum() > 1 else np.zeros_like(predicted))
    assert np.array_equal(masking.embedded.numpy(), predicted & ~moved)


def test_channels_are_masked_by_spans_of_their_own():
    config = MaskConfig(channels=ChannelMaskConfig(probability=0.2, span=8, min_space=1))
    channels = masking_of(config, rows=1_000, width=768).channels.numpy()
    assert channels.shape == (1_000, 768)
    assert channels.mean() == pytest.approx(0.2, abs=0.003)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], channels[0], [0]])))
    assert set(edges[1::2] - edges[::2]) == {8}
    assert len({row.tobytes() for row in channels}) == 1_000
    assert np.array_equal(channels, masking_of(config, rows=1_000, width=768).channels)
    assert not np.array_equal(channels, masking_of(config, rows=1_000, width=768, step=2).channels)
    assert masking_of(MaskConfig()).channels is masking_of(MaskConfig()).source is None


@settings(max_examples=30)
@given(st.lists(st.text(max_size=8), min_size=2, max_size=5, unique=True), st.integers(0, 99))
def test_fills_and_channels_depend_on_seed_step_and_key_alone(keys, step):
    config = MaskConfig(replace=0.3, keep=0.2, channels=ChannelMaskConfig(probability=0.5, span=2))
    valid = np.ones((len(keys), 30), dtype=bool)
    together = draw_masking(config, 9, step, keys, valid, 16)
    for row, key in enumerate(keys):
        alone = draw_masking(config, 9, step, [key], valid[:1], 16)
        for name in ("predicted", "embedded", "source", "channels"):
            assert np.array_equal(getattr(alone, name)[0], getattr(together, name)[row])

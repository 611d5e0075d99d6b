"""Windows keep every frame once, away from their ends, and frames lie where the encoder puts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mert_foundry.model.features.windows import FrameGeometry, WindowConfig, measure_frames, plan_windows
from mert_foundry.model.frontend.choice import build_frontend
from mert_foundry.model.frontend.convolution import ConvFrontend, FrontendConfig
from mert_foundry.model.frontend.log_mel import LogMelFrontendConfig

GEOMETRY = FrameGeometry(hop=320, receptive_field=400)


@given(
    num_samples=st.integers(0, 80_000),
    sizes=st.integers(1, 60).flatmap(lambda window: st.tuples(st.just(window), st.integers(0, window - 1))),
)
def test_every_frame_is_kept_once_from_a_window_that_has_it(num_samples, sizes):
    window_frames, overlap = sizes
    windows = plan_windows(num_samples, GEOMETRY, window_frames, overlap)
    num_frames = GEOMETRY.num_frames(num_samples)
    kept = [frame for window in windows for frame in range(window.keep_start, window.keep_stop)]
    assert kept == list(range(num_frames))
    if len(windows) == 1:
        assert (windows[0].start_sample, windows[0].num_samples) == (0, num_samples)
    for window in windows:
        assert 0 <= window.start_sample and window.start_sample + window.num_samples <= num_samples
        assert window.start_sample == 320 * window.start_frame
        frames = GEOMETRY.num_frames(window.num_samples)
        assert window.start_frame <= window.keep_start < window.keep_stop <= window.start_frame + frames
        if len(windows) > 1:
            assert frames == window_frames and window.num_samples == GEOMETRY.num_samples(window_frames)
            # Half the overlap on either side, but at the track's own ends.
            assert window.keep_start - window.start_frame >= overlap // 2 or window.keep_start == 0
            assert window.start_frame + frames - window.keep_stop >= overlap // 2 or window.keep_stop == num_frames


def test_seams_are_in_the_middle_of_the_overlap():
    windows = plan_windows(GEOMETRY.num_samples(100), GEOMETRY, window_frames=40, overlap_frames=10)
    assert [window.start_frame for window in windows] == [0, 30, 60]
    assert [(window.keep_start, window.keep_stop) for window in windows] == [(0, 35), (35, 65), (65, 100)]
    windows = plan_windows(GEOMETRY.num_samples(105), GEOMETRY, window_frames=40, overlap_frames=10)
    assert [window.start_frame for window in windows] == [0, 30, 60, 65]
    assert [(window.keep_start, window.keep_stop) for window in windows] == [(0, 35), (35, 65), (65, 82), (82, 105)]


@pytest.mark.parametrize(
    "config",
    [
        FrontendConfig(channels=2),
        FrontendConfig(channels=2, kernels=(7, 4), strides=(3, 4)),
        LogMelFrontendConfig(kind="log_mel"),
    ],
)
def test_geometry_is_that_of_the_front_end(config):
    frontend = build_frontend(config)
    geometry = measure_frames(frontend.num_frames, config.hop)
    for num_samples in [*range(0, 3000, 7), 24_000, 123_457]:
        assert geometry.num_frames(num_samples) == frontend.num_frames(num_samples)
    assert frontend.num_frames(geometry.num_samples(9)) == 9 and frontend.num_frames(geometry.num_samples(9) - 1) == 8


def test_one_frame_of_mert_reaches_400_samples():
    assert measure_frames(ConvFrontend(FrontendConfig(channels=2)).num_frames, 320) == GEOMETRY


def test_an_overlap_as_long_as_the_window_is_refused():
    with pytest.raises(ValidationError, match="overlap_seconds 5.0 must be less than seconds 5.0"):
        WindowConfig(seconds=5.0, overlap_seconds=5.0)

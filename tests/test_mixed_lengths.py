"""Rows of several lengths in one batch have the states they have alone, whatever front-end and transformer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import tiny_encoder

from mert_foundry.jobs.extraction.batches import (
    MOST_PADDING,
    WindowAudio,
    batches_of_like_length,
    made_ahead,
    padded,
)
from mert_foundry.model.encoder import EncoderConfig, MertEncoder
from mert_foundry.model.features.feature_encoder import FeatureEncoder
from mert_foundry.model.frontend.convolution import FrontendConfig
from mert_foundry.model.frontend.log_mel import LogMelFrontendConfig
from mert_foundry.model.interop.stored_model import StoredModel

HOP = 320
LENGTHS = [10 * HOP, 31 * HOP, 10 * HOP, 75 * HOP, 74 * HOP]


def encoder_of(config: EncoderConfig, normalised: bool = False, **settings: object) -> FeatureEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {name: 0.3 * torch.randn_like(tensor) for name, tensor in MertEncoder(config).state_dict().items()}
    return FeatureEncoder(
        StoredModel(config, weights, 24_000, normalised=normalised), "tiny", torch.device("cpu"), **settings
    )


def rows_of(lengths: list[int]) -> torch.Tensor:
    audio = torch.zeros(len(lengths), max(lengths))
    generator = torch.Generator().manual_seed(1)
    for row, length in zip(audio, lengths):
        row[:length] = 0.3 * torch.randn(length, generator=generator)
    return audio


CONFIGS = {
    "group norm": tiny_encoder(),
    "group norm, pre": tiny_encoder(norm="pre"),
    "layer norm": tiny_encoder().model_copy(update={"frontend": FrontendConfig(channels=8, norm="layer")}),
    "log-mel": tiny_encoder().model_copy(update={"frontend": LogMelFrontendConfig(kind="log_mel", bands=8)}),
    "rotary": tiny_encoder().model_copy(
        update={"transformer": tiny_encoder().transformer.model_copy(update={"position": "rotary"})}
    ),
}


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_among_longer_ones_has_the_states_it_has_alone(name, normalised):
    encoder = encoder_of(CONFIGS[name], normalised)
    audio = rows_of(LENGTHS)
    together = encoder.encode(audio, LENGTHS)
    for row, (length, found) in enumerate(zip(LENGTHS, together)):
        alone = encoder.encode(audio[row : row + 1, :length])[0]
        assert len(alone) == encoder.geometry.num_frames(length)
        scale = alone.abs().max().item()
        np.testing.assert_allclose(found[: len(alone)], alone, atol=1e-5 * scale, rtol=1e-5)


def test_the_padding_would_be_heard_without_the_care_that_is_taken():
    """Zeros behind a row do change its states when they are taken for audio, so that the test above can fail."""
    encoder = encoder_of(CONFIGS["group norm"])
    audio = rows_of(LENGTHS)
    careless = encoder.encode(audio)[0]
    alone = encoder.encode(audio[:1, : LENGTHS[0]])[0]
    assert (careless[: len(alone)] - alone).abs().max() > 0.01


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"layers \[3\]: each one of 0 to 2 once is what tiny has"):
        encoder_of(tiny_encoder(), layers=[3])


def windows(lengths: list[int]) -> list[WindowAudio]:
    return [
        WindowAudio(SimpleNamespace(row=row), None, np.full(length, row % 100, np.int16))
        for row, length in enumerate(lengths)
    ]


@given(st.lists(st.integers(1, 400), max_size=120), st.integers(1, 2000))
def test_batches_hold_every_window_once_and_neither_too_much_nor_too_much_padding(lengths, most):
    batches = list(batches_of_like_length(iter(windows(lengths)), most))
    assert sorted(item.span.row for batch in batches for item in batch) == list(range(len(lengths)))
    for batch in batches:
        audio, own = padded(batch)
        assert len(batch) == 1 or audio.size <= most
        assert max(own) <= MOST_PADDING * min(own)
        for row, item in zip(audio, batch):
            assert (row[: len(item.audio)] == item.audio).all() and not row[len(item.audio) :].any()


def test_long_windows_do_not_wait_for_others():
    """Windows of one length leave as soon as they fill a batch, so that a long track needs no memory for all of it."""
    source = iter(windows([100] * 50))
    batches = batches_of_like_length(source, 300)
    assert len(next(batches)) == 3 and len(list(source)) == 47


def test_like_lengths_share_batches():
    generator = np.random.default_rng(0)
    lengths = (generator.integers(150, 376, 512) * HOP).tolist()  # 2 to 5 s
    batches = list(batches_of_like_length(iter(windows(lengths)), 30 * 24_000))
    assert sum(map(len, batches)) == 512 and len(batches) < 512 / 6


def test_what_is_made_ahead_comes_in_order_and_so_does_an_error():
    def broken():
        yield from range(5)
        raise OSError("no more")

    assert list(made_ahead(iter(range(100)), 3)) == list(range(100))
    found = []
    with pytest.raises(OSError, match="no more"):
        for item in made_ahead(broken(), 2):
            found.append(item)
    assert found == list(range(5))
    endless = made_ahead(iter(int, 1), 2)
    assert next(endless) == 0
    endless.close()  # its thread ends

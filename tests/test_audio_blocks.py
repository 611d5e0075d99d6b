"""Streams of arrays cut anew: nothing lost, nothing moved, whatever the sizes that come in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mert_foundry.pipeline.audio.blocks import BLOCK_SAMPLES, fixed_blocks, float_blocks, recut
from mert_foundry.pipeline.frames import HOP
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.teachers.teacher import label_track

SIZES = st.lists(st.integers(0, 7), max_size=12)


def in_pieces(array: np.ndarray, sizes: list[int], axis: int = 0) -> list[np.ndarray]:
    return np.split(array, np.cumsum(sizes), axis)


@given(SIZES, st.lists(st.integers(1, 9), max_size=12), st.sampled_from([0, 1]))
def test_pieces_have_the_lengths_asked_for_and_are_the_input_in_order(sizes: list[int], lengths: list[int], axis: int):
    whole = np.arange(2 * 40).reshape(40, 2) if axis == 0 else np.arange(2 * 40).reshape(2, 40)
    pieces = list(recut(in_pieces(whole, sizes, axis), lengths, axis))
    expected = [piece for piece in in_pieces(whole, lengths, axis)[: len(lengths)] if piece.size]
    assert len(pieces) == len(expected)
    for piece, wanted in zip(pieces, expected):
        np.testing.assert_array_equal(piece, wanted)


@given(SIZES, st.integers(1, 9))
def test_fixed_blocks_end_with_the_rest(sizes: list[int], length: int):
    whole = np.arange(40)
    blocks = list(fixed_blocks(in_pieces(whole, sizes), length))
    assert [len(block) for block in blocks[:-1]] == [length] * (len(blocks) - 1) and 0 < len(blocks[-1]) <= length
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_a_piece_is_given_before_more_input_is_taken():
    taken = []

    def source():
        for number in range(10):
            taken.append(number)
            yield np.full(4, number)

    next(fixed_blocks(source(), 6))
    assert taken == [0, 1]


class PeakTeacher:
    """Largest sample of each frame."""

    spec = TargetSpec(
        name="peak", kind="continuous", dtype="float16", frame_rate=75, size=1, fingerprint="a" * 64, teacher={}
    )

    def label(self, blocks):
        for block in blocks:
            yield block.reshape(-1, HOP).max(axis=1, keepdims=True).astype(np.float16)


@pytest.mark.parametrize("frames", [1, BLOCK_SAMPLES // HOP, BLOCK_SAMPLES // HOP + 1])
def test_a_track_in_memory_is_labelled_whole(frames: int):
    audio = np.random.default_rng(0).integers(-32_768, 32_767, frames * HOP, dtype=np.int16)
    expected = (audio.reshape(frames, HOP).max(axis=1) / 32_768).astype(np.float16)
    np.testing.assert_array_equal(label_track(PeakTeacher(), audio)[:, 0], expected)
    np.testing.assert_array_equal(np.concatenate(list(float_blocks(audio))), (audio / 32_768).astype(np.float32))

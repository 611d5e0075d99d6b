"""Which differing frames count as near ties: cases made by hand, where the answer is known."""

import numpy as np
import pytest

from mert_foundry.jobs.benchmarks.code_agreement import CodeAgreement, compare_codes

# Two levels of entries on a line; level 1 refines what level 0 leaves.
CODEBOOKS = np.array([[[-1.0, 0.0], [1.0, 0.0], [0.0, 9.0]], [[-0.1, 0.0], [0.1, 0.0], [0.0, 9.0]]])


def compare(codes: list[list[int]], expected: list[list[int]], latents: list[list[float]]) -> CodeAgreement:
    return compare_codes(
        np.array(codes, np.uint16), np.array(expected, np.int64), np.array(latents, np.float32), CODEBOOKS
    )


def test_equal_codes():
    agreement = compare([[0, 1], [1, 0]], [[0, 1], [1, 0]], [[-0.9, 0.0], [0.9, 0.0]])
    assert (agreement.frames, agreement.differing_frames, agreement.near_ties, agreement.equal_share) == (2, 0, 0, 1.0)
    assert agreement.equal_by_level.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("offset", "is_tie"), [(0.0, True), (1e-5, True), (-1e-5, True), (1e-3, False), (-1e-3, False)]
)
def test_a_frame_in_the_middle_of_two_entries_is_a_near_tie(offset: float, is_tie: bool):
    """Distances are (1 -+ offset)^2, so the relative gap is about four times the offset."""
    agreement = compare([[0], [1]], [[1], [0]], [[offset, 0.0]])
    assert (agreement.differing_frames, agreement.near_ties) == (1, int(is_tie))


def test_two_entries_equally_far_are_no_tie_when_a_third_is_nearer():
    agreement = compare([[0], [0]], [[1], [0]], [[0.0, 8.5]])
    assert (agreement.differing_frames, agreement.near_ties) == (1, 0)


def test_only_the_first_differing_level_is_judged():
    """After another first code the residual is another, and so are the finer codes, near tie or not."""
    tie_first = compare([[0], [1]], [[1], [2]], [[0.0, 0.0]])
    assert (tie_first.differing_frames, tie_first.near_ties) == (1, 1)
    tie_later_only = compare([[0], [0]], [[1], [1]], [[-0.5, 0.0]])
    assert (tie_later_only.differing_frames, tie_later_only.near_ties) == (1, 0)


def test_a_tie_at_a_later_level_is_judged_on_the_residual():
    assert compare([[0], [0]], [[0], [1]], [[-1.0, 0.0]]).near_ties == 1
    assert compare([[0], [0]], [[0], [1]], [[-0.95, 0.0]]).near_ties == 0


def test_tracks_add_up():
    first = compare([[0, 1], [1, 1]], [[0, 1], [1, 0]], [[-0.9, 0.0], [1.0, 0.0]])
    second = compare([[0], [0]], [[1], [0]], [[-0.5, 0.0]])
    both = first + second
    assert (both.frames, both.differing_frames, both.near_ties, both.equal_by_level.tolist()) == (3, 2, 1, [2, 2])
    assert both.equal_share == pytest.approx(1 / 3)


@pytest.mark.parametrize("change", ["frames", "latents", "codebooks"])
def test_shapes_that_do_not_fit_are_refused(change: str):
    codes, latents = np.zeros((2, 3)), np.zeros((3, 2))
    expected = np.zeros((2, 4)) if change == "frames" else codes
    latents = latents[:2] if change == "latents" else latents
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        compare_codes(codes, expected, latents, CODEBOOKS[:1] if change == "codebooks" else CODEBOOKS)

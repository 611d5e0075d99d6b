"""How far two sets of residual codes of the same latents agree, and whether what differs was a near tie."""

from dataclasses import dataclass

import numpy as np

NEAR_TIE = 1e-4


@dataclass(frozen=True)
class CodeAgreement:
    """The outcome of `compare_codes`; the reports of several tracks add up."""

    frames: int
    differing_frames: int  # with at least one other code
    near_ties: int  # among the differing frames
    equal_by_level: np.ndarray  # int64 [levels]: frames with the same code at that level

    @property
    def equal_share(self) -> float:
        """Share of frames whose codes are all equal."""
        return 1 - self.differing_frames / self.frames

    def __add__(self, other: "CodeAgreement") -> "CodeAgreement":
        return CodeAgreement(
            self.frames + other.frames,
            self.differing_frames + other.differing_frames,
            self.near_ties + other.near_ties,
            self.equal_by_level + other.equal_by_level,
        )


def compare_codes(
    codes: np.ndarray, expected: np.ndarray, latents: np.ndarray, codebooks: np.ndarray, tolerance: float = NEAR_TIE
) -> CodeAgreement:
    """Compare codes with a reference's and judge each differing frame at its first differing level.

    A code decides the residual, and so all finer codes: only the first level at which two frames differ tells
    why. There the frame is a near tie when both codes' squared distances to the residual, in fp64, exceed the
    least distance of all entries by less than `tolerance` of it.

    Args:
        codes: integer `[levels, frames]`.
        expected: the reference's, of the same shape.
        latents: `[frames, dimension]`, what was quantised.
        codebooks: `[>= levels, entries, dimension]`.

    Raises:
        ValueError: the shapes do not fit.
    """
    codes, expected = np.asarray(codes, np.int64), np.asarray(expected, np.int64)
    if codes.shape != expected.shape or len(latents) != codes.shape[1] or len(codebooks) < len(codes):
        raise ValueError(
            f"codes {codes.shape}, expected {expected.shape}, latents {latents.shape}, codebooks {codebooks.shape}"
        )
    differs = codes != expected
    differing = np.flatnonzero(differs.any(axis=0))
    near_ties = sum(
        _is_near_tie(codes[:, frame], expected[:, frame], latents[frame], codebooks, tolerance) for frame in differing
    )
    return CodeAgreement(codes.shape[1], len(differing), near_ties, (~differs).sum(axis=1))


def _is_near_tie(
    codes: np.ndarray, expected: np.ndarray, latent: np.ndarray, codebooks: np.ndarray, tolerance: float
) -> bool:
    level = int(np.argmax(codes != expected))
    residual = latent.astype(np.float64)
    for earlier in range(level):
        residual = residual - codebooks[earlier, codes[earlier]]
    distances = np.square(residual - codebooks[level]).sum(axis=1)
    least = distances.min()
    return bool(max(distances[codes[level]], distances[expected[level]]) - least < tolerance * least)

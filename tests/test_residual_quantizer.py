"""The quantiser against distances in double precision, and against the encodec package's own."""

import numpy as np
import pytest
import torch
from encodec.quantization import ResidualVectorQuantizer
from hypothesis import given
from hypothesis import strategies as st

from mert_foundry.pipeline.teachers.codec.quantizer import ResidualQuantizer


def random_codebooks(seed: int, levels: int, entries: int, dimension: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shrinking = 0.7 ** torch.arange(levels)[:, None, None]
    return shrinking * torch.randn(levels, entries, dimension, generator=generator)


def naive_codes(latents: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    residual, codes = latents.astype(np.float64), []
    for entries in codebooks.astype(np.float64):
        distances = np.square(residual[:, None] - entries).sum(axis=2)
        codes.append(distances.argmin(axis=1))
        residual = residual - entries[codes[-1]]
    return np.array(codes)


@given(st.integers(0, 99), st.integers(1, 5), st.integers(2, 40), st.integers(1, 12), st.integers(1, 30))
def test_codes_are_the_nearest_entries_of_the_residuals(
    seed: int, levels: int, entries: int, dimension: int, frames: int
):
    codebooks = random_codebooks(seed, levels, entries, dimension)
    latents = torch.randn(frames, dimension, generator=torch.Generator().manual_seed(seed + 100))
    codes = ResidualQuantizer(codebooks).encode(latents)
    assert codes.shape == (levels, frames)
    np.testing.assert_array_equal(codes.numpy(), naive_codes(latents.numpy(), codebooks.numpy()))


@pytest.mark.parametrize("levels", [1, 8])
def test_codes_are_those_of_the_package(levels: int):
    package = ResidualVectorQuantizer(dimension=64, n_q=8, bins=256, kmeans_init=False).eval()
    codebooks = random_codebooks(1, 8, 256, 64)
    for layer, entries in zip(package.vq.layers, codebooks):
        layer._codebook.embed.copy_(entries)
    latents = torch.randn(500, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = package.vq.encode(latents.T[None], n_q=levels)[:, 0]
    np.testing.assert_array_equal(ResidualQuantizer(codebooks[:levels]).encode(latents), expected)


def test_latents_may_lie_transposed_in_memory():
    codebooks = random_codebooks(3, 2, 16, 8)
    latents = torch.randn(8, 20, generator=torch.Generator().manual_seed(4))
    quantizer = ResidualQuantizer(codebooks)
    assert torch.equal(quantizer.encode(latents.T), quantizer.encode(latents.T.contiguous()))

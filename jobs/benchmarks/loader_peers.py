"""Loaders of others over the same examples, each as its own documentation or common practice would have it.

A loader yields batches in the stored types: `audio` int16 [B, T], `codes` uint16 [B, K, F], `cqt` [B, F, bins], `key`.
Every one draws the crop of an example as ours does, so that batches can be compared bit by bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset

from mert_foundry.pipeline.frames import HOP
from mert_foundry.pipeline.stream.crops import random_crop

Batch = dict[str, Any]
Arrays = Mapping[str, Any]  # `key`, and arrays by name

SEED = 0


def collate(examples: Sequence[Arrays]) -> Batch:
    """Crops to a batch, each array copied once."""
    names = [name for name in examples[0] if name != "key"]
    stacked = {name: torch.from_numpy(np.stack([example[name] for example in examples])) for name in names}
    return {**stacked, "key": [example["key"] for example in examples]}


def read_flac(file: Any, start: int, count: int) -> np.ndarray:
    """Samples [start, start + count) of a FLAC file, int16, by libsndfile."""
    with soundfile.SoundFile(file) as opened:
        opened.seek(start)
        return opened.read(count, dtype="int16")


class ArrayFiles(Dataset):
    """Memory-mapped `.npy` files, mapped once; FLAC from files of their own."""

    def __init__(self, folder: Path, flac: bool, frames: int):
        self.keys = sorted(path.name.removesuffix(".codes.npy") for path in folder.glob("*.codes.npy"))
        self.folder, self.flac, self.frames = folder, flac, frames
        names = ("codes", "cqt") if flac else ("audio", "codes", "cqt")
        self.arrays = [
            {name: np.load(folder / f"{key}.{name}.npy", mmap_mode="r") for name in names} for key in self.keys
        ]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> Arrays:
        key, arrays = self.keys[number], self.arrays[number]
        start, count = random_crop(SEED, 0, key, arrays["codes"].shape[1], self.frames)
        samples = slice(HOP * start, HOP * (start + count))
        if self.flac:
            audio = read_flac(str(self.folder / f"{key}.flac"), samples.start, HOP * count)
        else:
            audio = arrays["audio"][samples]
        frames = slice(start, start + count)
        return {"key": key, "audio": audio, "codes": arrays["codes"][:, frames], "cqt": arrays["cqt"][frames]}


def array_files(folder: Path, flac: bool, frames: int, batch: int, workers: int) -> Iterator[Batch]:
    """Endless batches of `ArrayFiles` by torch's DataLoader in a random order."""
    dataset = ArrayFiles(folder / "arrays", flac, frames)
    loader = DataLoader(
        dataset,
        batch,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


PEERS = {
    "memory-mapped .npy": partial(array_files, workers=0),
    "memory-mapped .npy, 2 workers": partial(array_files, workers=2),
}

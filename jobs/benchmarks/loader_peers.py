"""Loaders of others over the same examples, each as its own documentation or common practice would have it.

A loader yields batches in the stored types: `audio` int16 [B, T], `codes` uint16 [B, K, F], `cqt` [B, F, bins], `key`.
Every one draws the crop of an example as ours does, so that batches can be compared bit by bit.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset

from mert_foundry.jobs.benchmarks.loader_examples import CODEBOOKS
from mert_foundry.pipeline.frames import HOP
from mert_foundry.pipeline.stream.crops import random_crop

Batch = dict[str, Any]
Arrays = Mapping[str, Any]  # `key`, and arrays by name

SEED = 0
NAMES = ("audio", "codes", "cqt")


def collate(examples: Sequence[Arrays]) -> Batch:
    """Crops to a batch, each array copied once."""
    stacked = {name: torch.from_numpy(np.stack([example[name] for example in examples])) for name in NAMES}
    return {**stacked, "key": [example["key"] for example in examples]}


def read_flac(file: str | BytesIO, start: int, count: int) -> np.ndarray:
    """Samples [start, start + count) of a FLAC file, int16, by libsndfile."""
    with soundfile.SoundFile(file) as opened:
        opened.seek(start)
        return opened.read(count, dtype="int16")


def crop_example(key: str, audio: Any, codes: np.ndarray, cqt: np.ndarray, frames: int) -> Arrays:
    """The crop of an example; `audio` is int16 `[T]`, or FLAC as the path of a file or as bytes."""
    start, count = random_crop(SEED, 0, key, codes.shape[1], frames)
    first, samples = HOP * start, HOP * count
    if isinstance(audio, np.ndarray):
        crop = audio[first : first + samples]
    else:
        crop = read_flac(audio if isinstance(audio, str) else BytesIO(audio), first, samples)
    return {"key": key, "audio": crop, "codes": codes[:, start : start + count], "cqt": cqt[start : start + count]}


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
        audio = str(self.folder / f"{key}.flac") if self.flac else arrays["audio"]
        return crop_example(key, audio, arrays["codes"], arrays["cqt"], self.frames)


def shuffled(dataset: Dataset, batch: int, workers: int) -> Iterator[Batch]:
    """Endless batches by torch's DataLoader in a random order."""
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


def array_files(folder: Path, flac: bool, frames: int, batch: int, workers: int) -> Iterator[Batch]:
    """Batches of `ArrayFiles`."""
    return shuffled(ArrayFiles(folder / "arrays", flac, frames), batch, workers)


def webdataset_tars(folder: Path, flac: bool, frames: int, batch: int, workers: int) -> Iterator[Batch]:
    """Our own tars, read from end to end by webdataset, shuffled in a buffer of 100 examples."""
    import webdataset

    member = "flac" if flac else "pcm.npy"
    tars = sorted(str(path) for path in (folder / member).glob("*.tar"))

    def crop(example: dict[str, Any]) -> Arrays:
        codes, cqt = (np.load(BytesIO(example[f"{name}.npy"])) for name in ("codes", "cqt"))
        audio = example[member] if flac else np.load(BytesIO(example[member]))
        return crop_example(example["__key__"], audio, codes, cqt, frames)

    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(100).map(crop)
    batches = dataset.repeat().batched(batch, collation_fn=collate, partial=False)
    yield from DataLoader(batches, batch_size=None, num_workers=workers)


class ArrowTable(Dataset):
    """Hugging Face `datasets`: an Arrow table, memory-mapped, arrays as its bytes."""

    def __init__(self, folder: Path, flac: bool, frames: int):
        import datasets

        self.flac, self.frames = flac, frames
        self.rows = datasets.load_from_disk(str(folder)).with_format("arrow")
        self.bins = self.rows[0]["bins"][0].as_py()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Arrays:
        row = self.rows[number]
        codes = np.frombuffer(row["codes"][0].as_buffer(), np.uint16).reshape(CODEBOOKS, -1)
        cqt = np.frombuffer(row["cqt"][0].as_buffer(), row["dtype"][0].as_py()).reshape(-1, self.bins)
        audio = row["flac" if self.flac else "audio"][0].as_buffer()
        return crop_example(
            row["key"][0].as_py(), audio if self.flac else np.frombuffer(audio, np.int16), codes, cqt, self.frames
        )


def arrow_table(folder: Path, flac: bool, frames: int, batch: int, workers: int) -> Iterator[Batch]:
    """Batches of `ArrowTable`."""
    return shuffled(ArrowTable(folder / "arrow", flac, frames), batch, workers)


def litdata_chunks(folder: Path, flac: bool, frames: int, batch: int, workers: int) -> Iterator[Batch]:
    """Chunks of litData, shuffled."""
    import litdata

    member = "flac" if flac else "audio"

    def crop(example: dict[str, Any]) -> Arrays:
        return crop_example(example["key"], example[member], example["codes"], example["cqt"], frames)

    chunks = litdata.StreamingDataset(str(folder / f"litdata_{member}"), shuffle=True, transform=crop)
    loader = litdata.StreamingDataLoader(
        chunks, batch_size=batch, num_workers=workers, collate_fn=collate, drop_last=True
    )
    while True:
        yield from loader


def write_arrow(folder: Path, keys: Sequence[str]) -> None:
    """`folder/arrow` from the files in `folder/arrays`."""
    import datasets

    def rows() -> Iterator[dict[str, Any]]:
        for key in keys:
            arrays = {name: np.load(folder / "arrays" / f"{key}.{name}.npy") for name in ("audio", "codes", "cqt")}
            about = {"key": key, "bins": arrays["cqt"].shape[1], "dtype": str(arrays["cqt"].dtype)}
            flac = (folder / "arrays" / f"{key}.flac").read_bytes()
            yield {**about, "flac": flac, **{name: array.tobytes() for name, array in arrays.items()}}

    binary = {name: datasets.Value("binary") for name in ("flac", "audio", "codes", "cqt")}
    about = {"key": datasets.Value("string"), "bins": datasets.Value("int32"), "dtype": datasets.Value("string")}
    made = datasets.Dataset.from_generator(
        rows, features=datasets.Features(about | binary), cache_dir=str(folder / "cache")
    )
    made.save_to_disk(str(folder / "arrow"))


def load_files(place: tuple[str, str, str]) -> dict[str, Any]:
    """An example from `folder/arrays`; called by litData in a process of its own."""
    folder, key, member = place
    start = Path(folder) / "arrays"
    audio: Any = (start / f"{key}.flac").read_bytes() if member == "flac" else np.load(start / f"{key}.audio.npy")
    targets = {name: np.load(start / f"{key}.{name}.npy") for name in ("codes", "cqt")}
    return {"key": key, member: audio, **targets}


def write_litdata(folder: Path, keys: Sequence[str]) -> None:
    """`folder/litdata_flac` and `folder/litdata_audio` from the files in `folder/arrays`."""
    import litdata

    for member in ("flac", "audio"):
        places = [(str(folder), key, member) for key in keys]
        litdata.optimize(load_files, places, str(folder / f"litdata_{member}"), chunk_bytes="64MB", num_workers=1)


ARRAYS = "memory-mapped .npy"
OTHERS = {"webdataset": webdataset_tars, "Hugging Face Arrow": arrow_table, "litData": litdata_chunks}
PEERS: dict[str, Callable[[Path, bool, int, int], Iterator[Batch]]] = {
    f"{name}{f', {workers} workers' if workers else ''}": partial(loader, workers=workers)
    for name, loader in {ARRAYS: array_files, **OTHERS}.items()
    for workers in (0, 2)
}


if __name__ == "__main__":  # in a process of its own, since both libraries print as they go
    root = Path(json.loads(sys.argv[1])["folder"])
    names = sorted(path.stem for path in (root / "arrays").glob("*.flac"))
    write_arrow(root, names)
    write_litdata(root, names)
    print(json.dumps({"examples": len(names)}))

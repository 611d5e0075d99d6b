"""Models of a few thousand weights, and a synthetic stream, for the tests of model/."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from forked import forking

from mert_foundry.model.encoder import EncoderConfig
from mert_foundry.model.frontend.convolution import FrontendConfig
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.pretrain_model import ObjectiveConfig, PretrainModel, build_pretrain_model
from mert_foundry.model.transformer.transformer import TransformerConfig

HOP = 320
HEADS = (
    HeadSpec(name="codes", kind="discrete", size=2, codebook_size=16),
    HeadSpec(name="cqt", kind="continuous", size=6),
)


def tiny_encoder(norm: str = "post", dropout: float = 0.1, layer_drop: float = 0.0, layers: int = 2) -> EncoderConfig:
    return EncoderConfig(
        frontend=FrontendConfig(channels=8),
        input_dropout=dropout,
        transformer=TransformerConfig(
            layers=layers,
            width=16,
            heads=2,
            feed_forward=32,
            norm=norm,
            position_kernel=8,
            position_groups=4,
            dropout=dropout,
            attention_dropout=dropout,
            layer_drop=layer_drop,
        ),
    )


OBJECTIVE = ObjectiveConfig(final_dim=4, target_weights={"cqt": 0.5})


def tiny_model(seed: int = 1, objective: ObjectiveConfig = OBJECTIVE, **encoder: object) -> PretrainModel:
    return build_pretrain_model(tiny_encoder(**encoder), HEADS, objective, seed)


def synthetic_batch(number: int, rows: int = 4, frames: int = 20) -> dict:
    """Batch `number` in the form the stream hands over; a pure function of its arguments."""
    generator = torch.Generator().manual_seed(number)
    return {
        "audio": torch.randint(-20_000, 20_000, (rows, frames * HOP), generator=generator).to(torch.int16),
        "codes": torch.randint(0, 16, (rows, 2, frames), generator=generator).to(torch.uint16),
        "cqt": torch.rand(rows, frames, 6, generator=generator).to(torch.float16),
        "valid": torch.ones(rows, frames, dtype=torch.bool),
        "key": [f"track-{number}-{row}" for row in range(rows)],
        "row": torch.arange(rows),
    }


def slice_rows(batch: dict, rows: slice) -> dict:
    return {name: value[rows] for name, value in batch.items()}


def synthetic_stream(position: dict | None, rank: int = 0, world_size: int = 1) -> Iterator[tuple[dict, dict]]:
    """Endless; position is the number of batches taken."""
    number = 0 if position is None else position["offset"]
    while True:
        batch = synthetic_batch(number)
        rows = len(batch["key"]) // world_size
        number += 1
        yield slice_rows(batch, slice(rank * rows, (rank + 1) * rows)), {"offset": number}


def run_ranks(function: Callable, world_size: int, *arguments: object) -> None:
    """Run `function(rank, *arguments)` on gloo ranks; an error on any rank is raised here."""
    method = forking().get_start_method()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (function, world_size, folder, arguments)
        torch.multiprocessing.start_processes(_start, arguments, nprocs=world_size, start_method=method)


def _start(rank: int, function: Callable, world_size: int, folder: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=(Path(folder) / "store").as_uri(), rank=rank, world_size=world_size)
    try:
        function(rank, *arguments)
        dist.barrier()  # gloo may abort a rank whose peer has gone
    finally:
        dist.destroy_process_group()
    os._exit(0)  # torch's own threads may abort an interpreter that ends while they do, after all is said and done

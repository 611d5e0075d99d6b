"""A model whose weights, gradients and moments are divided among ranks, by torch's FSDP2 (`fully_shard`).

ddp     every rank holds the whole model
fsdp    every rank holds its part of each weight, along the first axis; a layer's are gathered while it computes
hsdp    the ranks form replicas of the whole model; within one they divide it as in fsdp, between them they average gradients

A transformer layer is gathered as one, and so is all that is outside the layers. Weights are held and gathered and gradients summed in
fp32; with bf16, autocast casts what is gathered as it does for ddp. Gathered in bf16, norms, gates and temperatures would be rounded too,
which autocast leaves in fp32.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from mert_foundry.model.training.ranks import rank, world_size
from mert_foundry.model.transformer.layer import TransformerLayer

Parallel = Literal["ddp", "fsdp", "hsdp"]


def check_replicas(replicas: int | None, ranks: int) -> None:
    """Raise ValueError when so many replicas cannot be made of the ranks. None: not said yet."""
    if replicas is not None and ranks % replicas:
        raise ValueError(f"trainer.replicas is {replicas}, which does not divide the {ranks} ranks")


def resolve_replicas(parallel: Literal["fsdp", "hsdp"], replicas: int | None, ranks: int) -> int:
    """How many groups of ranks hold the whole model each. Raises ValueError when hsdp does not say, and as `check_replicas`."""
    if parallel == "fsdp":
        return 1
    if replicas is None:
        raise ValueError("trainer.parallel is hsdp, which needs trainer.replicas where the nodes are not known")
    check_replicas(replicas, ranks)
    return replicas


def is_divided(model: nn.Module) -> TypeGuard[FSDPModule]:
    """Whether the ranks divide this model, or this part of one."""
    return isinstance(model, FSDPModule)


def holds_own_part(model: nn.Module) -> bool:
    """Whether this rank has weights or gradients that no rank before it has: rank 0, and each rank of a divided model."""
    return rank() == 0 or is_divided(model)


def shard(model: nn.Module, replicas: int, device: torch.device) -> None:
    """Divide a model in place; each rank of a replica keeps its part, on `device`. A rank alone keeps the whole model.

    Rank 0 gives the weights. On other ranks the model may be on the meta device, so that it takes no memory there. Build
    optimisers afterwards, since the parameters are other objects then. `replicas` must divide the ranks.
    """
    if world_size() == 1:
        return
    weights = dict(model.named_parameters()) if rank() == 0 else {}
    _divide(model, _mesh(replicas, device))
    if any(parameter.is_meta for parameter in model.parameters()):
        model.to_empty(device=device)
    _take_from_rank_zero(model, weights, device)


def _divide(model: nn.Module, mesh: DeviceMesh) -> None:
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    layers: list[FSDPModule] = []
    for module in [module for module in model.modules() if isinstance(module, TransformerLayer)]:
        layers.append(fully_shard(module, mesh=mesh, mp_policy=policy))
        # Layer drop is each rank's own decision, gathering is not: a rank that skips a layer gathers it with the others.
        register_fsdp_forward_method(module, "skip")
    root = fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for layer, below in zip(layers, [root, *layers]):
        # Said, since torch else goes by the forward passes it has seen: after a validation with other numbers of batches on each
        # rank, one would gather what another does not. The root is still there when its turn comes.
        layer.set_modules_to_backward_prefetch([below])
    root.set_modules_to_backward_prefetch(layers[-1:])


@torch.no_grad()
def _take_from_rank_zero(model: nn.Module, weights: Mapping[str, Tensor], device: torch.device) -> None:
    """Give every rank its part of rank 0's weights, one after another, and all of its buffers."""
    for name, own in model.named_parameters():
        assert isinstance(own, DTensor), "divided before"
        value = weights[name].to(device) if rank() == 0 else torch.empty(own.shape, dtype=own.dtype, device=device)
        own.copy_(distribute_tensor(value, own.device_mesh, own.placements))
    for buffer in model.buffers():
        distributed.broadcast(buffer, src=0)


def _mesh(replicas: int, device: torch.device) -> DeviceMesh:
    ranks = world_size()
    if replicas == 1:
        return init_device_mesh(device.type, (ranks,))
    return init_device_mesh(device.type, (replicas, ranks // replicas), mesh_dim_names=("replica", "part"))


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """All ranks hold all weights inside: forward passes exchange nothing, and each rank may make its own number of them.

    Every rank enters and leaves together. For passes without gradient; nothing to do for a model that is not divided.
    """
    parts = [module for module in model.modules() if is_divided(module)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank; all ranks call it together when it is divided."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_to_rank_zero(values: Any) -> Any:
    """Nested mappings with every tensor whole and copied to the CPU of rank 0; other ranks help and get None for it."""
    if isinstance(values, Mapping):
        return {key: copy_to_rank_zero(value) for key, value in values.items()}
    if not isinstance(values, Tensor):
        return values
    gathered_value = whole(values.detach())
    return gathered_value.to("cpu", copy=True) if rank() == 0 else None


def divided_as(own: Tensor, value: Tensor) -> Tensor:
    """This rank's part of a whole tensor that every rank has, divided as `own` is; the tensor itself where `own` is whole."""
    if not isinstance(own, DTensor):
        return value
    on_device = value.to(own.device, own.dtype)
    return distribute_tensor(on_device, own.device_mesh, own.placements, src_data_rank=None).clone()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

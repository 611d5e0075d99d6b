"""A model whose weights, gradients and moments are sharded over the ranks, by torch's FSDP2 (`fully_shard`).

ddp     Each rank holds the whole model.
fsdp    Each rank holds its shard of each weight, cut along the first axis. Before a layer computes, the ranks gather
        its weights.
hsdp    The ranks form replicas of the whole model. Within a replica they shard it as in fsdp; replicas average their
        gradients.

The ranks gather the weights of one transformer layer together, and all weights outside the layers together. They hold
and gather weights in fp32, and sum gradients in fp32. With bf16, autocast casts the gathered weights, as it does for
ddp. If weights were gathered in bf16, norms, gates and temperatures would be rounded too, which autocast leaves in
fp32.
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
    """Raise ValueError when the ranks do not form this number of equal replicas. None: the number is not known yet."""
    if replicas is not None and ranks % replicas:
        raise ValueError(f"trainer.replicas is {replicas}, which does not divide the {ranks} ranks")


def resolve_replicas(parallel: Literal["fsdp", "hsdp"], replicas: int | None, ranks: int) -> int:
    """How many groups of ranks hold the whole model each.

    Raises ValueError when hsdp does not say, and as `check_replicas`.
    """
    if parallel == "fsdp":
        return 1
    if replicas is None:
        raise ValueError("trainer.parallel is hsdp, which needs trainer.replicas where the nodes are not known")
    check_replicas(replicas, ranks)
    return replicas


def is_sharded(model: nn.Module) -> TypeGuard[FSDPModule]:
    """Whether this module is sharded over the ranks."""
    return isinstance(model, FSDPModule)


def holds_own_shard(model: nn.Module) -> bool:
    """Whether this rank has work of its own on the weights: rank 0 always, each other rank when the
    model is sharded.
    """
    return rank() == 0 or is_sharded(model)


def shard(model: nn.Module, replicas: int, device: torch.device) -> None:
    """Shard a model in place; each rank of a replica keeps its shard, on `device`. A single rank keeps the whole model.

    Rank 0 gives the weights. On other ranks the model may be on the meta device, so that it takes no memory there.
    Build optimisers afterwards, since the parameters are other objects then. `replicas` must divide the ranks.
    """
    if world_size() == 1:
        return
    weights = dict(model.named_parameters()) if rank() == 0 else {}
    _shard_over(model, _mesh(replicas, device))
    if any(parameter.is_meta for parameter in model.parameters()):
        model.to_empty(device=device)
    _take_from_rank_zero(model, weights, device)


def _shard_over(model: nn.Module, mesh: DeviceMesh) -> None:
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    layers: list[FSDPModule] = []
    for module in [module for module in model.modules() if isinstance(module, TransformerLayer)]:
        layers.append(fully_shard(module, mesh=mesh, mp_policy=policy))
        # Each rank decides for itself which layers it drops, but a rank that skips a layer must still gather it with
        # the others.
        register_fsdp_forward_method(module, "skip")
    root = fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for layer, below in zip(layers, [root, *layers]):
        # Without this order torch prefetches in the order of the forward passes it has seen. After a validation with
        # different numbers of batches per rank, the ranks would gather different layers. The root's weights are still
        # gathered by then.
        layer.set_modules_to_backward_prefetch([below])
    root.set_modules_to_backward_prefetch(layers[-1:])


@torch.no_grad()
def _take_from_rank_zero(model: nn.Module, weights: Mapping[str, Tensor], device: torch.device) -> None:
    """Give every rank its shard of each of rank 0's weights, one weight after another, and all buffers of rank 0."""
    for name, own in model.named_parameters():
        assert isinstance(own, DTensor), "sharded before"
        value = weights[name].to(device) if rank() == 0 else torch.empty(own.shape, dtype=own.dtype, device=device)
        own.copy_(distribute_tensor(value, own.device_mesh, own.placements))
    for buffer in model.buffers():
        distributed.broadcast(buffer, src=0)


def _mesh(replicas: int, device: torch.device) -> DeviceMesh:
    ranks = world_size()
    if replicas == 1:
        return init_device_mesh(device.type, (ranks,))
    return init_device_mesh(device.type, (replicas, ranks // replicas), mesh_dim_names=("replica", "shard"))


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Inside, every rank holds all weights, so that forward passes exchange nothing and each rank may make any number
    of them.

    All ranks must enter and leave together. For forward passes without gradient. A model that is not sharded stays as
    it is.
    """
    modules = [module for module in model.modules() if is_sharded(module)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(module is not model, recurse=False)


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every rank. When the tensor is sharded, all ranks must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_to_rank_zero(values: Any) -> Any:
    """Nested mappings whose tensors rank 0 gets whole, as copies on its CPU. Other ranks must call it too, and get None
    instead.
    """
    if isinstance(values, Mapping):
        return {key: copy_to_rank_zero(value) for key, value in values.items()}
    if not isinstance(values, Tensor):
        return values
    full = full_tensor(values.detach())
    return full.to("cpu", copy=True) if rank() == 0 else None


def shard_like(own: Tensor, value: Tensor) -> Tensor:
    """This rank's shard of `value`, a whole tensor that every rank has, sharded as `own` is.

    `value` itself if `own` is not sharded.
    """
    if not isinstance(own, DTensor):
        return value
    on_device = value.to(own.device, own.dtype)
    return distribute_tensor(on_device, own.device_mesh, own.placements, src_data_rank=None).clone()


def local_shard(tensor: Tensor) -> Tensor:
    """The shard of a tensor that this rank holds, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

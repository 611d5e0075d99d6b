"""Which GPU a rank takes."""

import pytest

from mert_foundry.jobs.cluster.torchrun import gpu_of_this_rank, node_count, process_group
from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.pretrain import with_replicas
from mert_foundry.model.training.trainer_config import TrainerConfig


@pytest.mark.parametrize(
    ("environment", "gpu"), [({}, 0), ({"WORLD_SIZE": "1"}, 0), ({"WORLD_SIZE": "8", "LOCAL_RANK": "3"}, 3)]
)
def test_a_rank_takes_the_gpu_of_its_number_on_the_machine(
    environment: dict, gpu: int, monkeypatch: pytest.MonkeyPatch
):
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert gpu_of_this_rank() == gpu


def test_ranks_that_would_share_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(UsageError, match="WORLD_SIZE is 8 and LOCAL_RANK is not set"):
        gpu_of_this_rank()


@pytest.mark.parametrize(("ranks_of_a_node", "ranks", "nodes"), [(None, 1, 1), ("8", 8, 1), ("8", 32, 4)])
def test_a_node_is_a_replica_where_none_are_asked_for(
    ranks_of_a_node: str | None, ranks: int, nodes: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks_of_a_node is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks_of_a_node)
    assert node_count(ranks) == nodes
    assert with_replicas(TrainerConfig(parallel="hsdp"), ranks).replicas == nodes
    assert with_replicas(TrainerConfig(parallel="hsdp", replicas=2), ranks).replicas == 2
    assert with_replicas(TrainerConfig(parallel="fsdp"), ranks).replicas is None


def test_ranks_of_unknown_nodes_are_refused_where_a_node_is_a_replica(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with pytest.raises(UsageError, match="WORLD_SIZE is 8 and LOCAL_WORLD_SIZE is not set: .* trainer.replicas"):
        with_replicas(TrainerConfig(parallel="hsdp"), 8)
    assert with_replicas(TrainerConfig(parallel="hsdp", replicas=2), 8).replicas == 2
    assert with_replicas(TrainerConfig(parallel="fsdp"), 8).replicas is None


def test_restarts_that_torchrun_cannot_make_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    with pytest.raises(UsageError, match="^torchrun --max-restarts=2 .* TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        with process_group("cpu", 2):
            pass

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from mert_foundry.model.runs import checkpoint
from mert_foundry.model.runs.checkpoint import (
    CheckpointState,
    find_fault,
    latest_checkpoint,
    retire_checkpoints,
    save_checkpoint,
)
from mert_foundry.model.runs.publish import publish_folder, remove_leftovers
from mert_foundry.model.training.optimizer import restore_moments

CONFIG = {"encoder": {"width": 4}, "note": "é"}


def save(folder: Path, step: int, keep: int = 10) -> Path:
    weights = {"weight": torch.full((3, 2), float(step)).T}
    state = CheckpointState(step, {"offset": 5 * step}, seed=7, world_size=2, skipped_steps=1)
    path = save_checkpoint(folder, state, weights, {"state": {0: {"step": torch.tensor(3.0)}}}, CONFIG)
    retire_checkpoints(folder, step, keep)
    return path


def test_everything_comes_back(tmp_path):
    path = save(tmp_path, 12)
    assert path.name == "step_12" and latest_checkpoint(tmp_path) == (path, [])
    assert checkpoint.load_state(path) == CheckpointState(12, {"offset": 60}, 7, 2, 1, 0)
    assert torch.equal(checkpoint.load_weights(path)["weight"], torch.full((2, 3), 12.0))
    assert checkpoint.load_optimizer_state(path)["state"][0]["step"] == 3.0
    assert checkpoint.load_config(path) == CONFIG


def test_an_optimiser_state_takes_no_memory_until_it_is_used_and_does_not_need_its_file_afterwards(tmp_path):
    layer = torch.nn.Linear(2_000, 4_000)
    optimizers = [torch.optim.AdamW(layer.named_parameters()) for _ in range(2)]
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizers[0].step()
    state = optimizers[0].state_dict()
    path = save_checkpoint(tmp_path, CheckpointState(1, None, 7, 1), {}, state, CONFIG)
    before = psutil.Process().memory_info().rss
    found = checkpoint.load_optimizer_state(path)
    assert psutil.Process().memory_info().rss - before < 16e6  # of 64 MB
    restore_moments(optimizers[1], found, path)
    del found
    content = (path / "optimizer.pt").read_bytes()
    (path / "optimizer.pt").write_bytes(bytes(len(content)))
    for name, value in optimizers[1].state_dict()["state"][0].items():
        assert torch.equal(value, state["state"][0][name]), name


def test_newest_is_by_number_and_the_last_k_are_kept(tmp_path):
    for step in (8, 9, 10, 11):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10", "step_11"]
    assert latest_checkpoint(tmp_path)[0].name == "step_11"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json", "config.yaml", "checksums.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_an_incomplete_checkpoint_never_wins(tmp_path, name, damage):
    save(tmp_path, 1)
    torn = save(tmp_path, 2) / name
    content = torn.read_bytes()
    if damage == "cut":
        torn.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        torn.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    else:
        torn.unlink()
    path, faults = latest_checkpoint(tmp_path)
    assert path.name == "step_1" and len(faults) == 1 and "step_2" in faults[0] and name in faults[0]


def test_an_incomplete_checkpoint_is_replaced(tmp_path):
    (save(tmp_path, 2) / "state.json").unlink()
    assert find_fault(save(tmp_path, 2)) is None


def test_a_torn_later_checkpoint_pushes_out_no_whole_one(tmp_path):
    (save(tmp_path, 9) / "state.json").unlink()
    save(tmp_path, 4, keep=1)
    path, faults = latest_checkpoint(tmp_path)
    assert path.name == "step_4" and len(faults) == 1
    assert find_fault(save(tmp_path, 5, keep=1)) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_5", "step_9"]


def test_no_checkpoint_is_none(tmp_path):
    (tmp_path / "step_x").mkdir()
    assert latest_checkpoint(tmp_path) == latest_checkpoint(tmp_path / "missing") == (None, [])


def test_another_format_version_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    with pytest.raises(ValueError, match="format_version is 1, this program reads 2"):
        checkpoint.load_state(path)


def test_an_error_while_writing_publishes_nothing(tmp_path):
    with pytest.raises(RuntimeError), publish_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
from pathlib import Path
import torch
from mert_foundry.model.runs.checkpoint import CheckpointState, retire_checkpoints, save_checkpoint
for step in range(1, 10_000):
    weights = {str(i): torch.full((200_000,), float(step)) for i in range(8)}
    save_checkpoint(Path(sys.argv[1]), CheckpointState(step, None, 0, 1), weights, {}, {})
    retire_checkpoints(Path(sys.argv[1]), step, 2)
    print(step, flush=True)
"""


@pytest.mark.process
@pytest.mark.parametrize("delay", [0.0, 0.011])
def test_a_kill_at_any_time_leaves_a_whole_checkpoint(tmp_path, delay):
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
        for _ in range(3):
            writer.stdout.readline()
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        last = int(([3] + [int(line) for line in writer.stdout.read().split()])[-1])
    path, faults = latest_checkpoint(tmp_path)
    assert faults == [] and checkpoint.load_state(path).step >= last
    step = float(checkpoint.load_state(path).step)
    assert all((tensor == step).all() for tensor in checkpoint.load_weights(path).values())
    remove_leftovers(tmp_path)
    assert all(find_fault(folder) is None for folder in tmp_path.iterdir())

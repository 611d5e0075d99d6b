import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.profiler import profile

from mert_foundry.model.linear import Linear


def pair(inputs: int, outputs: int, bias: bool = True) -> tuple[Linear, nn.Linear]:
    torch.manual_seed(0)
    ours, theirs = Linear(inputs, outputs, bias), nn.Linear(inputs, outputs, bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 37, 24), (5, 24), (2, 3, 4, 24), (1, 1, 24)])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded"])
def test_values_and_gradients_equal_torchs(shape, layout, bias):
    features = torch.randn(shape)
    if layout == "transposed":
        features = torch.randn(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
    if layout == "expanded":
        features = torch.randn(shape[-1]).expand(shape)
    results = []
    for linear in pair(24, 40, bias):
        given = features.clone(memory_format=torch.preserve_format).requires_grad_()
        output = linear(given)
        output.transpose(0, -2).square().sum().backward()
        results.append([output, given.grad, *(parameter.grad for parameter in linear.parameters())])
    for mine, other in zip(*results):
        assert mine.shape == other.shape
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-4)


def operators(linear: nn.Module, features: torch.Tensor) -> set[str]:
    with profile() as profiled:
        linear(features)
    return {event.key for event in profiled.key_averages()}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch is built without oneDNN")
def test_fp32_goes_through_onednn_and_other_types_do_not():
    ours, theirs = pair(24, 40)
    features = torch.randn(5, 24)
    assert "mkldnn::_linear_pointwise" in operators(ours, features)
    assert "mkldnn::_linear_pointwise" not in operators(ours.double(), features.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours.float()(features), theirs(features))


def test_a_lone_vector_and_another_width_are_as_in_torch():
    ours, theirs = pair(24, 40)
    features = torch.randn(24, requires_grad=True)
    ours(features).sum().backward()
    assert torch.allclose(ours(features), theirs(features), atol=1e-6) and features.grad.shape == (24,)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ours(torch.randn(5, 25))


def test_no_row_gives_no_row():
    ours, _ = pair(24, 40)
    assert ours(torch.empty(0, 24)).shape == (0, 40)
    ours(torch.empty(0, 24)).sum().backward()
    assert (ours.weight.grad == 0).all()


def test_frozen_parts_get_no_gradient():
    ours, _ = pair(24, 40)
    ours.weight.requires_grad_(False)
    features = torch.randn(5, 24, requires_grad=True)
    ours(features).sum().backward()
    assert ours.weight.grad is None and features.grad is not None and ours.bias.grad is not None


def test_it_repeats_to_the_bit():
    ours, _ = pair(96, 200)
    features = torch.randn(7, 33, 96)
    results = []
    for linear in (ours, copy.deepcopy(ours)):
        output = linear(features)
        output.square().sum().backward()
        results.append((output, linear.weight.grad, linear.bias.grad))
    assert all(torch.equal(*same) for same in zip(*results))


def test_meta_device_and_inference_mode():
    ours, _ = pair(24, 40)
    with torch.inference_mode():
        assert ours(torch.randn(5, 24)).shape == (5, 40)
    assert Linear(24, 40, device="meta")(torch.empty(5, 24, device="meta")).shape == (5, 40)


MULTIPLY_UNDER_SIGNALS = """
import signal, sys, time
import torch
from mert_foundry.jobs.command.line import run
from mert_foundry.model.linear import Linear

def multiply(arguments):
    torch.set_num_threads(1)
    layer, features = Linear(384, 1536), torch.randn(200, 384, requires_grad=True)
    signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        layer(features).sum().backward()
    signal.setitimer(signal.ITIMER_REAL, 0)
    return 0

sys.exit(run(multiply, [], ""))
"""


@pytest.mark.process
@pytest.mark.slow
def test_signals_leave_a_command_s_memory_as_it_is():
    done = subprocess.run([sys.executable, "-c", MULTIPLY_UNDER_SIGNALS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

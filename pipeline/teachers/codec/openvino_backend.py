"""The encoder's convolutions in OpenVINO on the CPU; needs the extra `openvino`."""

import sys

import numpy as np
import torch
from torch import Tensor, nn

# Importing openvino reports its use to Google Analytics, without asking, where its telemetry package is found.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None stands for one that is not there

import openvino  # noqa: E402
from openvino import opset13 as operations  # noqa: E402

from mert_foundry.pipeline.teachers.codec.unpadded_layers import Residual  # noqa: E402

VERSION = openvino.__version__.split("-")[0]


class OpenvinoConvolutions:
    """Samples fp32 `[slots, 1, window_samples]` to features fp32 `[slots, channels, frames]`, in torch's number of
    threads.

    Args:
        network: an unpadded one of `without_padding`, in fp32 on the CPU.
        slots, window_samples: the one shape it is compiled for.
        precision: of the arithmetic, `fp32` or `bf16`; never left to OpenVINO's own choice.

    Raises:
        ValueError: this CPU has no bf16 arithmetic.
    """

    def __init__(self, network: nn.Module, slots: int, window_samples: int, precision: str):
        wanted = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}[precision]
        settings = {
            "INFERENCE_PRECISION_HINT": wanted,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # several labellers share a machine
        }
        samples = operations.parameter([slots, 1, window_samples], np.float32)
        model = openvino.Model([_layer(network, samples)], [samples])
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        actual = compiled.get_property("INFERENCE_PRECISION_HINT")
        if actual != wanted:
            raise ValueError(f"precision {precision}: this CPU's OpenVINO would compute in {actual.to_string()}")
        self.request = compiled.create_infer_request()

    def __call__(self, samples: Tensor) -> Tensor:
        return torch.from_numpy(self.request.infer([samples.numpy()])[0])


def _layer(layer: nn.Module, inputs: openvino.Node) -> openvino.Node:
    if isinstance(layer, nn.Sequential):
        for inner in layer:
            inputs = _layer(inner, inputs)
        return inputs
    if isinstance(layer, nn.Conv1d):
        assert layer.bias is not None, "the package's convolutions have one"
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        outputs = operations.convolution(inputs, operations.constant(weight), layer.stride, [0], [0], layer.dilation)
        return operations.add(outputs, operations.constant(bias[:, None]))
    if isinstance(layer, nn.ELU):
        return operations.elu(inputs, layer.alpha)
    assert isinstance(layer, Residual)
    shortcut = operations.slice(
        _layer(layer.shortcut, inputs), [layer.left_context], [np.iinfo(np.int32).max], [1], [2]
    )
    return operations.add(shortcut, _layer(layer.branch, inputs))

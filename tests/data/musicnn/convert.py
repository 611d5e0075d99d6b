"""Convert the weights of musicnn 0.1.0 for model/baselines/musicnn.py, and compute reference outputs with the original
network.

Needs TensorFlow, so run it in an environment of its own, with the unpacked source package of musicnn 0.1.0 from PyPI:

    python3 -m venv tf && tf/bin/pip install tensorflow-cpu tf-keras safetensors
    TF_USE_LEGACY_KERAS=1 tf/bin/python tests/data/musicnn/convert.py musicnn-0.1.0 model/baselines/shipped
    tests/data/musicnn

The script writes musicnn.safetensors (float16, without the optimiser's moments) and its licence into the first folder,
and reference.safetensors into the second: log-mel patches [2, 187, 96] in float16, and what the network with its
float32 weights makes of them: penultimate [2, 200], mean_pool [2, 753].
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from safetensors.numpy import save_file

LAYERS = ["conv2d", *(f"conv2d_{number}" for number in range(1, 8)), "dense"]
NORMS = ["batch_normalization", *(f"batch_normalization_{number}" for number in range(1, 11))]


def weights_of(checkpoint: str) -> dict[str, np.ndarray]:
    """By name: kernels as torch has them (`[out, in, time, frequency]`, `[out, in]`), biases, and folded norms."""
    reader = tf.compat.v1.train.NewCheckpointReader(checkpoint)
    found = {}
    for name in LAYERS:
        kernel = reader.get_tensor(f"{name}/kernel")
        found[f"{name}.weight"] = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        found[f"{name}.bias"] = reader.get_tensor(f"{name}/bias")
    for name in NORMS:
        gamma, beta, mean, variance = (
            reader.get_tensor(f"{name}/{part}") for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        found[f"{name}.scale"] = gamma / np.sqrt(variance + 1e-3)
        found[f"{name}.shift"] = beta - mean * found[f"{name}.scale"]
    return {name: np.ascontiguousarray(values) for name, values in found.items()}


def reference(source: Path, checkpoint: str) -> dict[str, np.ndarray]:
    """Patches and the original network's outputs for them."""
    sys.path.insert(0, str(source))
    from musicnn import models

    tf.compat.v1.disable_eager_execution()
    generator = np.random.default_rng(0)
    shape = np.cumsum(generator.normal(0, 0.3, (2, 187, 96)), axis=1) + np.linspace(3, 0, 96)
    patches = np.clip(shape, 0, 5).astype(np.float16)
    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, 187, 96])
        outputs = models.define_model(x, False, "MTT_musicnn", 50)
        with tf.compat.v1.Session() as session:
            tf.compat.v1.train.Saver().restore(session, checkpoint)
            mean_pool, penultimate = session.run([outputs[6], outputs[8]], {x: patches.astype(np.float32)})
    return {"patches": patches, "mean_pool": mean_pool, "penultimate": penultimate}


def main() -> None:
    source, weights, values = map(Path, sys.argv[1:])
    checkpoint = f"{source}/musicnn/MTT_musicnn/"
    weights.mkdir(parents=True, exist_ok=True)
    tensors = {name: values.astype(np.float16) for name, values in weights_of(checkpoint).items()}
    save_file(tensors, weights / "musicnn.safetensors")
    shutil.copy(source / "LICENSE.md", weights / "musicnn.LICENSE.md")
    save_file(reference(source, checkpoint), values / "reference.safetensors")


if __name__ == "__main__":
    main()

"""Encoders from fairseq checkpoints of HuBERT and MERT, without fairseq.

The mapping follows the parameter names of fairseq's HubertModel and of MERT's MERTModel (yizhilll/MERT,
mert_fairseq/models/mert/mert_model.py). Settings stand in `cfg` (a mapping by group) or, in older files, in `args`
(a namespace). fairseq's trainer saves `cfg` as plain mappings, but its load_checkpoint_to_cpu makes it an omegaconf
container, which stays one when a checkpoint is loaded, stripped and saved again. Such a container is read without
omegaconf; one that names dataclasses of fairseq (its trainer before March 2021, so before HuBERT) is refused.
"""

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mert_foundry.model.encoder import EncoderConfig
from mert_foundry.model.interop.hubert_config import encoder_from_hubert
from mert_foundry.model.interop.import_hugging_face import Imported, fit_weights, one_rate
from mert_foundry.model.interop.stored_model import StoredModel
from mert_foundry.model.interop.weight_files import load_safely, named_tensors
from mert_foundry.model.interop.weight_names import FAIRSEQ_GROUP_NORM_NAMES, FAIRSEQ_LAYER_NORM_NAMES

# Settings under which fairseq builds another encoder than this one can be, with the value each must have.
REQUIRED = {
    "layer_type": "transformer",
    "pos_conv_depth": 1,
    "conv_pos_batch_norm": False,
    "audio_extract_type": "w2v_conv",
    "do_cnn_feat_stable_layernorm": False,
    "wav_normalize": False,
    "subln": False,
}
NORMS = {"default": "group", "layer_norm": "layer"}


class Inert:
    """Stands for a class that a checkpoint holds; unpickling fills its attributes and runs nothing."""

    def __init__(self, *arguments: object):
        """A defaultdict is unpickled by calling its class."""


# What containers of plain settings bring along when they are pickled, in omegaconf 2.0 as in 2.3.
OMEGACONF = [
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "collections.defaultdict",
    "typing.Any",
    "builtins.dict",
    "builtins.int",
    "builtins.list",
]
HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (Inert, name) for name in ("argparse.Namespace", "fairseq.data.dictionary.Dictionary", *OMEGACONF)
]


def import_fairseq(path: Path, sample_rate: int | None = None) -> Imported:
    """Read the encoder of a checkpoint. Heads (final_proj, label_embs_concat, ...) are not imported, which is noted.

    Raises ValueError as `import_hugging_face` does, and for a file that holds objects of other classes.
    """
    with torch.serialization.safe_globals(HARMLESS):
        checkpoint = load_safely(path)
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("model"), Mapping):
        raise ValueError(f"{path}: no fairseq checkpoint, it has no `model`")
    model, task = _settings(checkpoint, path)
    try:
        encoder = encoder_from_fairseq(model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    layered = model.get("extractor_mode", "default") == "layer_norm"
    names = FAIRSEQ_LAYER_NORM_NAMES if layered else FAIRSEQ_GROUP_NORM_NAMES
    weights, notes = fit_weights(encoder, named_tensors(checkpoint["model"], path), names, path)
    normalised = bool(task.get("normalize"))
    if normalised:
        notes.append(
            "it was trained on audio scaled to zero mean and unit variance (task.normalize); nothing here does"
        )
    rate = one_rate({"task.sample_rate": task.get("sample_rate")}, sample_rate, path)
    return Imported(StoredModel(encoder, weights, rate, normalised=normalised), notes)


def encoder_from_fairseq(model: Mapping[str, Any]) -> EncoderConfig:
    """The architecture of fairseq's model settings; what is not given has fairseq's defaults. Raises ValueError."""
    for key, value in REQUIRED.items():
        if model.get(key, value) != value:
            raise ValueError(f"{key} is {model[key]!r}, the encoder has {value!r} only")
    mode = model.get("extractor_mode", "default")
    if mode not in NORMS:
        raise ValueError(f"extractor_mode is {mode!r}, known are {', '.join(NORMS)}")
    layers = parse_conv_layers(model.get("conv_feature_layers", "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"))
    return encoder_from_hubert(
        {
            "conv_dim": [layer[0] for layer in layers],
            "conv_kernel": [layer[1] for layer in layers],
            "conv_stride": [layer[2] for layer in layers],
            "conv_bias": model.get("conv_bias", False),
            "feat_extract_norm": NORMS[mode],
            "feat_proj_dropout": model.get("dropout_input", 0.0),
            "hidden_size": model.get("encoder_embed_dim", 768),
            "num_hidden_layers": model.get("encoder_layers", 12),
            "num_attention_heads": model.get("encoder_attention_heads", 12),
            "intermediate_size": model.get("encoder_ffn_embed_dim", 3072),
            "hidden_act": model.get("activation_fn", "gelu"),
            "do_stable_layer_norm": model.get("layer_norm_first", False),
            "num_conv_pos_embeddings": model.get("conv_pos", 128),
            "num_conv_pos_embedding_groups": model.get("conv_pos_groups", 16),
            "hidden_dropout": model.get("dropout", 0.1),
            "attention_dropout": model.get("attention_dropout", 0.1),
            "activation_dropout": model.get("activation_dropout", 0.0),
            "layerdrop": model.get("encoder_layerdrop", 0.0),
            "deepnorm": model.get("deepnorm", False),
            "feature_extractor_cqt": model.get("feature_extractor_cqt", False),
            "feature_extractor_cqt_bins": model.get("feature_extractor_cqt_bins", 84),
        }
    )


def parse_conv_layers(text: str) -> list[tuple[int, int, int]]:
    """fairseq's `[(channels, kernel, stride)] * n + ...` as a list, where fairseq itself uses eval."""
    try:
        layers = _evaluate(ast.parse(text.strip(), mode="eval").body)
        return [(channels, kernel, stride) for channels, kernel, stride in layers]
    except (AttributeError, SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"conv_feature_layers {text!r} is no sum of lists of (channels, kernel, stride)") from error


def _evaluate(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _evaluate(node.left) + _evaluate(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = _evaluate(node.left), _evaluate(node.right)
        if not isinstance(left, list) or not isinstance(right, int) or len(left) * right > 100:
            raise ValueError("a list is repeated, to 100 layers at most")
        return left * right
    return ast.literal_eval(node)


def _settings(checkpoint: Mapping[str, Any], path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Those of the model and of the task."""
    cfg, args = _fields(checkpoint.get("cfg")), _fields(checkpoint.get("args"))
    model, task = (_fields(cfg.get("model")), _fields(cfg.get("task"))) if cfg else (args, args)
    if model is None:
        raise ValueError(f"{path}: no settings, neither `cfg` nor `args` can be read")
    return _values(model), _values(task or {})


def _values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values as they are; of others only the type, since deeply nested ones take very long to
    compare or print.
    """
    plain = str | int | float | bool | None
    return {key: value if isinstance(value, plain) else type(value) for key, value in settings.items()}


def _fields(value: Any) -> dict[str, Any] | None:
    """What a mapping, a namespace or a container of omegaconf holds by name; None for anything else."""
    if isinstance(value, Inert):
        value = vars(value).get("_content", vars(value))
    return {key: _plain(field) for key, field in value.items()} if isinstance(value, Mapping) else None


def _plain(field: Any) -> Any:
    """What a node of omegaconf holds; anything else as it is."""
    return vars(field).get("_val", field) if isinstance(field, Inert) else field

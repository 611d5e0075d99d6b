"""EncoderConfig to and from the config.json of `transformers.HubertModel` and of the released MERT models.

What HubertModel has no place for is found by going there and back, so a new option needs no entry here to be reported.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from mert_foundry.model.encoder import EncoderConfig
from mert_foundry.model.frontend.convolution import FrontendConfig
from mert_foundry.model.interop.architecture import architecture_differences
from mert_foundry.model.transformer.config import explain

ACTIVATIONS = ("gelu", "relu")  # of the feed-forward part
# Keys of config.json that make Hubert or MERT another architecture, with the value that ours has.
REQUIRED = {
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "add_adapter": False,
    "adapter_attn_dim": None,
    # MERT's has a hop of sample_rate / 50 whatever the convolutions', which the encoder's cannot have at 24 kHz.
    "feature_extractor_cqt": False,
}
# Keys that are read, with transformers' defaults.
DEFAULTS = {
    "conv_dim": [512] * 7,
    "conv_bias": False,
    "feat_extract_norm": "group",
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "do_stable_layer_norm": False,
    "deepnorm": False,
    "attention_relax": -1.0,
    "layer_norm_eps": 1e-5,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "feat_proj_dropout": 0.0,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "layerdrop": 0.1,
}
# Keys of the encoder's config, and those of config.json with the same meaning; all but `norm` with values of the same
# form.
FRONTEND_KEYS = {
    "kernels": "conv_kernel",
    "strides": "conv_stride",
    "bias": "conv_bias",
    "norm": "feat_extract_norm",
}
TRANSFORMER_KEYS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "activation": "hidden_act",
    "norm": "do_stable_layer_norm",
    "norm_epsilon": "layer_norm_eps",
    "position_kernel": "num_conv_pos_embeddings",
    "position_groups": "num_conv_pos_embedding_groups",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "layer_drop": "layerdrop",
}
# Beginnings of keys that say nothing about the encoder: masking, CTC, tokens, classifiers, bookkeeping.
WITHOUT_MEANING = (
    "_", "architectures", "attn_implementation", "auto_map", "apply_spec_augment", "bos_token", "chunk_size",
    "classifier_",
    "ctc_", "dtype", "eos_token", "feat_extract_dropout", "feature_extractor_cqt_bins", "final_dropout", "gradient_",
    "hidden_dropout_prob", "id2label", "initializer_", "is_encoder_decoder", "label2id", "mask_", "model_type",
    "num_feat_extract_layers", "output_", "pad_token", "problem_type", "return_dict", "sample_rate", "tokenizer_",
    "torch_dtype", "transformers_version", "use_weighted_layer_sum", "vocab_size",
)  # fmt: skip


def hubert_config(encoder: EncoderConfig) -> dict[str, Any]:
    """config.json of the same architecture as a HubertModel; only for a config without `unsupported_by_hubert`."""
    frontend, transformer = encoder.frontend, encoder.transformer
    assert isinstance(frontend, FrontendConfig), "unsupported_by_hubert names any other"
    return {
        "model_type": "hubert",
        "architectures": ["HubertModel"],
        "conv_dim": [frontend.channels] * len(frontend.kernels),
        **_theirs(frontend, FRONTEND_KEYS),
        "feat_extract_activation": "gelu",
        "feat_proj_layer_norm": True,
        "feat_proj_dropout": encoder.input_dropout,
        **_theirs(transformer, TRANSFORMER_KEYS),
        "do_stable_layer_norm": transformer.norm == "pre",
        # Above 0, or HubertModel would have no place for the mask embedding.
        "mask_time_prob": 0.05,
    }


def _theirs(config: BaseModel, keys: Mapping[str, str]) -> dict[str, Any]:
    values = config.model_dump(mode="json", include=set(keys))
    return {theirs: values[ours] for ours, theirs in keys.items()}


def encoder_from_hubert(config: Mapping[str, Any]) -> EncoderConfig:
    """The architecture that a config.json of Hubert or MERT describes.

    MERT's `attention_relax` is an identity and is ignored. Raises ValueError naming the key and its value where
    MertEncoder cannot be the same.
    """
    for key, value in REQUIRED.items():
        if config.get(key, value) != value:
            raise ValueError(f"{key} is {config[key]!r}, the encoder has {value!r} only")
    values = DEFAULTS | {key: config[key] for key in DEFAULTS if key in config}
    if not isinstance(values["conv_dim"], list) or len({str(channels) for channels in values["conv_dim"]}) != 1:
        raise ValueError(f"conv_dim is {values['conv_dim']}, the encoder has one number of channels for all layers")
    if values["hidden_act"] not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act is {values['hidden_act']!r}, Hubert and the encoder share {', '.join(ACTIVATIONS)}"
        )
    try:
        return EncoderConfig(
            frontend={"channels": values["conv_dim"][0], "gradient_multiplier": 1.0, **_renamed(values, FRONTEND_KEYS)},
            input_dropout=values["feat_proj_dropout"],
            transformer={**_renamed(values, TRANSFORMER_KEYS), "norm": _norm(values)},
        )
    except ValidationError as error:
        raise ValueError(f"no such encoder: {explain(error)}") from error


def _renamed(values: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    return {ours: values[theirs] for ours, theirs in keys.items()}


def unknown_keys(config: Mapping[str, Any]) -> list[str]:
    """Keys of a config.json whose meaning is not known here."""
    return [key for key in config if key not in DEFAULTS | REQUIRED and not key.startswith(WITHOUT_MEANING)]


def unsupported_by_hubert(encoder: EncoderConfig) -> list[str]:
    """What prevents HubertModel from being this encoder, one line a key; empty when nothing does."""
    closest = encoder_from_hubert(hubert_config(_with_known_choices(encoder)))
    differences = architecture_differences(encoder, closest)
    return [
        f"{key} is {ours}, a HubertModel {'has no such option' if theirs is None else f'would have {theirs}'}"
        for key, (ours, theirs) in differences.items()
    ]


def _with_known_choices(encoder: EncoderConfig) -> EncoderConfig:
    """The config with other choices in place of those for which config.json has no word at all."""
    if not isinstance(encoder.frontend, FrontendConfig):
        encoder = encoder.model_copy(update={"frontend": FrontendConfig()})
    if encoder.transformer.activation not in ACTIVATIONS:
        transformer = encoder.transformer.model_copy(update={"activation": ACTIVATIONS[0]})
        encoder = encoder.model_copy(update={"transformer": transformer})
    return encoder


def _norm(values: Mapping[str, Any]) -> str:
    if values["do_stable_layer_norm"]:
        if values["deepnorm"]:
            raise ValueError("deepnorm and do_stable_layer_norm are both true, which MERT itself refuses")
        return "pre"
    return "deepnorm" if values["deepnorm"] else "post"

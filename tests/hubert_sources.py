"""Folders and files as others publish encoders: Hugging Face Hubert, the released MERT, fairseq checkpoints."""

import json
import re
from argparse import Namespace
from pathlib import Path

import torch
from transformers import HubertConfig, HubertModel

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
MERT_95M = {}
MERT_330M = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
}
HUBERT_LARGE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
# Keys of the released MERT-v1 that HubertConfig does not have.
MERT_KEYS = {
    "model_type": "mert_model",
    "architectures": ["MERTModel"],
    "auto_map": {"AutoConfig": "configuration_MERT.MERTConfig", "AutoModel": "modeling_MERT.MERTModel"},
    "attention_relax": -1.0,
    "deepnorm": False,
    "feature_extractor_cqt": False,
    "feature_extractor_cqt_bins": 336,
    "sample_rate": 24_000,
    "feat_extract_dropout": 0.0,
    "mask_channel_length": 10,
    "tokenizer_class": "Wav2Vec2CTCTokenizer",
}
PREPROCESSOR = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 24_000, "do_normalize": False}


def random_hubert(scale: float = 0.1, **sizes: object) -> HubertModel:
    """A HubertModel whose norms, biases and gains are random too, by `scale`."""
    torch.manual_seed(3)
    model = HubertModel(HubertConfig(**sizes)).eval()
    if scale:
        for parameter in model.parameters():
            parameter.data += scale * torch.randn_like(parameter)
    return model


def save_hubert(model: HubertModel, folder: Path, sampling_rate: int = 24_000) -> Path:
    """As `save_pretrained` writes it, with a preprocessor_config.json."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | {"sampling_rate": sampling_rate}))
    return folder


def save_mert(model: HubertModel, folder: Path, **changes: object) -> Path:
    """As MERT-v1 was published: .bin with the older names of weight norm, and MERT's own keys in config.json."""
    folder.mkdir(parents=True)
    torch.save({older_name(name): weight for name, weight in model.state_dict().items()}, folder / "pytorch_model.bin")
    config = {**model.config.to_dict(), **MERT_KEYS, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


def older_name(name: str) -> str:
    return name.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"
    )


def fairseq_name(name: str, layer_norm: bool) -> str:
    """fairseq's name of a weight of HubertModel, written down from fairseq's modules one by one."""
    fixed = {
        "masked_spec_embed": "mask_emb",
        "feature_projection.layer_norm": "layer_norm",
        "feature_projection.projection": "post_extract_proj",
        "encoder.pos_conv_embed.conv": "encoder.pos_conv.0",
        "encoder.layer_norm": "encoder.layer_norm",
    }
    in_layer = {
        **{f"attention.{part}_proj": f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")},
        "layer_norm": "self_attn_layer_norm",
        "feed_forward.intermediate_dense": "fc1",
        "feed_forward.output_dense": "fc2",
        "final_layer_norm": "final_layer_norm",
    }
    name = older_name(name)
    if name in fixed:
        return fixed[name]
    module, _, weight = name.rpartition(".")
    if module in fixed:
        return f"{fixed[module]}.{weight}"
    conv = re.fullmatch(r"feature_extractor\.conv_layers\.(\d+)\.(conv|layer_norm)", module)
    if conv:
        place = "0" if conv[2] == "conv" else "2.1" if layer_norm else "2"
        return f"feature_extractor.conv_layers.{conv[1]}.{place}.{weight}"
    number, part = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", module).groups()
    return f"encoder.layers.{number}.{in_layer[part]}.{weight}"


def fairseq_checkpoint(model: HubertModel, **changes: object) -> dict:
    """A checkpoint of MERTModel (fairseq) with the weights of a HubertModel, and heads."""
    config, layer_norm = model.config, model.config.feat_extract_norm == "layer"
    channels = config.conv_dim[0]
    weights = {fairseq_name(name, layer_norm): weight for name, weight in model.state_dict().items()}
    weights |= {
        "final_proj.weight": torch.zeros(16, config.hidden_size),
        "final_proj.bias": torch.zeros(16),
        "label_embs_concat": torch.zeros(64, 4),
        "encoder_cqt_model.fc.weight": torch.zeros(84, config.hidden_size),
    }
    settings = {
        "_name": "mert",
        "extractor_mode": "layer_norm" if layer_norm else "default",
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "conv_feature_layers": f"[({channels},10,5)] + [({channels},3,2)] * 4 + [({channels},2,2)] * 2",
        "conv_bias": config.conv_bias,
        "conv_pos": config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
        "layer_norm_first": config.do_stable_layer_norm,
        "attention_relax": 32.0,
        **changes,
    }
    task = {"_name": "mert_pretraining", "sample_rate": 24_000, "normalize": False}
    return {"args": None, "cfg": {"model": settings, "task": task}, "model": weights, "optimizer_history": []}


def with_arguments(checkpoint: dict) -> dict:
    """The same as older versions of fairseq wrote it."""
    settings = checkpoint["cfg"]["model"] | checkpoint["cfg"]["task"]
    return {**checkpoint, "cfg": None, "args": Namespace(**settings)}

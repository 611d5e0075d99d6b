"""A trained encoder as a Hugging Face folder that `transformers.AutoModel` opens as native `hubert`.

    config.json, model.safetensors     the encoder in HubertModel's layout; no remote code
    preprocessor_config.json           Wav2Vec2FeatureExtractor at the training rate, no normalisation
    heads.safetensors                  the pre-training heads, with their specs in the metadata
    README.md                          model card

HubertModel of transformers 5 and the last 4.x hold the positional convolution under parametrised weight-norm names
(`parametrizations.weight.original0/1`), which are torch's own and are written as they stand. `last_hidden_state`
and hidden states equal MertEncoder's; with Pre-LN, transformers 4.x puts the normed output in the last hidden state.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from model.encoder import EncoderConfig
from model.heads import HeadSpec
from model.publish import publish_folder

# Our names to HubertModel's, applied in order; each fragment is found in no other place of a name.
HUBERT_NAMES = (
    ("frontend.layers.", "feature_extractor.conv_layers."),
    ("projection.norm.", "feature_projection.layer_norm."),
    ("projection.linear.", "feature_projection.projection."),
    ("mask_embedding", "masked_spec_embed"),
    ("transformer.position.", "encoder.pos_conv_embed."),
    ("transformer.norm.", "encoder.layer_norm."),
    ("transformer.layers.", "encoder.layers."),
    (".attention.query.", ".attention.q_proj."),
    (".attention.key.", ".attention.k_proj."),
    (".attention.value.", ".attention.v_proj."),
    (".attention.out.", ".attention.out_proj."),
    (".attention_norm.", ".layer_norm."),
    (".feed_forward.inner.", ".feed_forward.intermediate_dense."),
    (".feed_forward.outer.", ".feed_forward.output_dense."),
    (".feed_forward_norm.", ".final_layer_norm."),
    ("conv_layers.0.norm.", "conv_layers.0.layer_norm."),
)


def export_hubert(
    out: Path,
    weights: Mapping[str, Tensor],
    encoder: EncoderConfig,
    heads: Sequence[HeadSpec],
    sample_rate: int,
    card: Mapping[str, Any],
) -> Path:
    """Write the folder, published by rename.

    Args:
        out: must not exist, or be empty (ValueError).
        weights: of a PretrainModel by name, such as checkpoint.load_weights gives.
        encoder, heads: what it was built from.
        sample_rate: Hz of the audio it was trained on.
        card: what the model card says beside the architecture, by title (`Data`, `Training`, ...): text or a
            plain value, shown as YAML.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty; export to a new folder")
    encoder_weights = _select(weights, "encoder.")
    with publish_folder(out) as folder:
        hubert = {hubert_name(name): tensor.contiguous() for name, tensor in encoder_weights.items()}
        save_file(hubert, folder / "model.safetensors", metadata={"format": "pt"})
        specs = json.dumps([spec.model_dump() for spec in heads])
        save_file(_select(weights, "heads."), folder / "heads.safetensors", metadata={"format": "pt", "heads": specs})
        _write_json(folder / "config.json", hubert_config(encoder))
        _write_json(folder / "preprocessor_config.json", _preprocessor_config(sample_rate))
        (folder / "README.md").write_text(_model_card(encoder, heads, sample_rate, card))
    return out


def hubert_name(name: str) -> str:
    """The name HubertModel gives to a weight of MertEncoder."""
    for ours, theirs in HUBERT_NAMES:
        name = name.replace(ours, theirs)
    return name


def hubert_config(encoder: EncoderConfig) -> dict[str, Any]:
    """config.json of the same architecture as a HubertModel."""
    frontend, transformer = encoder.frontend, encoder.transformer
    return {
        "model_type": "hubert",
        "architectures": ["HubertModel"],
        "conv_dim": [frontend.channels] * len(frontend.kernels),
        "conv_kernel": list(frontend.kernels),
        "conv_stride": list(frontend.strides),
        "conv_bias": False,
        "feat_extract_norm": "group",
        "feat_extract_activation": "gelu",
        "feat_proj_layer_norm": True,
        "feat_proj_dropout": encoder.input_dropout,
        "hidden_size": transformer.width,
        "num_hidden_layers": transformer.layers,
        "num_attention_heads": transformer.heads,
        "intermediate_size": transformer.feed_forward,
        "hidden_act": "gelu",
        "do_stable_layer_norm": transformer.norm == "pre",
        "layer_norm_eps": transformer.norm_epsilon,
        "num_conv_pos_embeddings": transformer.position_kernel,
        "num_conv_pos_embedding_groups": transformer.position_groups,
        "hidden_dropout": transformer.dropout,
        "attention_dropout": transformer.attention_dropout,
        "activation_dropout": transformer.activation_dropout,
        "layerdrop": transformer.layer_drop,
        # Above 0, or HubertModel would have no place for the mask embedding.
        "mask_time_prob": 0.05,
    }


def _preprocessor_config(sample_rate: int) -> dict[str, Any]:
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": sample_rate,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": False,
        # transformers asks models with group norm in the front-end to be fed zero-padded audio without a mask.
        "return_attention_mask": False,
    }


def _model_card(encoder: EncoderConfig, heads: Sequence[HeadSpec], sample_rate: int, card: Mapping[str, Any]) -> str:
    sections = {
        **card,
        "Targets": [spec.model_dump(exclude_none=True) for spec in heads],
        "Encoder": encoder.model_dump(mode="json"),
    }
    told = "\n".join(f"## {title}\n\n{_as_text(content)}\n" for title, content in sections.items())
    return f"""---
library_name: transformers
pipeline_tag: feature-extraction
tags: [music, audio, mert]
---
# Music encoder

Pre-trained by masked prediction of codec codes and spectra (MERT, arXiv 2306.00107) with mert-foundry.
Input: mono audio at {sample_rate} Hz in [-1, 1], not normalised. Output: {encoder.transformer.width} features a frame.

```python
from transformers import AutoModel
model = AutoModel.from_pretrained("THIS_FOLDER")
hidden_states = model(audio, output_hidden_states=True).hidden_states  # audio: float tensor [batch, samples]
```

Licence: not stated; it is for whoever publishes this folder to state, with that of the training data in mind.

{told}"""


def _as_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "```yaml\n" + yaml.safe_dump(content, sort_keys=False) + "```"


def _select(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")

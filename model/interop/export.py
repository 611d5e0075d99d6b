"""A trained encoder as a folder: native Hugging Face `hubert` where HubertModel can be the same, our own class elsewhere.

    config.json, model.safetensors     native: HubertModel's layout, opened by `transformers.AutoModel`, no remote code
                                       own: model_type `mert_foundry`, the encoder's config, weights by its own names
    preprocessor_config.json           native only: Wav2Vec2FeatureExtractor at the training rate
    heads.safetensors                  the pre-training heads if there are any, with their specs in the metadata
    README.md                          model card

`model.load.load_encoder` opens both. HubertModel of transformers 5 and the last 4.x hold the positional convolution
under parametrised weight-norm names (`parametrizations.weight.original0/1`), which are torch's own and are written as
they stand. `last_hidden_state` and hidden states equal MertEncoder's; with Pre-LN, transformers 4.x puts the normed
output in the last hidden state.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from mert_foundry.model.interop.hubert_config import hubert_config, hubert_obstacles
from mert_foundry.model.interop.stored_model import OWN_MODEL_TYPE, StoredModel
from mert_foundry.model.interop.weight_names import hubert_name
from mert_foundry.model.runs.publish import publish_folder

PYTORCH = {"format": "pt"}  # which transformers asks for


def export_model(out: Path, model: StoredModel, card: Mapping[str, Any]) -> list[str]:
    """Write the folder, published by rename.

    Args:
        out: must not exist, or be empty (ValueError).
        model: what is written.
        card: what the model card says beside the architecture, by title (`Data`, `Training`, ...): text or a
            plain value, shown as YAML.

    Returns what prevents the native class (`hubert_obstacles`): empty when the folder is a native one.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty; export to a new folder")
    obstacles = hubert_obstacles(model.encoder)
    with publish_folder(out) as folder:
        if obstacles:
            _save_weights(folder / "model.safetensors", model.weights, PYTORCH)
            _write_json(folder / "config.json", _own_config(model))
        else:
            weights = {hubert_name(name): weight for name, weight in model.weights.items()}
            _save_weights(folder / "model.safetensors", weights, PYTORCH)
            _write_json(folder / "config.json", hubert_config(model.encoder))
            _write_json(folder / "preprocessor_config.json", _preprocessor_config(model))
        if model.heads:
            _save_weights(folder / "heads.safetensors", model.head_weights, {"heads": _describe_heads(model)})
        (folder / "README.md").write_text(_model_card(model, obstacles, card))
    return obstacles


def _own_config(model: StoredModel) -> dict[str, Any]:
    return {
        "model_type": OWN_MODEL_TYPE,
        "architectures": ["MertEncoder"],
        "sample_rate": model.sample_rate,
        "encoder": model.encoder.model_dump(mode="json"),
    }


def _preprocessor_config(model: StoredModel) -> dict[str, Any]:
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": model.sample_rate,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": model.normalised,
        # transformers asks models with group norm in the front-end to be fed zero-padded audio without a mask.
        "return_attention_mask": hubert_config(model.encoder)["feat_extract_norm"] == "layer",
    }


NATIVE_LOADER = """\
from transformers import AutoModel
model = AutoModel.from_pretrained("THIS_FOLDER")
hidden_states = model(audio, output_hidden_states=True).hidden_states  # audio: float tensor [batch, samples]
"""
OWN_LOADER = """\
from mert_foundry.model.interop.load import load_encoder  # mert-foundry
encoder, sample_rate = load_encoder("THIS_FOLDER")
hidden_states = encoder(audio).hidden_states  # audio: float tensor [batch, samples]
"""


def _model_card(model: StoredModel, obstacles: list[str], card: Mapping[str, Any]) -> str:
    sections = {
        **card,
        **(
            {"Targets": [spec.model_dump(mode="json", exclude_none=True) for spec in model.heads]}
            if model.heads
            else {}
        ),
        "Encoder": model.encoder.model_dump(mode="json"),
    }
    told = "\n".join(f"## {title}\n\n{_as_text(content)}\n" for title, content in sections.items())
    scaled = "scaled to zero mean and unit variance" if model.normalised else "not normalised"
    library, loader = ("mert-foundry", OWN_LOADER) if obstacles else ("transformers", NATIVE_LOADER)
    why = "".join(f"- {line}\n" for line in obstacles)
    return f"""---
library_name: {library}
pipeline_tag: feature-extraction
tags: [music, audio, mert]
---
# Music encoder

An encoder in the manner of HuBERT and MERT (arXiv 2306.00107), trained by masked prediction; written by mert-foundry.
Input: mono audio at {model.sample_rate} Hz in [-1, 1], {scaled}. Output: {model.encoder.transformer.width} features a frame.

```python
{loader}```
{f"{chr(10)}transformers has no native class for it:{chr(10)}{chr(10)}{why}" if obstacles else ""}
Licence: not stated; it is for whoever publishes this folder to state, with that of the training data and of any
weights it began from in mind.

{told}"""


def _as_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "```yaml\n" + yaml.safe_dump(content, sort_keys=False) + "```"


def _describe_heads(model: StoredModel) -> str:
    """Specs of the heads with the fingerprint of the teacher each was trained on, as JSON."""
    specs = [spec.model_dump(mode="json") | {"fingerprint": model.fingerprints.get(spec.name)} for spec in model.heads]
    return json.dumps(specs)


def _save_weights(path: Path, weights: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """One metadata key only: safetensors writes several in any order, so the same weights would differ in bytes."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")

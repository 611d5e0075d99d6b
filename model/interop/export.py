"""A trained encoder as a folder: native Hugging Face `hubert` where HubertModel can be the same, our own class
elsewhere.

    config.json, model.safetensors     native: HubertModel's layout, opened by `transformers.AutoModel`, no remote code
                                       own: model_type `mert_foundry`, the encoder's config, weights by its own names
    preprocessor_config.json           native only: Wav2Vec2FeatureExtractor at the training rate
    heads.safetensors                  the pre-training heads if there are any, with their specs in the metadata
    memory.safetensors                 the text memory if there is one, with its settings and its tokenizer's
                                       fingerprint in the metadata
    README.md                          model card

`model.interop.load.load_encoder` opens both. HubertModel of transformers 5 and the last 4.x hold the positional
convolution under parametrised weight-norm names (`parametrizations.weight.original0/1`), which are torch's own and are
written as they stand. `last_hidden_state` and hidden states equal MertEncoder's; with Pre-LN, transformers 4.x puts the
normed output in the last hidden state.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from safetensors.torch import save_file
from torch import Tensor

from mert_foundry.model.interop.hubert_config import hubert_config, unsupported_by_hubert
from mert_foundry.model.interop.stored_model import OWN_MODEL_TYPE, StoredMemory, StoredModel
from mert_foundry.model.interop.weight_names import hubert_name
from mert_foundry.model.runs.publish import publish_folder

CARD_TEMPLATE = "model_card.md.jinja"
PYTORCH = {"format": "pt"}  # which transformers asks for


def export_model(out: Path, model: StoredModel, card: Mapping[str, Any]) -> list[str]:
    """Write the folder, published by rename.

    Args:
        out: must not exist, or be empty (ValueError).
        model: what is written.
        card: what the model card says beside the architecture, by title (`Data`, `Training`, ...): text or a
            plain value, shown as YAML.

    Returns what prevents the native class (`unsupported_by_hubert`): empty when the folder is a native one.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty; export to a new folder")
    unsupported = unsupported_by_hubert(model.encoder)
    with publish_folder(out) as folder:
        if unsupported:
            _save_weights(folder / "model.safetensors", model.weights, PYTORCH)
            _write_json(folder / "config.json", _own_config(model))
        else:
            weights = {hubert_name(name): weight for name, weight in model.weights.items()}
            _save_weights(folder / "model.safetensors", weights, PYTORCH)
            _write_json(folder / "config.json", hubert_config(model.encoder))
            _write_json(folder / "preprocessor_config.json", _preprocessor_config(model))
        if model.heads:
            _save_weights(folder / "heads.safetensors", model.head_weights, {"heads": _describe_heads(model)})
        if model.memory:
            _save_weights(
                folder / "memory.safetensors", model.memory.weights, {"memory": _describe_memory(model.memory)}
            )
        (folder / "README.md").write_text(_model_card(model, unsupported, card))
    return unsupported


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


def _model_card(model: StoredModel, unsupported: list[str], card: Mapping[str, Any]) -> str:
    by_bin = {"scale": {"mean", "deviation"}}  # hundreds of numbers, which heads.safetensors has
    targets = [spec.model_dump(mode="json", exclude_none=True, exclude=by_bin) for spec in model.heads]
    sections = {
        **card,
        **({"Targets": targets} if targets else {}),
        "Encoder": model.encoder.model_dump(mode="json"),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["yaml"] = partial(yaml.safe_dump, sort_keys=False)
    return environment.get_template(CARD_TEMPLATE).render(
        model=model, is_native=not unsupported, unsupported=unsupported, sections=sections
    )


def _describe_heads(model: StoredModel) -> str:
    """Specs of the heads with the fingerprint of the teacher each was trained on, as JSON."""
    specs = [spec.model_dump(mode="json") | {"fingerprint": model.fingerprints.get(spec.name)} for spec in model.heads]
    return json.dumps(specs)


def _describe_memory(memory: StoredMemory) -> str:
    return json.dumps(
        {
            "config": memory.config.model_dump(mode="json"),
            "vocabulary_size": memory.vocabulary_size,
            "fingerprint": memory.fingerprint,
        }
    )


def _save_weights(path: Path, weights: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """One metadata key only: safetensors writes several in any order, so the same weights would differ in bytes."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")

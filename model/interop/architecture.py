"""What two encoder configs must have in common for one to take the other's weights."""

from typing import Any

from mert_foundry.model.encoder import EncoderConfig

# Keys, by their last part, that change no weight's shape and nothing that a trained encoder returns but for rounding:
# they act in training only, save memory, or are an identity.
WITHOUT_EFFECT = frozenset(
    {
        "input_dropout",
        "gradient_multiplier",
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "layer_drop",
        "trainable",
        "learning_rate_multiplier",
        "activation_checkpointing",
        "relaxation",
    }
)


def architecture_differences(first: EncoderConfig, second: EncoderConfig) -> dict[str, tuple[Any, Any]]:
    """Both values of every key, dotted, that makes another architecture; None where a config does not have it.

    A layer's own settings are keys such as `transformer.layer.3.heads`; None there means that of all layers. Of
    front-ends of two kinds only the kind is reported, since their other keys follow from it.
    """
    values = [_flatten(_with_layers(config)) for config in (first, second)]
    keys = [key for key in values[0] | values[1] if key.split(".")[-1] not in WITHOUT_EFFECT]
    if first.frontend.kind != second.frontend.kind:
        keys = [key for key in keys if key == "frontend.kind" or not key.startswith("frontend.")]
    return {key: (values[0].get(key), values[1].get(key)) for key in keys if values[0].get(key) != values[1].get(key)}


def _with_layers(config: EncoderConfig) -> dict[str, Any]:
    """The config with what overrides resolve to in their place: for each layer what differs from all layers'."""
    values = config.model_dump(mode="json")
    transformer = values["transformer"]
    del transformer["overrides"]
    shared = _flatten(transformer)
    transformer["layer"] = {}
    for number, layer in enumerate(config.transformer.layer_configs()):
        own = _flatten(layer.model_dump(mode="json"))
        transformer["layer"][str(number)] = {key: value for key, value in own.items() if value != shared[key]}
    return values


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat

"""Settings of older feature stores under their present names."""

from collections.abc import Mapping
from typing import Any

# Until November 2026; the array of standard deviations was `deviation` then, it is `std` now.
VALUES = {
    ("pooling", "mean_deviation"): "mean_std",
    ("precision", "float32"): "fp32",
    ("precision", "bfloat16"): "bf16",
}


def present_names(description: Mapping[str, Any]) -> dict[str, Any]:
    """A store's attributes with older names replaced; everything else is unchanged."""
    present = dict(description)
    if isinstance(settings := present.get("settings"), Mapping):
        present["settings"] = {
            key: VALUES.get((key, value), value) if isinstance(value, str) else value for key, value in settings.items()
        }
    model = present.get("model")
    if isinstance(model, Mapping) and isinstance(model.get("unlike_mert_95m"), Mapping):
        unlike = {_present_key(key): value for key, value in model["unlike_mert_95m"].items()}
        present["model"] = {**model, "unlike_mert_95m": unlike}
    return present


def _present_key(key: str) -> str:
    return key.replace("attention.temperature", "attention.learnable_temperature")

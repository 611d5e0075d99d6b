"""Settings of the transformer: what all layers share, what each may have of its own, and how overrides resolve."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mert_foundry.model.transformer.attention import AttentionConfig
from mert_foundry.model.transformer.feed_forward import Activation
from mert_foundry.model.transformer.norm import NormKind, NormPlacementName


class LayerConfig(BaseModel):
    """What may differ from layer to layer; the defaults are MERT 95M's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    heads: int = Field(12, ge=1, description="attention heads; must divide width")
    feed_forward: int = Field(3072, ge=1, description="inner features of the feed-forward part")
    norm_epsilon: float = Field(1e-5, gt=0.0, description="added to the variance in every norm")
    attention: AttentionConfig = Field(AttentionConfig(), description="window, learnable_temperature, gate, relaxation")
    convolution_kernel: int | None = Field(
        None, ge=1, description="kernel of a Conformer's depthwise convolution after attention, frames, odd; null: none"
    )
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="probability on input, after attention and feed-forward")
    attention_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="probability on attention weights")
    activation_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="probability inside the feed-forward part")
    layer_drop: float = Field(0.05, ge=0.0, lt=1.0, description="probability that a training step skips a layer")
    reads_memory: bool = Field(
        False,
        description="whether a layer reads the memory by gated cross-attention; mert pretrain has one with memory",
    )
    trainable: bool = Field(True, description="false: the layer's weights stay; its dropout and layer drop go on")
    learning_rate_multiplier: float = Field(1.0, gt=0.0, description="factor on the learning rate of a layer")

    @field_validator("convolution_kernel")
    @classmethod
    def _centred(cls, kernel: int | None) -> int | None:
        if kernel is not None and kernel % 2 == 0:
            raise ValueError(f"a kernel must be odd to be centred on its frame, not {kernel}")
        return kernel


class TransformerConfig(LayerConfig):
    """Sizes and options of the transformer. A field of LayerConfig set here holds for every layer that no override
    changes; `norm_epsilon` and `dropout` also hold for the norm and dropout outside the layers."""

    layers: int = Field(12, ge=1, description="number of layers")
    width: int = Field(768, ge=1, description="features per frame, D")
    activation: Activation = Field("gelu", description="of the feed-forward part; swiglu has a third linear map")
    norm: NormPlacementName = Field(
        "post",
        description="post: norm after each residual sum; pre: before each part, and once at the end; deepnorm: post "
        "with a scaled residual; sub: pre with one more norm before each output projection",
    )
    norm_kind: NormKind = Field("layer", description="layer: LayerNorm; rms: RMSNorm")
    position: Literal["convolution", "rope", "none"] = Field(
        "convolution", description="convolution: over frames, before the layers; rope: turned queries and keys"
    )
    position_kernel: int = Field(128, ge=1, description="kernel of the positional convolution, frames")
    position_groups: int = Field(16, ge=1, description="groups of the positional convolution; must divide width")
    memory_width: int | None = Field(None, ge=1, description="features D_m of the memory; null: no memory")
    activation_checkpointing: bool | Annotated[int, Field(ge=2)] = Field(
        False,
        description="compute each layer again in the backward pass instead of keeping its activations; a number n:"
        " every n-th layer",
    )
    overrides: dict[str, dict[str, Any]] = Field(
        {}, description="fields of LayerConfig by layer (from 0) or range, as in {0-3: {attention: {window: 32}}}"
    )

    @field_validator("overrides", mode="before")
    @classmethod
    def _keys_are_text(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        changes = {str(key): change for key, change in value.items()}  # YAML reads the key 11 as a number
        if len(changes) < len(value):
            raise ValueError(f"overrides: a layer stands twice, as number and as text, in {list(value)}")
        return changes

    @model_validator(mode="after")
    def _consistent(self) -> "TransformerConfig":
        if self.position == "convolution" and self.width % self.position_groups:
            raise ValueError(f"width {self.width} is not a multiple of position_groups {self.position_groups}")
        if self.activation_checkpointing > self.layers:
            raise ValueError(
                f"activation_checkpointing is {self.activation_checkpointing}, but layers is {self.layers}"
            )
        self._check_heads(self.heads)
        configs = self.layer_configs()
        for layer, config in enumerate(configs):
            self._check_heads(config.heads, f"overrides, layer {layer}, field 'heads': ")
        reading = [layer for layer, config in enumerate(configs) if config.reads_memory]
        if reading and self.memory_width is None:
            raise ValueError(f"layer {reading[0]}, field 'reads_memory': there is no memory, memory_width is null")
        if self.memory_width is not None and not reading:
            raise ValueError(f"memory_width is {self.memory_width} but no layer has reads_memory")
        return self

    def without_memory(self) -> "TransformerConfig":
        """The same with nothing to read."""
        overrides = {
            key: {name: value for name, value in change.items() if name != "reads_memory"}
            for key, change in self.overrides.items()
        }
        return self.model_copy(update={"memory_width": None, "reads_memory": False, "overrides": overrides})

    def _check_heads(self, heads: int, prefix: str = "") -> None:
        if self.width % heads:
            raise ValueError(f"{prefix}width {self.width} is not a multiple of heads {heads}")
        if self.position == "rope" and self.width // heads % 2:
            raise ValueError(f"{prefix}rope turns pairs, but width {self.width} / heads {heads} is odd")

    def layer_configs(self) -> tuple[LayerConfig, ...]:
        """The settings of each layer. Raises ValueError naming layer and field where an override is wrong."""
        ranges = {key: layer_range(key, self.layers) for key in self.overrides}
        shared = self.model_dump(include=set(LayerConfig.model_fields))
        return tuple(
            _override(shared, {key: self.overrides[key] for key, numbers in ranges.items() if layer in numbers}, layer)
            for layer in range(self.layers)
        )


def layer_range(key: str, layers: int) -> range:
    """Layers that "7" or "0-3" (both ends included) names. Raises ValueError for another form or an unknown layer."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", key, re.ASCII)
    if match is None:
        raise ValueError(f"overrides: {key!r} is neither a layer such as '11' nor a range such as '0-3'")
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise ValueError(f"overrides: range {key!r} ends before it begins")
    if last >= layers:
        raise ValueError(f"overrides: layer {last} of {key!r} is out of range, the layers are 0 to {layers - 1}")
    return range(first, last + 1)


def _override(shared: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any]], layer: int) -> LayerConfig:
    """The shared settings with those of every override that names the layer."""
    values = dict(shared)
    set_by: dict[str, str] = {}
    for key, change in overrides.items():
        for field, value in _leaves(change):
            previous = set_by.setdefault(field, key)
            if previous != key and _get(values, field) != value:
                raise ValueError(
                    f"overrides, layer {layer}, field {field!r}: {previous!r} says {_get(values, field)!r}, "
                    f"{key!r} says {value!r}"
                )
            values = _with(values, field.split("."), value)
    try:
        return LayerConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"overrides, layer {layer}, {explain(error)}") from None


def _leaves(change: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Values of a nested mapping by dotted name."""
    leaves = []
    for name, value in change.items():
        name = f"{prefix}{name}"
        leaves += _leaves(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return leaves


def _get(values: Any, field: str) -> Any:
    for name in field.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _with(values: Any, names: list[str], value: Any) -> Any:
    """A copy of a nested mapping with one value set."""
    if not names:
        return value
    inner = values if isinstance(values, Mapping) else {}
    return {**inner, names[0]: _with(inner.get(names[0]), names[1:], value)}


def explain(error: ValidationError) -> str:
    """What pydantic finds wrong with settings of the model, in one line."""
    return "; ".join(map(_explain, error.errors(include_url=False)))


def _explain(fault: Mapping[str, Any]) -> str:
    field = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown field {field!r}; a layer has {', '.join(LayerConfig.model_fields)}"
    return f"field {field!r}: {fault['msg']} (got {fault['input']!r})"

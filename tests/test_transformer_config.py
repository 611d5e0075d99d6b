import math

import pytest
import yaml
from pydantic import ValidationError

from mert_foundry.model.transformer.config import LayerConfig, TransformerConfig, layer_range

SMALL = {"layers": 12, "width": 16, "heads": 2, "feed_forward": 32, "position_groups": 4}


def config(overrides: dict | str, **changes: object) -> TransformerConfig:
    overrides = yaml.safe_load(overrides) if isinstance(overrides, str) else overrides
    return TransformerConfig(**{**SMALL, **changes}, overrides=overrides)


def test_without_overrides_every_layer_has_the_shared_settings():
    shared = config({}, dropout=0.3, layer_drop=0.2)
    expected = LayerConfig(heads=2, feed_forward=32, dropout=0.3, layer_drop=0.2)
    assert shared.layer_configs() == (expected,) * 12


def test_a_layer_that_is_not_there_cannot_be_checkpointed():
    with pytest.raises(ValidationError, match="activation_checkpointing is 13, but layers is 12"):
        config({}, activation_checkpointing=13)
    assert config({}, activation_checkpointing=12).activation_checkpointing == 12
    assert config({}, layers=1, activation_checkpointing=True).activation_checkpointing is True


def test_overrides_from_yaml_reach_their_layers_and_no_other():
    layers = config('{"0-3": {attention: {window: 32}}, 11: {dropout: 0.0, feed_forward: 2048}}').layer_configs()
    assert [layer.attention.window for layer in layers] == [32] * 4 + [None] * 8
    assert [layer.dropout for layer in layers] == [0.1] * 11 + [0.0]
    assert [layer.feed_forward for layer in layers] == [32] * 11 + [2048]


def test_every_field_of_a_layer_can_be_overridden():
    change = {
        "heads": 4, "feed_forward": 8, "norm_epsilon": 1e-3, "dropout": 0.2, "attention_dropout": 0.3,
        "activation_dropout": 0.4, "layer_drop": 0.5, "reads_memory": True, "trainable": False,
        "learning_rate_multiplier": 0.25, "convolution_kernel": 5,
        "attention": {"window": 3, "learnable_temperature": True, "gate": True, "relaxation": 32.0},
    }  # fmt: skip
    assert change.keys() == LayerConfig.model_fields.keys()
    layers = config({"2": change}, memory_width=5).layer_configs()
    assert layers[2].model_dump() == change
    assert layers[1] == layers[3] == LayerConfig(heads=2, feed_forward=32)


def test_an_override_keeps_what_it_does_not_name():
    layers = config({"1": {"attention": {"window": 4}}}, attention={"gate": True, "window": 9}).layer_configs()
    assert (layers[1].attention.window, layers[1].attention.gate) == (4, True)
    assert layers[0].attention.window == 9


def test_overlapping_ranges_may_agree_or_set_other_fields():
    layers = config(
        {"0-5": {"dropout": 0.2}, "5": {"dropout": 0.2, "heads": 4}, "4-6": {"layer_drop": 0.0}}
    ).layer_configs()
    assert (layers[5].dropout, layers[5].heads, layers[5].layer_drop) == (0.2, 4, 0.0)


def test_a_config_survives_its_own_dump():
    once = config({"0-3": {"attention": {"window": 32}}, "11": {"trainable": False}})
    assert TransformerConfig(**yaml.safe_load(yaml.safe_dump(once.model_dump(mode="json")))) == once


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"3": {"windw": 1}}, "layer 3, unknown field 'windw'; a layer has heads, feed_forward"),
        ({"0-2": {"attention": {"windw": 1}}}, "layer 0, unknown field 'attention.windw'"),
        ({"3": {"width": 8}}, "layer 3, unknown field 'width'"),
        ({"3": {"dropout": 1.5}}, r"layer 3, field 'dropout': .*less than 1 \(got 1.5\)"),
        ({"4": {"attention": {"window": -1}}}, r"layer 4, field 'attention.window': .*\(got -1\)"),
        ({"4": {"attention": 5}}, r"layer 4, field 'attention'.*\(got 5\)"),
        ({"5": {"heads": 3}}, "layer 5, field 'heads': width 16 is not a multiple of heads 3"),
        ({"12": {"dropout": 0.0}}, "layer 12 of '12' is out of range, the layers are 0 to 11"),
        ({"8-20": {"dropout": 0.0}}, "layer 20 of '8-20' is out of range"),
        ({"3-1": {}}, "range '3-1' ends before it begins"),
        ({"first": {}}, "'first' is neither a layer such as '11' nor a range"),
        ({"-1": {}}, "'-1' is neither a layer"),
        ({1: {"dropout": 0.0}, "1": {"dropout": 0.2}}, r"a layer stands twice, as number and as text, in \[1, '1'\]"),
        ({"1": {"learning_rate_multiplier": math.inf}}, "layer 1, field 'learning_rate_multiplier': .*finite"),
        ({"1": {"attention": {"relaxation": math.inf}}}, "layer 1, field 'attention.relaxation': .*finite"),
        (
            {"0-5": {"dropout": 0.2}, "5-7": {"dropout": 0.3}},
            "layer 5, field 'dropout': '0-5' says 0.2, '5-7' says 0.3",
        ),
        (
            {"0": {"attention": {"window": 3}}, "0-1": {"attention": {"window": 4}}},
            "layer 0, field 'attention.window': '0' says 3, '0-1' says 4",
        ),
        ({"1": {"reads_memory": True}}, "layer 1, field 'reads_memory': there is no memory, memory_width is null"),
    ],
)
def test_a_bad_override_names_the_layer_and_the_field(overrides, message):
    with pytest.raises(ValidationError, match=message):
        config(overrides)


def test_overrides_that_agree_in_three_places_and_disagree_in_one_are_refused():
    with pytest.raises(ValidationError, match="layer 2, field 'dropout': '1-3' says 0.2, '2' says 0.0"):
        config({"1-3": {"dropout": 0.2}, "0-2": {"dropout": 0.2}, "2": {"dropout": 0.0}})


def test_a_memory_that_no_layer_reads_is_refused():
    with pytest.raises(ValidationError, match="memory_width is 8 but no layer has reads_memory"):
        config({}, memory_width=8)


def test_rope_needs_pairs():
    with pytest.raises(
        ValidationError, match="layer 3, field 'heads': rope turns pairs, but width 18 / heads 6 is odd"
    ):
        config({"3": {"heads": 6}}, width=18, heads=1, position="rope")


def test_sizes_of_an_absent_convolution_do_not_matter():
    assert config({}, width=18, heads=1, position="none").position_groups == 4


@pytest.mark.parametrize("key, expected", [("7", [7]), ("0-3", [0, 1, 2, 3]), ("05-6", [5, 6])])
def test_layer_range_includes_both_ends(key, expected):
    assert list(layer_range(key, 12)) == expected

"""Weights of Hubert and MERT come in exactly, or are refused by name."""

import json
import pickle
import sys
import types
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hubert_sources import (
    HUBERT_LARGE,
    MERT_95M,
    MERT_330M,
    TINY,
    fairseq_checkpoint,
    random_hubert,
    save_hubert,
    save_mert,
    with_arguments,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModel, HubertForCTC, HubertModel

from mert_foundry.model.encoder import MertEncoder
from mert_foundry.model.interop.export import export_model
from mert_foundry.model.interop.hubert_config import hubert_config
from mert_foundry.model.interop.import_fairseq import import_fairseq, parse_conv_layers
from mert_foundry.model.interop.import_hugging_face import Imported, import_hugging_face
from mert_foundry.model.interop.load import load_encoder

LAYOUTS = {"95M": TINY, "330M": TINY | {"do_stable_layer_norm": True}, "Hubert large": TINY | HUBERT_LARGE}


def build(imported: Imported) -> MertEncoder:
    encoder = MertEncoder(imported.model.encoder).eval()
    encoder.load_state_dict(imported.model.weights)
    return encoder


ODD_LENGTHS = ([400], [1_111], [24_001], [24_001, 16_000, 1_777])  # samples of the rows of each batch


def differences(
    encoder: MertEncoder, hubert: HubertModel, batches: Sequence[Sequence[int]] = ODD_LENGTHS
) -> list[float]:
    """Largest absolute difference of each hidden state, and of the output, over batches of rows of these lengths."""
    largest = torch.zeros(hubert.config.num_hidden_layers + 2)
    for lengths in batches:
        audio = torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(lengths[0]))
        given = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
        audio = audio * given
        counts = torch.tensor([encoder.num_frames(length) for length in lengths])
        valid = torch.arange(int(counts.max()))[None] < counts[:, None]
        with torch.no_grad():
            ours = encoder(audio, valid=valid)
            theirs = hubert(audio, attention_mask=given.long(), output_hidden_states=True)
        pairs = zip([*ours.hidden_states, ours.last], [*theirs.hidden_states, theirs.last_hidden_state], strict=True)
        found = [(mine - other)[valid].abs().max() for mine, other in pairs]
        largest = torch.maximum(largest, torch.stack(found))
    return largest.tolist()


@pytest.mark.parametrize("sizes", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("source", ["Hugging Face", "MERT", "fairseq", "fairseq with args"])
def test_every_hidden_state_equals_huberts(tmp_path, sizes, source):
    hubert = random_hubert(**sizes)
    if source == "Hugging Face":
        imported = import_hugging_face(save_hubert(hubert, tmp_path / "source"))
        assert imported.notes == []
    elif source == "MERT":
        imported = import_hugging_face(save_mert(hubert, tmp_path / "source", attention_relax=32.0))
        assert imported.notes == []
    else:
        checkpoint = fairseq_checkpoint(hubert)
        torch.save(with_arguments(checkpoint) if "args" in source else checkpoint, tmp_path / "source.pt")
        imported = import_fairseq(tmp_path / "source.pt")
        heads = ["encoder_cqt_model.fc.weight", "final_proj.bias", "final_proj.weight", "label_embs_concat"]
        assert [note.split()[2] for note in imported.notes] == heads
    assert imported.model.sample_rate == 24_000
    assert max(differences(build(imported), hubert)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [MERT_95M, MERT_330M], ids=["95M", "330M"])
def test_published_sizes_agree_layer_by_layer(tmp_path, sizes, capsys):
    hubert = random_hubert(scale=0.0, **sizes)
    save_hubert(hubert, tmp_path / "source")
    imported = import_hugging_face(tmp_path / "source")
    # 131 frames: more than a position kernel spans. Other lengths are tried at other sizes.
    found = differences(build(imported), hubert, [[42_001, 1_777]])
    with capsys.disabled():
        print(
            "\nlargest difference of state 0 to last, and of the output:", " ".join(f"{value:.1e}" for value in found)
        )
    assert max(found) < 1e-4


@pytest.mark.parametrize("sizes", LAYOUTS.values(), ids=LAYOUTS)
def test_import_and_export_give_back_every_bit(tmp_path, sizes):
    hubert = random_hubert(**sizes)
    first = import_hugging_face(save_hubert(hubert, tmp_path / "source")).model
    export_model(tmp_path / "first", first, {})
    again = AutoModel.from_pretrained(tmp_path / "first").state_dict()
    assert again.keys() == hubert.state_dict().keys()
    assert all(torch.equal(again[name], weight) for name, weight in hubert.state_dict().items())
    export_model(tmp_path / "second", import_hugging_face(tmp_path / "first").model, {})
    bytes_of = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert bytes_of[0] == bytes_of[1]
    theirs = json.loads((tmp_path / "source" / "config.json").read_text())
    ours = hubert_config(first.encoder)
    assert ours == {key: theirs[key] for key in ours}


def test_deepnorm_of_mert_scales_the_residual(tmp_path):
    """MERT's HubertEncoder_extend: alpha = (2 N)^(1/4) on both residuals of a Post-LN layer."""
    hubert = random_hubert(**TINY)
    imported = import_hugging_face(save_mert(hubert, tmp_path / "source", deepnorm=True))
    encoder, layer = build(imported), hubert.encoder.layers[0]
    audio = torch.randn(1, 3_333)
    with torch.no_grad():
        hidden = hubert(audio, output_hidden_states=True).hidden_states[0]
        alpha = (2 * 2) ** 0.25
        expected = layer.layer_norm(alpha * hidden + layer.attention(hidden)[0])
        expected = layer.final_layer_norm(alpha * expected + layer.feed_forward(expected))
        states = encoder(audio).hidden_states
    assert (states[0] - hidden).abs().max() < 1e-4 and (states[1] - expected).abs().max() < 1e-4
    unsupported = export_model(tmp_path / "out", imported.model, {})
    assert unsupported == ["transformer.norm is deepnorm, a HubertModel would have post"]
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path / "out")[0](audio).last, states[-1])


def test_a_model_with_a_head_comes_in_without_it(tmp_path):
    torch.manual_seed(0)
    model = HubertForCTC(random_hubert(**TINY).config).eval()
    imported = import_hugging_face(save_hubert(model, tmp_path / "source"))
    assert imported.notes == ["not imported: lm_head.bias [32]", "not imported: lm_head.weight [32, 32]"]
    assert max(differences(build(imported), model.hubert)) < 1e-4


def test_half_precision_is_widened_and_told(tmp_path):
    imported = import_hugging_face(save_hubert(random_hubert(**TINY).half(), tmp_path / "source"))
    assert imported.notes == ["weights were torch.float16, they are torch.float32 now"]
    assert {weight.dtype for weight in imported.model.weights.values()} == {torch.float32}


def test_sharded_weights_are_put_together(tmp_path):
    hubert = random_hubert(**TINY)
    hubert.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert max(differences(build(import_hugging_face(tmp_path, 24_000)), hubert)) < 1e-4


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"a": "../outside.safetensors"}}, "'../outside.safetensors' is no file name"),
        ({"weight_map": {"a": "/tmp/outside.safetensors"}}, "'/tmp/outside.safetensors' is no file name"),
        ({"weight_map": {"a": 3}}, "3 is no file name"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors"),
        ({"weight_map": ["a"]}, "no weight_map"),
        ({}, "no weight_map"),
    ],
)
def test_an_index_of_shards_reaches_no_other_folder(tmp_path, index, words):
    source = save_hubert(random_hubert(**TINY), tmp_path / "source")
    (source / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=words):
        import_hugging_face(source)


@pytest.mark.parametrize("described", [None, "{", "3", "[{}]", '[{"name": "codes"}]'])
def test_heads_that_cannot_be_read_are_named(tmp_path, described):
    source = save_hubert(random_hubert(**TINY), tmp_path / "source")
    save_file({"codes.a": torch.zeros(1)}, source / "heads.safetensors", described and {"heads": described})
    with pytest.raises(ValueError, match="heads.safetensors: "):
        import_hugging_face(source)


def test_quantised_weights_are_refused(tmp_path):
    source = save_hubert(random_hubert(**TINY), tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    save_file({name: weight.to(torch.int8) for name, weight in weights.items()}, source / "model.safetensors")
    with pytest.raises(ValueError, match="is torch.int8, floating point is needed"):
        import_hugging_face(source)


def test_normalised_audio_is_told_and_kept(tmp_path):
    source = save_hubert(random_hubert(**TINY), tmp_path / "source")
    settings = json.loads((source / "preprocessor_config.json").read_text())
    (source / "preprocessor_config.json").write_text(json.dumps(settings | {"do_normalize": True}))
    imported = import_hugging_face(source)
    assert len(imported.notes) == 1 and "do_normalize" in imported.notes[0]
    export_model(tmp_path / "out", imported.model, {})
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["do_normalize"] is True


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feature_extractor_cqt": True}, "feature_extractor_cqt is True, the encoder has False only"),
        ({"feat_proj_layer_norm": False}, "feat_proj_layer_norm is False"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm is True"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({"feat_extract_activation": "relu"}, "feat_extract_activation is 'relu'"),
        ({"conv_dim": [16] * 6 + [32]}, r"conv_dim is \[16, 16"),
        ({"conv_dim": [[16]] * 6 + [[32]]}, r"conv_dim is \[\[16\]"),
        ({"conv_dim": None}, "conv_dim is None"),
        ({"conv_stride": [0] * 7}, "strides .* must all be at least 1"),
        ({"sample_rate": "24000"}, "the sample rate in config.json is '24000', a whole number of Hz is needed"),
        ({"sample_rate": 0}, "the sample rate in config.json is 0"),
        ({"model_type": "mert_foundry"}, "is a folder of mert export already"),
        ({"deepnorm": True, "do_stable_layer_norm": True}, "deepnorm and do_stable_layer_norm"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim is 16"),
        ({"feat_extract_norm": "batch"}, "frontend.*norm"),
        ({"num_attention_heads": 5}, "width 32 is not a multiple of heads 5"),
        ({"model_type": "wav2vec2"}, "model_type is 'wav2vec2'"),
        ({"sample_rate": 16_000}, "config.json says 16000 Hz, preprocessor_config.json says 24000 Hz"),
        ({"num_hidden_layers": 3}, "16 of 67 encoder weights are missing: encoder.layers.2.attention.q_proj"),
        (
            {"intermediate_size": 64},
            r"layers.0.feed_forward.intermediate_dense.weight has shape \[48, 32\] in the file, \[64, 32\]",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, changes, words):
    source = save_mert(random_hubert(**TINY), tmp_path / "source", **changes)
    with pytest.raises(ValueError, match=words):
        import_hugging_face(source)


def test_a_key_nobody_knows_is_told(tmp_path):
    source = save_mert(random_hubert(**TINY), tmp_path / "source", residual_dropout=0.5)
    assert import_hugging_face(source).notes == [
        "keys of config.json that are not known here and have no effect: residual_dropout"
    ]


def test_no_sample_rate_is_an_error_unless_given(tmp_path):
    random_hubert(**TINY).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="no sample rate in config.json or preprocessor_config.json; give --sample-rate"
    ):
        import_hugging_face(tmp_path)
    assert import_hugging_face(tmp_path, 16_000).model.sample_rate == 16_000


def test_no_code_of_a_file_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("sprung",))

    source = save_mert(random_hubert(**TINY), tmp_path / "source")
    for path, read in (
        (source / "pytorch_model.bin", lambda: import_hugging_face(source)),
        (tmp_path / "x.pt", lambda: import_fairseq(tmp_path / "x.pt")),
    ):
        torch.save({"model": Trap()}, path)
        with pytest.raises(ValueError, match=rf"{path.name}: not loaded, since it holds objects of .*print"):
            read()
        path.write_bytes(pickle.dumps(Trap()))
        with pytest.raises(ValueError, match=f"{path.name}: not loaded"):
            read()


def class_of(monkeypatch: pytest.MonkeyPatch, name: str) -> type:
    """An empty class that pickle takes for that of a package which is not there, until the patch is undone."""
    module_name, _, class_name = name.rpartition(".")
    parts = module_name.split(".")
    for count in range(1, len(parts) + 1):
        package = ".".join(parts[:count])
        if package not in sys.modules:
            monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    made = type(class_name, (), {"__module__": module_name})
    setattr(sys.modules[module_name], class_name, made)
    return made


def test_dictionaries_of_fairseq_are_no_hindrance(tmp_path, monkeypatch):
    """Checkpoints of HuBERT's pre-training hold fairseq's Dictionary, a class that is not there."""
    hubert = random_hubert(**TINY)
    dictionary = class_of(monkeypatch, "fairseq.data.dictionary.Dictionary")()
    dictionary.symbols = ["0", "1"]
    checkpoint = {**fairseq_checkpoint(hubert), "task_state": {"dictionaries": [dictionary]}}
    torch.save(checkpoint, tmp_path / "source.pt")
    monkeypatch.undo()
    assert max(differences(build(import_fairseq(tmp_path / "source.pt")), hubert)) < 1e-4


def omegaconf_containers(monkeypatch: pytest.MonkeyPatch, settings: dict, object_type: type = dict) -> object:
    """Nested settings with the classes and attributes that omegaconf 2.0 and 2.3 pickle."""
    names = (
        "dictconfig.DictConfig",
        "listconfig.ListConfig",
        "nodes.AnyNode",
        "base.ContainerMetadata",
        "base.Metadata",
    )
    dict_config, list_config, any_node, container_metadata, metadata = (
        class_of(monkeypatch, f"omegaconf.{n}") for n in names
    )

    def node(value: object, parent: object, key: object) -> object:
        made = {dict: dict_config, list: list_config}.get(type(value), any_node)()
        made._parent, made._metadata = parent, metadata() if type(made) is any_node else container_metadata()
        vars(made._metadata).update(ref_type=Any, object_type=None, optional=True, key=key, flags={"struct": True})
        if type(made) is any_node:
            made._val = value
            return made
        vars(made._metadata).update(object_type=type(value), key_type=int, resolver_cache=defaultdict(dict))
        if isinstance(value, dict):
            made._content = {key: node(item, made, key) for key, item in value.items()}
        else:
            made._content = [node(item, made, number) for number, item in enumerate(value)]
        return made

    root = node(settings, None, None)
    root._metadata.object_type = object_type
    return root


def test_settings_in_containers_of_omegaconf_are_read_without_it(tmp_path, monkeypatch):
    hubert = random_hubert(**TINY | {"do_stable_layer_norm": True})
    checkpoint = fairseq_checkpoint(hubert, labels=["km"], attention_dropout=0.3, w2v_args=None)
    torch.save(checkpoint, tmp_path / "plain.pt")
    torch.save(checkpoint | {"cfg": omegaconf_containers(monkeypatch, checkpoint["cfg"])}, tmp_path / "source.pt")
    monkeypatch.undo()
    held = torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "source.pt")
    assert sum(name.startswith("omegaconf.") for name in held) == 5 and "omegaconf" not in sys.modules
    imported = import_fairseq(tmp_path / "source.pt")
    assert imported.model.encoder == import_fairseq(tmp_path / "plain.pt").model.encoder
    assert imported.model.encoder.transformer.attention_dropout == 0.3 and imported.model.sample_rate == 24_000
    assert max(differences(build(imported), hubert)) < 1e-4


def test_settings_made_by_dataclasses_of_fairseq_are_refused_by_name(tmp_path, monkeypatch):
    checkpoint = fairseq_checkpoint(random_hubert(**TINY))
    dataclass = class_of(monkeypatch, "fairseq.dataclass.configs.FairseqConfig")
    torch.save(
        checkpoint | {"cfg": omegaconf_containers(monkeypatch, checkpoint["cfg"], dataclass)}, tmp_path / "source.pt"
    )
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match="since it holds objects of fairseq.dataclass.configs.FairseqConfig, which could run code"
    ):
        import_fairseq(tmp_path / "source.pt")


def deep_tuple(depth: int) -> tuple:
    """A few hundred bytes in a file; printed, 2 to the power of `depth` brackets."""
    nested = ()
    for _ in range(depth):
        nested = (nested, nested)
    return nested


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pos_conv_depth": 5}, "pos_conv_depth is 5, the encoder has 1 only"),
        ({"layer_type": "conformer"}, "layer_type is 'conformer'"),
        ({"wav_normalize": True}, "wav_normalize is True"),
        ({"feature_extractor_cqt": True}, "feature_extractor_cqt is True"),
        ({"extractor_mode": "other"}, "extractor_mode is 'other', known are default, layer_norm"),
        ({"activation_fn": "tanh"}, "hidden_act is 'tanh'"),
        ({"conv_feature_layers": "__import__('os').getcwd()"}, "is no sum of lists"),
        ({"conv_feature_layers": "-" * 5000 + "1"}, "is no sum of lists"),
        ({"layer_type": deep_tuple(60)}, "layer_type is <class 'tuple'>"),
        ({"encoder_layers": 3}, "16 of 67 encoder weights are missing: encoder.layers.2.self_attn.q_proj.weight"),
    ],
)
def test_fairseq_settings_that_cannot_be_honoured_are_refused(tmp_path, changes, words):
    torch.save(fairseq_checkpoint(random_hubert(**TINY), **changes), tmp_path / "source.pt")
    with pytest.raises(ValueError, match=words):
        import_fairseq(tmp_path / "source.pt")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "source.pt")
    with pytest.raises(ValueError, match="no fairseq checkpoint, it has no `model`"):
        import_fairseq(tmp_path / "source.pt")
    torch.save(fairseq_checkpoint(random_hubert(**TINY)) | {"model": {"mask_emb": 3}}, tmp_path / "source.pt")
    with pytest.raises(ValueError, match="a mapping of names to tensors is needed"):
        import_fairseq(tmp_path / "source.pt")
    (tmp_path / "source.pt").write_bytes(b"garbage")
    with pytest.raises(ValueError, match="not loaded, it is damaged or torch.save did not write it"):
        import_fairseq(tmp_path / "source.pt")
    for cfg in (None, 3, {"task": {}}, {"model": 3}):
        torch.save({"model": {}, "cfg": cfg}, tmp_path / "source.pt")
        with pytest.raises(ValueError, match="no settings, neither `cfg` nor `args`"):
            import_fairseq(tmp_path / "source.pt")


def test_conv_layers_are_read_without_eval():
    text = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
    assert parse_conv_layers(text) == [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2]
    for wrong in (
        "[(512,10)]",
        "[(1,1,1)] * 1000",
        "[(1,1,1)]" + 4 * " * 99",
        "9999999 * [(1,1,1)]",
        None,
        "512",
        "[(512,10,5)] - 1",
        "exit()",
    ):
        with pytest.raises(ValueError, match="is no sum of lists"):
            parse_conv_layers(wrong)

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mert_foundry.model.training.precision import set_precision
from mert_foundry.model.transformer.config import TransformerConfig
from mert_foundry.model.transformer.initialisation import initialise
from mert_foundry.model.transformer.norm import norm_placement
from mert_foundry.model.transformer.position import correlate_by_fft
from mert_foundry.model.transformer.transformer import TransformerEncoderExtend

PLACEMENTS = ["post", "pre", "deepnorm", "sub"]
POSITIONS = ["convolution", "rope", "none"]
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "layer_drop": 0.0}
# Every option at once that a layer can have, each in some layer.
RICH = {
    "layers": 4,
    "norm": "sub",
    "norm_kind": "rms",
    "activation": "swiglu",
    "position": "rope",
    "memory_width": 6,
    "overrides": {
        "0": {"attention": {"window": 2}, "heads": 4, "convolution_kernel": 5},
        "1": {"attention": {"learnable_temperature": True, "gate": True}, "reads_memory": True},
        "2": {"trainable": False, "feed_forward": 24},
        "3": {"attention": {"relaxation": 32.0}, "norm_epsilon": 1e-3, "reads_memory": True},
    },
}


def build(seed: int = 0, **changes: object) -> TransformerEncoderExtend:
    sizes = {"layers": 2, "width": 16, "heads": 2, "feed_forward": 32, "position_kernel": 8, "position_groups": 4}
    torch.manual_seed(seed)
    return TransformerEncoderExtend(TransformerConfig(**{**sizes, **NO_DROPOUT, **changes}))


def randomised(**changes: object) -> TransformerEncoderExtend:
    """In evaluation, weights far from the initial ones."""
    transformer = build(**changes).eval()
    for parameter in transformer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return transformer


@given(
    frames=st.integers(1, 300),
    kernel=st.integers(1, 130),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_a_correlation_by_fft_is_the_convolution_with_its_gradients(
    frames: int, kernel: int, groups: int, bias: bool, seed: int
):
    torch.manual_seed(seed)
    conv = nn.Conv1d(8, 8, kernel, padding=kernel // 2, groups=groups, bias=bias)
    signal = torch.randn(2, 8, frames, requires_grad=True)
    leaves, upstream = [signal, *conv.parameters()], torch.randn(2, 8, frames)
    expected, found = conv(signal)[:, :, :frames], correlate_by_fft(signal, conv.weight, conv.bias)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name, by_fft, direct in zip(
        ("signal", "weight", "bias"),
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
    ):
        torch.testing.assert_close(by_fft, direct, rtol=1e-3, atol=1e-4, msg=lambda told, name=name: f"{name}: {told}")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_adds_the_position_that_a_cpu_adds():
    set_precision("fp32")  # another test may have left tf32
    transformer, features = randomised(position="convolution"), torch.randn(3, 200, 16)
    with torch.no_grad():
        expected = transformer.position(features)
        found = transformer.position.cuda()(features.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("kernel", [None, 5])
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("norm", PLACEMENTS)
def test_padding_never_changes_valid_frames(norm, position, kind, kernel, window):
    options = {"attention": {"window": window}, "convolution_kernel": kernel}
    transformer = randomised(norm=norm, position=position, norm_kind=kind, **options)
    features = torch.randn(1, 12, 16)
    padded = torch.cat([features, 100 * torch.randn(1, 7, 16)], dim=1)
    valid = torch.arange(19)[None] < 12
    with torch.no_grad():
        alone, beside = transformer(features), transformer(padded, valid)
    assert beside.last.isfinite().all()
    for short, long in zip([*alone.hidden_states, alone.last], [*beside.hidden_states, beside.last]):
        assert torch.allclose(short, long[:, :12], atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "relu", "swiglu"])
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("norm", PLACEMENTS)
def test_layers_equal_their_formulas(norm, kind, activation):
    """Each placement and activation written out from its paper, with the layer's own attention."""
    transformer = randomised(norm=norm, norm_kind=kind, activation=activation, layers=3, position="none")
    layer = transformer.layers[1]
    x = torch.randn(2, 5, 16)
    alpha = (2 * 3) ** 0.25 if norm == "deepnorm" else 1.0

    def normed(module: nn.Module, value: torch.Tensor) -> torch.Tensor:
        if kind == "rms":
            return value / (value.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.weight
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.weight + module.bias

    def feed_forward(value: torch.Tensor) -> torch.Tensor:
        part = layer.feed_forward
        inner = part.inner(value)
        if activation == "swiglu":
            gate = part.gate(value)
            inner = gate * torch.sigmoid(gate) * inner
        else:
            inner = inner * (inner > 0) if activation == "relu" else inner * (1 + torch.erf(inner / 2**0.5)) / 2
        return part.outer(normed(part.norm, inner) if norm == "sub" else inner)

    with torch.no_grad():
        expected = x
        for part, its_norm in ((layer.attention, layer.attention_norm), (feed_forward, layer.feed_forward_norm)):
            if norm in ("pre", "sub"):
                expected = expected + part(normed(its_norm, expected))
            else:
                expected = normed(its_norm, alpha * expected + part(expected))
        assert torch.allclose(layer(x, None), expected, atol=1e-5)


@pytest.mark.parametrize("norm", PLACEMENTS)
@pytest.mark.parametrize("kernel", [1, 3, 31])
def test_the_convolution_part_equals_a_loop_over_frames(norm, kernel):
    """Joined as the other parts are, between attention and feed-forward."""
    layer = randomised(norm=norm, convolution_kernel=kernel, layers=1).layers[0]
    hidden, valid = torch.randn(2, 9, 16), torch.arange(9)[None] < torch.tensor([[9], [6]])
    part, first = layer.convolution, layer.placement.first
    with torch.no_grad():
        after_attention = layer._joined(hidden, lambda x: layer.attention(x, valid), layer.attention_norm)
        source = layer.convolution_norm(after_attention) if first else after_attention
        added = torch.zeros_like(source)
        for row, length in enumerate((9, 6)):
            left, right = part.inner(source[row, :length]).chunk(2, dim=1)
            gated = left * right.sigmoid()
            for frame in range(9):
                mixed = part.depthwise.bias.clone()
                for tap in range(kernel):
                    place = frame + tap - kernel // 2
                    if 0 <= place < length:
                        mixed += part.depthwise.weight[:, 0, tap] * gated[place]
                normed = part.norm(mixed)
                added[row, frame] = part.outer(normed * normed.sigmoid())
        joined = layer.placement.residual_scale * after_attention + added
        joined = joined if first else layer.convolution_norm(joined)
        expected = layer._joined(joined, layer.feed_forward, layer.feed_forward_norm)
        assert torch.allclose(layer(hidden, valid)[valid], expected[valid], atol=1e-4, rtol=1e-4)


def test_a_convolution_may_be_in_some_layers_and_has_an_odd_kernel():
    kernels = [
        layer.convolution and layer.convolution.depthwise.kernel_size
        for layer in build(layers=3, convolution_kernel=7, overrides={1: {"convolution_kernel": None}}).layers
    ]
    assert kernels == [(7,), None, (7,)]
    with pytest.raises(ValueError, match="overrides, layer 1, field 'convolution_kernel': .*odd .*not 4"):
        build(overrides={1: {"convolution_kernel": 4}})


def test_sub_norm_stands_before_the_output_projection_of_attention():
    attention = randomised(norm="sub", position="none").layers[0].attention
    seen = []
    attention.out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    attention.norm.weight.data.fill_(1.0)
    attention.norm.bias.data.zero_()
    attention(torch.randn(2, 5, 16))
    assert torch.allclose(seen[0].mean(dim=-1), torch.zeros(2, 5), atol=1e-5)
    assert torch.allclose(seen[0].square().mean(dim=-1), torch.ones(2, 5), atol=1e-2)


@pytest.mark.parametrize(
    "norm, value_gain, alpha", [("deepnorm", 96**-0.25, 24**0.25), ("sub", math.log(24) ** 0.5, 1.0)]
)
def test_scaled_placements_start_with_the_gain_of_their_paper(norm, value_gain, alpha):
    transformer = build(norm=norm, layers=12, width=128, feed_forward=256)
    assert norm_placement(norm, 12).residual_scale == pytest.approx(alpha)
    layer = transformer.layers[7]
    for linear, gain in [
        (layer.attention.query, 1.0),
        (layer.attention.key, 1.0),
        (layer.attention.value, value_gain),
        (layer.attention.out, value_gain),
        (layer.feed_forward.inner, value_gain),
        (layer.feed_forward.outer, value_gain),
    ]:
        xavier = (2 / (linear.in_features + linear.out_features)) ** 0.5
        assert linear.weight.std().item() == pytest.approx(gain * xavier, rel=0.03)


def test_deepnorm_keeps_a_deep_stack_stable_where_post_norm_grows():
    """The first step's change of the output over 48 layers stays small (arXiv 2203.00555, section 3)."""
    changes = {}
    for norm in ("post", "deepnorm"):
        transformer = build(norm=norm, layers=48, position="none", width=32, feed_forward=128)
        if norm == "post":  # as the paper compares: the same initialisation without the gain
            for layer in transformer.layers:
                for linear in (module for module in layer.modules() if isinstance(module, nn.Linear)):
                    nn.init.xavier_normal_(linear.weight)
        features, target = torch.randn(8, 10, 32), torch.randn(8, 10, 32)
        before = transformer(features).last
        (before - target).square().mean().backward()
        with torch.no_grad():
            for parameter in transformer.parameters():
                parameter -= 1e-3 * parameter.grad.sign()  # Adam's first step
            changes[norm] = (transformer(features).last - before).square().mean().item()
    assert changes["deepnorm"] < changes["post"] / 2


@pytest.mark.parametrize("position", POSITIONS)
def test_order_matters_with_a_position_and_only_then(position):
    transformer = randomised(position=position)
    features = torch.randn(1, 9, 16)
    forward, backward = transformer(features).last, transformer(features.flip(1)).last.flip(1)
    assert torch.allclose(forward, backward, atol=1e-5) == (position == "none")


@pytest.mark.parametrize("changes", [{"position": "rope"}, RICH], ids=["rope", "rich"])
def test_a_model_from_the_meta_device_takes_weights_by_assignment(changes):
    source = randomised(**changes)
    with torch.device("meta"):
        config = source.config
        loaded = TransformerEncoderExtend(config)
    assert {tensor.device.type for tensor in [*loaded.parameters(), *loaded.buffers()]} == {"meta"}
    loaded.load_state_dict(source.state_dict(), assign=True)
    loaded.eval()
    features, memory = torch.randn(2, 9, 16), torch.randn(2, 3, 6) if config.memory_width else None
    assert torch.equal(loaded(features, memory=memory).last, source(features, memory=memory).last)
    trainable = {name: parameter.requires_grad for name, parameter in source.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in loaded.named_parameters()} == trainable


def test_every_weight_is_drawn_by_initialise():
    with torch.device("meta"):
        transformer = build(**RICH)
    transformer.to_empty(device="cpu")
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.fill_(torch.nan)
    initialise(transformer)
    assert all(weight.isfinite().all() for weight in transformer.parameters())
    assert transformer.layers[1].memory.gate == 0
    assert (transformer.layers[1].attention.gate == 1).all() and (
        transformer.layers[1].attention.log_temperature == 0
    ).all()


def test_every_option_runs_under_bf16_autocast():
    transformer = randomised(**RICH).train()
    features, memory = torch.randn(2, 9, 16), torch.randn(2, 3, 6)
    valid = torch.arange(9)[None] < torch.tensor([[9], [6]])
    exact = transformer(features, valid, memory).last
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = transformer(features, valid, memory, return_attention=True)
    rounded.last.float().sum().backward()
    assert (rounded.last.float() - exact)[valid].abs().mean() < 0.05 * exact[valid].abs().mean()


def test_layers_are_built_from_their_own_settings():
    transformer = build(**RICH)
    assert [layer.attention.heads for layer in transformer.layers] == [4, 2, 2, 2]
    assert [layer.attention.window for layer in transformer.layers] == [2, None, None, None]
    assert [layer.feed_forward.inner.out_features for layer in transformer.layers] == [32, 32, 24, 32]
    assert [layer.attention_norm.eps for layer in transformer.layers] == [1e-5, 1e-5, 1e-5, 1e-3]
    assert [layer.memory is not None for layer in transformer.layers] == [False, True, False, True]


def test_dropouts_are_each_layers_own():
    transformer = build(layers=3, overrides={"1": {"dropout": 0.5}, "2": {"activation_dropout": 0.5}})
    features = torch.randn(1, 5, 16)
    first, second = transformer(features).hidden_states, transformer(features).hidden_states
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[2], second[2])
    alone = [transformer.layers[2](first[1], None) for _ in range(2)]
    assert not torch.equal(*alone)


def test_a_dropped_layer_is_an_identity_with_zero_gradient():
    transformer = build(layer_drop=0.999)
    output = transformer(torch.randn(1, 5, 16))
    assert all(torch.equal(state, output.hidden_states[0]) for state in output.hidden_states)
    output.last.sum().backward()
    assert all((weight.grad == 0).all() for weight in transformer.layers.parameters())


def test_layers_drop_at_their_rate_and_in_training_only():
    transformer = build(layer_drop=0.3, layers=4)
    features = torch.randn(1, 5, 16)

    def dropped() -> int:
        states = transformer(features).hidden_states
        return sum(torch.equal(before, after) for before, after in zip(states, states[1:]))

    assert sum(dropped() for _ in range(250)) / 1000 == pytest.approx(0.3, abs=0.06)
    transformer.eval()
    assert sum(dropped() for _ in range(50)) == 0


def test_layer_drop_is_each_layers_own():
    transformer = build(layers=3, overrides={"1": {"layer_drop": 0.5}})
    features = torch.randn(1, 5, 16)
    skipped = torch.zeros(3)
    for _ in range(200):
        states = transformer(features).hidden_states
        skipped += torch.tensor([torch.equal(before, after) for before, after in zip(states, states[1:])])
    assert skipped[0] == skipped[2] == 0
    assert skipped[1] / 200 == pytest.approx(0.5, abs=0.12)


def test_frozen_layers_pass_gradients_on_and_stay():
    transformer = build(layers=3, overrides={"1": {"trainable": False}})
    transformer(torch.randn(1, 5, 16)).last.square().sum().backward()
    assert all(parameter.grad is None for parameter in transformer.layers[1].parameters())
    assert all(parameter.grad is not None for parameter in transformer.layers[0].parameters())
    assert transformer.layers[0].attention.query.weight.grad.abs().max() > 0


@pytest.mark.parametrize("changes", [{}, {"position": "rope", "norm": "pre", "attention": {"relaxation": 32.0}}])
def test_checkpointing_changes_no_bit(changes):
    gradients = []
    for checkpointing in (False, True, 3):
        transformer = build(
            **{"layers": 4, **changes, "dropout": 0.2, "attention_dropout": 0.2, "layer_drop": 0.3},
            activation_checkpointing=checkpointing,
        )
        features = torch.randn(2, 7, 16, requires_grad=True)
        output = transformer(features, torch.arange(7)[None].expand(2, -1) < 6).last
        output.square().sum().backward()
        gradients.append([output, features.grad, *(parameter.grad for parameter in transformer.parameters())])
    assert all(torch.equal(first, other) for first, *others in zip(*gradients, strict=True) for other in others)


def test_checkpointing_keeps_less():
    def saved_numbers(checkpointing: bool | int) -> int:
        transformer, seen = build(layers=6, activation_checkpointing=checkpointing), {}
        parameters = {parameter.data_ptr() for parameter in transformer.parameters()}

        def remember(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            output = transformer(torch.randn(4, 50, 16))
        assert output.last.requires_grad
        return sum(seen.values())

    none, every, second, third = (saved_numbers(checkpointing) for checkpointing in (False, True, 2, 3))
    assert every < none / 4
    # Three of six layers are kept, or four of six.
    assert second == pytest.approx((none + every) / 2, rel=0.05) and third == pytest.approx(
        (2 * none + every) / 3, rel=0.05
    )


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize(
    "changes", [{}, {"attention": {"relaxation": 32.0}}, {"position": "rope"}], ids=["fused", "relaxed", "rope"]
)
def test_attention_maps_are_those_the_layers_use(norm, changes):
    """Identity value and output projections make a layer's attention return the frames weighted by the map."""
    transformer = randomised(norm=norm, heads=1, **changes)
    features, valid = torch.randn(2, 9, 16), torch.arange(9)[None] < torch.tensor([[9], [6]])
    plain = transformer(features, valid)
    assert plain.attention is None
    for layer in transformer.layers:
        for linear in (layer.attention.value, layer.attention.out):
            linear.weight.data.copy_(torch.eye(16))
            linear.bias.data.zero_()
    inputs, outputs = [], []
    for layer in transformer.layers:
        layer.attention.register_forward_hook(
            lambda m, args, output: (inputs.append(args[0]), outputs.append(output))[0]
        )
    output = transformer(features, valid, return_attention=True)
    assert len(output.attention) == 2
    for attention, seen, attended in zip(output.attention, inputs, outputs):
        assert attention.shape == (2, 1, 9, 9)
        assert torch.allclose(attention.sum(dim=3), torch.ones(()))
        assert (attention[1, :, :, 6:] == 0).all()
        assert torch.allclose(attention[:, 0] @ seen, attended, atol=1e-5)


def test_asking_for_attention_maps_changes_no_output():
    transformer = randomised(norm="pre")
    features = torch.randn(2, 9, 16)
    plain, told = transformer(features), transformer(features, return_attention=True)
    assert all(torch.equal(*pair) for pair in zip(plain.hidden_states, told.hidden_states))


MEMORY = {"layers": 3, "memory_width": 6, "overrides": {"1-2": {"reads_memory": True}}}


@pytest.mark.parametrize("norm", PLACEMENTS)
def test_a_new_memory_changes_nothing_at_first(norm):
    plain = build(norm=norm, layers=3)
    reading = build(norm=norm, **MEMORY)
    missing, unexpected = reading.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith(("layers.1.memory.", "layers.2.memory.")) for name in missing)
    features, memory = torch.randn(2, 5, 16), 100 * torch.randn(2, 4, 6)
    expected = plain(features)
    for output in (reading(features, memory=memory), reading(features)):
        assert all(torch.equal(*pair) for pair in zip(output.hidden_states, expected.hidden_states))
    reading(features, memory=memory).last.square().sum().backward()
    assert reading.layers[1].memory.gate.grad.abs() > 0


def opened(**changes: object) -> TransformerEncoderExtend:
    transformer = build(**{**MEMORY, **changes}).eval()
    for layer in transformer.layers[1:]:
        nn.init.constant_(layer.memory.gate, 0.7)
    return transformer


def test_the_reader_equals_gated_cross_attention_of_torch():
    reader = opened().layers[1].memory
    reference = nn.MultiheadAttention(16, 2, kdim=6, vdim=6, batch_first=True)
    with torch.no_grad():
        for name, linear in (("q", reader.attention.query), ("k", reader.attention.key), ("v", reader.attention.value)):
            getattr(reference, f"{name}_proj_weight").copy_(linear.weight)
        biases = [reader.attention.query.bias, reader.attention.key.bias, reader.attention.value.bias]
        reference.in_proj_bias.copy_(torch.cat(biases))
        reference.out_proj.load_state_dict(reader.attention.out.state_dict())
    hidden, memory = torch.randn(2, 5, 16), torch.randn(2, 4, 6)
    valid = torch.tensor([[True] * 4, [True, False, True, False]])
    read, _ = reference(reader.norm(hidden), memory, memory, key_padding_mask=~valid)
    assert torch.allclose(reader(hidden, memory, valid), hidden + math.tanh(0.7) * read, atol=1e-5)


def test_invalid_entries_of_a_memory_are_not_read():
    transformer = opened()
    features, memory = torch.randn(2, 5, 16), torch.randn(2, 4, 6)
    valid = torch.tensor([[True, True, False, False], [False] * 4])
    output = transformer(features, memory=memory, memory_valid=valid).last
    assert torch.allclose(output[:1], transformer(features[:1], memory=memory[:1, :2]).last, atol=1e-6)
    assert torch.equal(output[1:], transformer(features[1:]).last)
    assert not torch.allclose(output[:1], transformer(features[:1]).last, atol=1e-3)


def test_what_stands_in_invalid_entries_of_a_memory_does_not_matter():
    transformer, features, memory = opened(), torch.randn(2, 5, 16), torch.randn(2, 4, 6)
    valid = torch.tensor([[True, True, False, False], [False] * 4])
    expected = transformer(features, memory=memory, memory_valid=valid).last
    spoiled = memory.masked_fill(~valid[:, :, None], torch.nan)
    assert torch.equal(transformer(features, memory=spoiled, memory_valid=valid).last, expected)


def test_a_memory_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="memory has 7 features an entry, memory_width is 6"):
        opened()(torch.randn(1, 5, 16), memory=torch.randn(1, 4, 7))
    with pytest.raises(ValueError, match="memory has 6 features an entry, memory_width is None"):
        build()(torch.randn(1, 5, 16), memory=torch.randn(1, 4, 6))


class TokenModel(nn.Module):
    """Token embeddings -> encoder -> logits over the tokens at each place."""

    def __init__(self, **changes: object):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(12, 32)
        self.encoder = build(width=32, heads=4, feed_forward=64, **changes)
        self.head = nn.Linear(32, 12)

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(tokens), valid, memory).last)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"position_kernel": 15}, {"position": "rope", "norm": "pre", "norm_kind": "rms", "activation": "swiglu"}],
    ids=["hubert", "rope_rms_swiglu"],
)
def test_the_encoder_learns_text(changes):
    """Each place must name the token two places on, in padded rows of random text: chance is 1 in 12."""
    model = TokenModel(**changes)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(0)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.randint(0, 12, (32, 10), generator=generator)
        lengths = torch.randint(4, 11, (32, 1), generator=generator)
        return tokens, torch.arange(10)[None] < lengths

    def loss_and_accuracy() -> tuple[torch.Tensor, float]:
        tokens, valid = draw()
        asked = valid[:, 2:]
        logits, wanted = model(tokens, valid)[:, :-2][asked], tokens[:, 2:][asked]
        return nn.functional.cross_entropy(logits, wanted), (logits.argmax(1) == wanted).float().mean().item()

    assert loss_and_accuracy()[1] < 0.2
    for _ in range(120):
        loss, _ = loss_and_accuracy()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert loss_and_accuracy()[1] > 0.9


@pytest.mark.slow
def test_knowledge_from_a_memory_is_learned():
    """What to answer stands in the memory only, so a model without reading it stays at chance."""
    model = TokenModel(memory_width=12, overrides={"1": {"reads_memory": True}})
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        tokens = torch.randint(0, 12, (32, 6), generator=generator)
        answers = torch.randint(0, 12, (32, 1), generator=generator)
        memory = nn.functional.one_hot(answers, 12).float()
        logits = model(tokens, torch.ones(32, 6, dtype=torch.bool), memory)[:, 0]
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, answers[:, 0]).backward()
        optimizer.step()
    assert (logits.argmax(1) == answers[:, 0]).float().mean() > 0.9


def train_rich_model(rank: int) -> None:
    """Frozen, dropped, checkpointed and unread parts, under DDP that does not search for unused parameters."""
    transformer = build(**RICH, activation_checkpointing=True)
    for layer, drop in zip(transformer.layers, (0.5, 0.5, 0.5, 0.0)):
        layer.config = layer.config.model_copy(update={"layer_drop": drop})
    parallel = DistributedDataParallel(transformer)
    for step in range(4):
        torch.manual_seed(10 * step + rank)
        memory = torch.randn(2, 3, 6) if step % 2 else None
        parallel(torch.randn(2, 7, 16), memory=memory).last.square().sum().backward()
        trainable = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
        assert all(parameter.grad is not None for parameter in trainable)
        for parameter in trainable:
            parameter.data -= 1e-3 * parameter.grad
            parameter.grad = None
    total = sum(parameter.double().sum() for parameter in transformer.parameters()).detach()
    both = [torch.zeros_like(total) for _ in range(2)]
    torch.distributed.all_gather(both, total)
    assert both[0] == both[1]


@pytest.mark.process
@pytest.mark.slow
def test_every_option_trains_on_several_ranks():
    run_ranks(train_rich_model, 2)

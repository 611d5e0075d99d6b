import math

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mert_foundry.model.transformer.attention import (
    AttentionConfig,
    MultiheadAttentionExtend,
    attention_weights,
    fused_attention,
)
from mert_foundry.model.transformer.position import rotate

WIDTH, HEADS, FRAMES = 16, 2, 11
OPTIONS = {
    "plain": {},
    "window": {"window": 2},
    "own_frame_only": {"window": 0},
    "temperature": {"learnable_temperature": True},
    "gate": {"gate": True},
    "relaxation": {"relaxation": 32.0},
    "all": {"window": 3, "learnable_temperature": True, "gate": True, "relaxation": 8.0},
}


def build(rotary: bool = False, seed: int = 0, **options: object) -> MultiheadAttentionExtend:
    """In evaluation, with all weights at random: temperatures and gates too."""
    torch.manual_seed(seed)
    attention = MultiheadAttentionExtend(WIDTH, HEADS, 0.1, AttentionConfig(**options), rotary=rotary).eval()
    for parameter in (attention.log_temperature, attention.gate):
        if parameter is not None:
            nn.init.normal_(parameter)
    return attention


def naive_rotation(vector: list[float], frame: int) -> list[float]:
    """RoPE on one vector: the pair (i, i + d/2) as a complex number, turned by frame x 10000^(-2i/d)."""
    half = len(vector) // 2
    turned = [0.0] * len(vector)
    for i in range(half):
        angle = frame * 10_000 ** (-2 * i / len(vector))
        value = complex(vector[i], vector[i + half]) * complex(math.cos(angle), math.sin(angle))
        turned[i], turned[i + half] = value.real, value.imag
    return turned


def naive(module: MultiheadAttentionExtend, row: Tensor, valid: list[bool]) -> tuple[Tensor, Tensor]:
    """Output [F, D] and map [H, F, F] for one row [F, D], frame by frame in plain loops."""
    frames, size = len(row), WIDTH // HEADS
    maps, outputs = torch.zeros(HEADS, frames, frames, dtype=torch.float64), torch.zeros(frames, WIDTH)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        query, key, value = (each(row)[:, part] for each in (module.query, module.key, module.value))
        if module.rotary:
            query, key = (torch.tensor([naive_rotation(v.tolist(), i) for i, v in enumerate(x)]) for x in (query, key))
        temperature = 1.0 if module.log_temperature is None else math.exp(module.log_temperature[head])
        for i in range(frames):
            near = [j for j in range(frames) if module.window is None or abs(i - j) <= module.window]
            read = [j for j in near if valid[j] or (module.window is not None and i == j)]
            weights = [math.exp(float(query[i] @ key[j]) / math.sqrt(size) / temperature) for j in read]
            for j, weight in zip(read, weights):
                maps[head, i, j] = weight / sum(weights)
            gate = 1.0 if module.gate is None else module.gate[head]
            outputs[i, part] = gate * (maps[head, i].float() @ value)
    return module.out(outputs), maps


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("lengths", [(FRAMES, FRAMES), (FRAMES, 4)], ids=["full", "padded"])
def test_every_option_equals_plain_loops(options, lengths, rotary):
    attention = build(rotary, **options)
    hidden = torch.randn(2, FRAMES, WIDTH)
    valid = torch.arange(FRAMES)[None] < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        output = attention(hidden, None if valid.all() else valid)
        maps = attention.weights(hidden, valid)
        for row in range(2):
            expected, expected_map = naive(attention, hidden[row], valid[row].tolist())
            assert torch.allclose(output[row], expected, atol=1e-5)
            assert torch.allclose(maps[row].double(), expected_map, atol=1e-6)
    assert torch.allclose(maps.sum(dim=3), torch.ones(()))


def test_temperature_and_gate_change_nothing_at_first():
    torch.manual_seed(0)
    plain = MultiheadAttentionExtend(WIDTH, HEADS, 0.0)
    extended = MultiheadAttentionExtend(WIDTH, HEADS, 0.0, AttentionConfig(learnable_temperature=True, gate=True))
    extended.load_state_dict(plain.state_dict(), strict=False)
    hidden = torch.randn(2, FRAMES, WIDTH)
    output = extended(hidden)
    assert torch.equal(output, plain(hidden))
    output.square().sum().backward()
    assert extended.log_temperature.grad.abs().min() > 0 and extended.gate.grad.abs().min() > 0


class CountCalls(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("options, fused", [({}, 1), ({"window": 2, "gate": True}, 1), ({"relaxation": 32.0}, 0)])
def test_the_normal_path_is_one_fused_call(options, fused):
    attention = build(**options)
    with CountCalls() as calls:
        attention(torch.randn(1, FRAMES, WIDTH), torch.ones(1, FRAMES, dtype=torch.bool))
    assert calls.names.count("scaled_dot_product_attention") == fused
    assert calls.names.count("softmax") == 1 - fused


@pytest.mark.parametrize("relaxation", [1.0, 8.0, 32.0, 1000.0])
def test_relaxation_is_an_identity_in_fp32(relaxation):
    attention, relaxed = build(), build(relaxation=relaxation)
    hidden = 5 * torch.randn(2, FRAMES, WIDTH)
    assert torch.allclose(attention(hidden), relaxed(hidden), atol=1e-5)
    gradients = [
        torch.autograd.grad(module(hidden).square().sum(), module.key.weight)[0] for module in (attention, relaxed)
    ]
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4)


def test_fp16_logits_overflow_and_relaxed_ones_do_not():
    """Logits near 1e5: fp16 ends at 65504. fp16 keeps 11 bits, so where two frames are near a tie it cannot tell them
    apart; those rows are left out."""
    torch.manual_seed(0)
    query, key = 400 * torch.randn(2, 3, 9, 64), 400 * torch.randn(2, 3, 9, 64)
    exact = attention_weights(query, key, None, 1.0)
    assert ((query @ key.transpose(-2, -1)) / 8).abs().max() > 65_504
    plain = torch.softmax((query.half() / 8) @ key.half().transpose(-2, -1), dim=-1)
    assert plain.isnan().any()
    assert attention_weights(query.half(), key.half(), None, 1.0).isnan().any()
    relaxed = attention_weights(query.half(), key.half(), None, 32.0)
    assert relaxed.isfinite().all()
    best = (query @ key.transpose(-2, -1) / 8).topk(2, dim=-1).values
    clear = best[..., 0] - best[..., 1] > 0.01 * best[..., 0].abs()
    assert clear.float().mean() > 0.8
    assert torch.allclose(relaxed.float()[clear], exact[clear], atol=1e-3)


def test_the_relaxed_module_equals_fp32_where_plain_fp16_breaks():
    relaxed = build(relaxation=32.0)
    with torch.no_grad():
        for linear in (relaxed.query, relaxed.key):
            linear.weight.mul_(600)
    hidden = torch.randn(1, FRAMES, WIDTH).half().float()
    exact = relaxed(hidden)
    half = relaxed.half()(hidden.half())
    query, key = (
        each(hidden.half()).unflatten(2, (HEADS, -1)).transpose(1, 2) for each in (relaxed.query, relaxed.key)
    )
    assert (query @ key.transpose(-2, -1)).isinf().any()
    assert half.isfinite().all()
    assert torch.allclose(half.float(), exact, atol=0.02)


def test_relaxed_fp16_is_accurate_at_ordinary_logits():
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 32, 64), torch.randn(2, 4, 32, 64)
    relaxed = attention_weights(query.half(), key.half(), None, 32.0)
    assert torch.allclose(relaxed.float(), attention_weights(query, key, None, 1.0), atol=4e-3)


@pytest.mark.parametrize("relaxation", [None, 32.0])
def test_a_window_over_padding_only_stays_finite(relaxation):
    """Frames 6 on are padding: with a window of 2, frame 10 has nothing valid near it."""
    attention = build(window=2, relaxation=relaxation)
    hidden = torch.randn(2, FRAMES, WIDTH, requires_grad=True)
    valid = (torch.arange(FRAMES) < 6).expand(2, -1)
    output = attention(hidden, valid)
    assert output.isfinite().all()
    output[:, :6].sum().backward()
    assert hidden.grad.isfinite().all() and (hidden.grad[:, 6:] == 0).all()


def test_a_window_reaches_as_far_as_it_says():
    attention = build(window=3)
    hidden = torch.randn(1, FRAMES, WIDTH, requires_grad=True)
    attention(hidden)[0, 5].sum().backward()
    assert (hidden.grad[0].abs().sum(dim=1) > 0).tolist() == [abs(j - 5) <= 3 for j in range(FRAMES)]


def test_rotated_products_depend_on_the_distance_only():
    torch.manual_seed(0)
    query, key = (torch.randn(1, 1, 1, 8).expand(1, 1, 40, 8) for _ in range(2))
    products = (rotate(query) @ rotate(key).transpose(-2, -1))[0, 0]
    for offset in (-7, 0, 3):
        diagonal = products.diagonal(offset)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4)
    assert products.diagonal(0)[0] == pytest.approx(float(query[0, 0, 0] @ key[0, 0, 0]), abs=1e-5)
    assert rotate(query.half()).dtype == torch.float16


def test_dropout_is_on_in_training_only():
    attention = MultiheadAttentionExtend(WIDTH, HEADS, 0.5)
    relaxed = MultiheadAttentionExtend(WIDTH, HEADS, 0.5, AttentionConfig(relaxation=2.0))
    hidden = torch.randn(1, FRAMES, WIDTH)
    for module in (attention, relaxed):
        assert not torch.equal(module(hidden), module(hidden))
        module.eval()
        assert torch.equal(module(hidden), module(hidden))


def test_dropout_on_a_cpu_keeps_no_maps_and_changes_no_gradient():
    """torch's own call with the same random numbers, which keeps [B, H, F, F] for the backward pass."""
    query, key, value = (torch.randn(2, HEADS, FRAMES, 8, requires_grad=True) for _ in range(3))
    mask = torch.rand(2, 1, 1, FRAMES) < 0.8
    mask[..., 0] = True

    def run(attend) -> tuple[list[Tensor], list[torch.Size]]:
        kept: list[torch.Size] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor
        ):
            torch.manual_seed(1)
            output = attend()
        return [output, *torch.autograd.grad(output.square().sum(), (query, key, value))], kept

    ours, kept = run(lambda: fused_attention(query, key, value, mask, 0.5))
    expected, kept_by_torch = run(
        lambda: nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=0.5)
    )
    for mine, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=0)
    maps = (2, HEADS, FRAMES, FRAMES)
    assert maps in kept_by_torch and maps not in kept


def test_heads_must_divide_width():
    with pytest.raises(ValueError, match="width 16 is not a multiple of heads 3"):
        MultiheadAttentionExtend(16, 3, 0.0)

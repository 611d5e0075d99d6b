"""`mert bench step`: both sides compute the same loss and gradient, and the report says what it should."""

import json
import subprocess
import sys

import pytest
import torch
from forked import forked_module
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mert_foundry.jobs.benchmarks import step_benchmark as bench_step
from mert_foundry.jobs.benchmarks.gpu_benchmark import read_step
from mert_foundry.jobs.benchmarks.measurement import in_own_process, median, take_turns
from mert_foundry.jobs.benchmarks.naive_hubert import NaiveHubert, naive_cross_entropy
from mert_foundry.jobs.benchmarks.step_variant import VARIANTS, StepSettings, build, count_operations, make_batch
from mert_foundry.jobs.command import line as command_line
from mert_foundry.jobs.command.line import run
from mert_foundry.model.objective.heads import code_cross_entropy

SMALL = ["--layout", "small", "--batch", "2", "--seconds", "0.5", "--dropout", "0"]
SETTINGS = StepSettings(layout="small", batch=2, seconds=0.5, dropout=0.0)


@pytest.fixture
def bench(capsys):
    """Run the command in this process; gives exit code, stdout and stderr."""

    def bench(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(bench_step.main, list(arguments), bench_step.__doc__)
        return code, *capsys.readouterr()

    return bench


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_sides_have_the_same_loss_and_gradients(attention):
    ours, naive = build(SETTINGS), NaiveHubert(build(SETTINGS), attention)
    ours.train(), naive.train()
    batch, mask = make_batch(ours, SETTINGS, torch.device("cpu"))
    sums = ours(batch, mask)
    loss, other = ours.weighted_loss(ours.mean_losses(sums, sums)), naive(batch, mask)
    assert loss.item() == pytest.approx(other.item(), rel=1e-5)
    loss.backward(), other.backward()
    layers = naive.hubert.encoder.layers
    pairs = [
        (ours.heads["codes"].embedding, naive.heads["codes"].embedding),
        (ours.heads["cqt"].linear.weight, naive.heads["cqt"].linear.weight),
        (ours.encoder.transformer.layers[0].attention.query.weight, layers[0].attention.q_proj.weight),
        (ours.encoder.mask_embedding, naive.hubert.masked_spec_embed),
        (ours.encoder.frontend.layers[0].conv.weight, naive.hubert.feature_extractor.conv_layers[0].conv.weight),
    ]
    for mine, theirs in pairs:
        assert mine.grad.abs().max() > 0
        assert (mine.grad - theirs.grad).abs().max() < 1e-4 * mine.grad.abs().max()


def test_naive_cross_entropy_counts_the_right_code_once():
    torch.manual_seed(0)
    frames, table, codes = torch.randn(5, 4), torch.randn(7, 4), torch.tensor([0, 6, 2, 2, 3])
    logits = torch.cosine_similarity(frames[:, None], table[None], dim=2) / 0.1
    expected = code_cross_entropy(logits[None], codes[:, None]) / 5
    assert naive_cross_entropy(frames, table, codes, 0.1).item() == pytest.approx(expected.item(), rel=1e-5)


def test_operations_are_those_torch_counts_in_the_forward_pass():
    model = build(SETTINGS)
    batch, mask = make_batch(model, SETTINGS, torch.device("cpu"))
    hubert, heads = NaiveHubert(model, "eager").hubert.eval(), model.heads
    with FlopCounterMode(display=False) as counter:  # of HubertModel, since it does not know oneDNN's operators
        masked = hubert(batch["audio"], mask_time_indices=mask).last_hidden_state[mask]
        nn.functional.linear(masked, heads["codes"].projection.weight)
        nn.functional.linear(masked, heads["cqt"].linear.weight)
        torch.bmm(torch.ones(8, len(masked), 16), heads["codes"].embedding.transpose(1, 2))
    assert 3 * counter.get_total_flops() == pytest.approx(count_operations(model, SETTINGS), rel=0.01)


@pytest.mark.process
@pytest.mark.slow
def test_report_as_json(bench):
    """With a variant that cannot run: cuDNN's attention has no CPU form."""
    variants = "hubert sdpa,ours sdpa cudnn,ours,ours checkpointed"
    code, out, error = bench(*SMALL, "--rounds", "1", "--json", "--only", variants)
    assert (code, error) == (0, "")
    (report,) = json.loads(out)
    assert report["settings"]["layout"] == "small" and report["settings"]["rounds"] == 1
    *_, failed, measured, _, _ = bench_step.as_table(report).splitlines()
    assert failed.startswith("ours sdpa cudnn") and "not measured: " in failed and "No viable backend" in failed
    assert measured.startswith("ours ") and "not measured" not in measured
    rows = report["variants"]
    assert list(rows.pop("ours sdpa cudnn")) == ["failed"]
    assert list(rows) == ["hubert sdpa", "ours", "ours checkpointed"]
    losses = [row["first_loss"] for row in rows.values()]
    assert max(losses) - min(losses) < 1e-3
    for row in rows.values():
        assert row["audio_seconds_per_second"] == pytest.approx(1.0 / row["seconds_a_step"])
        assert row["peak_bytes"] > 1e8
        rate = report["peak_operations_per_second"]
        assert row["share_of_peak"] == pytest.approx(report["operations_a_step"] / row["seconds_a_step"] / rate)
    ratios = report["ours_to_better_baseline"]
    assert ratios["speed"] == pytest.approx(rows["hubert sdpa"]["seconds_a_step"] / rows["ours"]["seconds_a_step"])
    assert ratios["memory"] == pytest.approx(rows["ours"]["peak_bytes"] / rows["hubert sdpa"]["peak_bytes"])
    *_, row = read_step(out)
    assert row["what"] == "step, small, fp32, 2 crops, ours checkpointed"
    assert row["result"] == f"{rows['ours checkpointed']['audio_seconds_per_second']:,.0f} audio seconds a second"
    failed = next(each for each in read_step(out) if "cudnn" in each["what"])
    assert failed["result"].startswith("not measured: ")
    assert ratios["memory"] < 1.0  # the expanded tables alone are larger than all of ours


@pytest.mark.process
@pytest.mark.slow
def test_the_command_prints_a_table(bench, monkeypatch):
    monkeypatch.setattr(subprocess, "run", forked_module)
    code, out, error = bench(*SMALL, "--rounds", "1", "--only", "ours")
    assert (code, error) == (0, "")
    *_, heading, row = out.splitlines()
    assert heading.split()[0] == "variant" and row.split()[0] == "ours"
    seconds, rate = map(float, row.split()[1:3])
    assert rate == pytest.approx(1.0 / seconds, rel=0.1)  # of two crops of 0.5 s; a table rounds


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--only", "theirs"], 2, "no variant 'theirs', only hubert eager, hubert sdpa"),
        (["--rounds", "0"], 2, "--rounds is 0, at least 1 is needed"),
        (["--batch", "1"], 2, "mert bench step: --batch: Input should be greater than or equal to 2 (got 1)\n"),
        (["--seconds", "0"], 2, "mert bench step: --seconds: Input should be greater than 0 (got 0.0)\n"),
    ],
)
def test_bad_usage(bench, arguments, code, words):
    assert bench(*arguments)[0] == code
    assert words in bench(*arguments)[2]


def test_help_tells_every_option_and_variant(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["mert", "bench", "step", "--help"])
    assert command_line.main() == 0
    text = capsys.readouterr().out
    options = [f"--{name}" for name in vars(bench_step.parse([]))]
    assert [option for option in options if option not in text] == []
    assert [name for name in VARIANTS if name not in text and "sdpa" not in name] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_without_a_device_is_one_line(bench):
    assert bench(*SMALL, "--device", "cuda") == (
        1,
        "",
        "error: device cuda: torch finds no CUDA device on this machine\n",
    )


@pytest.mark.gpu
@pytest.mark.process
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_measures_memory_and_share_of_peak(bench):
    code, out, _ = bench(*SMALL, "--device", "cuda", "--rounds", "1", "--json", "--only", "ours")
    row = json.loads(out)[0]["variants"]["ours"]
    assert code == 0 and 0 < row["share_of_peak"] < 1 and row["peak_bytes"] > 0


def test_variants_take_turns_and_a_failing_one_is_not_tried_again():
    order = []

    def measure(name: str) -> dict:
        order.append(name)
        if name == "broken":
            raise RuntimeError("no such kernel")
        return {"seconds": float(len(order))}

    results = take_turns(["first", "broken", "second"], 3, measure)
    assert order == ["first", "broken", "second", "first", "second", "first", "second"]
    assert results["broken"] == [{"failed": "no such kernel"}]
    assert median(results["first"], "seconds") == 4.0


@pytest.mark.process
def test_a_process_of_its_own_answers_or_says_why_not():
    with pytest.raises(RuntimeError, match="'nothing'"):
        in_own_process("mert_foundry.jobs.benchmarks.step_variant", SETTINGS.model_dump() | {"variant": "nothing"})


PEAKS = """
from mert_foundry.jobs.benchmarks.measurement import peak_memory
before = peak_memory()
block = b"x" * 200_000_000
with_block = peak_memory()
del block
print(before, with_block, peak_memory())
"""


@pytest.mark.process
def test_peak_memory_keeps_the_largest():
    """In a process of its own: to go beyond the peak of this one may take gigabytes."""
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True, timeout=120)
    before, with_block, after = map(int, done.stdout.split())
    assert with_block >= before + 150_000_000
    assert after >= with_block - 2**21  # Linux counts in batches of pages

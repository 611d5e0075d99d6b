"""`mert pretrain` as a user runs it: killed, stopped, resumed in other worlds, refused, and what it leaves behind."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from audio_files import mert_environment
from pretrain_run import (
    CONFIG,
    CROP_SAMPLES,
    NO_DROPOUT,
    Ranks,
    arguments,
    checkpoint_names,
    final_weights,
    finish,
    held_back,
    kill_all,
    launcher_held_back,
    one_page,
    output_of,
    pretrain_here,
    ranks_of,
    read_metrics,
    read_steps,
    start,
    start_forked,
    wait_for_step,
    wait_until,
)
from shard_fixtures import write_set

from mert_foundry.jobs import demo, export, inspect
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.extraction.models import check_model
from mert_foundry.jobs.pretraining import target_values
from mert_foundry.jobs.pretraining.progress import TrainingReport
from mert_foundry.jobs.pretraining.run_description import read_description
from mert_foundry.jobs.probing.models import list_models
from mert_foundry.jobs.probing.settings import ProbeConfig
from mert_foundry.model.interop.load import load_encoder
from mert_foundry.model.runs.checkpoint import find_fault, list_checkpoints, load_average, load_config, load_state
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.stream.batch_stream import BatchStream, StreamConfig

# Under torchrun the launcher adds a traceback of its own, so a clear line of ours is looked for as a whole line.
STEPS = 80
LONG = f"trainer.schedule.total_steps={STEPS}"
FOR_EVER = "trainer.schedule.total_steps=100000"
FORBIDDEN = ["ray", "av", "encodec", "torchaudio", "nnAudio", "webdataset", "sklearn"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen examples to train on: no batch size here divides them."""
    folder = tmp_path_factory.mktemp("shards")
    write_set(folder, [3, 4, 6], valid_sizes=[3])
    return folder


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve steps on one rank; read only."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert pretrain_here(shards, out) == 0
    return out


def copy_of(run: Path, to: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(run, to, symlinks=True)


def text_of(out: Path, stream: str) -> str:
    """What a started process has written."""
    return output_of(out, stream).read_text()


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert read_metrics(ours) == read_metrics(theirs)
    first, second = final_weights(ours), final_weights(theirs)
    assert first.keys() == second.keys()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def refusal(capsys: pytest.CaptureFixture, shards: Path, out: Path, *changes: str) -> str:
    """The one line on stderr of a run that must fail."""
    capsys.readouterr()
    assert pretrain_here(shards, out, *changes) == 1
    output = capsys.readouterr()
    assert not output.out and output.err.count("\n") == 1, output
    return output.err


@pytest.mark.process
@pytest.mark.slow
def test_two_kills_of_all_ranks_and_resumes_change_no_bit(shards, tmp_path):
    # Standardised: rank 0 measures the scale of the values, the other takes it from the run's config.
    whole, killed, standardised = tmp_path / "whole", tmp_path / "killed", "objective.value_scale=standardised"
    assert Ranks(whole, [arguments(shards, whole, LONG, standardised)] * 2).finish() == [0, 0]
    # The checkpoint of step 10 waits for that of step 5.
    for steps, started in ((11, held_back), (16, launcher_held_back)):
        with started(2, shards, killed, LONG, standardised) as stderr:
            read_steps(stderr, steps)
        assert read_metrics(killed)[-1]["step"] < STEPS
    assert Ranks(killed, [arguments(shards, killed, LONG, standardised)] * 2).finish() == [0, 0]
    (resumed,) = re.findall(r"^resumed from step (\d+): ", text_of(killed, "stderr"), re.MULTILINE)
    assert 15 <= int(resumed) < STEPS  # both have written checkpoints: at step 5 or later, and 10 steps on or later
    assert [record["step"] for record in read_metrics(killed, "train")] == list(range(1, STEPS + 1))
    assert_same_run(killed, whole)


@pytest.mark.process
@pytest.mark.slow
def test_another_world_size_goes_on_with_the_very_batches(shards, tmp_path):
    # Dropout draws by rank and mixture takes its snippets from the rank's own rows: without them, losses must agree.
    changes = [LONG, *NO_DROPOUT, "trainer.mixture=null", "trainer.keep_checkpoints=100"]
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    assert pretrain_here(shards, alone, *changes) == 0
    resumed = []
    for ranks, steps in ((2, 11), (1, 16), (2, None)):
        if steps is None:
            assert Ranks(moved, [arguments(shards, moved, *changes)] * ranks).finish() == [0] * ranks
            told = text_of(moved, "stderr")
        else:
            with held_back(ranks, shards, moved, *changes) as stderr:
                told = read_steps(stderr, steps)
        resumed += [(ranks, int(number)) for number in re.findall(r"resumed from step (\d+)", told)]
    assert [ranks for ranks, _ in resumed] == [1, 2] and 5 <= resumed[0][1] < resumed[1][1] < STEPS

    reference = read_batches(shards, None, 1, STEPS)
    for ranks, step in resumed:
        position = load_state(moved / "checkpoints" / f"step_{step}").position
        rest = read_batches(shards, position, ranks, STEPS - step)
        for (keys, audio, after), (other_keys, other_audio, other_after) in zip(rest, reference[step:], strict=True):
            assert keys == other_keys and torch.equal(audio, other_audio) and after == other_after
    for ours, theirs, batch in zip(read_metrics(moved, "train"), read_metrics(alone, "train"), reference, strict=True):
        assert ours["position"] == theirs["position"] == batch[2]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def read_batches(shards, position, ranks, count):
    """Keys, audio and position after each of the next `count` global batches, put together from all ranks."""
    config = StreamConfig(**CONFIG["stream"])
    streams = [
        BatchStream(str(shards), load_index(str(shards)), "train", config, 0, rank, ranks, position)
        for rank in range(ranks)
    ]
    read = []
    for parts in islice(zip(*streams, strict=True), count):
        keys = [key for batch, _ in parts for key in batch["key"]]
        read.append((keys, torch.cat([batch["audio"] for batch, _ in parts]), parts[0][1]))
    for stream in streams:
        stream.close()
    return read


@pytest.mark.process
@pytest.mark.slow
def test_a_model_divided_by_torchrun_goes_on_whole(shards, tmp_path):
    changes = [*NO_DROPOUT, "trainer.mixture=null", "trainer.checkpoint_every=4", "trainer.keep_checkpoints=100"]
    alone, divided = tmp_path / "alone", tmp_path / "divided"
    assert pretrain_here(shards, alone, *changes) == 0
    assert finish(start_forked(2, shards, divided, *changes, "trainer.parallel=hsdp")) == 0
    assert checkpoint_names(divided) == ["step_12", "step_4", "step_8"]
    for step in (8, 12):
        shutil.rmtree(divided / "checkpoints" / f"step_{step}")
    assert len(read_metrics(divided)) == len(read_metrics(alone))
    assert pretrain_here(shards, divided, *changes) == 0
    for ours, theirs in zip(read_metrics(divided), read_metrics(alone), strict=True):
        assert (ours["kind"], ours["step"]) == (theirs["kind"], theirs["step"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.process
@pytest.mark.slow
def test_only_rank_zero_of_a_divided_model_reads_initial(shards, finished, tmp_path):
    """Rank 1 is told of a folder that is not there, and takes encoder and weights from rank 0."""
    out = tmp_path / "run"
    changes = ["trainer.parallel=fsdp", "trainer.schedule.total_steps=5"]
    initials = (finished, tmp_path / "gone")
    ranks = Ranks(out, [arguments(shards, out, *changes, f"initial={initial}") for initial in initials])
    assert ranks.finish() == [0, 0]
    assert len(read_metrics(out, "train")) == 5


@pytest.mark.process
@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_no_second_run_enters_the_folder(shards, tmp_path, capsys):
    rare = "trainer.checkpoint_every=1000000"
    out = tmp_path / "run"
    process = start(1, shards, out, FOR_EVER, rare)
    try:
        wait_for_step(process, out, 3)
        line = refusal(capsys, shards, out, rare)
        assert line == f"error: {out}: another process is training in this folder\n"
        process.send_signal(signal.SIGTERM)
        assert finish(process) == 1
    finally:
        kill_all(process)
    step = read_metrics(out, "train")[-1]["step"]
    assert checkpoint_names(out) == [f"step_{step}"]
    assert text_of(out, "stdout") == f"stopped after step {step}; checkpoint: {out}/checkpoints/step_{step}\n"
    stderr = text_of(out, "stderr")
    assert "Traceback" not in stderr
    assert stderr.endswith(f"{100_000 - step} steps are left; the same command goes on\n")

    # The schedule is that of a run for ever, so the end is set where it is one more step.
    assert pretrain_here(shards, out, f"trainer.schedule.total_steps={step + 1}") == 0
    output = capsys.readouterr()
    done, validation = output.out.splitlines()
    assert done == f"done after step {step + 1}; checkpoint: {out}/checkpoints/step_{step + 1}"
    assert validation.startswith("last validation: loss ")
    assert f"trainer.schedule.total_steps: 100000 became {step + 1}" in output.err
    assert f"resumed from step {step}: " in output.err


@pytest.mark.process
@pytest.mark.slow
def test_a_signal_while_a_checkpoint_is_written_waits_for_it_and_the_last_is_written(shards, tmp_path):
    """SIGUSR1, which SLURM is often told to send, as SIGTERM in the test above."""
    out = tmp_path / "run"
    wide = "encoder.transformer.feed_forward=50000"  # 77 MB to write
    process = start(1, shards, out, FOR_EVER, wide, "trainer.checkpoint_every=3", "trainer.keep_checkpoints=100")
    try:
        wait_until(process, lambda: (out / "checkpoints" / ".partial-step_3").exists())
        process.send_signal(signal.SIGUSR1)
        assert finish(process) == 1
    finally:
        kill_all(process)
    checkpoints = list_checkpoints(out / "checkpoints")
    assert [find_fault(path) for path in checkpoints] == [None] * len(checkpoints)
    assert not list((out / "checkpoints").glob(".partial-*"))
    assert checkpoints[0].name == f"step_{read_metrics(out, 'train')[-1]['step']}" and checkpoints[-1].name == "step_3"
    assert re.findall(r"^checkpoint: .*/(step_\d+)$", text_of(out, "stderr"), re.MULTILINE) == [
        path.name for path in reversed(checkpoints)
    ]


@pytest.mark.process
@pytest.mark.slow
def test_torchrun_starts_a_group_again_whose_rank_is_killed(shards, tmp_path):
    """Twice: the store that torchrun would share holds addresses of the group before."""
    out = tmp_path / "run"
    variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with one_page(out) as open_page:
        process = start_forked(2, shards, out, LONG, "trainer.validate_every=1000", restarts=2, variables=variables)
        try:
            gone: set[int] = set()
            with open_page() as page:
                for steps in (11, 16):
                    read_steps(page, steps)
                    ranks = {rank.pid for rank in ranks_of(process)}
                    assert len(ranks) == 2 and not ranks & gone
                    os.kill(max(ranks), signal.SIGKILL)
                    gone |= ranks
                assert page.read().count(b"resumed from step ") >= 1
            assert finish(process) == 0
        finally:
            kill_all(process)
    assert [record["step"] for record in read_metrics(out, "train")] == list(range(1, STEPS + 1))


@pytest.mark.process
@pytest.mark.slow
def test_ctrl_c_under_torchrun_writes_a_checkpoint(shards, tmp_path):
    out = tmp_path / "run"
    process = start(2, shards, out, FOR_EVER, "trainer.checkpoint_every=1000000")
    try:
        wait_for_step(process, out, 3)
        process.send_signal(signal.SIGINT)
        assert finish(process) == 1
    finally:
        kill_all(process)
    step = read_metrics(out, "train")[-1]["step"]
    assert checkpoint_names(out) == [f"step_{step}"]
    assert f"stopped after step {step}; checkpoint: {out}/checkpoints/step_{step}\n" in text_of(out, "stdout")


def test_a_stopped_run_goes_on_to_the_same_bits(shards, finished, tmp_path, monkeypatch):
    """SIGTERM at a step of the test's choice."""

    def stop_at_seven(self, record):
        if record["kind"] == "train" and record["step"] == 7:
            # Not by the kernel: one of the many libraries of this process leaves it a stale stack for signals.
            signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingReport, "__call__", stop_at_seven)
        assert pretrain_here(shards, out) == 1
    assert "step_8" in checkpoint_names(out)  # it is asked for after step 7, and all ranks agree on it in step 8
    assert pretrain_here(shards, out) == 0
    assert_same_run(out, finished)


def test_a_run_keeps_the_scales_of_its_values(shards, tmp_path, monkeypatch):
    out, whole, standardised = tmp_path / "run", tmp_path / "whole", "objective.value_scale=standardised"
    assert pretrain_here(shards, whole, standardised) == 0
    shutil.copytree(whole, out, symlinks=True)
    shutil.rmtree(out / "checkpoints" / "step_12")
    began = read_description(out).heads[1].scale
    monkeypatch.setattr(target_values, "MOST_EXAMPLES", 1)  # another sample, as other arithmetic would be
    assert pretrain_here(shards, out, standardised) == 0
    assert began is not None and read_description(out).heads[1].scale == began
    first, second = final_weights(out), final_weights(whole)
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_a_scaled_run_on_shards_of_other_teachers_is_refused_in_a_line(shards, tmp_path, capsys):
    out, standardised = tmp_path / "run", "objective.value_scale=standardised"
    assert pretrain_here(shards, out, standardised, "trainer.schedule.total_steps=5") == 0
    other = shutil.copytree(shards, tmp_path / "other")
    index = json.loads((other / "index.json").read_text())
    for target in index["targets"]:
        target["fingerprint"] = "0" * 64
    (other / "index.json").write_text(json.dumps(index))
    capsys.readouterr()
    assert pretrain_here(other, out, standardised, "trainer.schedule.total_steps=5") == 1
    assert "data.index_sha256 was " in capsys.readouterr().err


def test_averaged_weights_are_exported_probed_and_begun_from_by_name(shards, finished, tmp_path, capsys):
    out, averaged = tmp_path / "run", f"{tmp_path / 'run'}@ema"
    assert pretrain_here(shards, out, "trainer.ema=0.9") == 0
    average = load_average(out / "checkpoints" / "step_12")
    encoder = {name.removeprefix("encoder."): w for name, w in average.items() if name.startswith("encoder.")}
    found, _ = load_encoder(averaged)
    assert all(torch.equal(weight, encoder[name]) for name, weight in found.state_dict().items())
    assert not torch.equal(found.mask_embedding, load_encoder(out)[0].mask_embedding)

    assert run(export.main, [averaged, str(tmp_path / "exported")], export.__doc__) == 0
    assert torch.equal(load_encoder(tmp_path / "exported")[0].mask_embedding, found.mask_embedding)
    assert "exponential moving average" in (tmp_path / "exported" / "README.md").read_text()
    check_model(averaged)
    with pytest.raises(ValueError, match="step_12 has no averaged weights; its run had trainer.ema null"):
        check_model(f"{finished}@ema")
    probed = list_models(ProbeConfig(data=".", out=".", model=averaged, every_checkpoint=True, baselines=[]))
    assert [model.location for model in probed] == [f"{out}/checkpoints/step_{step}@ema" for step in (10, 12)]
    assert pretrain_here(shards, tmp_path / "next", f"initial={averaged}", "trainer.schedule.total_steps=5") == 0

    capsys.readouterr()
    for source, words in ((f"{finished}@ema", "trainer.ema null"), (f"{tmp_path}/exported@ema", "one set of weights")):
        assert run(export.main, [source, str(tmp_path / "none")], export.__doc__) != 0
        assert words in capsys.readouterr().err


def test_a_finished_run_is_left_alone(shards, finished, capsys):
    def state():
        files = [path for path in (finished / "checkpoints").rglob("*") if path.is_file()]
        contents = {path: path.read_bytes() for path in (finished / "metrics.jsonl", finished / "config.yaml")}
        return contents, {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}

    before = state()
    assert pretrain_here(shards, finished) == 0
    assert f"done after step 12; checkpoint: {finished}/checkpoints/step_12" in capsys.readouterr().out
    assert state() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seed=3", "seed was 0 in this run, it is 3 now"),
        ("encoder.transformer.layers=3", "encoder.transformer.layers was 2 in this run, it is 3 now"),
        ("objective.final_dim=4", "objective.final_dim was 8 in this run, it is 4 now"),
        ("objective.target_weights={cqt: 0.5}", "objective.target_weights.cqt was None in this run, it is 0.5 now"),
        ("stream.shuffle_window=1", "stream.shuffle_window was 2 in this run, it is 1 now"),
        ("train_split=valid", "train_split was 'train' in this run, it is 'valid' now"),
    ],
)
def test_what_makes_another_run_is_refused_in_the_same_folder(shards, finished, capsys, change, words):
    before = (finished / "config.yaml").read_bytes()
    line = refusal(capsys, shards, finished, change)
    assert line == f"error: {finished}/config.yaml: {words}; use another out folder\n"
    assert (finished / "config.yaml").read_bytes() == before


def test_activation_checkpointing_may_be_switched_on_in_the_middle_and_changes_no_bit(
    shards, finished, tmp_path, capsys
):
    run = copy_of(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step_12")
    keys = ["encoder.frontend.activation_checkpointing", "encoder.transformer.activation_checkpointing"]
    assert pretrain_here(shards, run, *(f"{key}=true" for key in keys)) == 0
    changes, _, resumed, *_ = capsys.readouterr().err.splitlines()
    assert changes == "; ".join([*(f"{key}: False became True" for key in keys), f"out: '{finished}' became '{run}'"])
    assert resumed.startswith("resumed from step 10: ")
    assert_same_run(run, finished)


def test_other_shards_are_refused_and_moved_ones_are_not(shards, finished, tmp_path, capsys):
    run = copy_of(finished, tmp_path / "run")
    other = tmp_path / "other"
    write_set(other, [3, 4, 5], valid_sizes=[3])
    before = (run / "config.yaml").read_bytes()
    line = refusal(capsys, other, run, "trainer.schedule.total_steps=13")
    digests = [load_index(str(folder)).digest() for folder in (shards, other)]
    assert f"data.index_sha256 was '{digests[0]}' in this run, it is '{digests[1]}' now" in line
    assert (run / "config.yaml").read_bytes() == before

    moved = copy_of(shards, tmp_path / "moved")
    assert pretrain_here(moved, run, "trainer.schedule.total_steps=13") == 0
    assert f"shards: '{shards}' became '{moved}'" in capsys.readouterr().err


def test_a_run_without_checkpoint_may_be_begun_anew_with_another_model(shards, tmp_path, capsys):
    out = tmp_path / "run"
    assert pretrain_here(shards, out, "stream.crop_samples=320") == 1
    assert "has no valid frame" in capsys.readouterr().err
    assert pretrain_here(shards, out, "encoder.transformer.layers=1", "trainer.schedule.total_steps=5") == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["config"]["encoder"]["transformer"]["layers"] == 1


def test_a_missing_or_empty_valid_split_is_refused_with_the_way_out(tmp_path, capsys):
    write_set(tmp_path / "none", [4])
    write_set(tmp_path / "empty", [4], valid_sizes=[0])
    for name in ("none", "empty"):
        line = refusal(capsys, tmp_path / name, tmp_path / "run")
        assert "no split 'valid' to validate on, only train; valid_split=null trains without validation" in line
    assert not (tmp_path / "run").exists()
    assert pretrain_here(tmp_path / "none", tmp_path / "run", "valid_split=null", "trainer.schedule.total_steps=5") == 0
    assert {record["kind"] for record in read_metrics(tmp_path / "run")} == {"train"}


def test_no_training_split_or_another_hop_is_refused(shards, tmp_path, capsys):
    line = refusal(capsys, shards, tmp_path / "run", "train_split=rehearsal")
    assert "no split 'rehearsal' to train on, only train, valid\n" in line
    strides = "encoder.frontend.strides=[5, 2, 2, 2, 2, 2, 1]"
    assert "the encoder's hop is 160 samples, no multiple of the shards' hop of 320" in refusal(
        capsys, shards, tmp_path / "run", strides
    )
    assert not (tmp_path / "run").exists()


def test_a_mask_span_of_half_a_frame_is_refused(shards, tmp_path, capsys):
    line = refusal(capsys, shards, tmp_path / "run", "trainer.mask.span_seconds=0.02")
    assert line == "error: mask.span_seconds 0.02 is 1.5 frames of 0.01333 s; whole ones are 0.01333 s and 0.02667 s\n"


def test_replicas_that_the_ranks_cannot_make_are_one_line(shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    replicas = ["trainer.parallel=hsdp", "trainer.replicas=3"]
    line = refusal(capsys, shards, tmp_path / "run", *replicas)
    assert line == "error: trainer.replicas is 3, which does not divide the 4 ranks\n"


def test_a_batch_the_ranks_cannot_share_is_one_line(shards, tmp_path, capsys, monkeypatch):
    """Rank 0 refuses before it joins the others, so torchrun shows the line once."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    line = refusal(capsys, shards, tmp_path / "run")
    assert line == "error: stream.batch_size 4 is not a multiple of the 3 ranks\n"
    assert not (tmp_path / "run").exists()


def test_bad_usage_has_exit_code_two(shards, tmp_path, capsys):
    assert pretrain_here(shards, tmp_path / "run", "trainer.log_evry=3") == 2
    assert "unknown key 'trainer.log_evry'; the nearest known key is 'log_every'" in capsys.readouterr().err


def test_a_torn_newest_checkpoint_is_passed_over_with_a_line(shards, finished, tmp_path, capsys):
    run = copy_of(finished, tmp_path / "run")
    weights = run / "checkpoints" / "step_12" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert pretrain_here(shards, run) == 0
    out_changed, _, *lines = capsys.readouterr().err.splitlines()
    assert out_changed == f"out: '{finished}' became '{run}'"
    assert re.fullmatch(rf"passed over: {weights.parent}: model.safetensors has SHA-256 \w+, .* says \w+", lines[0])
    assert lines[1] == f"resumed from step 10: {run}/checkpoints/step_10"
    assert_same_run(run, finished)


def test_the_newest_checkpoints_are_kept(finished):
    assert checkpoint_names(finished) == ["step_10", "step_12"]  # of 5, 10 and 12; keep_checkpoints is 2


def test_a_checkpoint_says_what_it_was_trained_on(shards, finished):
    index = load_index(str(shards))
    for path in (finished / "config.yaml", finished / "checkpoints" / "step_12" / "config.yaml"):
        description = yaml.safe_load(path.read_text())
        assert description["config"]["stream"]["crop_samples"] == CROP_SAMPLES
        assert description["data"]["index_sha256"] == index.digest()
        assert description["data"]["manifest_sha256"] == index.manifest_sha256
        assert description["data"]["teachers"]["codes"]["fingerprint"] == "a" * 64
        assert [head["name"] for head in description["heads"]] == ["codes", "cqt"]


def test_metrics_and_tensorboard_hold_what_is_promised(finished):
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    train = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in train] == list(range(1, 13))
    for record in records:
        assert record["loss"] > 0 and set(record["losses"]) == {"codes", "cqt", "feature_penalty"}
        assert set(record["explained"]) == {"codes", "cqt"}
        assert len(record["accuracy"]["codes"]) == 2 and all(0 <= share <= 1 for share in record["accuracy"]["codes"])
    for record in train:
        assert record["audio_seconds_per_second"] > 0 and 0 <= record["data_wait_share"] <= 1
        assert record["learning_rate"] >= 0 and record["gradient_norm"] > 0
    assert [record["step"] for record in records if record["kind"] == "validation"] == [0, 10, 12]
    events = list((finished / "tensorboard").glob("events.*"))
    content = b"".join(path.read_bytes() for path in events)
    for name in (b"train/loss", b"train/accuracy/codes/1", b"train/data_wait_share", b"validation/losses/cqt"):
        assert name in content
    assert b"train/explained/cqt" in content and b"validation/explained/codes" in content


def test_losses_stand_beside_the_best_constants_also_in_a_run_that_began_without(shards, finished, tmp_path, capsys):
    description = yaml.safe_load((finished / "config.yaml").read_text())
    trivial = description.pop("trivial")
    assert load_config(finished / "checkpoints" / "step_10")["trivial"] == trivial
    records = read_metrics(finished)
    for record in records:
        kind = record["kind"]
        expected = {name: 1 - record["losses"][name] / trivial[kind][name]["loss"] for name in ("codes", "cqt")}
        assert record["explained"] == pytest.approx(expected)

    older = copy_of(finished, tmp_path / "run")
    shutil.rmtree(older / "checkpoints" / "step_12")
    (older / "config.yaml").write_text(yaml.safe_dump(description))
    lines = [{name: value for name, value in record.items() if name != "explained"} for record in records]
    (older / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    capsys.readouterr()
    assert run(inspect.main, [str(older)], inspect.__doc__) == 0
    said = capsys.readouterr().out
    assert "what a trivial predictor reaches is not recorded" in said and "best constant" not in said

    assert pretrain_here(shards, older) == 0
    output = capsys.readouterr()
    assert "trivial" not in output.err and "beside each loss: the best constants of train (3 of 3 shards)" in output.err
    assert re.search(r"step 12 validation: .* nats a codebook \(unigram \d\.\d\d, -?[\d.]+% explained\)", output.err)
    assert re.search(
        r"^last validation: loss .*, cqt [\d.]+ \(mean [\d.]+, -?[\d.]+% explained\)", output.out, re.MULTILINE
    )
    assert yaml.safe_load((older / "config.yaml").read_text())["trivial"] == trivial
    gone_on = read_metrics(older)
    assert [record["step"] for record in gone_on if "explained" in record] == [11, 12, 12]
    assert gone_on[-3:] == records[-3:]
    assert run(inspect.main, [str(older)], inspect.__doc__) == 0
    assert re.search(r"\n  best constant +- +- ", capsys.readouterr().out)


def test_the_summary_of_the_demo_has_the_losses_before_and_after_beside_the_best_constants(
    shards, finished, monkeypatch
):
    monkeypatch.setattr(demo, "OUT", finished.parent)
    lines = demo.summary(load_index(str(shards)), 60.0).splitlines()
    found = [line for line in lines if "nats a codebook (unigram" in line and "(most frequent code" in line]
    assert [line.split(":")[0] for line in found] == ["  validation at step 0", "  validation at step 12"]


def truncate_shard(shards: Path) -> str:
    """Cut the only training tar within its last example; returns that example's key."""
    tar = shards / "train-000000.tar"
    record = json.loads((shards / "train-000000.json").read_text())
    last = record["members"][-1]
    tar.write_bytes(tar.read_bytes()[: min(offset for offset, _, _ in last["members"].values()) + 10])
    return last["key"]


def test_a_truncated_shard_stops_training_by_name(tmp_path, capsys):
    write_set(tmp_path / "shards", [8], valid_sizes=[2])
    key = truncate_shard(tmp_path / "shards")
    assert pretrain_here(tmp_path / "shards", tmp_path / "run") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"error: train-000000\.tar: {key}\.\S+: \d+ bytes expected .* the file is truncated", error)


@pytest.mark.process
@pytest.mark.slow
def test_a_truncated_shard_ends_both_ranks(tmp_path):
    """One rank meets the damage; the other must not wait for it for ever."""
    write_set(tmp_path / "shards", [8], valid_sizes=[2])
    key = truncate_shard(tmp_path / "shards")
    process = start_forked(2, tmp_path / "shards", tmp_path / "run")
    assert finish(process) == 1
    errors = [line for line in text_of(tmp_path / "run", "stderr").splitlines() if line.startswith("error: train-")]
    assert len(errors) == 1 and f"train-000000.tar: {key}." in errors[0] and "truncated" in errors[0]


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({missing}))  # importing one of them is an ImportError
{before}
from mert_foundry.jobs.command.line import main
sys.argv = ["mert", "pretrain", *sys.argv[1:]]
sys.exit(main())
"""


@pytest.mark.process
@pytest.mark.slow
def test_training_needs_no_teacher_ray_or_decoder(shards, tmp_path):
    def train(before: str) -> subprocess.CompletedProcess:
        script = WITHOUT.format(missing=FORBIDDEN, before=before)
        words = arguments(shards, tmp_path / "run", "trainer.schedule.total_steps=5")
        return subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True, env=mert_environment()
        )

    trained = train("")
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.startswith("done after step 5")
    assert "import of ray halted" in train("import ray").stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_rank_zero_shows_one_bar_that_counts_from_the_resume(finished, monkeypatch):
    record = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-2])
    assert record["kind"] == "train" and record["step"] == 12
    monkeypatch.setattr(sys, "stderr", Terminal())
    with TrainingReport(20, shown=False):
        pass
    assert sys.stderr.getvalue() == ""
    with TrainingReport(20, shown=True) as report:
        report({"kind": "resume", "step": 10, "path": "somewhere"})
        report(record)
        assert (report.bar.n, report.bar.format_dict["initial"]) == (12, 10)  # its rate is of two steps, not of twelve
    shown = sys.stderr.getvalue()
    assert "resumed from step 10: somewhere" in shown and "12/20" in shown
    assert f"loss {record['loss']:.3f}" in shown and "waiting for data" in shown

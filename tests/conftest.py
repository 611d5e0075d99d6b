"""Fixtures shared by the tests of the data side: real clips, a small synthetic corpus, a tiny codec."""

import importlib.util
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from urllib.request import Request, urlopen

import pytest
import torch
from audio_files import MUSIC, PROMPT, noise, tone, write_audio
from fault_proxy import FaultProxy
from forked import IMPORTED
from hypothesis import settings

from mert_foundry.jobs import inspect
from mert_foundry.jobs.cluster import worker_processes
from mert_foundry.jobs.command.line import run
from mert_foundry.pipeline.teachers.codec.weights import CodecSizes, build_codec, save_folder

# The same examples on every machine, and however long a loaded one takes for them.
settings.register_profile("mert", deadline=None, derandomize=True)
settings.load_profile("mert")

# As a labeller computes: another number of threads adds in another order, and may decide a near tie otherwise.
torch.set_num_threads(1)
# A CI system may start this in the background of a shell, where an interrupt is ignored and so by all children.
signal.signal(signal.SIGINT, signal.default_int_handler)
# One server for all that is forked, whoever starts it.
worker_processes.PRELOADED[:] = IMPORTED

# A GPU machine may lack these packages; without one, the modules that cannot be imported are not collected.
WHAT_NEEDS = {
    "ray": ["test_deadly_files.py", "test_label.py", "test_ray_nodes.py", "test_ray_tasks.py", "test_scan_on_ray.py"],
    "zarr": [
        "test_probe_beside_run.py",
        "test_probe_command.py",
        "test_probe_follow.py",
        "test_dialect.py",
        "test_extract.py",
        "test_extract_tables.py",
        "test_feature_store.py",
        "test_help.py",
        "test_inspect_features.py",
        "test_settings_page.py",
        "test_text_alone.py",
        "test_text_memory.py",
    ],
    "mir_eval": [
        "test_probing_beats.py",
        "test_probing_frames.py",
        "test_probing_heads.py",
        "test_probing_metrics.py",
        "test_probing_probe.py",
        "test_probing_separation.py",
    ],
    "pyloudnorm": ["test_configs.py", "test_help.py", "test_settings_page.py", "test_suite.py"],
}
MISSING = [package for package in WHAT_NEEDS if importlib.util.find_spec(package) is None]
collect_ignore = [module for package in MISSING for module in WHAT_NEEDS[package]]


def pytest_report_header() -> list[str]:
    return [f"not collected, since {package} is not installed: {', '.join(WHAT_NEEDS[package])}" for package in MISSING]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first, so that no worker is left with one of them at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_itemcollected(item: pytest.Item) -> None:
    if "bucket" in item.fixturenames:
        item.add_marker("process")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Only a test marked `process`, and the fixtures that it is the first to use, may start one."""
    if item.get_closest_marker("process"):
        return (yield)

    def refuse(*arguments: object, **settings: object) -> None:
        pytest.fail(f"{item.nodeid} starts a process: mark it with pytest.mark.process")

    def refuse_command(
        popen: subprocess.Popen, command: list[str] | str, *arguments: object, **settings: object
    ) -> None:
        # scikit-learn counts cores; matplotlib, which torchmetrics imports, looks for fonts on a machine where it is
        # new.
        if command[:1] not in (["lscpu"], ["fc-list"]):
            refuse()
        start_command(popen, command, *arguments, **settings)

    start_command = subprocess.Popen.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", refuse_command)
        patch.setattr(BaseProcess, "start", refuse)
        patch.setattr(os, "fork", refuse)
        return (yield)


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real music clips; read only."""
    return MUSIC


@pytest.fixture(scope="session")
def synthetic_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five tracks in three folders, and a silent, a short and a text file; read only."""
    root = tmp_path_factory.mktemp("synthetic")
    write_audio(root / "tones" / "low.wav", tone(220, 4))
    write_audio(root / "tones" / "high.flac", tone(1760, 5, 44_100), 44_100)
    write_audio(root / "noise" / "stereo.wav", noise(4, 48_000, seed=1, channels=2), 48_000)
    write_audio(root / "noise" / "mono.ogg", noise(4, 22_050, seed=2), 22_050)
    write_audio(root / "alone.wav", noise(3.5, seed=3))
    write_audio(root / "rest" / "silence.wav", 0 * tone(1, 4))
    write_audio(root / "rest" / "short.wav", tone(440, 1))
    (root / "rest" / "notes.txt").write_text("no audio here")
    return root


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Run a command, given by its module, in this process; gives its exit code, stdout and stderr."""

    def run_here(module: ModuleType, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        words = [str(argument) for argument in arguments]
        code = run(module.main, words, module.__doc__ or "", getattr(module, "CONFIG", None))
        return code, *capsys.readouterr()

    return run_here


@pytest.fixture
def say(run_here: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """Run `mert inspect` in this process; gives its exit code, stdout and stderr."""
    return partial(run_here, inspect)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory, tiny_codec: Path) -> Path:
    """A folder with audio/, manifest/ and shards/ of `labelled_set.py`; read only."""
    from labelled_set import label_manifest, write_manifest_folder

    folder = tmp_path_factory.mktemp("labelled")
    write_manifest_folder(folder / "audio", folder / "manifest")
    label_manifest(folder / "manifest", folder / "shards", tiny_codec)
    return folder


@pytest.fixture(scope="module")
def classes_sent_to_workers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Classes of the test's module go to Ray's workers with the tasks: workers cannot import the tests."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A Ray cluster of this machine for the whole session, for `address=`: to start one takes seconds.

    It says it has a GPU.
    """
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"OMP_NUM_THREADS": "1", **PROMPT}.items():
            patch.setenv(name, value)  # its workers inherit it
        node = {"num_cpus": 2, "num_gpus": 1, "include_dashboard": False, "no_monitor": True}  # nothing scales it
        cluster = Cluster(initialize_head=True, head_node_args=node)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket on a loopback S3 server; the environment of this process and its children points to it."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")).close()  # what it holds outlives a server
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("mert-test")
    yield "s3://mert-test"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def proxy(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Before the S3 server of `bucket`, whose client tries once only, so that short outages show; waits
    are short too.
    """
    import s3fs

    from mert_foundry.pipeline.storage import patience

    proxy = FaultProxy(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(patience, "LONGEST_WAIT", 0.3)
    s3fs.S3FileSystem.clear_instance_cache()
    yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def tiny_codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained codec of the EnCodec architecture with random codebooks, as a codec folder; quick, and of no use."""
    folder = tmp_path_factory.mktemp("codec") / "tiny"
    save_tiny_codec(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def other_codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_codec`, with other weights."""
    folder = tmp_path_factory.mktemp("codec") / "other"
    save_tiny_codec(folder, seed=1)
    return folder


def save_tiny_codec(folder: Path, seed: int) -> None:
    """Save a codec of 4 x 64 codes, scaled and with codebooks taken from its latents of a chirp in noise."""
    sizes = CodecSizes(filters=2, dimension=8, codebooks=4, codebook_size=64)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = build_codec(sizes).eval()
        time = torch.linspace(0, 4, 4 * 24_000)
        audio = torch.sin(2 * torch.pi * 500 * time**2) * time / 4 + 0.2 * torch.randn(len(time))
        rest = model.encoder(audio[None, None])[0].T
        mean, deviation = rest.mean(dim=0), rest.std(dim=0)
        last = model.encoder.model[-1].conv.conv
        last.bias.copy_((last.bias - mean) / deviation)
        last.weight_g /= deviation[:, None, None]
        rest = (rest - mean) / deviation
        for layer in model.quantizer.vq.layers:
            entries = rest[torch.randperm(len(rest))[: sizes.codebook_size]]
            layer._codebook.embed.copy_(entries + 0.1 * torch.randn_like(entries))  # no two alike, so no ties
            layer._codebook.inited.fill_(1)
            rest = rest - layer._codebook.embed[torch.cdist(rest, layer._codebook.embed).argmin(dim=1)]
    save_folder(model, sizes, folder)

"""Nodes of a Ray cluster that come and go while a job runs: real processes, on this machine."""

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from audio_files import PROMPT, noise, write_audio
from folders import make_manifest

from mert_foundry.jobs import label as label_job
from mert_foundry.jobs.cluster.ray_tasks import run_on_ray
from mert_foundry.pipeline.labelling.plan import SegmentConfig, plan_shards
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.teachers.cqt import CqtTeacherConfig
from mert_foundry.pipeline.teachers.registry import build_teachers

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.usefixtures("classes_sent_to_workers"),
]

CQT = {"kind": "cqt", "lowest_frequency": 500.0, "bins": 24, "bins_per_octave": 12}


@dataclass
class Errand:
    """A task that leaves a file with the node it was done on, once `folder/go` is there."""

    name: str
    folder: Path
    seconds: float = 1.0


class Courier:
    """Does errands, and notes each one that it begins."""

    def run(self, errand: Errand) -> str:
        import ray

        node = ray.get_runtime_context().get_node_id()
        with open(errand.folder / f"{errand.name}.begun", "a") as file:
            file.write(f"{node} {os.getpid()}\n")
        while not (errand.folder / "go").exists():
            time.sleep(0.05)
        (errand.folder / errand.name).write_text(node)
        return errand.name

    def seconds_done(self) -> float:
        return 0.0


@pytest.fixture(scope="module")
def cluster():
    """A head without a CPU; each test adds nodes, and leaves none."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"OMP_NUM_THREADS": "1", "RAY_health_check_period_ms": "500", **PROMPT}.items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


class Job:
    """`run_on_ray` in a thread: its failures or its error, and what it was given."""

    def __init__(self, cluster, tasks: list[Errand], wait: float):
        self.failures: dict[str, str] | None = None
        self.error: Exception | None = None
        self.results: list[str] = []
        self._thread = threading.Thread(target=self._run, args=(cluster.address, tasks, wait))
        self._thread.start()

    def _run(self, address: str, tasks: list[Errand], wait: float) -> None:
        try:
            self.failures = run_on_ray(
                tasks, Courier, (), address=address, device="cpu", actors=0, wait=wait,
                report=lambda seconds, note: None, finished=self.results.append,
            )  # fmt: skip
        except Exception as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


def wait_until(condition: Callable[[], object], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def asked_for(cluster) -> dict[str, float]:
    """What an autoscaler would read of resources that actors wait for."""
    from ray._raylet import GcsClient
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    state = get_cluster_resource_state(GcsClient(cluster.address))
    requests = [request for request in state.pending_resource_requests for _ in range(request.count)]
    return {key: value for each in requests for key, value in each.request.resources_bundle.items()}


def begun(folder: Path) -> dict[str, list[str]]:
    """The nodes on which each errand was begun."""
    return {path.stem: [line.split()[0] for line in path.read_text().splitlines()] for path in folder.glob("*.begun")}


def test_nodes_join_and_go_and_all_go(cluster, tmp_path: Path, capsys: pytest.CaptureFixture):
    """No node, one, two, then one of them is killed, then the other; with a new one the job ends, each
    task done once.
    """
    tasks = [Errand(f"errand{number}", tmp_path) for number in range(3)]
    job = Job(cluster, tasks, wait=60)
    wait_until(lambda: asked_for(cluster) == {"CPU": 1})
    first = cluster.add_node(num_cpus=1)
    wait_until(lambda: len(begun(tmp_path)) == 1)
    wait_until(lambda: asked_for(cluster) == {"CPU": 1})
    second = cluster.add_node(num_cpus=1)
    wait_until(lambda: len(begun(tmp_path)) == 2)
    assert {node for nodes in begun(tmp_path).values() for node in nodes} == {first.node_id, second.node_id}

    cluster.remove_node(first, allow_graceful=False)
    cluster.remove_node(second, allow_graceful=False)
    wait_until(lambda: "no worker is left: waiting for a node of the cluster" in capsys.readouterr().err)
    assert not list(tmp_path.glob("errand?"))
    (tmp_path / "go").touch()
    third = cluster.add_node(num_cpus=1)
    job.join()
    assert job.error is None and job.failures == {}, job.error
    assert sorted(job.results) == [task.name for task in tasks]
    assert {task.name: (tmp_path / task.name).read_text() for task in tasks} == {
        task.name: third.node_id for task in tasks
    }
    cluster.remove_node(third)


def test_without_a_node_the_job_ends_at_its_deadline(cluster, tmp_path: Path):
    job = Job(cluster, [Errand("errand", tmp_path)], wait=2)
    job.join()
    assert isinstance(job.error, RuntimeError) and "no worker for" in str(job.error)


def test_labelling_that_loses_a_node_writes_the_bytes_of_one_process(
    cluster, tmp_path: Path, run_here: Callable[..., tuple[int, str, str]]
):
    root, out = tmp_path / "audio", tmp_path / "shards"
    for number in range(8):
        write_audio(root / f"{number}.wav", noise(20, seed=number))
    manifest = make_manifest(root, tmp_path / "manifest", group_by="track", splits={})
    segments = {"segment_seconds": 2.0, "shortest_seconds": 1.0, "examples_per_shard": 10}
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    arguments = [f"manifest={manifest}", f"out={out}", f"teachers=[{json.dumps(CQT)}]", f"address={cluster.address}"]
    settings = [f"segments.{key}={value}" for key, value in segments.items()]

    def lose_a_node() -> None:
        wait_until(lambda: list(out.glob("*.json")))
        cluster.remove_node(nodes[0], allow_graceful=False)

    thread = threading.Thread(target=lose_a_node)
    thread.start()
    code, _, errors = run_here(label_job, *arguments, *settings)
    thread.join()
    assert code == 0, errors
    cluster.remove_node(nodes[1])
    teachers = build_teachers([CqtTeacherConfig(**CQT)], "cpu")
    tasks = plan_shards(load_manifest(str(manifest)), SegmentConfig(**segments))
    assert len(tasks) == 8
    for task in tasks:
        process_shard(task, teachers, str(root), str(tmp_path / "here"), {})
        assert (tmp_path / "here" / f"{task.name}.tar").read_bytes() == (out / f"{task.name}.tar").read_bytes()
    assert len(load_index(str(out)).shardlist) == 8

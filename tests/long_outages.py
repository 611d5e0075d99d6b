"""Training runs through a long outage of the object store, one of each kind: python tests/long_outages.py 600 refused
stalled 503

Each run of `mert pretrain` reads ranges by a proxy of its own (fault_proxy.py) from an S3 server on loopback. After
some steps the fault strikes, and lasts for so many seconds. Losses and positions of every step must be those of a run
from a local folder. The runs go on beside each other. A line for each tells how long it stood still, what it said, and
what of it is equal.
"""

import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fault_proxy import FAULTS, FaultProxy
from moto.server import ThreadedMotoServer
from pretrain_run import output_of, pretrain_here, read_metrics, start
from shard_fixtures import write_set

STEPS = 120
STRIKES_AFTER = 10  # steps
SETTINGS = [f"trainer.schedule.total_steps={STEPS}", "trainer.checkpoint_every=1000", "trainer.validate_every=40"]
MOST_BEYOND = 600.0  # seconds after the outage until a run must have ended


class Outage:
    """A run that meets one fault."""

    def __init__(self, fault: str, seconds: float, endpoint: str, root: Path):
        self.fault, self.seconds = fault, seconds
        self.proxy = FaultProxy(endpoint)
        self.out = root / fault
        self.struck_at = 0.0
        self.steps, self.changed_at, self.standstill = 0, time.monotonic(), 0.0
        patience = f"stream.patience={seconds + 120}"
        variables = {"AWS_ENDPOINT_URL": self.proxy.endpoint, "OMP_NUM_THREADS": "1"}
        self.process = start(1, "s3://mert-test/shards", self.out, *SETTINGS, patience, variables=variables)

    def watch(self) -> bool:
        """Let the fault strike when it is time; whether the run still goes on."""
        steps, now = len(read_metrics(self.out, "train")), time.monotonic()
        if steps > self.steps:
            self.steps, self.changed_at = steps, now
        if self.struck_at:
            self.standstill = max(self.standstill, now - self.changed_at)
        elif steps >= STRIKES_AFTER:
            self.struck_at = now
            self.proxy.strike(self.fault, self.seconds)
        return self.process.poll() is None

    def tell(self, expected: list[dict]) -> bool:
        """A line about the run; whether it did what it must."""
        found = read_metrics(self.out)
        said = output_of(self.out, "stderr").read_text().count("waiting for the ")
        same = found == expected and self.process.returncode == 0
        print(
            f"{self.fault:8} {self.seconds:g} s: struck at a step from {STRIKES_AFTER}, stood still for"
            f" {self.standstill:.0f} s, {self.proxy.met} requests met it, {said} lines of waiting, exit code"
            f" {self.process.returncode}, {sum(one == other for one, other in zip(found, expected))} of"
            f" {len(expected)} records equal: {'as undisturbed' if same else 'NOT as undisturbed'}",
            flush=True,
        )
        return same and self.standstill >= 0.9 * self.seconds


def main(seconds: float, faults: list[str]) -> int:
    """Run all kinds; 1 if one of them is not as it must be."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1", **dict.fromkeys(names, "test")}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        upload(root)
        assert pretrain_here(root / "shards", root / "undisturbed", *SETTINGS) == 0
        expected = read_metrics(root / "undisturbed")
        assert len([record for record in expected if record["kind"] == "train"]) == STEPS
        outages = [Outage(fault, seconds, endpoint, root) for fault in faults]
        try:
            wait(outages, seconds)
            results = [outage.tell(expected) for outage in outages]
        finally:
            for outage in outages:
                outage.process.kill()
                outage.process.wait()
    server.stop()
    return 0 if all(results) else 1


def upload(root: Path) -> None:
    """The same set in a local folder and in the store."""
    import s3fs

    write_set(root / "shards", [30, 40, 50, 60], valid_sizes=[4])
    store = s3fs.S3FileSystem()
    store.mkdir("mert-test")
    store.put(sorted(str(path) for path in (root / "shards").iterdir()), "mert-test/shards/")


def wait(outages: list[Outage], seconds: float) -> None:
    """Return when all runs have ended. Raises TimeoutExpired for one that does not."""
    begun = time.monotonic()
    while sum(outage.watch() for outage in outages):
        time.sleep(0.1)
        last = max(begun, *(outage.struck_at for outage in outages))
        if time.monotonic() > last + seconds + MOST_BEYOND:
            raise subprocess.TimeoutExpired("mert pretrain", time.monotonic() - begun)


if __name__ == "__main__":
    chosen = sys.argv[2:] or FAULTS
    assert set(chosen) <= set(FAULTS), f"kinds are {', '.join(FAULTS)}"
    sys.exit(main(float(sys.argv[1]), chosen))

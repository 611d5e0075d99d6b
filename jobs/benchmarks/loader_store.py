"""An object store for `mert bench loader --store`: moto's S3 on loopback, with a latency, that counts what it answers.

python -m mert_foundry.jobs.benchmarks.loader_store SECONDS_OF_LATENCY

It prints its address and serves until its standard input ends.
"""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import urlopen

from mert_foundry.jobs.benchmarks.measurement import Figures

COUNTS = "/mert-counts"
BUCKET = "mert-bench"


@contextmanager
def running_store(latency: float) -> Iterator[str]:
    """The address of a store in a process of its own, which answers after `latency` seconds."""
    command = [sys.executable, "-m", "mert_foundry.jobs.benchmarks.loader_store", str(latency)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        yield process.stdout.readline().strip()
        process.stdin.close()


def read_counts(address: str) -> Figures:
    """`requests` answered so far, and `bytes` of their bodies."""
    with urlopen(address + COUNTS) as answer:
        return json.load(answer)


class CountedStore:
    """A WSGI application before another one."""

    def __init__(self, application: Callable[..., Iterable[bytes]], latency: float):
        self._application = application
        self._latency = latency
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter(requests=0, bytes=0)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == COUNTS:
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._counts).encode()]
        time.sleep(self._latency)
        body = list(self._application(environ, start_response))
        with self._lock:
            self._counts["requests"] += 1
            self._counts["bytes"] += sum(map(len, body))
        return body


def serve(latency: float) -> None:
    """Serve until standard input ends."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open, as those of object stores do

        def log(self, type: str, message: str, *arguments: object) -> None:
            """Nothing."""

    application = CountedStore(DomainDispatcherApplication(create_backend_app), latency)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(float(sys.argv[1]))

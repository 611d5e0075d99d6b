"""An HTTP proxy on loopback before an object store, which can do what networks and stores do on bad days."""

import math
import socket
import struct
import threading
import time
from collections import Counter
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>made by a test</Message></Error>"
STATUSES = {
    "429": (429, "TooManyRequests"),
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "expired": (400, "ExpiredToken"),
    "forbidden": (403, "AccessDenied"),
    "missing": (404, "NoSuchKey"),
}
FAULTS = ["refused", "reset", "stalled", "short", "429", "500", "503", "expired"]
# Requests that meet a fault of `strike_briefly` at least: those refused cannot be counted, and one that is stalled may
# be the only one.
LEAST_MET = dict.fromkeys(FAULTS, 3) | {"refused": 0, "stalled": 1}


class FaultProxy:
    """Passes requests on to `endpoint`; while a fault lasts, requests for tars meet it, `most` of them; `met` counts
    them.

    `fetched` counts by name the requests for the content of objects, `signed` by the access key that signed them.
    """

    def __init__(self, endpoint: str):
        self.target = urlsplit(endpoint).netloc
        self.fault: str | None = None
        self.until = self.most = 0.0
        self.met = 0
        self.fetched: Counter[str] = Counter()
        self.signed: Counter[str] = Counter()
        self._listen(0)
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def strike(self, fault: str, seconds: float, most: float = math.inf) -> None:
        """Let a fault last for a while, from now on."""
        self.met, self.most, self.until, self.fault = 0, most, time.monotonic() + seconds, fault
        if fault == "refused":
            self.close()
            threading.Timer(seconds, self._listen, [self.port]).start()

    def strike_briefly(self, fault: str) -> None:
        """Let a fault last until three requests have met it, or where that cannot be counted or one request waits, for
        0.6 s.
        """
        by_time = LEAST_MET[fault] < 3
        self.strike(fault, 0.6 if by_time else 600.0, math.inf if by_time else 3)

    def current(self, path: str) -> str | None:
        """The fault that a request for `path` meets now."""
        return self.fault if time.monotonic() < self.until and self.met < self.most and ".tar" in path else None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _listen(self, port: int) -> None:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command == "GET":
            self.proxy.fetched[self.path.split("?")[0].rsplit("/", 1)[-1]] += 1
            self.proxy.signed[self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]] += 1
        fault = self.proxy.current(self.path)
        if fault is not None:
            self.proxy.met += 1
        if fault in STATUSES:
            status, code = STATUSES[fault]
            return self._send(status, {}, ERROR.format(code=code).encode())
        if fault == "stalled":
            time.sleep(max(0.0, self.proxy.until - time.monotonic()))
        if fault in ("stalled", "reset", "refused"):
            return self._reset()
        status, headers, body = self._forward(sent)
        if fault == "short":
            self._send(status, headers, body[: len(body) // 2], length=len(body))
            return self._reset()
        self._send(status, headers, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def _forward(self, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection(self.proxy.target, timeout=30)
        connection.request(self.command, self.path, sent, dict(self.headers))
        response = connection.getresponse()
        headers, body = dict(response.getheaders()), response.read()
        connection.close()
        return response.status, headers, body

    def _send(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        told = headers.get("Content-Length", headers.get("content-length")) if self.command == "HEAD" else None
        self.send_header("Content-Length", told or str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def _reset(self) -> None:
        """End the connection by RST instead of FIN."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Nothing."""

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):  # the client has gone, or we have closed the connection
            self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            pass

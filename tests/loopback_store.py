"""A small S3 store on loopback for folders of very many objects: it lists them as fast as their names can be sent.

It answers what s3fs asks of a folder: ListObjectsV2 with prefix, delimiter and pages of 1,000, GET with a range, HEAD,
PUT, DELETE. An object is bytes, or a function that makes them when they are read. moto sorts all names for each page.
"""

import asyncio
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import unquote
from xml.sax.saxutils import escape

from aiohttp import web

PAGE = 1000


class LoopbackStore:
    """One bucket; `latency` in seconds before each answer. `requests` counts by kind: list, get, head, put, delete.

    `sizes` bytes by key; `contents` what was put, or a function of the key that makes the bytes of a GET.
    """

    def __init__(self, latency: float = 0.0):
        self.latency = latency
        self.sizes: dict[str, int] = {}
        self.contents: dict[str, bytes | Callable[[str], bytes]] = {}
        self.requests: Counter[str] = Counter()
        self._sorted: list[str] | None = None

    def add(self, key: str, size: int, content: bytes | Callable[[str], bytes]) -> None:
        """Put an object there without a request."""
        self.sizes[key], self.contents[key], self._sorted = size, content, None

    def names(self) -> list[str]:
        """All keys, sorted."""
        if self._sorted is None:
            self._sorted = sorted(self.sizes)
        return self._sorted

    async def answer(self, request: web.Request) -> web.Response:
        """Any request."""
        await asyncio.sleep(self.latency)
        _, _, key = unquote(request.raw_path.partition("?")[0]).lstrip("/").partition("/")
        if not key:
            self.requests["list"] += 1
            return self._list(request.query)
        self.requests[request.method.lower()] += 1
        if request.method == "PUT":
            content = await request.read()
            self.add(key, len(content), content)
            return web.Response(headers={"ETag": '"0"'})
        if request.method == "DELETE":
            self.sizes.pop(key, None)
            self.contents.pop(key, None)
            self._sorted = None
            return web.Response(status=204)
        if key not in self.sizes:
            return web.Response(
                status=404, text="<Error><Code>NoSuchKey</Code></Error>", content_type="application/xml"
            )
        return self._head(key) if request.method == "HEAD" else self._get(key, request.headers.get("Range"))

    def _head(self, key: str) -> web.Response:
        return web.Response(headers={"Content-Length": str(self.sizes[key]), "ETag": '"0"'})

    def _get(self, key: str, wanted: str | None) -> web.Response:
        stored = self.contents[key]
        content = stored if isinstance(stored, bytes) else stored(key)
        if wanted is None:
            return web.Response(body=content, headers={"ETag": '"0"'})
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last or len(content)) + 1]
        stated = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        return web.Response(status=206, body=part, headers={"Content-Range": stated, "ETag": '"0"'})

    def _list(self, query: web.Request.query) -> web.Response:  # type: ignore[valid-type]
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names, most = self.names(), min(PAGE, int(query.get("max-keys", PAGE)))
        position = bisect_left(names, query.get("continuation-token") or prefix)
        files, folders = [], []
        while position < len(names) and names[position].startswith(prefix) and len(files) + len(folders) < most:
            name = names[position]
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if found:
                folders.append(f"{prefix}{head}/")
                position = bisect_left(names, f"{prefix}{head}0")  # the character after the delimiter
            else:
                files.append(name)
                position += 1
        more = position < len(names) and names[position].startswith(prefix)
        return web.Response(
            text=self._page(files, folders, names[position] if more else ""), content_type="application/xml"
        )

    def _page(self, files: list[str], folders: list[str], following: str) -> str:
        rest = f"<NextContinuationToken>{escape(following)}</NextContinuationToken>" if following else ""
        rows = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;0&quot;</ETag>"  # noqa: E501
            f"<Size>{self.sizes[name]}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for name in files
        )
        prefixes = "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        state = f"<KeyCount>{len(files) + len(folders)}</KeyCount><IsTruncated>{'true' if following else 'false'}</IsTruncated>"  # noqa: E501
        space = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
        return f"<?xml version='1.0'?><ListBucketResult {space}>{state}{rest}{rows}{prefixes}</ListBucketResult>"

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The address of the store, served by a thread of this process."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        runner = asyncio.run_coroutine_threadsafe(self._start(), loop).result(30)
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(30)

    async def _start(self) -> web.AppRunner:
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

"""Ranges of one object to a file: of S3 by obstore, which takes less than half the CPU time of s3fs, of others by
fsspec.

Endpoint, region, credentials and whether requests are anonymous or paid for are those that fsspec was configured with.
"""

import os
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from fsspec import AbstractFileSystem
from fsspec.asyn import sync

from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.patience import EXPIRED

CHUNK_BYTES = 1 << 20  # as they come: memory for a whole range costs as much as receiving it
CONNECT_TIMEOUT, TIMEOUT = "10s", "60s"  # of a request, of which patience makes another
CREDENTIALS_LAST = timedelta(minutes=15)  # before they are asked for again; obstore asks 5 minutes earlier


class ObjectSource(Protocol):
    """An object of a store."""

    def size(self) -> int:
        """Its bytes. Raises what the store's client does."""

    def copy_range(self, start: int, end: int, target: int) -> int:
        """Write bytes [start, end) to their place in the open file `target` (a descriptor); how many there were."""


def open_source(location: str) -> ObjectSource:
    """The object at an fsspec URL."""
    filesystem, path = files.open_filesystem(location)
    if _is_plain_s3(filesystem):
        return S3Object(filesystem, path)
    return FsspecObject(filesystem, path)


class FsspecObject:
    """An object of any store."""

    def __init__(self, filesystem: AbstractFileSystem, path: str) -> None:
        self._filesystem = filesystem
        self._path = path

    def size(self) -> int:
        """Its bytes."""
        return self._filesystem.size(self._path)

    def copy_range(self, start: int, end: int, target: int) -> int:
        """Write a range to its place."""
        content = self._filesystem.cat_file(self._path, start=start, end=end)
        os.pwrite(target, content, start)
        return len(content)


class S3Object:
    """An object of S3, whose client is made as s3fs is configured."""

    def __init__(self, filesystem: Any, path: str) -> None:
        from obstore.store import S3Store

        bucket, _, self._key = path.partition("/")
        client = filesystem.s3.meta
        self._store = S3Store(
            bucket,
            endpoint=client.endpoint_url,
            region=client.region_name or "us-east-1",
            request_payer=filesystem.requester_pays,
            client_options={
                "connect_timeout": CONNECT_TIMEOUT,
                "timeout": TIMEOUT,
                "allow_http": client.endpoint_url.startswith("http:"),
            },
            retry_config={"max_retries": 0},
            **({"skip_signature": True} if filesystem.anon else {"credential_provider": _Credentials(filesystem)}),
        )

    def size(self) -> int:
        """Its bytes. Raises OSError."""
        import obstore

        try:
            return obstore.head(self._store, self._key)["size"]
        except Exception as error:
            raise _as_os_error(error) from error

    def copy_range(self, start: int, end: int, target: int) -> int:
        """Write a range to its place. Raises OSError."""
        import obstore

        position = start
        try:
            answer = obstore.get(self._store, self._key, options={"range": (start, end)})
            for chunk in answer.stream(min_chunk_size=CHUNK_BYTES):
                position += os.pwrite(target, chunk, position)
        except Exception as error:
            raise _as_os_error(error) from error
        return position - start


class _Credentials:
    """The credentials of s3fs, asked for again and again, since they may expire."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem

    def __call__(self) -> dict[str, Any]:
        key, secret, token = sync(self._filesystem.loop, self._find)
        expires = datetime.now(UTC) + CREDENTIALS_LAST
        return {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": expires}

    async def _find(self) -> tuple[str, str, str | None]:
        given = self._filesystem
        if given.key and given.secret:
            return given.key, given.secret, given.token
        credentials = await given.session.get_credentials()
        if credentials is None:
            raise PermissionError("no credentials for S3 were found")
        return tuple(await credentials.get_frozen_credentials())[:3]


def _is_plain_s3(filesystem: AbstractFileSystem) -> bool:
    """Whether it is S3 without settings that only s3fs knows, as of encryption or certificates."""
    if "s3" not in filesystem.protocol:
        return False
    special = filesystem.s3_additional_kwargs or filesystem.config_kwargs or filesystem.cache_regions
    return not special and not set(filesystem.client_kwargs) - {"endpoint_url", "region_name"}


def _as_os_error(error: Exception) -> Exception:
    """An error of obstore in one line, of the class that `Patience` knows."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    text = str(error).partition("\n\nDebug source")[0]
    if "PermanentRedirect" in text or "301 Moved" in text:
        return ValueError(f"the bucket is in another region than the one configured: {text}")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(text)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) and not any(code in text for code in EXPIRED):
        return PermissionError(text)
    return OSError(text)

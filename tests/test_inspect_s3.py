"""`mert inspect` on an S3 server: a summary fetches no tar, an example only its own bytes, a page its examples."""

import json

import pytest
from shard_fixtures import write_set

from mert_foundry.jobs import inspect
from mert_foundry.jobs.command.line import run
from mert_foundry.pipeline.shards.record import load_record

pytestmark = pytest.mark.s3


@pytest.fixture
def shards(bucket: str) -> str:
    """A shard set in a bucket."""
    write_set(f"{bucket}/shards", [30, 3], valid_sizes=[2])
    return f"{bucket}/shards"


def test_little_is_fetched(
    shards: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path
) -> None:
    import s3fs

    fetched: list[tuple[str, int]] = []
    cat_file = s3fs.S3FileSystem._cat_file

    async def counted(self, path, **options):
        content = await cat_file(self, path, **options)
        fetched.append((path, len(content)))
        return content

    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", counted)
    s3fs.S3FileSystem.clear_instance_cache()  # instances bind their methods
    assert run(inspect.main, [shards, "--json"], "") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["splits"]["train"]["examples"] == 33
    assert fetched and all(path.endswith(".json") for path, _ in fetched)

    entry = load_record(shards, "train-000000").members[4]
    fetched.clear()
    assert run(inspect.main, [shards, "--export", entry.key, str(tmp_path / "out")], "") == 0
    in_tars = sum(size for path, size in fetched if path.endswith(".tar"))
    assert in_tars == sum(size for _, size, _ in entry.members.values())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{entry.key}.{suffix}" for suffix in entry.members}

"""Texts below a URL: the same tokens as from data/raw, and a line for whatever can be wrong with them."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Project

from pipeline.plugin.registry import Registry

fsspec = pytest.importorskip("fsspec", reason="the extra remote is not installed")
Registry.load(REPOSITORY / "plugins", ["corpora"])
REMOTE = sys.modules["plugins.corpora.files.remote"]
FETCHING = sys.modules["plugins.corpora.files.fetching"]


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for temporary files that no other test uses."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a local S3 server."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A file system of an empty bucket `texts`. The address and credentials are in the environment."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    REMOTE.file_system.cache_clear()
    files = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    type(files).clear_instance_cache()
    files.mkdir("texts")
    yield files
    files.rm("texts", recursive=True)
    REMOTE.file_system.cache_clear()


def options(url: str, *more: str) -> list[str]:
    values = (f"url={url!r}", *more)
    return [part for value in values for part in ("--set", f"tokenize.corpus.files.{value}")]


def choose(project: Project, url: str) -> None:
    """Writes the URL into params.yaml, which `pipeline lock` reads."""
    path = project.root / "params.yaml"
    text = path.read_text().replace('url: ""', f"url: {url}", 1).replace("name: python_docs", "name: files", 1)
    path.write_text(text)


def tokens(project: Project) -> dict[str, bytes]:
    """The files of artifacts/tokens, without what records the params."""
    folder = project.root / "artifacts" / "tokens"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {name: data for name, data in files.items() if name not in ("manifest.json", "meta.json", "params.yaml")}


def upload(project: Project, put: Callable[[str, bytes], Any]) -> None:
    raw = project.root / "data" / "raw"
    for path in raw.rglob("*"):
        if path.is_file():
            put(path.relative_to(raw).as_posix(), path.read_bytes())


@pytest.fixture
def bucket(project: Project, s3: Any) -> Project:
    """A project whose texts are in the bucket, and recorded."""
    upload(project, lambda name, data: s3.pipe_file(f"texts/my/{name}", data))
    choose(project, "s3://texts/my")
    project.succeed("lock")
    return project


def fails(project: Project, *arguments: str) -> str:
    """The line of error of a command, which publishes nothing and leaves no temporary folder."""
    result = project.run(*arguments)
    assert result.code == 1
    assert not list(Path(tempfile.gettempdir()).glob("pipeline-*"))
    assert not (project.root / "artifacts" / "tokens").exists()
    (line,) = [line for line in result.err.splitlines() if line.startswith("error")]
    assert "pipeline-" not in line
    return line


def test_texts_of_every_form_give_the_same_tokens_as_in_data_raw(project: Project, s3: Any, tmp_path: Path) -> None:
    raw = project.root / "data" / "raw"
    (raw / "deep" / "er").mkdir(parents=True)
    (raw / "deep" / "er" / "lines.jsonl").write_text('{"text": "the river"}\n{"text": "runs"}\n')
    (raw / "deep" / "old.txt").write_bytes("Größe der Flüsse\n".encode("cp1252"))
    (raw / "deep.html").write_text("<p>a sea of <b>light</b>")
    (raw / "empty.txt").touch()
    (raw / "ignored.bin").write_bytes(b"\0")
    more = ('include=["**"]', "encodings={deep/old.txt: cp1252}")
    here = project.succeed("tokenize", *options("", *more))
    local = tokens(project)

    upload(project, lambda name, data: s3.pipe_file(f"texts/my/{name}", data))
    s3.pipe_file("texts/my/deep/", b"")  # some programs mark folders so
    s3.pipe_file("texts/mysteries/other.txt", b"not below my/")
    mount = tmp_path / "mount"
    raw.rename(mount)
    for url in ("s3://texts/my/", f"file://{mount}"):
        choose(project, url)
        project.succeed("lock")
        there = project.succeed("tokenize", *options(url, *more))
        assert tokens(project) == local
        assert [line for line in there.out.splitlines() if "left out" in line] == [
            line for line in here.out.splitlines() if "left out" in line
        ]
        (project.root / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())


def test_lock_writes_a_line_for_each_object_and_only_if_something_changed(bucket: Project, s3: Any) -> None:
    manifest = bucket.root / "data" / "remote.jsonl"
    head, *lines = map(json.loads, manifest.read_text().splitlines())
    assert head["url"] == "s3://texts/my"
    assert [each["name"] for each in lines] == [f"text-{number:02}.txt" for number in range(12)]
    assert "remote.jsonl" not in bucket.succeed("lock").out
    s3.pipe_file("texts/my/a.txt", b"a new text")
    assert "data/remote.jsonl written: 13 objects" in bucket.succeed("lock").out
    (bucket.root / "params.yaml").write_text(
        (bucket.root / "params.yaml").read_text().replace("s3://texts/my", '""')
    )
    assert "remote.jsonl removed" in bucket.succeed("lock").out
    assert not manifest.exists()


def test_lock_writes_nothing_if_the_server_does_not_list_the_texts(project: Project, tmp_path: Path) -> None:
    raw = project.root / "data" / "raw"
    raw.rename(tmp_path / "disk")
    raw.symlink_to(tmp_path / "disk")
    choose(project, f"file://{tmp_path}/gone")
    before = sorted(project.root.rglob("*"))
    assert "gone" in fails(project, "lock")
    assert sorted(project.root.rglob("*")) == before


@pytest.mark.parametrize("content", [b"the river", None, b"", b"the river runs to a sea" * 100])
def test_an_object_that_changed_after_lock_is_named(content: bytes | None, bucket: Project, s3: Any) -> None:
    if content is None:
        s3.rm("texts/my/text-05.txt")
    else:
        s3.pipe_file("texts/my/text-05.txt", content)
    error = fails(bucket, "tokenize", *options("s3://texts/my"))
    assert "s3://texts/my/text-05.txt" in error
    assert "pipeline lock" in error
    bucket.succeed("lock")
    bucket.succeed("tokenize", *options("s3://texts/my"))


def test_a_text_with_an_error_is_named_by_its_url(bucket: Project, s3: Any) -> None:
    s3.pipe_file("texts/my/text-03.txt", b"the river \xff runs")
    bucket.succeed("lock")
    error = fails(bucket, "tokenize", *options("s3://texts/my"))
    assert "s3://texts/my/text-03.txt is not UTF-8 at byte 10" in error


def test_what_is_not_recorded_is_refused(bucket: Project) -> None:
    assert "data/remote.jsonl lists s3://texts/my, not s3://texts/other" in fails(
        bucket, "tokenize", *options("s3://texts/other")
    )
    manifest = bucket.root / "data" / "remote.jsonl"
    whole = manifest.read_text()
    for content in (
        "",
        "{",
        "[]",
        whole[: len(whole) // 2],
        whole.rpartition("{")[0],
        whole.replace("size", "sise"),
    ):
        manifest.write_text(content)
        error = fails(bucket, "tokenize", *options("s3://texts/my"))
        assert "data/remote.jsonl" in error
        assert "pipeline lock" in error
    manifest.unlink()
    assert "data/remote.jsonl is missing" in fails(bucket, "tokenize", *options("s3://texts/my"))


def test_a_bucket_that_is_missing(project: Project, s3: Any) -> None:
    choose(project, "s3://nothing/here")
    error = fails(project, "lock")
    assert "s3://nothing/here" in error
    assert "bucket does not exist" in error


def test_an_empty_prefix(project: Project, s3: Any) -> None:
    choose(project, "s3://texts/nothing")
    assert "s3://texts/nothing holds nothing" in fails(project, "lock")
    s3.pipe_file("texts/nothing/a.bin", b"text")
    project.succeed("lock")
    assert "s3://texts/nothing holds no file that matches" in fails(
        project, "tokenize", *options("s3://texts/nothing")
    )


@pytest.mark.long  # s3fs tries for ten seconds
def test_no_network(project: Project, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        type(s3).clear_instance_cache()
        choose(project, "s3://texts/my")
        error = fails(project, "lock")
    assert "s3://texts/my cannot be read" in error
    assert "Could not connect" in error


def test_a_name_that_no_file_can_have(project: Project, s3: Any) -> None:
    for name in ("a//b.txt", "../b.txt"):
        s3.pipe_file(f"texts/my/{name}", b"text")
        choose(project, "s3://texts/my")
        project.succeed("lock")
        error = fails(project, "tokenize", *options("s3://texts/my"))
        assert f"s3://texts/my/{name}: no file can have this name" in error
        s3.rm(f"texts/my/{name}")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("bucket/prefix", "is not a URL"),
        ("s3://name:secret@host/x", "password"),
        ("nonsense://x", "nonsense"),
        ("gs://x/y", "gcsfs"),
        ("file:///no/such/folder", "file:///no/such/folder"),
    ],
)
def test_urls_that_cannot_be_read(url: str, words: str, project: Project) -> None:
    if words == "gcsfs" and find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    choose(project, url)
    error = fails(project, "lock")
    assert words in error
    assert "secret" not in error


def test_without_fsspec(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    REMOTE.file_system.cache_clear()
    choose(project, "s3://texts/my")
    assert "pip install -c constraints.txt -e '.[remote]'" in fails(project, "lock")


class Failing(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A server with one large text, whose connection breaks after some requests."""

    protocol = "failing"
    text = b"the river runs to a sea of light and stone. " * 1000
    requests = 0
    breaks_at = 0

    def find(self, path: str, **_: Any) -> dict[str, Any]:
        return {"texts/long.txt": self.info(path)}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.text), "type": "file", "etag": "1"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        type(self).requests += 1
        if self.requests == self.breaks_at:
            raise ConnectionResetError("Connection reset by peer")
        return self.text[start:end][: None if self.requests != -self.breaks_at else 100]


@pytest.mark.parametrize(
    ("breaks_at", "words"), [(3, "Connection reset by peer"), (-3, "100 bytes came instead of 1,000")]
)
def test_an_interrupted_fetch(
    breaks_at: int, words: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("failing", Failing, clobber=True)
    monkeypatch.setattr(FETCHING, "_BLOCK", 1000)
    choose(project, "failing://texts")
    project.succeed("lock")
    monkeypatch.setattr(Failing, "requests", 0)
    monkeypatch.setattr(Failing, "breaks_at", breaks_at)
    assert words in fails(project, "tokenize", *options("failing://texts"))
    monkeypatch.setattr(Failing, "breaks_at", 0)
    project.succeed("tokenize", *options("failing://texts"))

"""Tokenizing on a Dask cluster: the same result, also if a worker dies; or a line that says what is wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import as_completed
from functools import partial
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, Project
from sharding import contents, made_up, run_inline, with_low_limits

from pipeline.core.errors import DataError, PipelineError
from pipeline.tokenize.cluster import Identity, dask_cluster

pytest.importorskip("distributed", reason="the extra cluster is not installed")


class Cluster:
    """A scheduler and workers, each a process with one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.json"
        self._start("dask_scheduler", "--port", "0", "--host", "127.0.0.1", "--scheduler-file", str(file))
        while not file.exists() or not file.read_text():
            assert self._processes[0].poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        self.address = str(json.loads(file.read_text())["address"])

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests"), str(Path(__file__).parent)]),
            "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "60s",
        }
        with (self._folder / "log").open("ab") as log:
            command = [sys.executable, "-m", f"distributed.cli.{module}", *arguments, "--no-dashboard"]
            process = subprocess.Popen(command, cwd=self._folder, env=environment, stderr=log, stdout=log)
        self._processes.append(process)
        return process

    def worker(self) -> subprocess.Popen[bytes]:
        return self._start("dask_worker", self.address, "--no-nanny", "--nthreads", "1")

    def end(self, process: subprocess.Popen[bytes] | None = None) -> None:
        """Kills a process, or all."""
        for each in [process] if process else self._processes:
            each.kill()
            each.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    cluster.worker()
    yield cluster
    cluster.end()


def same() -> Identity:
    return {"code": {"pipeline/made_up.py": "0"}, "versions": {"python": "3"}}


def by_folder(folder: Path) -> Identity:
    """Differs between processes that started in different folders."""
    return {**same(), "versions": {"python": "3" if Path.cwd() == folder else "2"}}


def square(number: int) -> int:
    return number * number


def refuse() -> None:
    raise DataError("the corpus holds no text")


def first_time_dies(folder: Path) -> int:
    """Kills its process, the first time."""
    try:
        (folder / "died").touch(exist_ok=False)
    except FileExistsError:
        return os.getpid()
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_calls_run_on_the_workers(cluster: Cluster, tmp_path: Path) -> None:
    with dask_cluster(cluster.address, tmp_path / "store", same) as executor:
        futures = [executor.submit(partial(square, number)) for number in range(10)]
        assert sorted(future.result() for future in as_completed(futures)) == [each**2 for each in range(10)]
        assert executor.submit(os.getpid).result() != os.getpid()
    assert not list((tmp_path / "store").iterdir())


def test_a_small_corpus_says_that_it_needs_no_cluster(project: Project) -> None:
    said = project.succeed("tokenize", "--set", "runtime.dask=tcp://localhost:1").out
    assert "note: runtime.dask is ignored: it is for files of 67.1 MB or more" in said
    assert "runtime.dask" not in project.succeed("tokenize").out


@pytest.mark.parametrize("killed", [False, True], ids=["", "a worker is killed"])
def test_tokens_of_a_cluster_are_those_of_one_process(
    killed: bool, cluster: Cluster, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        text = made_up(random.Random(number), 1000)
        (project.root / "data" / "raw" / f"text-{number:02}.txt").write_text(text)
    with_low_limits(monkeypatch)
    tokens = project.root / "artifacts" / "tokens"
    with monkeypatch.context() as inline:
        run_inline(inline)
        project.succeed("tokenize")
    here = contents(tokens)
    shutil.rmtree(project.root / ".resume")

    second = cluster.worker()
    killer = threading.Thread(target=kill_after_a_shard, args=(second, project.root / ".resume" / "tokens"))
    if killed:
        killer.start()
    result = project.succeed("tokenize", "--set", f"runtime.dask={cluster.address}")
    assert "shards are kept" in result.out
    if killed:
        killer.join()
        assert second.wait() == -signal.SIGKILL
    assert contents(tokens) == here
    cluster.end(second)

    run_inline(monkeypatch)
    assert ", 0 to make" in project.succeed("tokenize").out


def kill_after_a_shard(process: subprocess.Popen[bytes], store: Path) -> None:
    while not list(store.glob("*/*/shard.json")):
        time.sleep(0.01)
    process.kill()


def test_errors_of_texts_are_those_of_one_process(
    cluster: Cluster, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.root / "data" / "raw" / "text-03.txt").write_bytes(b"the river \xff")
    with_low_limits(monkeypatch)
    result = project.run("tokenize", "--set", f"runtime.dask={cluster.address}")
    assert result.code == 1
    assert "data/raw/text-03.txt is not UTF-8 at byte 10" in result.err
    assert result.err.count("\n") == 1


def test_errors_come_back_as_they_are(cluster: Cluster, tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"^the corpus holds no text$"),
        dask_cluster(cluster.address, tmp_path, same) as executor,
    ):
        executor.submit(refuse).result()


def test_the_work_of_a_worker_that_dies_is_done_by_another(cluster: Cluster, tmp_path: Path) -> None:
    second = cluster.worker()
    with dask_cluster(cluster.address, tmp_path, same) as executor:
        futures = [executor.submit(first_time_dies, tmp_path)]
        futures += [executor.submit(square, number) for number in range(10)]
        assert futures[0].result() in psutil.pids()
        assert [future.result() for future in futures[1:]] == [each**2 for each in range(10)]
    if second.poll() is None:
        cluster.end(second)
    cluster.worker()


def test_a_worker_with_other_code_or_packages_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    with (
        pytest.raises(PipelineError, match=r"the worker on \S+ has another version of python: start"),
        dask_cluster(cluster.address, tmp_path, partial(by_folder, Path.cwd())) as executor,
    ):
        executor.submit(square, 3).result()


def edited(file: Path) -> Identity:
    return {**same(), "code": {"plugins/corpora/mine.py": file.read_text()}}


def test_a_worker_that_runs_code_of_before_an_edit_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("1")
    with dask_cluster(cluster.address, tmp_path / "store", partial(edited, file)) as executor:
        assert executor.submit(square, 3).result() == 9
    file.write_text("2")
    with (
        pytest.raises(PipelineError, match=r"runs an earlier version of plugins/corpora/mine\.py: restart"),
        dask_cluster(cluster.address, tmp_path / "store", partial(edited, file)) as executor,
    ):
        executor.submit(square, 3).result()


def test_a_worker_that_does_not_see_the_project_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with dask_cluster(cluster.address, store, same) as executor:
        (here,) = store.iterdir()
        away = here.rename(tmp_path / "away")  # as in a folder of the same name on another machine
        with pytest.raises(PipelineError, match=rf"the worker on \S+ does not see {store}: put the project on"):
            executor.submit(square, 3).result()
        away.rename(here)


def test_a_scheduler_without_the_project(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("def call(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    with (
        pytest.raises(PipelineError, match="environment and the project of this process"),
        dask_cluster(cluster.address, tmp_path, same) as executor,
    ):
        executor.submit(only_here.call).result()


@pytest.mark.parametrize("address", ["nonsense", "foo://host:1", "tcp://127.0.0.1:1"])
def test_no_scheduler(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tokenize.cluster._SECONDS_TO_CONNECT", 1)
    message = r"^runtime.dask: [^\n]*: start `dask scheduler`"
    with pytest.raises(PipelineError, match=message), dask_cluster(address, tmp_path, same):
        pass


def test_a_scheduler_that_dies(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.worker()

    def lose() -> None:
        with dask_cluster(cluster.address, tmp_path / "store", same) as executor:
            assert executor.submit(square, 3).result() == 9
            future = executor.submit(time.sleep, 600)
            cluster.end()
            future.result()

    try:
        with pytest.raises(PipelineError, match=f"the scheduler at {cluster.address} is gone: run it again"):
            lose()
    finally:
        cluster.end()


def test_without_distributed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(PipelineError, match=r"pip install .*\[cluster\]"), dask_cluster("x", tmp_path, same):
        pass

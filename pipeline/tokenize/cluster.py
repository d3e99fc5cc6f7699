"""Runs the work of tokenize on the machines of a Dask cluster, whose scheduler `runtime.dask` names."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from pipeline.core.errors import PipelineError, describe_exception

_SECONDS_TO_CONNECT = 20
_AGAIN = "run it again; what is finished is kept"
_SAME = "start scheduler and workers with the environment and the project of this process"
_LOADED: dict[str, str] = {}
"""In a worker: the digests of the code that it has loaded, which it keeps until it ends."""

Identity = Mapping[str, Mapping[str, str]]
"""Digests of code and versions of packages, by section and name (see `code_identity`)."""


@dataclass(frozen=True)
class _Shared:
    """What a worker must share with this process: a folder with a file, whose name is unique, and the identity."""

    file: Path
    identify: Callable[[], Identity] = field(compare=False)
    identity: Identity = field(compare=False)


class _Cluster(Executor):
    def __init__(self, executor: Executor, shared: _Shared) -> None:
        self._executor, self._shared = executor, shared

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._executor.submit(_run, self._shared, call, *args, **kwargs)


@contextmanager
def dask_cluster(address: str, folder: Path, identify: Callable[[], Identity]) -> Iterator[Executor]:
    """The workers of a Dask cluster, including those that join later. If one dies, others do its work.

    Args:
        address: The address of the scheduler.
        folder: A folder that all workers must see.
        identify: Gives the identity of the process that calls it; all workers must have that of this one.

    Raises:
        PipelineError: there is no such cluster, or the work cannot be done there.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        install = "pip install -c constraints.txt -e '.[cluster]'"
        raise PipelineError(f"runtime.dask needs the package distributed ({error}): {install}") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # errors are raised as well
    try:
        connect: Any = Client  # without types
        client = connect(address, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise PipelineError(f"runtime.dask: {error}: start `dask scheduler`, or correct the address") from None
    folder.mkdir(parents=True, exist_ok=True)
    with client, NamedTemporaryFile(dir=folder, prefix=".shared-") as file:
        executor = client.get_executor(pure=False)
        try:
            yield _Cluster(executor, _Shared(Path(file.name), identify, identify()))
        except KilledWorker as error:
            raise PipelineError(f"runtime.dask: {describe_exception(error)} {_AGAIN}") from None
        except CancelledError:
            raise PipelineError(f"runtime.dask: the scheduler at {address} is gone: {_AGAIN}") from None
        except (ImportError, AttributeError, RuntimeError) as error:
            raise PipelineError(f"runtime.dask: {describe_exception(error)}: {_SAME}") from error
        finally:
            executor.shutdown(wait=False)


def _run(shared: _Shared, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    _check(shared)
    return call(*args, **kwargs)


@lru_cache(maxsize=1)
def _check(shared: _Shared) -> None:
    """In a worker: checks that it has what it must share."""
    worker = f"runtime.dask: the worker on {socket.gethostname()}"
    if not shared.file.exists():
        raise PipelineError(f"{worker} does not see {shared.file.parent}: put the project on a shared disk")
    identities = shared.identify(), shared.identity
    here, there = ({name: each for part in parts.values() for name, each in part.items()} for parts in identities)
    files = [name for part, names in identities[0].items() if part != "versions" for name in names]
    if changed := sorted(name for name in files if _LOADED.setdefault(name, here[name]) != here[name]):
        raise PipelineError(f"{worker} runs an earlier version of {', '.join(changed[:5])}: restart the workers")
    if other := sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name)):
        raise PipelineError(f"{worker} has another version of {', '.join(other[:5])}: {_SAME}")

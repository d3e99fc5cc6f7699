"""Runs the code of a GPU on a CPU."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_HOST_READS = {"_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal"}


class NoHostReads(TorchDispatchMode):
    """Fails at an operation for which the host would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.lstrip("_")
        assert func.overloadpacket.__name__ not in _HOST_READS, f"the host waits for {func}"
        if name.startswith("index_put") or name == "index":
            masks = [each for each in args[1] if each is not None and not each.dtype.is_signed]
            assert not masks, f"the host waits for a mask's number of entries in {func}"
        return func(*args, **(kwargs or {}))

"""Broken states in .resume, with manifests that agree: what `runs`, `clean` and `train` make of them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.core.files import write_manifest
from tests.fuzz.case import (
    RAW_DIGITS,
    WEIRD,
    Break,
    Case,
    both,
    case,
    damage_json,
    damaged,
    dump,
    mutated,
    set_json,
    write,
)  # fmt: skip


def _state(root: Path, number: int = -1) -> Path:
    """The folder of a state, the newest unless told otherwise."""
    return sorted(path for path in (root / ".resume").glob("*/0*") if path.is_dir())[number]


def in_state(change: Callable[[Path], object], incomplete: bool = False) -> Break:
    """Changes the newest state and its manifest; `incomplete`: first takes away those of the finished run."""

    def breaks(root: Path) -> None:
        while incomplete and tensors(_state(root) / "state.pth")["run"]["complete"]:
            shutil.rmtree(_state(root))
        change(_state(root))
        write_manifest(_state(root))

    return breaks


def tensors(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def change_tensors(path: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Changes what a file of tensors holds, below the folder that is given, or replaces it by what is returned."""

    def changes(folder: Path) -> None:
        value = tensors(folder / path)
        result = change(value)
        (folder / path).unlink()
        torch.save(value if result is None else result, folder / path)

    return changes


def _run(**values: Any) -> Callable[[Path], None]:
    return change_tensors("state.pth", lambda saved: saved["run"].update(values))


def _about(**values: Any) -> Break:
    return in_state(lambda folder: set_json("about.json", **values)(folder))


def _copied(name: str) -> Break:
    return lambda root: shutil.copytree(_state(root), _state(root).parent / name)


def filled(value: float, name: str = "head.weight") -> Callable[[dict[str, Any]], None]:
    """Fills a weight."""

    def fill(saved: dict[str, Any]) -> None:
        saved["model_state_dict"][name].fill_(value)

    return fill


_ABOUT = [None, float("nan"), float("inf"), -1, 2**63, "3", [], {}, True, 1e308, RAW_DIGITS, 0.5]
_IDENTITY = (
    "[]",
    "3",
    "null",
    '"x"',
    "{}",
    '{"params": 3}',
    "7" * 5000,
    "NaN",
    "[" * 99_999,
    "\x00",
    '{"params": []}',
)
FIXED: list[Case] = [
    *(
        case(f"a folder {name}", command, _copied(name))
        for name in ("000001.bak", "000009 copy", "9", "1e5", "000001.", "٣", "²", "00000000000000000000000001",
            "9" * 200)
        for command in ("train", "runs", "clean", "check")
    ),
    *(case(f"about.json step {value!r:.20}", command, _about(step=value)) for value in _ABOUT
      for command in ("runs", "clean --keep 1", "train")),
    *(case(f"about.json total_steps {value!r:.20}", "runs", _about(total_steps=value)) for value in _ABOUT),
    *(
        case(f"run.json {text[:20]!r}", command, lambda root, text=text: write("other/run.json",
            text)(root / ".resume"))
        for text in _IDENTITY for command in ("train", "runs")
    ),
    *(
        case(f"state's {key} {value!r:.30}", "train", in_state(_run(**{key: value}), incomplete=True),
            then=("evaluate",))
        for key, value in [
            ("step", float("nan")), ("step", -1), ("step", 10**6), ("step", "1"), ("step", None), ("step", 2**70),
            ("step", 1.5), ("step", True), ("history", None), ("history", [3]), ("history", {}), ("history", []),
            ("history", [{"step": "x"}]), ("history", [{"a\nb": 1.0}]), ("best_step", 99), ("best_loss", "x"),
            ("best_loss", float("nan")), ("best_weights", {}), ("best_weights", None), ("best_weights", {"x": 1}),
            ("runtime_config", None), ("runtime_config", {"threads": "x"}), ("runtime_config", {"threads": 10**6}),
            ("runtime_config", {"precision": "fp8"}), ("runtime_config", {"threads": -1}),
            ("runtime_config", {"compile": "x"}), ("runtime_config", {"device": 3}), ("runtime_config", []),
            ("memory", None), ("memory", []), ("samples", None),
            ("samples", [1]), ("skipped", 3), ("timing", [3]), ("seconds", "x"), ("seconds", float("nan")),
            ("complete", "yes"), ("complete", True), ("stop_reason", 3), ("future", 1), ("final", None),
            ("objective_nats", float("nan")), ("objective_tokens", "x"), ("objective_tokens", -1), ("grad_norm",
                None),
        ]
    ),
    *(
        case(f"a finished state's {key} {value!r:.30}", "train", in_state(_run(**{key: value})), then=("evaluate",))
        for key, value in [
            ("final", {}), ("final", None), ("final", {"last": 3, "best": {}, "record": []}), ("history", []),
            ("final", {"last": {"loss": float("nan")}, "best": {"loss": 1}, "peak_memory_bytes": 1, "record": {}}),
            ("samples", [object]), ("step", -5), ("step", float("inf")), ("best_step", None), ("history", [{}]),
            ("timing", None), ("seconds", -1), ("seconds", float("nan")), ("stop_reason", "x"), ("future", 1),
            ("best_weights", {}),
        ] if value != [object]
    ),
    *(
        case(note, "train", in_state(change_tensors("state.pth", change), incomplete=True), then=("evaluate",))
        for note, change in [
            ("NaN weights", filled(float("nan"))), ("infinite weights", filled(float("inf"))),
            ("no run", lambda saved: {}), ("a list", lambda saved: [1]), ("a tensor", lambda saved: torch.ones(3)),
            ("no weights", lambda saved: {**saved, "model_state_dict": None}), ("no random", lambda saved: {**saved,
                "random": None}),
            ("half of random", lambda saved: {**saved, "random": {}}),
            ("python's random", lambda saved: saved["random"].update(python=[3, [1, 2], None])),
            ("numpy's random", lambda saved: saved["random"].update(numpy=[torch.ones(2), 0, 0, 0.0])),
            ("torch's random", lambda saved: saved["random"].update(torch=torch.ones(2))),
            ("cuda's random", lambda saved: saved["random"].update(cuda=3)),
            ("the optimizer empty", lambda saved: saved.update(optimizer_state_dict={})),
            ("the optimizer's groups", lambda saved: saved["optimizer_state_dict"].update(param_groups=[])),
            ("the optimizer's moments", lambda saved: saved["optimizer_state_dict"].update(
                state={0: {"step": "x"}})),
            ("the optimizer's rate", lambda saved: saved["optimizer_state_dict"]["param_groups"][0].update(lr="x")),
            ("weights of another shape", lambda saved: saved["model_state_dict"].update(
                {"head.weight": torch.ones(3, 3)})),
            ("weights of text", lambda saved: saved["model_state_dict"].update({"head.weight": "x"})),
            ("weights of integers", lambda saved: saved["model_state_dict"].update(
                {"head.weight": saved["model_state_dict"]["head.weight"].long()})),
            ("complex weights", lambda saved: saved["model_state_dict"].update(
                {"head.weight": saved["model_state_dict"]["head.weight"] * 1j})),
            ("total_steps text", lambda saved: saved.update(total_steps="x")),
        ]
    ),
    case("a folder of shards", "train", in_state(lambda folder: (folder / "shards").mkdir(), incomplete=True)),
    case("shards of nothing", "train", in_state(
        lambda folder: write("shards/.metadata", "x")(folder), incomplete=True)),
    case("state.pth a folder", "train", in_state(
        lambda folder: ((folder / "state.pth").unlink(), (folder / "state.pth").mkdir()), incomplete=True)),
    case(".resume a file", "train", both(lambda root: shutil.rmtree(root / ".resume"), write(".resume", "x"))),
    case(".resume a file", "runs", both(lambda root: shutil.rmtree(root / ".resume"), write(".resume", "x"))),
]  # fmt: skip


def random_case(draw: random.Random, values: dict[str, Any]) -> Case:
    """A place in a state, in its about.json or in the run.json beside it set to anything."""
    kind, seed = draw.random(), draw.randrange(2**32)
    command = draw.choice(("train", "train", "runs", "clean --keep 1", "check"))
    if kind < 0.25:
        change, note = damage_json("about.json", draw)
        return case(f"about.json: {note}", command, in_state(change, incomplete=draw.random() < 0.5))
    if kind < 0.4:
        breaks = _damaged_record(seed)
        return case(f"run.json ({seed})", command, breaks)

    def change_one(saved: dict[str, Any]) -> object:
        again = random.Random(seed)
        part = again.choice(("run", "run", "run", "optimizer_state_dict", "random", "", "model_state_dict"))
        odd = [value for value in WEIRD if value != RAW_DIGITS] + [torch.ones(2), torch.tensor(float("nan"))]
        if not part:
            return mutated(saved, again, lambda: again.choice(odd))[0]
        saved[part] = mutated(saved[part], again, lambda: again.choice(odd))[0]
        return None

    return case(f"state.pth ({seed})", "train", in_state(
        change_tensors("state.pth", change_one), incomplete=draw.random() < 0.7), then=("evaluate",))  # fmt: skip


def _damaged_record(seed: int) -> Break:
    def breaks(root: Path) -> None:
        draw = random.Random(seed)
        path = _state(root).parent / "run.json"
        if draw.random() < 0.5:
            path = root / ".resume" / "other" / "run.json"
        content = damaged(b'{"params": {"a": 1}, "data": "x"}', draw) if draw.random() < 0.3 else dump(
            mutated({"params": {"train": {"seed": 1}}, "data": "x", "versions": {"torch": "2"}, "code": {"a": "b"}},
                    draw, lambda: draw.choice(WEIRD))[0])  # fmt: skip
        write(path.name, content)(path.parent)

    return breaks

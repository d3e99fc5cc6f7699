"""Broken params.yaml and `--set`: any value in any place, any byte, and what YAML itself allows."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.command_line.stages import stage_names
from tests.fuzz.case import (
    YAML_VALUES,
    Case,
    bomb,
    both,
    case,
    closed_pipe,
    damaged,
    edit,
    set_param,
    with_set,
    write,
)  # fmt: skip

_STAGES = stage_names()
_COMMANDS = (
    *(["check", *_STAGES] * 2), "generate the",
    "score data/raw/text-00.txt",
    "preset", "preset modern-tiny",
)  # fmt: skip
WEIGHT = 6
_WORK = {"amount", "batch_size", "micro_batch_size", "max_new_tokens", "ns_steps", "every", "windows", "vocab_size"}
"""Keys whose large values are only much work, or much memory, and so no fault of a stage: `check` must be quick."""
_SIZES = {"n_layers", "emb_dim", "context_length", "mlp_dim", "pad_vocab_to", "n_heads", "n_kv_heads"}


def _yaml(note: str, addition: str, command: str = "check") -> Case:
    more = {"want": "error", "names": "params.yaml"} if "preset" not in command else {}
    return case(note, command, edit("params.yaml", lambda text: text + addition), **more)


def _crlf(text: str) -> str:
    return text.replace("\n", "\r\n")


def _keeps_crlf(root: Path, out: str) -> str:
    content = (root / "params.yaml").read_bytes()
    return "" if content.count(b"\n") == content.count(b"\r\n") else "CRLF became LF"


FIXED: list[Case] = [
    *(_yaml("an alias bomb", bomb(), command) for command in (*_STAGES, "check", "generate the", "preset tiny")),
    *(_yaml("a self-reference", "zzz: &z {q: *z}\n", command) for command in (*_STAGES, "check", "preset tiny")),
    _yaml("a list in itself", "zzz: &z [*z]\n"),
    _yaml("a bomb of merge keys", "zzz: &a {x: 1}\n" + "".join(f"y{n}: &b{n} {{<<: *a}}\n" for n in range(300))),
    _yaml("deep nesting", f"zzz: {'[' * 5000}\n"),
    _yaml("a deep mapping", f"zzz: {'{a: ' * 3000}1{'}' * 3000}\n"),
    _yaml("a mapping as a key", "? {a: 1}\n: 2\n"),
    _yaml("a list as a key", "[1]: 2\n"),
    _yaml("a bomb as a key", bomb() + "? *zzz8\n: 2\n"),
    *(
        case(f"{key} refers to itself", command, set_param(key, "&z {q: *z}"))
        for key in ("train.optimizer.adamw", "tokenize.corpus.files", "train.optimizer.torch.options", "model")
        for command in ("train", "check")
    ),
    *(
        case(f"{key} is a bomb", "check", both(edit("params.yaml", lambda text: bomb() + text), set_param(key,
            "*zzz8")))
        for key in ("train.optimizer.torch.options", "train.seed", "evaluate.generation.prompts", "model")
    ),
    *(
        with_set(case(f"--set {key}: {note}", "check", want="error"), f"{key}={value}")
        for key in ("train.seed", "train.optimizer.torch.options", "model")
        for note, value in [
            ("a self-reference", "&z {q: *z}"),
            ("a bomb", "[&a [x,x,x,x,x,x,x,x,x]" + "".join(
                f", &{b} [{','.join(['*' + a] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)) + "]"),
            ("5,000 digits", "9" * 5000), ("NUL", "\x01"),
        ]
    ),
    *(
        case(note, command, edit("params.yaml", change), want="error", names="params.yaml")
        for command in ("check", "preset tiny")
        for note, change in [
            ("merge conflict markers", lambda text: "<<<<<<< HEAD\n" + text + "=======\n>>>>>>> x\n"),
            ("a NUL", lambda text: text + "\x00"), ("a tab", lambda text: text + "\tx: 1\n"),
        ]
    ),
    *(
        case(f"params.yaml in {encoding}", "check", lambda root, encoding=encoding: write(
            "params.yaml", (root / "params.yaml").read_text(encoding="utf-8").encode(encoding))(root))
        for encoding in ("utf-16", "utf-32", "utf-8-sig", "utf-16-le")
    ),
    case("CRLF stays under preset", "preset tiny", edit("params.yaml", _crlf), want="ok", after=_keeps_crlf),
    *(case(f"{command} | head", command, plant=closed_pipe, want="ok") for command in ("plugins", "runs", "check",
        "preset")),
    *(
        case(f"sampler {value}", command, both(
            set_param("evaluate.samplers.use", "[repetition_penalty]"),
            set_param("evaluate.samplers.repetition_penalty", f"{{penalty: {value}}}")), want=want)
        for command in ("generate the", "evaluate")
        for value, want in (("1e-300", ""), ("1e-40", ""), ("1e300", ""), ("5e-324", ""))
    ),
    *(
        case(f"{name} {value}", "generate the", both(
            set_param("evaluate.samplers.use", f"[{name}]"), set_param(f"evaluate.samplers.{name}", value)))
        for name, value in [
            ("temperature", "{value: 1e-300}"), ("temperature", "{value: 1e-45}"), ("temperature",
                "{value: 1e300}"),
            ("top_k", "{k: 9223372036854775807}"), ("top_k", f"{{k: 1{'0' * 30}}}"), ("top_p", "{p: 1e-300}"),
            ("min_p", "{p: 1.0}"), ("typical", "{p: 1e-300}"),
        ]
    ),
    *(
        with_set(case(f"max_new_tokens {value}", command), f"{key}={value}")
        for value in (2**63 - 1, 2**63, 10**30)
        for command, key in [("check", "evaluate.generation.max_new_tokens"),
                             ("check", "train.eval_callbacks.sample_text.max_new_tokens")]
    ),
    case("--tokens 2^63-1", f"generate the --tokens {2**63 - 1} --stop e", want=""),
    with_set(case("micro_batch_size 10^8", "train"), "train.batch_size=100000000",
        "train.micro_batch_size=100000000"),
    *(
        with_set(case(f"torch {name} {options}", command, both(
            set_param("train.optimizer.name", "torch"),
            set_param("train.optimizer.torch", f"{{class_name: {name}, lr: 1e-3, options: {options}}}"))))
        for command in ("train",)
        for name, options in [
            ("NAdam", "{capturable: true, foreach: true}"), ("AdamW", "{capturable: true}"),
            ("AdamW", "{fused: true, foreach: true}"), ("AdamW", "{betas: [0.9]}"), ("AdamW", "{betas: 1}"),
            ("AdamW", "{lr: [1]}"), ("LBFGS", "{}"), ("SparseAdam", "{}"), ("Optimizer", "{}"), ("ASGD",
                "{t0: abc}"),
            ("Rprop", "{etas: [2, 3]}"), ("Adagrad", "{lr_decay: .inf}"), ("AdamW", "{weight_decay: .nan}"),
            ("AdamW", "{eps: abc}"), ("SGD", "{momentum: abc}"), ("RMSprop", "{alpha: [1, 2]}"), ("Muon", "{}"),
            ("AdamW", "{maximize: abc}"), ("AdamW", "{params: 3}"), ("__class__", "{}"), ("AdamW",
                "{betas: [a, b]}"),
        ]
    ),
]  # fmt: skip


_FILES = ("/etc/passwd", "data", "/dev/zero", "artifacts/checkpoint/best.pth", "-", "", "nothing.yaml", "dvc.lock")
_WRONG = (
    "=",
    "train",
    "",
    "a." * 5000 + "b=1",
    "train.\x1b[31m=1",
    "train..seed=1",
    "=1",
    "train.seed",
    "train.seed=",
    "train.seed==1",
    " train.seed = 1",
    "train.seed=1\ntrain.seed=2",
    "tra\udcffin=1",
    "train=",
    "0=1",
)
_PATHS = (
    ".",
    "/",
    "..",
    "data",
    "data/raw",
    "data/weights",
    "data/weights/hf/../hf",
    "~",
    "https://x.y/z",
    "data/weights/hf/config.json",
    "data/none",
    "/dev/zero",
    "data/fifo",
    "/etc/passwd",
    "params.yaml",
)


def _path_case(draw: random.Random) -> Case:
    """A path that leads nowhere, out of the project or to what never ends, or arguments that are no settings."""
    command = draw.choice(("check", "tokenize", "train", "evaluate"))
    if draw.random() < 0.3:
        return Case(f"--params {(file := draw.choice(_FILES))}", (command, "--params", file), want="error")
    if draw.random() < 0.3:
        return Case(f"--set {(text := draw.choice(_WRONG))[:40]!r}", (command, "--set", text))
    key, name = draw.choice(
        (
            ("train.init_from", ""),
            ("tokenize.tokenizer.file.path", "file"),
            ("tokenize.tokenizer.chat_template", ""),
        )
    )
    made = case(f"{key}: {(path := draw.choice(_PATHS))}", command, lambda root: os.mkfifo(root / "data" / "fifo"))
    return with_set(made, f"{key}={path}", *([f"tokenize.tokenizer.name={name}"] if name else []))


def random_case(draw: random.Random, values: dict[str, Any]) -> Case:
    """A value in the place of a key, in params.yaml or by `--set`; or a damaged line, or damaged bytes."""
    command = draw.choice(_COMMANDS)
    kind = draw.random()
    if kind < 0.12:
        seed = draw.randrange(2**32)
        return case(f"bytes ({seed})", command, lambda root: write(
            "params.yaml", damaged((root / "params.yaml").read_bytes(), random.Random(seed)))(root))  # fmt: skip
    if kind < 0.2:
        return _path_case(draw)
    if kind < 0.34:
        return _line_case(draw, command)
    key = draw.choice(list(keys(values)))
    value = draw.choice(YAML_VALUES)
    large = len(value) > 5 and any(digit in value for digit in "123456789")
    if key.split(".")[-1] in (_WORK | _SIZES) and (large or value in ("1e308", "1e400")):
        command = "check"
    if kind < 0.6 and command not in ("preset", "preset modern-tiny") and "\x00" not in value:
        return with_set(case(f"--set {key}={value[:40]}", command), f"{key}={value}")
    return case(f"{key}: {value[:40]}", command, set_param(key, value))


def _line_case(draw: random.Random, command: str) -> Case:
    """A line of params.yaml removed, doubled, indented otherwise, or one that does not belong there."""
    place, how = draw.randrange(150), draw.randrange(5)
    odd = draw.choice(["\tx: 1", "- a", "%YAML 9.9", "---", "...", "<<: {a: 1}", "<<: *x", "x: y: z", "? ", ": ",
                       "train: {}", "model:", "  ", "@", "`", "\ufeff", "\u2028", "&a", "!!map", "=======",
                       "a: 'b"])  # fmt: skip

    def change(text: str) -> str:
        lines = text.splitlines()
        at = place % len(lines)
        lines[at : at + 1] = [
            [], [lines[at]] * 2, [f"  {lines[at]}"], [lines[at].lstrip()], [odd, lines[at]],
        ][how]  # fmt: skip
        return "\n".join(lines) + "\n"

    return case(f"line {place}, way {how} {odd!r}", command, edit("params.yaml", change))


def keys(values: Any, path: str = "") -> Iterator[str]:
    """The dotted names of all keys."""
    for name, value in values.items() if isinstance(values, dict) else ():
        yield f"{path}{name}"
        yield from keys(value, f"{path}{name}.")

"""Plugins that raise anything, at import or at work, and that return anything; chosen or not."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tests.fuzz.case import Break, Case, both, case, edit, set_param, write

WEIGHT = 2
_HEAD = """import torch
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import ClassVar, Literal
from pipeline.plugin import *
from pipeline.plugin import hookimpl


class Own(BaseException):
    pass


class Net(torch.nn.Module):
    def __init__(self, shape, change=None):
        super().__init__()
        self.token_embedding = torch.nn.Embedding(shape.padded_vocab_size, shape.emb_dim)
        self.vocab_size, self.change = shape.vocab_size, change

    def forward(self, ids, cache=None):
        head = self.token_embedding.weight
        output = ModelOutput(self.token_embedding(ids), head, self.vocab_size)
        return self.change(output) if self.change else output

"""


@dataclass(frozen=True)
class _Kind:
    """How a component of a kind is written, chosen and used: class, method, arguments, a result that works."""

    base: str
    method: str
    arguments: str
    works: str
    chosen_by: str
    value: str
    command: str


_KINDS = {
    "losses": _Kind(
        "Loss", "__call__", "output, targets",
        "output.cross_entropy(targets)",
        "train.loss.name", "fuzzed", "train",
    ),
    "optimizers": _Kind(
        "Optimizer", "build", "named_parameters",
        "torch.optim.SGD([p for _, p in named_parameters], lr=0.1)",
        "train.optimizer.name", "fuzzed", "train",
    ),
    "models": _Kind(
        "Model", "build", "shape",
        "Net(shape)",
        "model.name", "fuzzed", "train",
    ),
    "schedules": _Kind(
        "Schedule", "__call__", "step, steps, warmup",
        "1.0",
        "train.schedule.name", "fuzzed", "train",
    ),
    "batch_samplers": _Kind(
        "BatchSampler", "offset", "sample, seed, index",
        "index.text.in_order(sample, seed)",
        "train.batch_sampler.name", "fuzzed", "train",
    ),
    "metrics": _Kind(
        "Metric", "result", "sums",
        "{'a': sums['n']}",
        "evaluate.metrics.use", "[fuzzed]", "evaluate",
    ),
    "eval_callbacks": _Kind(
        "EvalCallback", "on_evaluation", "event",
        "{}",
        "train.eval_callbacks.use", "[fuzzed]", "train",
    ),
    "samplers": _Kind(
        "Sampler", "__call__", "logits, tokens",
        "logits",
        "evaluate.samplers.use", "[fuzzed]", "generate the",
    ),
    "corpora": _Kind(
        "Corpus", "documents", "root",
        "iter([Document('a', 'the sea ' * 99), Document('b', 'light ' * 99)])",
        "tokenize.corpus.name", "fuzzed", "tokenize",
    ),
    "exporters": _Kind(
        "Exporter", "export", "source, folder",
        "(folder / 'x').write_text('x')",
        "export.formats.use", "[fuzzed]", "export",
    ),
}  # fmt: skip


def _listed(text: str) -> list[str]:
    """The pieces of Python in a text, of which each ends at a semicolon."""
    return [" ".join(each.split()) for each in text.split(" ;")]


_RAISED = _listed(r"""
    SystemExit(0) ; SystemExit(3) ; SystemExit('x') ; SystemExit() ; KeyError('x') ; Own('x') ;
    GeneratorExit() ; StopIteration() ; RuntimeError('x') ; MemoryError() ; OSError(28, 'x') ;
    BrokenPipeError() ; ValueError('a\nb') ; AssertionError() ; RecursionError() ;
    UnicodeDecodeError('utf-8', b'x', 0, 1, 'x') ; Exception('\x1b[31m') ;
    ExceptionGroup('x', [ValueError()]) ; TimeoutError() ; ImportError() ; ZeroDivisionError() ;
    SyntaxError('x') ; FileNotFoundError(2, 'x', 'y') ; NotImplementedError() ; EOFError() ;
    BaseExceptionGroup('x', [Own()])
""")
_RETURNED = {
    "losses": _listed(r"""
        None ; 1.0 ; torch.zeros(()) ; output.cross_entropy(targets).detach() ;
        output.cross_entropy(targets).sum() ; torch.zeros(targets.shape) ;
        output.cross_entropy(targets).long() ; output.logits ; [1.0] ; 'x' ;
        output.cross_entropy(targets)[:, :1] ; output.cross_entropy(targets) * float('nan') ; targets ;
        output.cross_entropy(targets) * 1j ; output.cross_entropy(targets).double() ;
        output.hidden.mean(-1).bool() ; output.cross_entropy(targets)[..., None] ;
        output.cross_entropy(targets).to('meta')
    """),
    "optimizers": _listed(r"""
        None ; 3 ; [] ; torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1) ; torch.optim.SGD ;
        named_parameters ; torch.optim.SGD([p for _, p in named_parameters], lr=float('nan')) ;
        type('O', (), {'param_groups': [], 'state': {}})() ;
        torch.optim.LBFGS([p for _, p in named_parameters]) ;
        torch.optim.SparseAdam([p for _, p in named_parameters]) ; torch.ones(3) ; 'x'
    """),
    "models": _listed(r"""
        None ; 3 ; 'x' ; Net ; torch.nn.Module() ; torch.nn.Linear(2, 2) ; torch.nn.Identity() ;
        Net(shape, lambda o: None) ; Net(shape, lambda o: o.hidden) ; Net(shape, lambda o: o.logits) ;
        Net(shape, lambda o: (o,)) ; Net(shape, lambda o: {'logits': o.logits}) ; Net(shape, lambda o: 'x') ;
        Net(shape, lambda o: ModelOutput(None, o.head_weight, o.vocab_size)) ;
        Net(shape, lambda o: ModelOutput(o.hidden, None, o.vocab_size)) ;
        Net(shape, lambda o: ModelOutput(o.hidden[:, :1], o.head_weight, o.vocab_size)) ;
        Net(shape, lambda o: ModelOutput(o.hidden[:1], o.head_weight, o.vocab_size)) ;
        Net(shape, lambda o: ModelOutput(o.hidden[..., :1], o.head_weight, o.vocab_size)) ;
        Net(shape, lambda o: ModelOutput(o.hidden, o.head_weight[:, :1], o.vocab_size)) ;
        Net(shape, lambda o: ModelOutput(o.hidden, o.head_weight[:3], o.vocab_size)) ;
        Net(shape, lambda o: ModelOutput(o.hidden, o.head_weight, 10**6)) ;
        Net(shape, lambda o: ModelOutput(o.hidden, o.head_weight, 3)) ;
        Net(shape, lambda o: ModelOutput(o.hidden, o.head_weight, -1)) ;
        Net(shape, lambda o: ModelOutput(o.hidden, o.head_weight, 'x')) ;
        Net(shape, lambda o: ModelOutput(o.hidden * float('nan'), o.head_weight, o.vocab_size)) ;
        Net(shape, lambda o: ModelOutput(o.hidden.detach(), o.head_weight.detach(), o.vocab_size)) ;
        Net(shape, lambda o: ModelOutput(o.hidden.long(), o.head_weight, o.vocab_size)) ;
        Net(shape, lambda o: ModelOutput(o.hidden.double(), o.head_weight, o.vocab_size)) ;
        Net(shape, lambda o: ModelOutput(o.hidden.to('meta'), o.head_weight, o.vocab_size)) ;
        Net(shape, lambda o: ModelOutput(o.hidden * 1j, o.head_weight, o.vocab_size)) ;
        Net(shape, lambda o: ModelOutput(o.hidden, o.head_weight, o.vocab_size, 'x')) ;
        Net(shape, lambda o: ModelOutput(o.hidden, o.head_weight, o.vocab_size, None)) ;
        Net(shape, lambda o: ModelOutput(o.hidden, o.head_weight, o.vocab_size, float('nan'))) ;
        Net(shape, lambda o: ModelOutput(o.hidden, o.head_weight, o.vocab_size, torch.ones(3)))
    """),
    "schedules": _listed(r"""
        None ; 'x' ; -1 ; -0.5 ; float('nan') ; float('inf') ; True ; 1j ; [1.0] ; (1.0,) ; torch.tensor(1.0) ;
        torch.ones(3) ; 10**400 ; 1e308 ; 2**63 ; lambda: 1.0
    """),
    "batch_samplers": _listed(r"""
        None ; 'x' ; -1 ; 10**12 ; 10**400 ; 1.5 ; 0.0 ; float('nan') ; True ; [0] ; (0, 1) ; torch.tensor(0) ;
        index ; index.tokens ; index.tokens - 1 ; 1j ; sample * 10**9
    """),
    "metrics": _listed(r"""
        None ; 3 ; [] ; sums ; {'a': None} ; {'a': 'x'} ; {'a': 10**400} ; {'a': float('nan')} ; {'a\nb': 1.0} ;
        {'a\tb': 1.0} ; {1: 1.0} ; {'': 1.0} ; {'loss': 9.0} ; {'a': torch.ones(2)} ; {'a': True} ; {'a': 1j} ;
        {'tokens': 1.0} ; {'perplexity': 1.0} ; {'\ud800': 1.0} ; {'a': torch.tensor(1.0)} ; {None: 1} ; 'x' ;
        {'a' * 100000: 1.0} ; {'a': float('inf')} ; {('a',): 1} ; {'a': 2**63} ; iter([]) ; sums['nothing']
    """),
    "eval_callbacks": _listed(r"""
        None ; 3 ; [] ; {'a': None} ; {'a': 'x'} ; {'a': 10**400} ; {'a': float('nan')} ; {'a\nb': 1.0} ;
        {'a\tb': 1.0} ; {1: 1.0} ; {'': 1.0} ; {'val.loss': 9.0} ; {'a': torch.ones(2)} ; {'a': True} ;
        {'a': 1j} ; {'step': 1.0} ; {'\ud800': 1.0} ; {'a': torch.tensor(1.0)} ; {None: 1} ; 'x' ;
        {'a' * 100000: 1.0} ; {'train.loss': float('inf')} ; {('a',): 1} ; {'a': 2**63} ; iter([])
    """),
    "samplers": _listed(r"""
        None ; logits.long() ; logits[:, :5] ; logits[0] ; logits[..., None] ; logits + float('inf') ;
        1.0 ; logits * float('nan') ; logits - float('inf') ; logits.bool() ; torch.zeros(1, 10**6) ;
        logits.double() ; [logits] ; logits.to('meta') ; logits * 1j ; logits.repeat(2, 1) ;
        logits.sum() ; 'x' ; tokens ; logits.half() ; logits.to_sparse() ;
        torch.nn.functional.pad(logits, (0, 9))
    """),
    "corpora": _listed(r"""
        None ; 3 ; [] ; iter([None]) ; iter(['x']) ; iter([Document(None, 'x')]) ;
        iter([Document('a', None)]) ; iter([Document('a', 3)]) ; iter([Document('a', [3])]) ;
        iter([Document('a', b'x')]) ; 'text' ; {} ; iter([Document('a', 'x', 'nope')]) ;
        iter([Document('a', 'x'), Document('a', 'x')]) ; iter([Document('a', 'x', 3)]) ;
        iter([Document('a\nb', 'the sea ' * 9)]) ; iter([Document('a', '\ud800')]) ;
        iter([Document('\ud800', 'the sea')]) ; iter([Document(3, 'the sea')]) ;
        iter([Document('a', [['x']])]) ; iter([Document('a', iter([None]))]) ;
        iter([Document('a', {'x': 1})]) ; iter([Document('', '')])
    """),
    "exporters": _listed(r"""
        None ; 3
    """),
}
_MAY_WORK = _listed(r"""
    output.cross_entropy(targets).double() ; logits.double() ; logits.half() ; {'a': True} ; {'a': 2**63} ;
    {'a': torch.tensor(1.0)} ; {'': 1.0} ; {'a' * 100000: 1.0} ; iter([Document('a', {'x': 1})]) ;
    iter([Document('a\nb', 'the sea ' * 9)]) ;
    Net(shape, lambda o: ModelOutput(o.hidden.double(), o.head_weight, o.vocab_size)) ;
    1e308 ; 2**63 ; True ; sums ; sums['nothing']
""")
_PLACES = ("import", "hook", "validator", "init", "work", "class")
_MISSHAPEN = {
    "a dataclass": "@dataclasses.dataclass\n",
    "a frozen dataclass": "@dataclasses.dataclass(frozen=True)\n",
}


def plugin(kind: str, body: str = "", point: str = "work", before: str = "", fields: str = "") -> str:
    """The source of a plugin whose component `fuzzed` runs `body` at a place, and otherwise works."""
    details = _KINDS[kind]
    at = {each: body if each == point else "pass" for each in _PLACES}
    done = f"return {details.works}" if kind != "exporters" else details.works
    more = {
        "exporters": "\n    def verify(self, source, folder):\n        return {'reader': 'x'}\n",
        "metrics": "\n    def update(self, sums, scores):\n        sums['n'] += len(scores.nats)\n",
    }.get(kind, "")
    return (
        f"{_HEAD}import dataclasses\nfrom pydantic import field_validator\n\n{at['import']}\n\n\n{before}"
        f'class Fuzzed({details.base}):\n    """A plugin."""\n\n    name: ClassVar[str] = "fuzzed"\n'
        "    number: int = 1\n"
        f"{fields}    {at['class']}\n\n"
        f"    @field_validator('number')\n    @classmethod\n    def _number(cls, value):\n"
        f"        {at['validator']}\n        return value\n\n"
        f"    def model_post_init(self, context):\n        {at['init']}\n\n"
        f"    def {details.method}(self, {details.arguments}):\n        {at['work']}\n        {done}\n{more}\n\n"
        f"@hookimpl\ndef register_{kind}():\n    {at['hook']}\n    return [Fuzzed]\n"
    )


def chosen(kind: str, source: str, options: str = "{number: 2}") -> Break:
    """Puts the plugin into the project, and chooses it."""
    key, value = _KINDS[kind].chosen_by, _KINDS[kind].value
    *above, section, _ = key.split(".")
    indent = "  " * len(above)

    def change(text: str) -> str:
        return text.replace(f"\n{indent}{section}:\n", f"\n{indent}{section}:\n{indent}  fuzzed: {options}\n", 1)

    return both(write(f"plugins/{kind}/fuzzed.py", source), set_param(key, value), edit("params.yaml", change))


def _raising(kind: str, raised: str, point: str) -> Case:
    source = plugin(kind, f"raise {raised}", point)
    return case(
        f"{kind}: {raised} at {point}",
        _KINDS[kind].command,
        chosen(kind, source),
        want="error",
        names="fuzzed",
    )


def _returning(kind: str, value: str) -> Case:
    want = "" if value in _MAY_WORK or kind == "exporters" else "error"
    return case(f"{kind}: {value}", _KINDS[kind].command, chosen(kind, plugin(kind, f"return {value}")), want=want,
                names="fuzzed" if want else "", then=("evaluate",) if kind == "eval_callbacks" else ())  # fmt: skip


def _step(body: str) -> str:
    """An optimizer whose step runs `body`."""
    before = f"class Steps(torch.optim.SGD):\n    def step(self, closure=None):\n        {body}\n\n\n"
    return plugin("optimizers", "return Steps([p for _, p in named_parameters], lr=0.1)", before=before)


_TYPES = (
    ("tuple[float, float]", "(0.9, 0.99)", "[0.8, 0.9]"), ("tuple[int, ...]", "(1,)", "[1, 2]"), ("set[int]", "{1}",
        "[1, 2]"),
    ("frozenset[str]", "frozenset()", "[a, b]"), ("Path", "Path('x')", "y"), ("list[int]", "[1]", "[2]"),
    ("dict[str, float]", "{}", "{a: 1.0}"), ("Literal['a', 'b']", "'a'", "b"), ("int | None", "None", "3"),
    ("float", "1.0", "2"), ("tuple[Path, ...]", "()", "[x]"), ("dict[str, tuple[int, int]]", "{}", "{a: [1, 2]}"),
    ("Colour", "Colour.red", "blue"), ("list[Colour]", "[]", "[blue]"), ("Path | None", "None", "x"), ("complex",
        "1j", "1"),
    ("bytes", "b''", "abc"), ("tuple[str, int] | None", "None", "[a, 1]"),
)  # fmt: skip
_ODD_TYPES = (
    ("date", "date(2020, 1, 1)"),
    ("timedelta", "timedelta(1)"),
    ("Decimal", "Decimal(1)"),
    ("UUID", "UUID(int=1)"),
    ("re.Pattern", "re.compile('a')"),
    ("range", "range(3)"),
    ("IPv4Address", "IPv4Address('1.1.1.1')"),
    ("set[tuple[int, int]]", "set()"),
    ("dict[int, float]", "{}"),
    ("dict[str, int]", "{}"),
    ("Literal[1, 2]", "1"),
    ("Literal[True]", "True"),
    ("list[list[int]]", "[]"),
    ("type[int]", "int"),
    ("Any", "None"),
    ("float", "1.0"),
    ("int", "'x'"),
    ("bool", "True"),
    ("str", "'x'"),
    ("SecretStr", "SecretStr('x')"),
    ("torch.dtype", "torch.float32"),
    ("Callable[[], int]", "int"),
    ("'Nope'", "1"),
    ("int", "Field(default=1, ge=5)"),
    ("complex", "1j"),
    ("int", "Field(default_factory=lambda: 1 / 0)"),
    ("int", "Field(default=1, alias='a b')"),
    ("bytes", "b''"),
)
_ODD_VALUES = (
    "x",
    "1",
    "1.5",
    ".nan",
    "1e999",
    "[]",
    "[1, 2]",
    "[[1, 2]]",
    "[[[1]]]",
    "{}",
    "{a: 1}",
    "{a: {b: 1}}",
    "{'1': 2.0}",
    "'('",
    "'1'",
    "true",
    "null",
    "2020-01-01",
    "'2020-02-30'",
    "18446744073709551615",
)
_ODD_IMPORTS = """import re
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from typing import Any
from uuid import UUID
from pydantic import Field, SecretStr


"""
_EFFECTS = (
    "import os; os.chdir('/')",
    "torch.set_default_dtype(torch.float64)",
    "torch.set_grad_enabled(False)",
    "import threading, time; threading.Thread(target=lambda: time.sleep(99)).start()",
    "f = lambda: f(); f()",
    "import os; os.environ.clear()",
    "torch.manual_seed(3)",
    "import random; random.seed(3)",
    "torch.set_num_threads(2)",
    "import sys; sys.setrecursionlimit(300)",
    "import sys; sys.path.clear()",
    "import sys; sys.argv.clear()",
    "import locale, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "import gc; gc.disable()",
)
_SOURCES = (
    "x = " + "[" * 3000 + "]" * 3000,
    "x = " + "+".join(["1"] * 40_000),
    "# -*- coding: nope -*-",
    "\ufeff\ufeff",
    "from plugins.losses import cross_entropy",
    "from . import nothing",
    "from .cross_entropy import *",
    "__all__ = 3",
    "__file__ = None",
    "__name__ = 3",
    "__doc__ = 3",
    "del Loss",
    "import fuzzed",
)
_COLOUR = "class Colour(Enum):\n    red = 'red'\n    blue = 'blue'\n\n\n"


def _typed(kind: str, annotation: str, default: str, value: str) -> Case:
    source = plugin(kind, before=_COLOUR, fields=f"    option: {annotation} = {default}\n")
    return case(f"{kind}: option: {annotation} = {value}", _KINDS[kind].command, chosen(kind, source,
        f"{{option: {value}}}"),
                want="ok" if annotation not in ("complex", "bytes") else "")  # fmt: skip


FIXED: list[Case] = [
    *(_raising(kind, raised, point) for kind in _KINDS for point in ("import", "work")
      for raised in ("SystemExit(0)", "SystemExit(3)", "Own('x')", "KeyError('x')")),
    *(_raising(kind, raised, point) for kind in ("losses", "samplers") for point in ("validator", "init", "hook",
        "class")
      for raised in ("SystemExit(0)", "Own('x')", "KeyError('x')", "RuntimeError('x')")),
    case("argparse at import", "train", chosen("losses", plugin(
        "losses", "import argparse; argparse.ArgumentParser().parse_args()", "import"))),
    *(case(f"losses: {note}", "train", chosen("losses", plugin("losses", before=before)), want="error",
        names="fuzzed")
      for note, before in _MISSHAPEN.items()),
    *(case(f"an optimizer's step: {body}", "train", chosen("optimizers", _step(body)), want="error", names="fuzzed")
      for body in ("raise SystemExit(0)", "raise RuntimeError('x')", "raise Own('x')", "raise KeyError('x')",
                   "import sys; sys.exit(3)", "raise MemoryError()")),
    *(_returning(kind, value) for kind in _RETURNED for value in _RETURNED[kind]),
    *(_typed("samplers", *each) for each in _TYPES),
    *(_typed("optimizers", *each) for each in _TYPES[:3]),
    *(
        case(f"a broken {kind} that nobody chose: {body}", command,
             write(f"plugins/{kind}/fuzzed.py", plugin(kind, body, "import")), want="ok")
        for kind in ("losses", "samplers", "corpora", "optimizers")
        for body in ("raise SystemExit(0)", "raise Own('x')", "import nowhere", "1 +")
        for command in (_KINDS[kind].command, "plugins")
    ),
    *(case(f"plugins check: {kind} {body}", f"plugins check plugins/{kind}/fuzzed.py",
           write(f"plugins/{kind}/fuzzed.py", plugin(kind, body)), want="error", names="fuzzed")
      for kind in _KINDS if kind not in ("corpora", "exporters")
      for body in ("raise SystemExit(0)", "raise Own('x')", "return None", "return 'x'")),
]  # fmt: skip


def random_case(draw: random.Random, values: dict[str, Any]) -> Case:
    """Any exception at any place, any value of another kind, damaged source; by any command."""
    kind, how = draw.choice([each for each in _KINDS if each != "exporters"] * 4 + ["exporters"]), draw.random()
    if how < 0.12:
        annotation, default = draw.choice(_ODD_TYPES)
        source = plugin(kind, before=_ODD_IMPORTS, fields=f"    option: {annotation} = {default}\n")
        value = draw.choice(_ODD_VALUES)
        made = case(f"{kind}: option: {annotation} = {default}, {value}", _KINDS[kind].command,
                    chosen(kind, source, f"{{option: {value}}}"))  # fmt: skip
    elif how < 0.2:
        effect = draw.choice(_EFFECTS)
        source = plugin(kind, effect, draw.choice(_PLACES))
        made = case(f"{kind}: {effect}", _KINDS[kind].command, chosen(kind, source))
    elif how < 0.24:
        line = draw.choice(_SOURCES)
        made = case(f"{kind}: {line[:40]}", _KINDS[kind].command, chosen(kind, f"{line}\n{plugin(kind)}"))
    elif how < 0.6:
        made = _raising(kind, draw.choice(_RAISED), draw.choice(_PLACES))
    elif how < 0.8:
        value = draw.choice([value for values in _RETURNED.values() for value in values])
        made = case(f"{kind}: {value}", _KINDS[kind].command, chosen(kind, plugin(kind, f"return {value}")))
    else:
        lines = plugin(kind).splitlines()
        at = draw.randrange(len(lines))
        lines[at : at + 1] = draw.choice(
            ([], [lines[at]] * 2, ["\x00"], ["  " + lines[at]], ["x" * 1000], ["("], ["é = ½"])
        )
        made = case(f"{kind}: line {at} damaged", _KINDS[kind].command, chosen(kind, "\n".join(lines) + "\n"))
    if draw.random() < 0.35:
        command = draw.choice(("plugins", f"plugins list {kind}", "plugins show fuzzed", "check",
                               f"plugins check plugins/{kind}/fuzzed.py"))  # fmt: skip
        return case(made.note, command, made.breaks)
    return made

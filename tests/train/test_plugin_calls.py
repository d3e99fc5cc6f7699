"""What losses, optimizers and eval callbacks raise or return that they must not: one line that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from small_run import REGISTRY, make_run

from pipeline.core.errors import PluginError
from pipeline.plugin.components import EvalCallback, EvaluationEvent, Loss, ModelOutput, Optimizer
from pipeline.train.loop import train
from pipeline.train.state import TrainState

HERE = Path(__file__).name


class SomeError(BaseException):
    """No Exception, and of two lines."""

    def __str__(self) -> str:
        return "first\nsecond"


class MuteError(Exception):
    """Cannot even be shown."""

    def __str__(self) -> str:
        raise SystemExit(0)


class Backward(torch.autograd.Function):
    """Leaves in its backward pass."""

    @staticmethod
    def forward(ctx: Any, nats: torch.Tensor) -> torch.Tensor:
        return nats.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> None:  # type: ignore[override]
        raise SystemExit(0)


def leave(error: BaseException) -> Any:
    raise error


RAISED: dict[str, tuple[BaseException, str]] = {
    "SystemExit": (SystemExit(0), "SystemExit: 0"),
    "KeyError": (KeyError("absent"), "KeyError: 'absent'"),
    "a BaseException": (SomeError(), "SomeError: first second"),
    "GeneratorExit": (GeneratorExit(), "GeneratorExit"),
    "StopIteration": (StopIteration(), "StopIteration"),
    "without text": (MuteError(), "MuteError: (no message"),
}
LOSSES: dict[str, tuple[Any, str]] = {
    "None": (lambda nats: None, "returned NoneType"),
    "detached": (lambda nats: nats.detach(), "without a gradient"),
    "of its own": (lambda nats: nats.detach().requires_grad_(), "no parameter of the model a gradient"),
    "whole numbers": (lambda nats: nats.long(), "torch.int64"),
    "complex": (lambda nats: nats.to(torch.complex64), "torch.complex64"),
    "elsewhere": (lambda nats: nats.to("meta"), "on meta"),
    "narrower": (lambda nats: nats[:, 1:], "returned [2, 7]"),
    "backward": (Backward.apply, "in its backward pass, raised SystemExit: 0"),
    "hook": (lambda nats: nats.register_hook(lambda _: leave(SomeError())) and nats, "SomeError: first second"),
}


class HalfAveraging(torch.optim.SGD):
    """An optimizer that can change to the weights that are evaluated, and not back."""

    def eval(self) -> None:
        """Nothing here."""


OPTIMIZERS: dict[str, tuple[Any, str]] = {
    "None": (lambda held: None, "must return a torch.optim.Optimizer, not NoneType"),
    "a class": (lambda held: torch.optim.SGD, "must return a torch.optim.Optimizer, not type"),
    "too few": (lambda held: torch.optim.SGD(held[1:], lr=0.1), "it holds 27, of which 27 are the model's"),
    "foreign": (
        lambda held: torch.optim.SGD([*held, torch.nn.Parameter(torch.zeros(2))], lr=0.1),
        "it holds 29, of which 28 are the model's",
    ),
    "tensor": (lambda held: torch.optim.SGD(held, lr=torch.tensor(0.1)), "needs a finite number as lr"),
    "nan": (lambda held: torch.optim.SGD(held, lr=float("nan")), "needs a finite number as lr"),
    "no way back": (lambda held: HalfAveraging(held, lr=0.1), "only one of train() and eval()"),
    "closure": (torch.optim.LBFGS, "raised TypeError: LBFGS.step()"),
    "on a GPU only": (
        lambda held: torch.optim.AdamW(held, capturable=True, foreach=True),
        "raised AssertionError: If capturable=True",
    ),
    "odd state": (lambda held: Odd(held, "state"), "its state_dict holds a PosixPath"),
    "no state": (lambda held: Odd(held, "none"), "state_dict must return a dict"),
    "odd rate": (lambda held: Odd(held, "rate"), "needs a finite number as lr"),
    "leaves": (lambda held: Odd(held, "leaves"), "raised SystemExit: 0"),
}
NUMBERS: dict[str, tuple[Any, str]] = {
    "None": (None, "must return a dict"),
    "too large": ({"mine": 10**400}, "not a finite number"),
    "far too large": ({"mine": 10**5000}, "not a finite number"),
    "infinite": ({"mine": float("-inf")}, "not a finite number"),
    "complex": ({"mine": 1j}, "'mine': 1j; it must be a number"),
    "tensor": ({"mine": torch.tensor(1.0)}, "it must be a number"),
    "bool": ({"mine": True}, "it must be a number"),
    "line break": ({"mi\nne": 1.0}, r"'mi\nne'"),
    "tab": ({"mi\tne": 1.0}, r"'mi\tne'"),
    "empty name": ({"": 1.0}, "named ''"),
    "surrogate": ({"\ud800": 1.0}, r"'\ud800'"),
    "reserved": ({"learning_rate": 1.0}, "already recorded"),
    "of the report": ({"tokens_per_sec": 1.0}, "already recorded"),
}
DONE: dict[str, tuple[Any, str]] = {
    "shows a number": (lambda event: event.show(5), "event.show with int"),
    "shows a surrogate": (lambda event: event.show("\ud800"), "UnicodeEncodeError"),
    "remembers itself": (lambda event: event.memory.update(me=event.memory), "RecursionError"),
    "remembers a gradient": (
        lambda event: event.memory.update(it=2 * torch.zeros(1, requires_grad=True)),
        "memory holds a Tensor",
    ),
    "generates nonsense": (lambda event: event.generate(5), "raised TypeError"),
}


class Odd(torch.optim.SGD):
    """Does one odd thing."""

    def __init__(self, held: Any, odd: str) -> None:
        super().__init__(held, lr=0.1)
        self.odd = odd

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.odd == "leaves":
            leave(SystemExit(0))
        if self.odd == "state":
            self.state[self.param_groups[0]["params"][0]]["where"] = Path("x")
        if self.odd == "rate":
            self.param_groups[0]["lr"] = "fast"

    def state_dict(self) -> Any:
        return None if self.odd == "none" else super().state_dict()


class OddLoss(Loss):
    """A loss that raises, or returns what it must not."""

    name: ClassVar[str] = "odd"
    case: str

    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        if self.case in RAISED:
            raise RAISED[self.case][0]
        nats: torch.Tensor = LOSSES[self.case][0](output.cross_entropy(targets))
        return nats


class OddOptimizer(Optimizer):
    """An optimizer that cannot be used."""

    name: ClassVar[str] = "odd"
    case: str

    def build(self, named_parameters: Any) -> torch.optim.Optimizer:
        built: torch.optim.Optimizer = OPTIMIZERS[self.case][0]([each for _, each in named_parameters])
        return built


class OddCallback(EvalCallback):
    """A callback that raises, or returns or does what it must not."""

    name: ClassVar[str] = "odd"
    case: str

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        if self.case in RAISED:
            raise RAISED[self.case][0]
        if self.case in DONE:
            DONE[self.case][0](event)
            return {}
        numbers: dict[str, float] = NUMBERS[self.case][0]
        return numbers


def assert_one_line(folder: Path, title: str, says: str, **changes: Any) -> None:
    with pytest.raises(PluginError) as error:
        train(make_run(folder, save_seconds=0, **changes), TrainState())
    message = str(error.value)
    assert "\n" not in message
    for part in (title, says, HERE):
        assert part in message


@pytest.mark.parametrize("case", [*RAISED, *LOSSES])
def test_a_loss_that_fails_is_one_line(tmp_path: Path, case: str) -> None:
    says = (RAISED | LOSSES)[case][1]
    assert_one_line(tmp_path, "the loss 'odd'", says, loss=OddLoss(case=case))


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_an_optimizer_that_fails_is_one_line(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = REGISTRY.build

    def chosen(plural: str, *rest: Any) -> Any:
        return OddOptimizer(case=case) if plural == "optimizers" else build(plural, *rest)

    monkeypatch.setattr(REGISTRY, "build", chosen)
    assert_one_line(tmp_path, "the optimizer 'odd'", OPTIMIZERS[case][1])


@pytest.mark.parametrize("case", [*RAISED, *NUMBERS, *DONE])
def test_a_callback_that_fails_is_one_line(tmp_path: Path, case: str) -> None:
    says = (RAISED | NUMBERS | DONE)[case][1]
    assert_one_line(tmp_path, "the eval callback 'odd'", says, callbacks=(OddCallback(case=case),))

"""Correctness on a GPU: the same small runs, on the GPU and on the CPU or once more, must agree."""

from __future__ import annotations

from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gpu.part import PASSED, Found, LeftOutError
from benchmarks.gpu.runs import assert_close, assert_lowered, sentences, small_run, trained


def losses(device: str) -> Found:
    """Losses of the same float32 steps on the GPU and on the CPU, with each model."""
    notes = []
    for name in ("gpt2", "modern", "llama"):
        here, there = (trained(small_run(each, f"model.name={name}"), 5) for each in (device, "cpu"))
        notes.append(f"{name}: {assert_close(here, there, 1e-3, name)}")
    return Found(PASSED, "; ".join(notes))


def resume(device: str) -> Found:
    """A run that is saved and resumed ends with the bits of one that is not, with dropout and torch's
    deterministic kernels; whether the default kernels repeat their bits is only reported."""
    import torch

    def bits(interrupted: bool) -> list[torch.Tensor]:
        from pipeline.distributed.ranks import Ranks
        from pipeline.train.loop import train_step
        from pipeline.train.state import TrainState

        with TemporaryDirectory() as folder:
            settings = ("model.dropout=0.1", "train.precision=bf16")
            run, state = small_run(device, *settings, folder=Path(folder)), TrainState()
            for step in range(6):
                if interrupted and step == 3:
                    run.saver.store.save(state.capture(run), Ranks())
                    run = small_run(device, *settings, "train.seed=7", folder=Path(folder))
                    run = small_run(device, *settings, folder=Path(folder))
                    saved = run.saver.store.load()
                    assert saved is not None, "no checkpoint was found"
                    state = TrainState.restore(saved, run)
                train_step(run, state)
            moments = [each for values in run.optimizer.state.values() for each in values.values()]
            return [each.detach().cpu() for each in (*run.model.parameters(), *moments)]

    def different() -> int:
        return sum(not torch.equal(one, two) for one, two in zip(bits(False), bits(True), strict=True))

    plain = different()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        exact = different()
    finally:
        torch.use_deterministic_algorithms(False)
    assert not exact, f"{exact} tensors differ after a resume, with deterministic kernels"
    return Found(PASSED, f"with deterministic kernels; with the default ones {plain or 'no'} tensors differ")


def optimizers(device: str) -> Found:
    """Each optimizer of the plugins lowers the loss."""
    from benchmarks.measure import ROOT
    from pipeline.plugin.registry import Registry

    notes, failed = [], []
    for name in Registry.load(ROOT / "plugins", ["optimizers"]).names("optimizers"):
        rate = [] if name == "muon" else [f"train.optimizer.{name}.lr={_RATES.get(name, 3e-3)}"]
        try:
            run = small_run(device, "train.grad_clip=0", f"train.optimizer.name={name}", *rate)
            notes.append(f"{name} {assert_lowered(trained(run, 20))}")
        except Exception as error:  # the others are still tried
            failed.append(f"{name}: {' '.join(str(error).split())[:120]}")
    assert not failed, "; ".join(failed)
    return Found(PASSED, "; ".join(notes))


_RATES = {"sgd": 0.3, "adafactor": 0.02}


def generation(device: str) -> Found:
    """Greedy tokens of a trained float32 model: on the GPU with and without its cache, and on the CPU."""
    import torch

    from pipeline.model.generate import Decoder, draw, generate

    run = small_run(device, "model.name=modern", "train.optimizer.name=muon")
    trained(run, 30)
    model = run.model.eval()
    prompt, count = torch.arange(3, 43, 5)[None], 100

    def cached(where: str) -> list[int]:
        return [int(each) for each in generate(model.to(where), prompt.to(where), count)]

    def computed_anew() -> list[int]:
        tokens = prompt.to(device)
        with torch.inference_mode():
            for _ in range(count):
                new = draw(Decoder(model, tokens).logits(), tokens, (), None)
                tokens = torch.cat([tokens, new[:, None]], dim=1)
        return [int(each) for each in tokens[0, prompt.shape[1] :]]

    found = {f"on {device}": cached(device), "without the cache": computed_anew(), "on the CPU": cached("cpu")}
    first = found[f"on {device}"]
    for name, tokens in found.items():
        same = sum(one == two for one, two in zip(first, tokens, strict=True))
        assert tokens == first, f"{name}: {count - same} of {count} tokens differ"
    return Found(PASSED, f"{count} tokens of {len(set(first))} kinds, on the CPU, on the GPU, and without a cache")


def document_mask(device: str) -> Found:
    """With `model.document_mask`: the losses of the CPU, and a document is computed as if no other were there."""
    import numpy as np
    import torch

    from pipeline.model.architecture import checked_forward

    mask = "model.document_mask=true"
    run = small_run(device, mask)
    note = assert_close(trained(run, 5), trained(small_run("cpu", mask), 5), 1e-3, "GPU and CPU")
    ids = torch.from_numpy(sentences()[: run.model.architecture.shape.context_length].astype(np.int64))[None]
    end = run.data.tokenizer.end_of_text
    after = int((ids[0] == end).nonzero()[0, 0]) + 1
    edited = ids.clone()
    edited[0, : after - 1] = 3
    with torch.no_grad():
        run.model.eval()
        both = [checked_forward(run.model, each.to(run.device)).hidden[0, after:] for each in (ids, edited)]
    difference = float((both[0] - both[1]).abs().max())
    assert difference == 0, f"an edit of another document changes hidden states by {difference:.1e}"
    return Found(PASSED, note)


def fp16(device: str) -> Found:
    """Training in float16 with a scaled loss learns as in float32."""
    half = trained(small_run(device, "train.precision=fp16"), 30)
    full = trained(small_run(device), 30)
    assert half != full, "the precision changes nothing"
    note = assert_lowered(half)
    return Found(PASSED, f"{note}; in fp32 {assert_close(half[-1:], full[-1:], 0.1, 'fp16 and fp32')}")


def recompute(device: str) -> Found:
    """Recomputing activations, with dropout, changes neither losses nor weights."""
    import torch

    found = []
    for value in ("false", "true"):
        run = small_run(device, "model.dropout=0.1", f"runtime.recompute={value}")
        found.append((trained(run, 5), [each.detach().cpu() for each in run.model.parameters()]))
    note = assert_close(found[0][0], found[1][0], 1e-5, "recomputed and not")
    equal = all(torch.equal(one, two) for one, two in zip(found[0][1], found[1][1], strict=True))
    return Found(PASSED, f"{note}; the weights are {'equal to the bit' if equal else 'equal up to rounding'}")


def compiled(device: str, value: str) -> Found:
    """Compiled steps have the losses of eager ones, in float32."""
    run = small_run(device, f"runtime.compile={value}")
    return Found(PASSED, assert_close(trained(run, 5), trained(small_run(device), 5), 1e-3, value))


def commands(device: str) -> Found:
    """The commands in a project: train, evaluate, generate, score, and each export of the trained checkpoint."""
    import click

    from benchmarks.ours import TemporaryProject
    from pipeline.cli import cli
    from pipeline.core.errors import PipelineError

    settings = [part for value in (*_COMMANDS, f"runtime.device={device}") for part in ("--set", value)]
    failed, done, missing = [], [], []

    def call(*words: str) -> bool:
        try:
            with redirect_stdout(StringIO()):
                cli.main([words[0], *settings, *words[1:]], standalone_mode=False)
        except (PipelineError, click.ClickException, RuntimeError) as error:
            text = " ".join(str(error).split())[:160]
            (missing if "pip install" in text else failed).append(f"{words[-1]}: {text}")
            return False
        done.append(words[-1].rpartition("=")[2].strip("[]"))
        return True

    with TemporaryDirectory() as folder:
        project = TemporaryProject(Path(folder))
        for number in range(40):
            text = " ".join(_WORDS[(number + 3 * place) % len(_WORDS)] for place in range(60))
            (project.raw / f"{number}.txt").write_text(text)
        with chdir(folder):
            if all(call(stage) for stage in ("tokenize", "split", "train", "evaluate")):
                for form in ("huggingface", "gguf", "onnx", "torch_export"):
                    call("export", "--set", f"export.formats.use=[{form}]")
                call("generate", "the river")
    assert not failed, "; ".join(failed)
    if not done:
        raise LeftOutError("; ".join(missing))
    return Found(PASSED, "; ".join([", ".join(done), *missing]))


_WORDS = ("the", "river", "runs", "to", "a", "sea", "of", "light", "and", "stone", "we", "listen")
_COMMANDS = (
    "tokenize.corpus.name=files", "tokenize.tokenizer.name=bpe", "tokenize.tokenizer.bpe.vocab_size=280",
    "split.val=0.1", "split.test=0.1", "runtime.threads=1",
    "model.name=gpt2", "model.context_length=32", "model.n_layers=2", "model.n_heads=2", "model.emb_dim=32",
    "train.budget.amount=20", "train.evaluation.every=10", "train.evaluation.windows=4",
    "train.eval_callbacks.sample_text.max_new_tokens=8", "train.optimizer.name=adamw",
    "evaluate.generation.max_new_tokens=8",
)  # fmt: skip

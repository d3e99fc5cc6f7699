"""The contract of a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pipeline.authoring.testing.toy import instance_of, keeps_no_state, saved_and_loaded
from pipeline.core.errors import ParamsError, PluginError
from pipeline.model.architecture import Architecture, LanguageModel, checked_forward
from pipeline.plugin.components import Model, ModelShape

_VOCAB_SIZE, _CONTEXT = 11, 8


@keeps_no_state
def check_model(component: type[Model] | Model) -> None:
    """Checks a model: it is causal; rows are independent; the results are the same with the cache (if it has one)
    and after saving and loading; every parameter gets a gradient; with `document_end`, documents are separate."""
    model = instance_of(component)
    sizes = {"vocab_size": _VOCAB_SIZE, "context_length": _CONTEXT, "n_layers": 2, "n_heads": 2, "emb_dim": 16}
    shape = ModelShape(**sizes, dropout=0.0, pad_vocab_to=16)
    architecture = Architecture(model, shape)
    net = _build(architecture)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(_VOCAB_SIZE, (8, _CONTEXT), generator=generator)

    _check_names(net)
    with torch.no_grad():
        logits = checked_forward(net, ids).logits
        assert logits.isfinite().all(), "every logit must be finite"
        assert torch.equal(checked_forward(net, ids).logits, logits), (
            "in eval mode the same ids must give the same logits"
        )
        _check_independence(net, ids, logits)
        _check_cache(net, ids, logits)
        _check_saving(architecture, net, ids, logits)
        try:
            masked = _build(Architecture(model, replace(shape, document_end=_VOCAB_SIZE - 1)))
        except ParamsError:  # build refused document_end
            masked = None
        if masked is not None:
            _check_documents(masked, ids)
    _check_gradients(_build(Architecture(model, replace(shape, dropout=0.2))), ids)


def _build(architecture: Architecture, seed: int = 0) -> LanguageModel:
    """Builds a model in eval mode. Noise is added to the weights, because zero weights would hide errors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = architecture.make().eval()
        first = {name: parameter.clone() for name, parameter in net.named_parameters()}
        torch.manual_seed(seed)
        for name, parameter in architecture.make().named_parameters():
            assert torch.equal(parameter, first[name]), (
                f"{name}: initial weights must be drawn from torch's global generator"
            )
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return net


def _check_names(net: LanguageModel) -> None:
    tensors = net.state_dict()
    for name, _ in net.named_buffers():
        assert name in tensors, f"the buffer {name} must be persistent: only the state dict is sharded and loaded"
    for name, module in net.named_modules():
        if isinstance(module, nn.Embedding):
            assert "embedding" in name, f"{name}: the name of an embedding must contain `embedding`, for optimizers"
    same = net.architecture.tensor_specs.keys() == tensors.keys()
    assert same, 'build must create the same parameters under torch.device("meta")'


def _check_independence(net: LanguageModel, ids: torch.Tensor, logits: torch.Tensor) -> None:
    for position in range(_CONTEXT):
        changed = ids.clone()
        changed[:, position] = (ids[:, position] + 1) % _VOCAB_SIZE
        other = checked_forward(net, changed).logits
        assert _close(other[:, :position], logits[:, :position]), (
            f"token {position} must not change the logits before it"
        )
        assert not _close(other[:, position:], logits[:, position:]), (
            f"token {position} must change the logits from it on"
        )
        assert _close(checked_forward(net, ids[:, : position + 1]).logits, logits[:, : position + 1]), (
            f"the first {position + 1} tokens alone must give the same logits as in a longer text"
        )
    assert _close(checked_forward(net, ids[:1]).logits, logits[:1]), "a row must not depend on the other rows"


def _check_cache(net: LanguageModel, ids: torch.Tensor, logits: torch.Tensor) -> None:
    make: Any = getattr(net, "make_cache", None)
    if make is None:
        return
    for pieces in ([1] * _CONTEXT, [3, 1, 4], [_CONTEXT]):
        cache = make(len(ids))
        split: tuple[torch.Tensor, ...] = torch.split(ids, pieces, dim=1)
        parts = [checked_forward(net, piece, cache).logits for piece in split]
        assert _close(torch.cat(parts, dim=1), logits), (
            f"with the cache, the ids in pieces of {pieces} must give the same logits"
        )
        if hasattr(cache, "crop"):
            cache.crop(2)
            rest = checked_forward(net, ids[:, 2:], cache).logits
            assert _close(rest, logits[:, 2:]), "after crop(2), the cache must have the first two tokens"


def _check_saving(architecture: Architecture, net: LanguageModel, ids: torch.Tensor, logits: torch.Tensor) -> None:
    with torch.device("meta"):
        empty = architecture.make()
    loaded = empty.to_empty(device="cpu").eval()
    loaded.load_state_dict(saved_and_loaded(net.state_dict()))
    try:
        again = checked_forward(loaded, ids).logits
    except PluginError as error:
        raise AssertionError(f"forward must work after loading the state dict: {error}") from error
    assert torch.equal(again, logits), "after saving and loading the state dict the logits must be the same"


def _check_documents(masked: LanguageModel, ids: torch.Tensor) -> None:
    """With `document_end`, tokens before it must not affect the logits after it."""
    ids = ids % (_VOCAB_SIZE - 1)
    ids[:, 3] = _VOCAB_SIZE - 1
    changed = ids.clone()
    changed[:, :3] = (ids[:, :3] + 1) % (_VOCAB_SIZE - 1)
    logits = checked_forward(masked, ids).logits
    assert _close(checked_forward(masked, changed).logits[:, 4:], logits[:, 4:]), (
        "with shape.document_end, tokens must attend only within their document; if unsupported, raise ValueError "
        "in build"
    )
    _check_cache(masked, ids, logits)


def _check_gradients(net: LanguageModel, ids: torch.Tensor) -> None:
    output = checked_forward(net.train(), ids)
    auxiliary = output.auxiliary
    assert torch.as_tensor(auxiliary).isfinite(), "ModelOutput.auxiliary must be finite"
    (output.cross_entropy(ids.roll(-1, dims=1)).mean() + auxiliary).backward()  # type: ignore[no-untyped-call]
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, f"{name}: every parameter must get a gradient"
        assert parameter.grad.isfinite().all(), f"{name}: its gradient must be finite"
        assert parameter.grad.any(), f"{name}: its gradient is zero everywhere"
    called: set[int] = set()
    blocks = list(getattr(net, "blocks", []))
    handles = [
        block.register_forward_hook(lambda *_, number=number: called.add(number))
        for number, block in enumerate(blocks)
    ]
    with torch.no_grad():
        checked_forward(net, ids)
    for handle in handles:
        handle.remove()
    assert len(called) == len(blocks), (
        "forward must call each module in `blocks`: they are compiled and sharded one by one"
    )


def _close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(actual, expected, rtol=1e-4, atol=1e-5)

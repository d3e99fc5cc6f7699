"""The LanguageModel: its first loss, causality, its head, and generation with a KV cache."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_config import ARCHITECTURES, head_weight, small_config

from pipeline.core.errors import PluginError
from pipeline.model.architecture import LanguageModel
from pipeline.model.attention import KVCache
from pipeline.model.generate import draw, generate
from pipeline.plugin.components import Sampler
from pipeline.train.distributed.parallel import wrap_forward

CONTEXT, VOCAB = 8, 50
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def make(seed: int = 0, **changes: object) -> LanguageModel:
    """A tiny model in float64 and eval mode."""
    sizes = {"vocab_size": VOCAB, "context_length": CONTEXT, "emb_dim": 16, "pad_vocab_to": 64, "n_kv_heads": 1}
    torch.manual_seed(seed)
    return small_config(**sizes | changes).make().double().eval()


def sharp(seed: int = 0, **changes: object) -> LanguageModel:
    """A model whose weights are large, so that its attention and its choices are far from uniform."""
    model = make(seed, **changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


def random_ids(vocab: int) -> torch.Tensor:
    return torch.randint(vocab, (16, CONTEXT + 1), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied_head", [True, False])
def test_the_first_loss_is_that_of_a_uniform_guess(tied_head: bool) -> None:
    model, ids = make(tied_head=tied_head, vocab_size=1000, emb_dim=32), random_ids(1000)
    loss = F.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1000), abs=0.1)


def test_a_modern_models_first_loss_is_a_uniform_guess_exactly() -> None:
    model, ids = make(architecture="modern", vocab_size=1000, emb_dim=32), random_ids(1000)
    nats = model(ids[:, :-1]).cross_entropy(ids[:, 1:])
    torch.testing.assert_close(nats, torch.full_like(nats, math.log(1000)), rtol=1e-15, atol=0)


def test_gpt2_initialisation_scales_residual_projections_down_with_depth() -> None:
    model = make(emb_dim=128, n_layers=4)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.count_nonzero() == 0
        elif "norm" in name:
            assert (parameter == 1).all()
        else:
            residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
            expected = 0.02 / math.sqrt(8) if residual else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def test_modern_initialisation_writes_nothing_and_keeps_the_size_of_what_is_read() -> None:
    model = make(architecture="modern", emb_dim=128)
    for name, parameter in model.named_parameters():
        assert parameter.ndim == 2, f"{name}: neither biases nor norms' weights"
        if name.endswith(("attention.out.weight", "mlp.down.weight", "head.weight")):
            assert parameter.count_nonzero() == 0
        else:
            expected = 0.02 if "embedding" in name else 1 / math.sqrt(128)
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
            assert "embedding" in name or parameter.abs().max() <= math.sqrt(3 / 128)


def test_zero_initialised_weights_learn_and_then_let_the_others_learn() -> None:
    model, ids = make(architecture="modern"), random_ids(VOCAB)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(ids[:, :-1]).cross_entropy(ids[:, 1:]).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


@each_architecture
@pytest.mark.parametrize("place", range(CONTEXT))
def test_changing_a_token_leaves_the_logits_before_it_unchanged(place: int, architecture: str) -> None:
    model, before = sharp(architecture=architecture), tokens(3, CONTEXT)
    after = before.clone()
    after[:, place] = (after[:, place] + 1) % VOCAB
    one, other = model(before).logits, model(after).logits
    assert torch.equal(one[:, :place], other[:, :place])
    assert not torch.allclose(one[:, place:], other[:, place:])


@each_architecture
def test_a_token_sees_every_token_before_it(architecture: str) -> None:
    model, before = sharp(architecture=architecture), tokens(1, CONTEXT)
    for place in range(CONTEXT):
        after = before.clone()
        after[:, place] = (after[:, place] + 1) % VOCAB
        changed = (model(before).logits != model(after).logits).any(dim=-1)[0]
        assert changed.tolist() == [position >= place for position in range(CONTEXT)]


@each_architecture
def test_rows_of_a_batch_do_not_see_each_other(architecture: str) -> None:
    model, batch = sharp(architecture=architecture), tokens(4, CONTEXT)
    alone = torch.cat([model(row[None]).logits for row in batch])
    torch.testing.assert_close(model(batch).logits, alone, rtol=1e-12, atol=1e-12)


def test_a_tied_head_is_the_embedding_once_and_stays_so_after_a_load() -> None:
    model, untied = make(), make(tied_head=False)
    assert head_weight(model) is model.token_embedding.weight
    assert not [name for name in model.state_dict() if "head" in name]
    assert untied.architecture.parameter_count - model.architecture.parameter_count == head_weight(untied).numel()
    loaded = make(seed=1)
    loaded.load_state_dict(model.state_dict())
    assert head_weight(loaded) is loaded.token_embedding.weight
    assert torch.equal(head_weight(loaded), head_weight(model))


def test_a_tied_head_gets_the_gradients_of_both_its_uses() -> None:
    tied, untied = sharp(), sharp(tied_head=False)
    untied.load_state_dict({**tied.state_dict(), "head.weight": head_weight(tied).detach().clone()})
    for model in (tied, untied):
        model(tokens(2, CONTEXT)).logits.square().sum().backward()
    assert untied.head is not None
    both = untied.token_embedding.weight.grad + untied.head.weight.grad
    torch.testing.assert_close(head_weight(tied).grad, both, rtol=1e-9, atol=1e-9)


@each_architecture
def test_dropout_is_active_in_training_only(architecture: str) -> None:
    model, ids = sharp(dropout=0.5, architecture=architecture), tokens(2, CONTEXT)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("architecture", "tied_head"), [("gpt2", True), ("gpt2", False), ("modern", False), ("llama", True)]
)
def test_padding_ids_have_no_logits_and_are_never_sampled(architecture: str, tied_head: bool) -> None:
    model = sharp(tied_head=tied_head, architecture=architecture)
    assert head_weight(model).shape[0] == 64
    with torch.no_grad():
        head_weight(model)[VOCAB:] = 100.0
    assert model(tokens(1, CONTEXT)).logits.shape == (1, CONTEXT, VOCAB)
    generator = torch.Generator().manual_seed(0)
    for chosen in (None, generator):
        drawn = torch.stack(list(generate(model, tokens(16, 3), 30, generator=chosen)))
        assert drawn.max() < VOCAB


@each_architecture
def test_padding_rows_get_no_gradient(architecture: str) -> None:
    model = sharp(architecture=architecture)
    model(tokens(2, CONTEXT)).logits.logsumexp(dim=-1).sum().backward()
    assert head_weight(model).grad[VOCAB:].count_nonzero() == 0
    assert head_weight(model).grad[:VOCAB].count_nonzero() > 0


@each_architecture
@pytest.mark.parametrize("pieces", [[8], [1] * 8, [3, 1, 1, 3], [1, 7], [5, 3]], ids=str)
def test_a_kv_cache_gives_the_logits_of_the_whole_text(pieces: list[int], architecture: str) -> None:
    model, ids = sharp(architecture=architecture), tokens(3, CONTEXT)
    cache = KVCache(CONTEXT)
    logits = torch.cat([model(piece, cache).logits for piece in ids.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(logits, model(ids).logits, rtol=1e-10, atol=1e-10)


def without_cache(model: LanguageModel, ids: torch.Tensor, amount: int) -> torch.Tensor:
    """Greedy continuation, everything computed anew for each token; a full context goes on from its later half."""
    context = model.architecture.shape.context_length
    prompt, seen = ids.shape[1], min(ids.shape[1], context)
    for _ in range(amount):
        if seen > context:
            seen = max(context // 2, 1)
        chosen = model(ids[:, -seen:]).logits[:, -1].argmax(dim=-1, keepdim=True)
        ids, seen = torch.cat([ids, chosen], dim=1), seen + 1
    return ids[:, prompt:]


@each_architecture
@pytest.mark.parametrize("prompt", [1, 5, CONTEXT, CONTEXT + 1, 3 * CONTEXT])
@pytest.mark.parametrize("context", [CONTEXT, 1, 2, 3])
def test_generation_continues_past_the_context_as_without_a_cache(
    prompt: int, context: int, architecture: str
) -> None:
    model, ids = sharp(context_length=context, architecture=architecture), tokens(2, prompt)
    drawn = torch.stack(list(generate(model, ids, 4 * CONTEXT)), dim=1)
    assert drawn.shape == (2, 4 * CONTEXT)
    assert torch.equal(drawn, without_cache(model, ids, 4 * CONTEXT))


def test_a_seed_decides_the_draw_and_the_global_random_state_stays() -> None:
    model = make()
    before = torch.get_rng_state()

    def continued(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [int(each) for each in generate(model, tokens(1, 3), 20, generator=generator)]

    assert continued(1) == continued(1) != continued(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_samplers_are_applied_in_their_order_and_see_every_token_so_far() -> None:
    calls: list[tuple[str, int]] = []

    def sampler(name: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        def sample(logits: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
            calls.append((name, seen.shape[1]))
            return logits

        return sample

    list(generate(make(), tokens(1, 7), 3, [sampler("first"), sampler("second")]))
    assert calls == [(name, length) for length in (7, 8, 9) for name in ("first", "second")]


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_a_sampler_that_leaves_no_token_or_nan_is_an_error(value: float) -> None:
    class Constant(Sampler):
        """Every logit the same."""

        name = "constant"

        def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            return torch.full_like(logits, value)

    with pytest.raises(PluginError, match="no token to draw"):
        draw(torch.zeros(2, 5), tokens(2, 1), [Constant()], None)


SHAPES: list[dict[str, object]] = [
    {}, {"qkv_bias": False}, {"tied_head": False}, {"n_layers": 3, "emb_dim": 24}, {"pad_vocab_to": 1},
    {"n_heads": 4, "n_kv_heads": 2, "mlp_dim": 40},
]  # fmt: skip


@each_architecture
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_flops_of_a_token_follow_the_formula(changes: dict[str, object], architecture: str) -> None:
    model = make(architecture=architecture, **changes)
    shape, weights = model.architecture.shape, dict(model.named_parameters())
    n = sum(weight.numel() for name, weight in weights.items() if "embedding" not in name and name != "head.weight")
    n += head_weight(model).numel()
    attention = 12 * shape.n_layers * CONTEXT * shape.emb_dim
    assert model.architecture.flops_per_token == 6 * n + attention


@each_architecture
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_the_number_of_parameters_is_known_before_the_model_is_made(
    changes: dict[str, object], architecture: str
) -> None:
    model = make(architecture=architecture, **changes)
    assert model.architecture.parameter_count == sum(parameter.numel() for parameter in model.parameters())


@each_architecture
def test_recomputed_blocks_give_the_same_numbers_and_gradients_to_the_bit(architecture: str) -> None:
    gradients = []
    for recompute in (False, True):
        model = sharp(dropout=0.5, architecture=architecture).train()
        for block in model.blocks:
            wrap_forward(block, compiled=False, recompute=recompute)
        torch.manual_seed(3)
        model(tokens(2, CONTEXT)).cross_entropy(tokens(2, CONTEXT)).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@each_architecture
def test_under_autocast_the_hidden_states_are_in_its_precision_and_the_logits_near(architecture: str) -> None:
    model = sharp(architecture=architecture).float()
    exact = model(tokens(2, CONTEXT)).logits
    with torch.autocast("cpu", torch.bfloat16):
        output = model(tokens(2, CONTEXT))
        nats = output.cross_entropy(tokens(2, CONTEXT))
    assert output.hidden.dtype == torch.bfloat16
    assert nats.dtype == torch.float32
    assert (output.logits - exact).norm() < 0.05 * exact.norm()


def documents(end: int, *lengths: int) -> torch.Tensor:
    """Random documents, each with its end: [1, T]."""
    generator = torch.Generator().manual_seed(sum(lengths))
    parts = [
        torch.cat([torch.randint(end, (length,), generator=generator), torch.tensor([end])]) for length in lengths
    ]
    return torch.cat(parts)[None]


@each_architecture
def test_with_document_masking_editing_a_document_leaves_the_logits_of_others_equal_to_the_bit(
    architecture: str,
) -> None:
    model = sharp(context_length=16, document_end=10, architecture=architecture)
    tokens = documents(10, 4, 5, 3)
    edited = tokens.clone()
    edited[0, 5:10] = (tokens[0, 5:10] + 1) % 10
    with torch.inference_mode():
        before, after = model(tokens).logits, model(edited).logits
    assert torch.equal(before[:, :5], after[:, :5])
    assert torch.equal(before[:, 11:], after[:, 11:])
    assert not torch.equal(before[:, 5:11], after[:, 5:11])
    with torch.inference_mode():
        unmasked = sharp(context_length=16, architecture=architecture)
        assert not torch.equal(unmasked(tokens).logits[:, 11:], unmasked(edited).logits[:, 11:])


@each_architecture
def test_a_document_alone_in_its_window_has_the_logits_of_a_model_without_the_mask(architecture: str) -> None:
    tokens = documents(10, 9)
    with torch.inference_mode():
        masked, plain = (
            sharp(context_length=16, document_end=end, architecture=architecture)(tokens).logits
            for end in (10, None)
        )
    torch.testing.assert_close(masked, plain)


@each_architecture
@pytest.mark.parametrize("pieces", [[15], [1] * 15, [3, 1, 7, 4]])
def test_document_masking_holds_with_a_kv_cache(pieces: list[int], architecture: str) -> None:
    model = sharp(context_length=16, document_end=10, architecture=architecture)
    tokens, cache, start = documents(10, 4, 5, 3), KVCache(16), 0
    with torch.inference_mode():
        whole, parts = model(tokens).logits, []
        for length in pieces:
            parts.append(model(tokens[:, start : start + length], cache).logits)
            start += length
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@each_architecture
def test_a_documents_logits_do_not_depend_on_its_place_in_the_window(architecture: str) -> None:
    model = sharp(context_length=24, document_end=10, architecture=architecture)
    alone, cache = documents(10, 6), KVCache(24)
    text = torch.cat([documents(10, 4, 5), alone], dim=1)
    with torch.inference_mode():
        expected = model(alone).logits
        torch.testing.assert_close(model(text).logits[:, -7:], expected, rtol=1e-4, atol=1e-4)
        model(text[:, :-5], cache)
        torch.testing.assert_close(model(text[:, -5:], cache).logits, expected[:, 2:], rtol=1e-4, atol=1e-4)

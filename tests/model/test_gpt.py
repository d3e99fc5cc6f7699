"""The GPT: its first loss, causality, its head, and generation with a KV cache."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import PluginError
from pipeline.model.attention import KVCache
from pipeline.model.config import GPTConfig
from pipeline.model.generate import draw, generate
from pipeline.model.gpt import GPT

CONTEXT, VOCAB = 8, 50


def make(seed: int = 0, **changes: object) -> GPT:
    """A tiny model in float64 and eval mode."""
    values = {
        "vocab_size": VOCAB,
        "context_length": CONTEXT,
        "n_layers": 2,
        "n_heads": 2,
        "emb_dim": 16,
        "dropout": 0.0,
        "qkv_bias": True,
        "tied_head": True,
        "init": "gpt2",
        "pad_vocab_to": 64,
    }
    torch.manual_seed(seed)
    return GPT(GPTConfig(**values | changes)).double().eval()  # type: ignore[arg-type]


def sharp(seed: int = 0, **changes: object) -> GPT:
    """A model whose weights are large, so that its attention and its choices are far from uniform."""
    model = make(seed, **changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied_head", [True, False])
def test_the_first_loss_is_that_of_a_uniform_guess(tied_head: bool) -> None:
    model = make(tied_head=tied_head, vocab_size=1000, emb_dim=32)
    ids = torch.randint(1000, (16, CONTEXT + 1), generator=torch.Generator().manual_seed(1))
    loss = F.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1000), abs=0.1)


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


@pytest.mark.parametrize("place", range(CONTEXT))
def test_changing_a_token_leaves_the_logits_before_it_unchanged(place: int) -> None:
    model, before = sharp(), tokens(3, CONTEXT)
    after = before.clone()
    after[:, place] = (after[:, place] + 1) % VOCAB
    one, other = model(before).logits, model(after).logits
    assert torch.equal(one[:, :place], other[:, :place])
    assert not torch.allclose(one[:, place:], other[:, place:])


def test_a_token_sees_every_token_before_it() -> None:
    model, before = sharp(), tokens(1, CONTEXT)
    for place in range(CONTEXT):
        after = before.clone()
        after[:, place] = (after[:, place] + 1) % VOCAB
        changed = (model(before).logits != model(after).logits).any(dim=-1)[0]
        assert changed.tolist() == [position >= place for position in range(CONTEXT)]


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    model, batch = sharp(), tokens(4, CONTEXT)
    alone = torch.cat([model(row[None]).logits for row in batch])
    torch.testing.assert_close(model(batch).logits, alone, rtol=1e-12, atol=1e-12)


def test_a_tied_head_is_the_embedding_once_and_stays_so_after_a_load() -> None:
    model, untied = make(), make(tied_head=False)
    assert model.head_weight is model.token_embedding.weight
    assert not [name for name in model.state_dict() if "head" in name]
    assert untied.parameter_count() - model.parameter_count() == untied.head_weight.numel()
    loaded = make(seed=1)
    loaded.load_state_dict(model.state_dict())
    assert loaded.head_weight is loaded.token_embedding.weight
    assert torch.equal(loaded.head_weight, model.head_weight)


def test_a_tied_head_gets_the_gradients_of_both_its_uses() -> None:
    tied, untied = sharp(), sharp(tied_head=False)
    untied.load_state_dict({**tied.state_dict(), "head.weight": tied.head_weight.detach().clone()})
    for model in (tied, untied):
        model(tokens(2, CONTEXT)).logits.square().sum().backward()
    assert untied.head is not None
    both = untied.token_embedding.weight.grad + untied.head.weight.grad
    torch.testing.assert_close(tied.head_weight.grad, both, rtol=1e-9, atol=1e-9)


def test_dropout_is_active_in_training_only() -> None:
    model, ids = sharp(dropout=0.5), tokens(2, CONTEXT)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("tied_head", [True, False])
def test_padding_ids_have_no_logits_and_are_never_sampled(tied_head: bool) -> None:
    model = sharp(tied_head=tied_head)
    assert model.head_weight.shape[0] == 64
    with torch.no_grad():
        model.head_weight[VOCAB:] = 100.0
    assert model(tokens(1, CONTEXT)).logits.shape == (1, CONTEXT, VOCAB)
    generator = torch.Generator().manual_seed(0)
    for chosen in (None, generator):
        drawn = torch.stack(list(generate(model, tokens(16, 3), 30, generator=chosen)))
        assert drawn.max() < VOCAB


def test_padding_rows_get_no_gradient() -> None:
    model = make()
    model(tokens(2, CONTEXT)).logits.logsumexp(dim=-1).sum().backward()
    assert model.head_weight.grad[VOCAB:].count_nonzero() == 0
    assert model.head_weight.grad[:VOCAB].count_nonzero() > 0


@pytest.mark.parametrize("pieces", [[8], [1] * 8, [3, 1, 1, 3], [1, 7], [5, 3]], ids=str)
def test_a_kv_cache_gives_the_logits_of_the_whole_text(pieces: list[int]) -> None:
    model, ids = sharp(), tokens(3, CONTEXT)
    cache = KVCache(CONTEXT)
    logits = torch.cat([model(piece, cache).logits for piece in ids.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(logits, model(ids).logits, rtol=1e-10, atol=1e-10)


def without_cache(model: GPT, ids: torch.Tensor, amount: int) -> torch.Tensor:
    """Greedy continuation, everything computed anew for each token; a full context goes on from its later half."""
    context = model.config.context_length
    prompt, seen = ids.shape[1], min(ids.shape[1], context)
    for _ in range(amount):
        if seen > context:
            seen = max(context // 2, 1)
        chosen = model(ids[:, -seen:]).logits[:, -1].argmax(dim=-1, keepdim=True)
        ids, seen = torch.cat([ids, chosen], dim=1), seen + 1
    return ids[:, prompt:]


@pytest.mark.parametrize("prompt", [1, 5, CONTEXT, CONTEXT + 1, 3 * CONTEXT])
@pytest.mark.parametrize("context", [CONTEXT, 1, 2, 3])
def test_generation_goes_on_past_the_context_as_it_would_without_a_cache(prompt: int, context: int) -> None:
    model, ids = sharp(context_length=context), tokens(2, prompt)
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
    with pytest.raises(PluginError, match="no token to draw"):
        draw(torch.zeros(2, 5), tokens(2, 1), [lambda logits, _: torch.full_like(logits, value)], None)


def test_flops_of_a_token_follow_the_formula() -> None:
    model = make(qkv_bias=True)
    embeddings = (64 + CONTEXT) * 16
    n = model.parameter_count() - embeddings + 64 * 16
    assert model.config.flops_per_token == 6 * n + 12 * 2 * CONTEXT * 16


def documents(end: int, *lengths: int) -> torch.Tensor:
    """Random documents, each with its end: [1, T]."""
    generator = torch.Generator().manual_seed(sum(lengths))
    parts = [
        torch.cat([torch.randint(end, (length,), generator=generator), torch.tensor([end])]) for length in lengths
    ]
    return torch.cat(parts)[None]


def test_with_document_masking_editing_a_document_leaves_the_logits_of_others_equal_to_the_bit() -> None:
    model = sharp(context_length=16, document_end=10)
    tokens = documents(10, 4, 5, 3)
    edited = tokens.clone()
    edited[0, 5:10] = (tokens[0, 5:10] + 1) % 10
    with torch.inference_mode():
        before, after = model(tokens).logits, model(edited).logits
    assert torch.equal(before[:, :5], after[:, :5])
    assert torch.equal(before[:, 11:], after[:, 11:])
    assert not torch.equal(before[:, 5:11], after[:, 5:11])
    with torch.inference_mode():
        unmasked = sharp(context_length=16)
        assert not torch.equal(unmasked(tokens).logits[:, 11:], unmasked(edited).logits[:, 11:])


def test_a_document_alone_in_its_window_has_the_logits_of_a_model_without_the_mask() -> None:
    tokens = documents(10, 9)
    with torch.inference_mode():
        masked, plain = (sharp(context_length=16, document_end=end).eval()(tokens).logits for end in (10, None))
    torch.testing.assert_close(masked, plain)


@pytest.mark.parametrize("pieces", [[15], [1] * 15, [3, 1, 7, 4]])
def test_document_masking_holds_with_a_kv_cache(pieces: list[int]) -> None:
    model = sharp(context_length=16, document_end=10)
    tokens, cache, start = documents(10, 4, 5, 3), KVCache(16), 0
    with torch.inference_mode():
        whole, parts = model(tokens).logits, []
        for length in pieces:
            parts.append(model(tokens[:, start : start + length], cache).logits)
            start += length
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("changes", [{}, {"tied_head": True}, {"qkv_bias": False}, {"n_layers": 3, "emb_dim": 24}])
def test_the_number_of_parameters_is_known_before_the_model_is_made(changes: dict[str, object]) -> None:
    model = make(**changes)
    assert model.config.parameter_count == model.parameter_count()

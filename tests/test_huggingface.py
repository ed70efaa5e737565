"""Small models with random weights: logits and generated text are those of transformers' own attention."""
from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch

import tilelang as tile
from tilelang import huggingface, ops
from tilelang.ops.attention import operator

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def models(dt: torch.dtype) -> list[torch.nn.Module]:
    """A Llama: the same weights with our attention, with transformers', and with transformers' in f64."""
    config = transformers.LlamaConfig(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                                      pad_token_id=0, bos_token_id=1, eos_token_id=None)
    return alike(transformers.LlamaForCausalLM, config, dt)


def alike(kind: Any, config: Any, dt: torch.dtype) -> list[torch.nn.Module]:
    huggingface.register()
    out = []
    for name, dtype in (("tilelang", dt), ("sdpa", dt), ("sdpa", torch.float64)):
        torch.manual_seed(0)
        model = kind._from_config(deepcopy(config), attn_implementation=name).float()
        out.append(model.to(dt).to(dtype).eval())
    return out


@pytest.mark.parametrize("dt", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padded", [False, True])
def test_logits(dt: torch.dtype, padded: bool) -> None:
    """Error at most twice that of the same model in the same precision (and a step of the logits)."""
    ours, theirs, gold = models(dt)
    tokens = torch.randint(2, 97, (2, 19))
    mask = torch.ones_like(tokens)
    if padded:
        mask[1, :7] = 0
    with torch.no_grad():
        got, want, exact = (m(tokens, attention_mask=mask).logits.double()[mask.bool()] for m in (ours, theirs, gold))
    step = torch.finfo(dt).eps * exact.abs().max()
    assert (got - exact).abs().max() <= 2 * (want - exact).abs().max() + step


def test_generates_with_a_cache() -> None:
    ours, theirs, _ = models(torch.float32)
    tokens = torch.randint(2, 97, (2, 7))
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    got, want = (m.generate(tokens, attention_mask=mask, max_new_tokens=12, do_sample=False) for m in (ours, theirs))
    assert torch.equal(got, want) and got.shape == (2, 19)


@pytest.mark.parametrize("chunk", [None, 4])
def test_generates_with_a_static_cache(chunk: int | None) -> None:
    """Its keys have room for what will be generated: the prompt's queries were taken for the last of them."""
    ours, theirs, _ = models(torch.float32)
    tokens = torch.randint(2, 97, (2, 11))
    got, want = (m.generate(tokens, max_new_tokens=12, do_sample=False, cache_implementation="static",
                            prefill_chunk_size=chunk) for m in (ours, theirs))
    assert torch.equal(got, want) and got.shape == (2, 23)


def test_position_biases() -> None:
    """Learned ones, of T5, with and without padding and a cache."""
    config = transformers.T5Config(vocab_size=97, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4,
                                   dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=None)
    ours, theirs, _ = alike(transformers.T5ForConditionalGeneration, config, torch.float32)
    tokens = torch.randint(2, 97, (2, 19))
    mask = torch.ones_like(tokens)
    mask[0, 11:] = 0
    for options in {}, {"cache_implementation": "static"}:
        got, want = (m.generate(tokens, attention_mask=mask, max_new_tokens=9, do_sample=False, **options)
                     for m in (ours, theirs))
        assert torch.equal(got, want)
    for model in (ours, theirs):
        model(tokens, attention_mask=mask, labels=tokens[:, :7].contiguous()).loss.backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_trains() -> None:
    ours, theirs, _ = models(torch.float32)
    tokens = torch.randint(2, 97, (2, 11))
    for model in (ours, theirs):
        model(tokens, labels=tokens).loss.backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_attention_is_an_operator() -> None:
    q, k, v = (torch.randn(1, n, 9, 8, requires_grad=True) for n in (4, 2, 2))
    assert all(operator._operators[operator._made(name)]._ready() for name in ("attention", "attention_varlen"))
    result = torch.library.opcheck(torch.ops.tilelang.attention.default, (q, k, v, True, 0.3, -1, -1, 0.0))
    assert set(result.values()) == {"SUCCESS"}
    cu = torch.tensor([0, 4, 9], dtype=torch.int32)
    packed = [x.detach()[0].transpose(0, 1).contiguous().requires_grad_() for x in (q, k, v)]
    result = torch.library.opcheck(torch.ops.tilelang.attention_varlen.default,
                                   (*packed, cu, cu, 5, 5, True, 0.3, -1, -1, 0.0))
    assert set(result.values()) == {"SUCCESS"}
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    compiled = torch.compile(lambda *x: ops.attention(*x, causal=True), fullgraph=True, backend="aot_eager")
    do = torch.randn_like(want)
    for got in (ops.attention(q, k, v, causal=True), compiled(q, k, v)):
        torch.testing.assert_close(got, want)
        for g, w in zip(*(torch.autograd.grad(o, (q, k, v), do, retain_graph=True) for o in (got, want)), strict=True):
            torch.testing.assert_close(g, w)


@tile.function
def distance(s, b, h, i, j):
    return s - 0.1 * tile.abs(i - j).to(tile.f32)


@tile.function
def near(b, h, i, j):
    return tile.abs(i - j) < 5


def test_functions_and_block_masks_have_their_own_operators() -> None:
    """The gradient is that of `attention_backward` with the same functions, to the bit."""
    q, k, v = (torch.randn(1, n, 40, 8, requires_grad=True) for n in (2, 1, 1))
    for options in ({"score_mod": distance, "mask_mod": near},
                    {"block_mask": ops.block_mask(q.detach(), near, 1, 2, 40, 40)}):
        o, lse = ops.attention(q, k, v, return_lse=True, **options)
        do = torch.randn_like(o)
        got = torch.autograd.grad(o, (q, k, v), do)
        compiled = torch.compile(partial(ops.attention, **options), fullgraph=True, backend="aot_eager")
        assert all(map(torch.equal, got, torch.autograd.grad(compiled(q, k, v), (q, k, v), do)))
        plain = [x.detach() for x in (q, k, v, o, lse)]
        for g, w in zip(got, ops.attention_backward(do, *plain, dlse=torch.zeros_like(lse), **options), strict=True):
            assert torch.equal(g, w)


def test_what_has_no_gradient_is_refused() -> None:
    q = torch.randn(1, 1, 3, 8)
    with pytest.raises(ValueError, match=r"`attention` with `out` has no gradient: call it under torch.no_grad\(\)"):
        ops.attention(q, q, q.clone().requires_grad_(), out=torch.empty_like(q))
    for option in {"dropout": 0.1}, {"output_attentions": True}, {"cache": object()}:
        with pytest.raises(ValueError, match=f"has no `{next(iter(option))}`"):
            huggingface.attention_forward(None, q, q, q, None, **option)


def test_models_that_take_no_implementation_are_refused() -> None:
    """They took the boolean mask for one that is added to the scores, and gave other logits."""
    huggingface.register()
    config = transformers.MPNetConfig(vocab_size=97, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                                      num_attention_heads=2)
    model = transformers.MPNetModel._from_config(config, attn_implementation="tilelang")
    with pytest.raises(ValueError, match="models of MPNetConfig take no attention implementation 'tilelang': use 'ea"):
        model(torch.ones(1, 5).long(), attention_mask=torch.tensor([[1, 1, 1, 0, 0]]))

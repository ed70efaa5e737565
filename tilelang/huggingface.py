"""`tilelang.ops.attention` as an attention implementation of Hugging Face transformers.

    tilelang.huggingface.register()
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="tilelang")
"""
from __future__ import annotations

from typing import Any

from tilelang import ops


def attention_forward(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, dropout: float = 0.0,
                      scaling: float | None = None, is_causal: bool | None = None, softcap: float | None = None,
                      **options: Any) -> tuple[Any, None]:
    """What transformers calls: query [B, H, S, D], key and value [B, G, L, D], a mask [B, 1, S, L] (boolean, or added
    to the scores) or None. Gives ([B, S, H, D], None). Raises ValueError for dropout, position biases and paged
    caches."""
    for name, x in (("dropout", dropout), ("position_bias", options.get("position_bias")),
                    ("cache", options.get("cache"))):
        if x is not None and x != 0.0:
            raise ValueError(f"the attention implementation 'tilelang' has no `{name}`: use another one, or drop it")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    out = ops.attention(query, key, value, bool(causal) and attention_mask is None and query.shape[2] > 1, scaling,
                        bias=None if attention_mask is None else attention_mask[..., :key.shape[2]], softcap=softcap,
                        sinks=options.get("s_aux"))
    return out.transpose(1, 2).contiguous(), None


def register(name: str = "tilelang") -> None:
    """Makes it known to transformers as `attn_implementation=name`. Needs the package transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, sdpa_mask)

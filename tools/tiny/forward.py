"""The model's forward pass for training on a CPU: the same function as transformers' Llama, compiled layer by layer.

A model this small spends most of its time on elementwise work between the matrix products. torch.compile fuses this
work. Attention in blocks of queries skips the keys that the causal mask hides.
"""

import torch
from torch.nn.functional import rms_norm, silu
from transformers import LlamaForCausalLM

BLOCK = 128  # queries of one attention product; lengths are multiples of this


def rotary(length: int, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines, (length, size), as in transformers' Llama with base 10,000."""
    speeds = 10000.0 ** (-torch.arange(0, size, 2, device=device).float() / size)
    angles = torch.arange(length, device=device).float()[:, None] * speeds
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().bfloat16(), angles.sin().bfloat16()


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Compute causal attention in blocks of queries. `hidden` (BLOCK, BLOCK) is the mask of the last block."""
    parts = []
    for start in range(0, q.shape[2], BLOCK):
        end = start + BLOCK
        scores = q[:, :, start:end] @ k[:, :, :end].transpose(-1, -2) * q.shape[-1] ** -0.5
        ahead = torch.cat([hidden.new_zeros(BLOCK, start), hidden], dim=-1)
        parts.append((scores.float() + ahead).softmax(-1).bfloat16() @ v[:, :, :end])
    return torch.cat(parts, dim=2)


def layer(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    hidden: torch.Tensor,
    norm1: torch.Tensor,
    norm2: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    rows, length, width = x.shape
    y = rms_norm(x, (width,), norm1, 1e-5).bfloat16()
    q, k, v = (y @ qkv.t()).view(rows, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    seen = attention(turned(q, cos, sin), turned(k, cos, sin), v, hidden)
    x = x + seen.transpose(1, 2).reshape(rows, length, width) @ out.t()
    y = rms_norm(x, (width,), norm2, 1e-5).bfloat16()
    gate, up = (y @ gate_up.t()).chunk(2, dim=-1)
    return x + (silu(gate) * up) @ down.t()


compiled = torch.compile(layer, dynamic=False)


def last_hidden(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Return the input of the head, (rows, length, width). `ids`: (rows, length), length a multiple of BLOCK."""
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    cos, sin = rotary(ids.shape[1], size, ids.device)
    hidden = torch.full((BLOCK, BLOCK), float("-inf"), device=ids.device).triu(1)
    x = model.model.embed_tokens(ids)
    for part in model.model.layers:
        a, m = part.self_attn, part.mlp
        qkv = torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]).bfloat16()
        gate_up = torch.cat([m.gate_proj.weight, m.up_proj.weight]).bfloat16()
        x = compiled(
            x, cos, sin, hidden, part.input_layernorm.weight, part.post_attention_layernorm.weight,
            qkv, a.o_proj.weight.bfloat16(), gate_up, m.down_proj.weight.bfloat16(), config.num_attention_heads,
        )  # fmt: skip
    return rms_norm(x, (config.hidden_size,), model.model.norm.weight, 1e-5)

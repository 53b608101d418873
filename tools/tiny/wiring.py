"""Starts a model with a copying circuit in place, so that a short run need not find it.

Layer 0: a head that looks one token back and notes what stood there. Layer 1: two heads that look for a place whose
note is the present token, and write down the token of that place. Training is free to change all of it.
"""

import torch
from transformers import LlamaForCausalLM

TOKEN, CONSTANT = 0.06, 0.15  # size of an embedding's entries, and of the one that all tokens share
BACK, MATCH = 2.6, 2.3  # how sharply the heads look
NOTE, WRITE = 0.044, 0.4  # how loudly they speak
FAST, SLOW = (
    0.5,
    0.58,
)  # shares of the rotary pairs: those that tell neighbours apart; where those begin that hardly turn


@torch.no_grad()
def wire(model: LlamaForCausalLM) -> None:
    """Overwrite the embeddings and parts of two layers. Raises ValueError for a shape with too little room."""
    config = model.config
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    if config.num_attention_heads < 2 or width < 3 * size + size // 2:
        raise ValueError("the copying circuit needs three heads' width and some room besides")
    note, constant = 2 * size, 3 * size  # content: the first two heads' width; the note: the third; then the constant
    table = model.model.embed_tokens.weight
    table[:, :note].normal_(0, TOKEN)
    table[:, note:].normal_(0, 0.002)
    table[:, constant] = CONSTANT
    mixed = torch.linalg.qr(torch.randn(note, note))[0][:size]  # content → note
    _look_back(model.model.layers[0].self_attn, mixed, size, note, constant)
    _look_up(model.model.layers[1].self_attn, mixed, size, note)


def _look_back(attention: torch.nn.Module, mixed: torch.Tensor, size: int, note: int, constant: int) -> None:
    half = size // 2
    fast = round(FAST * half)
    for matrix in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight):
        matrix[:size].zero_()
    attention.o_proj.weight[:, :size].zero_()
    speeds = 10000.0 ** (-torch.arange(fast) / half)
    attention.q_proj.weight[:fast, constant] = BACK
    attention.k_proj.weight[:fast, constant] = BACK * speeds.cos()
    attention.k_proj.weight[half : half + fast, constant] = BACK * speeds.sin()
    attention.v_proj.weight[:size, :note] = mixed
    attention.o_proj.weight[note : note + size, :size] = NOTE * torch.eye(size)


def _look_up(attention: torch.nn.Module, mixed: torch.Tensor, size: int, note: int) -> None:
    half = size // 2
    slow = round(SLOW * half)
    places = [*range(slow, half), *range(half + slow, size)]
    for head in range(2):
        rows = slice(head * size, (head + 1) * size)
        for matrix in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight):
            matrix[rows].zero_()
        attention.o_proj.weight[:, rows].zero_()
        for index, place in enumerate(places):
            part = head * len(places) + index
            attention.q_proj.weight[head * size + place, :note] = MATCH * mixed[part]
            attention.k_proj.weight[head * size + place, note + part] = MATCH
        content = torch.arange(size) + head * size
        attention.v_proj.weight[content, content] = 1.0
        attention.o_proj.weight[content, content] = WRITE

"""Start a model with a circuit that copies tokens, because a short run would not find one.

Layer 0: one head looks at the previous token and stores it as a note. Layer 1: two heads look for a position whose note
is the current token, and output the token at that position. Training may change all of this.
"""

import torch
from transformers import LlamaForCausalLM

TOKEN, CONSTANT = 0.06, 0.15  # scale of an embedding's entries; value of the entry that all tokens share
BACK, MATCH = 2.6, 2.3  # sharpness of the heads' attention
NOTE, WRITE = 0.044, 0.4  # strength of the heads' output
FAST, SLOW = (
    0.5,
    0.58,
)  # shares of the rotary pairs: FAST pairs tell neighbours apart; from SLOW on, pairs hardly rotate


@torch.no_grad()
def wire(model: LlamaForCausalLM) -> None:
    """Overwrite the embeddings and parts of two layers. Raises ValueError for a shape that is too small."""
    config = model.config
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    if config.num_attention_heads < 2 or width < 3 * size + size // 2:
        raise ValueError("the copying circuit needs the width of three and a half heads")
    note, constant = 2 * size, 3 * size  # content: the width of two heads; note: of the third; then the constant
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

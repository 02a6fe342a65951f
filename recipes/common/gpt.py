"""A small GPT over characters: pre-norm blocks, learned positions, no dropout, initialised by TNVS."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adapt


class _Block(nn.Module):
    """Causal self-attention and a feed-forward layer four times as wide, each with a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.gather = nn.Linear(width, width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, characters, width] to the same."""
        batch, characters, width = x.shape
        parts = self.attend(self.norm1(x)).view(batch, characters, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind()
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.gather(y.transpose(1, 2).reshape(batch, characters, width))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class CharGPT(nn.Module):
    """Predicts each character from those before it: int64 [batch, characters] to logits [batch, characters, alphabet].

    Args:
        alphabet: number of different characters.
        context: the longest text that the network can look back on.
    """

    def __init__(self, alphabet: int, *, context: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(alphabet, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, alphabet)
        adapt.tnvs_(self)

    def forward(self, text: Tensor) -> Tensor:
        places = torch.arange(text.shape[1], device=text.device)
        return self.head(self.norm(self.blocks(self.characters(text) + self.positions(places))))

"""CLIP's text encoder: token ids to one embedding per token, the UNet's context. Modules carry transformers' names;
the original is the text half of openai/CLIP (clip/model.py).

The context is the output of the last layer through final_layer_norm for all 77 tokens: no projection, no skipped layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configs import TextEncoderConfig


class TextEncoder(nn.Module):
    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.config = config
        self.embeddings = nn.Module()
        self.embeddings.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.embeddings.position_embedding = nn.Embedding(config.positions, config.width)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.final_layer_norm = nn.LayerNorm(config.width)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, n ≤ 77) → (B, n, width)."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.embeddings.token_embedding(ids) + self.embeddings.position_embedding(positions)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.final_layer_norm(x)


class EncoderLayer(nn.Module):
    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.self_attn = CausalSelfAttention(config.width, config.heads)
        self.layer_norm2 = nn.LayerNorm(config.width)
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(config.width, config.mlp_width)
        self.mlp.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp.fc2(quick_gelu(self.mlp.fc1(self.layer_norm2(x))))


class CausalSelfAttention(nn.Module):
    """A token sees itself and those before it; padding is not masked."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads cannot share a width of {width}")
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in projections)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B, H, n, D]
        return self.out_proj(out.transpose(1, 2).flatten(2))


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's own approximation of GELU (openai/CLIP, clip/model.py)."""
    return x * torch.sigmoid(1.702 * x)

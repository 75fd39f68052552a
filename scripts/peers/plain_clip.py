"""CLIP as open_clip builds it, in plain PyTorch: the peer where open_clip is missing."""

import torch
from torch import nn
from torch.nn import functional

HEAD, CONTEXT, VOCABULARY = 64, 77, 49_408


class LayerNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x).to(x.dtype)


class Block(nn.Module):
    def __init__(self, width, causal):
        super().__init__()
        self.heads, self.causal = width // HEAD, causal
        self.ln_1, self.ln_2 = LayerNorm(width), LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        n, t, c = x.shape
        qkv = self.qkv(self.ln_1(x)).view(n, t, 3, self.heads, HEAD).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*qkv.unbind(0), is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, c))
        return x + self.proj(functional.gelu(self.fc(self.ln_2(x))))


class Clip(nn.Module):
    def __init__(self, side, patch, vision, text, embed_dim):
        super().__init__()
        (width, layers), (text_width, text_layers) = vision, text
        self.conv = nn.Conv2d(3, width, patch, patch, bias=False)
        self.first = nn.Parameter(torch.randn(width) * width**-0.5)
        self.places = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width) * width**-0.5)
        self.ln_pre, self.ln_post = LayerNorm(width), LayerNorm(width)
        self.vision = nn.Sequential(*[Block(width, False) for _ in range(layers)])
        self.image_proj = nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)
        self.words = nn.Embedding(VOCABULARY, text_width)
        nn.init.normal_(self.words.weight, std=0.02)
        self.text_places = nn.Parameter(torch.randn(CONTEXT, text_width) * 0.01)
        self.text = nn.Sequential(*[Block(text_width, True) for _ in range(text_layers)])
        self.ln_final = LayerNorm(text_width)
        self.text_proj = nn.Parameter(torch.randn(text_width, embed_dim) * text_width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))

    def forward(self, images, tokens):
        x = self.conv(images).flatten(2).transpose(1, 2)
        first = self.first.to(x.dtype).expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([first, x], 1) + self.places.to(x.dtype))
        x = self.ln_post(self.vision(x)[:, 0]) @ self.image_proj
        y = (self.words(tokens) + self.text_places).to(x.dtype)
        y = self.ln_final(self.text(y))
        y = y[torch.arange(len(y), device=y.device), tokens.argmax(-1)] @ self.text_proj
        return functional.normalize(x, dim=-1), functional.normalize(y, dim=-1), \
            self.logit_scale.exp()


def loss(images, texts, scale):
    logits = scale * images @ texts.t()
    own = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, own)
            + functional.cross_entropy(logits.t(), own)) / 2


def build(side, patch, vision, text, embed_dim):
    """Model and loss; a tower is its width and its number of layers."""
    return Clip(side, patch, vision, text, embed_dim), loss

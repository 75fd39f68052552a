"""Golden files of weights: what open_clip, transformers and torch write, and the features they compute.

    python tests/golden/make_interop.py tests/golden

Made with open_clip_torch 3.3.0, transformers 5.23.0, torch 2.15 (CPU), safetensors 0.8. The weights
are drawn on a grid that float16 holds exactly and are the same in every file.

interop.safetensors   open_clip's state dict (`model.`), transformers' of the same function (`hf.`),
                      pictures, padded captions, and float64 features of both libraries (`clip.`)
interop_*.pt          the same weights as torch.save and TorchScript write them
interop_hf.json       transformers' config.json of the model
interop_tokenizer.json  transformers' tokenizer.json of CLIP's vocabulary, with SHA-256 in place of the
                      tokens and merges, each joined by newlines
"""

import gzip
import hashlib
import json
import sys
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import nn
from open_clip.tokenizer import bytes_to_unicode, default_bpe
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

CONFIG = {
    "embed_dim": 6,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 16, "layers": 2, "width": 12, "head_width": 4, "patch_size": 8, "mlp_ratio": 2.5,
    },
    "text_cfg": {
        "context_length": 9, "vocab_size": 50, "width": 8, "heads": 2, "layers": 1,
    },
}
START, END = 48, 49


def transformers_config():
    text = dict(
        hidden_size=8, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=9, vocab_size=50, hidden_act="quick_gelu", bos_token_id=START,
        eos_token_id=END, pad_token_id=0,
    )
    vision = dict(
        hidden_size=12, intermediate_size=30, num_hidden_layers=2, num_attention_heads=3,
        image_size=16, patch_size=8, hidden_act="quick_gelu",
    )
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)


def draw(model, generator):
    """Weights on a grid of 2^-9, below 1 in size."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randint(-200, 201, parameter.shape, generator=generator) / 512
            parameter.copy_(values + 1 if "ln_" in name and name.endswith("weight") else values)
        model.logit_scale.fill_(2.5)


def to_transformers(model):
    """The same function in transformers' class, module by module and not name by name."""
    hf = CLIPModel(transformers_config()).eval()

    def copy(to, source):
        assert to.shape == source.shape
        to.data.copy_(source)

    def tower(theirs, ours, embeddings):
        for layer, block in zip(theirs.encoder.layers, ours.resblocks, strict=True):
            attention, width = layer.self_attn, block.attn.embed_dim
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            for n, part in enumerate(parts):
                rows = slice(n * width, (n + 1) * width)
                copy(part.weight, block.attn.in_proj_weight[rows])
                copy(part.bias, block.attn.in_proj_bias[rows])
            pairs = (
                (attention.out_proj, block.attn.out_proj), (layer.layer_norm1, block.ln_1),
                (layer.layer_norm2, block.ln_2), (layer.mlp.fc1, block.mlp.c_fc),
                (layer.mlp.fc2, block.mlp.c_proj),
            )
            for to, source in pairs:
                copy(to.weight, source.weight)
                copy(to.bias, source.bias)
        copy(theirs.embeddings.position_embedding.weight, embeddings)

    def norm(to, source):
        copy(to.weight, source.weight)
        copy(to.bias, source.bias)

    text, vision, visual = hf.text_model, hf.vision_model, model.visual
    tower(text, model.transformer, model.positional_embedding)
    tower(vision, visual.transformer, visual.positional_embedding)
    copy(text.embeddings.token_embedding.weight, model.token_embedding.weight)
    copy(vision.embeddings.class_embedding, visual.class_embedding)
    copy(vision.embeddings.patch_embedding.weight, visual.conv1.weight)
    norm(text.final_layer_norm, model.ln_final)
    norm(vision.pre_layrnorm, visual.ln_pre)
    norm(vision.post_layernorm, visual.ln_post)
    copy(hf.text_projection.weight, model.text_projection.T)
    copy(hf.visual_projection.weight, visual.proj.T)
    copy(hf.logit_scale, model.logit_scale)
    return hf


class Named(nn.Module):
    """A tree of modules with the names of a state dict, which TorchScript can hold."""

    def __init__(self, tensors):
        super().__init__()
        groups = OrderedDict()
        for name, tensor in tensors.items():
            head, _, rest = name.partition(".")
            if rest:
                groups.setdefault(head, OrderedDict())[rest] = tensor
            else:
                self.register_parameter(head, nn.Parameter(tensor, requires_grad=False))
        for head, inner in groups.items():
            self.add_module(head, Named(inner))

    def forward(self, x):
        return x


def without_code(path):
    """Written again without TorchScript's code, whose debugging records name this machine's paths."""
    with zipfile.ZipFile(path) as archive:
        members = [(i.filename, archive.read(i)) for i in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            if "/code/" in name:
                continue
            info = zipfile.ZipInfo(name)
            archive.writestr(info, data, zipfile.ZIP_STORED)


def tokenizer():
    """What transformers saves, made of the vocabulary that open_clip ships."""
    lines = gzip.open(default_bpe()).read().decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += ["".join(merge.split()) for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        vocab = {token: n for n, token in enumerate(tokens)}
        (folder / "vocab.json").write_text(json.dumps(vocab))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
        saved = json.loads((folder / "tokenizer.json").read_text())

    def digest(lines):
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    model = saved["model"]
    model["vocab"] = digest(sorted(model["vocab"], key=model["vocab"].get))
    model["merges"] = digest(" ".join(merge) for merge in model["merges"])
    return saved


def main(out):
    generator = torch.Generator().manual_seed(11)
    model = open_clip.CLIP(**CONFIG).eval()
    draw(model, generator)
    hf = to_transformers(model)
    tensors = {f"model.{name}": t.clone() for name, t in model.state_dict().items()}
    tensors |= {f"hf.{name}": t.clone() for name, t in hf.state_dict().items()}
    images = torch.randint(-512, 513, (3, 3, 16, 16), generator=generator) / 256
    captions = torch.zeros(3, 9, dtype=torch.long)
    for row, length in zip(captions, (9, 3, 6)):
        row[:length] = torch.randint(1, START, (length,), generator=generator)
        row[0], row[length - 1] = START, END
    tensors |= {"images": images, "captions": captions}
    model.double()
    hf.double()
    with torch.no_grad():
        features = {
            "clip.image": model.encode_image(images.double()),
            "clip.text": model.encode_text(captions),
            "hf.image": hf.visual_projection(hf.vision_model(images.double()).pooler_output),
            "hf.text": hf.text_projection(hf.text_model(captions).pooler_output),
        }
    for what in ("image", "text"):
        torch.testing.assert_close(features[f"clip.{what}"], features[f"hf.{what}"])
        tensors[f"features.{what}"] = features[f"clip.{what}"]
    save_file(tensors, out / "interop.safetensors")

    state = OrderedDict((n, t.float().clone()) for n, t in model.state_dict().items())
    torch.save(state, out / "interop_bare.pt")
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(3))])
    sum(optimizer.param_groups[0]["params"]).sum().backward()
    optimizer.step()
    # A distributed run; every second tensor is a view of a larger one, or transposed.
    views = OrderedDict()
    for n, (name, t) in enumerate(state.items()):
        if n % 3 == 1 and t.dim() == 2:
            t = t.T.contiguous().T
        elif n % 3 == 2 and t.dim() >= 1:
            t = torch.stack([t, t + 1], -1)[..., 0]
        views[f"module.{name}"] = nn.Parameter(t) if n % 2 else t
    checkpoint = {
        "epoch": 3, "name": "run", "state_dict": views, "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, out / "interop_checkpoint.pt")
    half = {name: t.half() for name, t in state.items()}
    numbers = {"input_resolution": 16, "context_length": 9, "vocab_size": 50}
    archive = Named(half | {name: torch.tensor(n) for name, n in numbers.items()})
    torch.jit.save(torch.jit.trace(archive, torch.zeros(1)), out / "interop_torchscript.pt")
    without_code(out / "interop_torchscript.pt")
    (out / "interop_tokenizer.json").write_text(json.dumps(tokenizer(), indent=1) + "\n")
    config = transformers_config()
    config.architectures = ["CLIPModel"]
    text = json.dumps(config.to_dict(), indent=1, sort_keys=True, default=str)
    (out / "interop_hf.json").write_text(text + "\n")


main(Path(sys.argv[1]))

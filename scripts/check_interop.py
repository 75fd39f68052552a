"""Full-size models there and back: open_clip -> roclip-model -> open_clip and transformers.

    python scripts/check_interop.py target/release/roclip-model SCRATCH_DIR [NAME ...]

Needs torch, open_clip_torch, transformers, safetensors, numpy, pillow and about 3 GB of disk. Each
model is drawn by open_clip under torch.manual_seed(SEED), a ResNet's norms by `randomise`; nothing
is downloaded. For each it
prints the file's SHA-256 and the largest difference of normalised features: of `embed` from the
converted directory against open_clip and against transformers, and of transformers against
open_clip. Transformers is given open_clip's pixels, since its processor resizes with torchvision
instead of Pillow; how far its pixels are from open_clip's is printed, too. It has no ResNet. Every tensor must
come back bit for bit. How far the features of different pictures are from each other is printed
beside: a model that answers the same to all would pass. Exit code 1 where something disagrees.
"""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor

MODELS = ("ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16", "RN50")
SEED = 7
GOAL = 2e-6
PAIRS = 8
CAPTIONS = ["a photo of a cat", "two dogs, one running", "it's 3 o'clock", "A red CAR!", "x"]


def shard(path):
    """Pictures of noise and slopes, not square, with captions; what both programs read."""
    rng = np.random.default_rng(SEED)
    pictures, captions = [], []
    with tarfile.open(path, "w") as archive:
        for n in range(PAIRS):
            slope = np.linspace(0, 200, 260 + 10 * n)[None, :, None]
            pixels = slope + rng.integers(0, 56, (300, 260 + 10 * n, 3))
            picture = Image.fromarray(pixels.astype(np.uint8))
            data = io.BytesIO()
            picture.save(data, "PNG")
            caption = f"{CAPTIONS[n % len(CAPTIONS)]} number {n}"
            for end, content in (("png", data.getvalue()), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{n:04}.{end}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            pictures.append(picture)
            captions.append(caption)
    return pictures, captions


def unit(features):
    features = np.asarray(features, np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def largest(a, b):
    return float(np.abs(unit(a) - unit(b)).max())


def run(*words):
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


def of_open_clip(model, preprocess, tokenizer, pictures, captions):
    with torch.no_grad():
        images = torch.stack([preprocess(picture) for picture in pictures])
        return model.encode_image(images), model.encode_text(tokenizer(captions))


def of_transformers(folder, images, pictures, captions):
    """Features of open_clip's pixels, and how far those of the processor are from them."""
    model, info = CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.get(k) for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    processor = CLIPProcessor.from_pretrained(folder)
    inputs = processor(text=captions, images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        vision = model.vision_model(pixel_values=images).pooler_output
        text = model.text_model(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        features = model.visual_projection(vision), model.text_projection(text)
    return features, (inputs["pixel_values"] - images).abs().max().item()


def randomise(model):
    """Norms of batches like trained ones; drawn, each block would add nothing and keep its scale."""
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.normal_(norm.bias, 0, 0.2)
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.1, 0.6)
            norm.num_batches_tracked.random_()


def spread(features):
    """Largest difference of two rows' features, least of all pairs of rows."""
    rows = unit(features)
    pairs = [np.abs(a - b).max() for n, a in enumerate(rows) for b in rows[:n]]
    return float(min(pairs))


def check(program, name, scratch):
    torch.manual_seed(SEED)
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    randomise(model.eval())
    folder, source = scratch / name, scratch / f"{name}.safetensors"
    save_file({k: t.contiguous() for k, t in model.state_dict().items()}, source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    quick = ["--quick-gelu"] if name.endswith("quickgelu") else []
    shutil.rmtree(folder, ignore_errors=True)
    run(program, "convert", source, folder, *quick)
    before, after = load_file(source), load_file(folder / "open_clip_model.safetensors")
    same = before.keys() == after.keys() and all(
        t.dtype == after[k].dtype and t.shape == after[k].shape
        and t.contiguous().view(torch.uint8).equal(after[k].contiguous().view(torch.uint8))
        if t.dim() else t.item() == after[k].item() for k, t in before.items()
    )
    pictures, captions = shard(scratch / "pairs.tar")
    run(program, "embed", folder, "--shards", scratch / "pairs.tar", "--out", scratch / "out",
        "--force", "--threads", 2, "--workers", 1, "--batch-size", PAIRS)
    ours = [np.load(scratch / "out" / f"{kind}.npy") for kind in ("images", "texts")]
    tokenizer = open_clip.get_tokenizer(name)
    theirs = of_open_clip(model, preprocess, tokenizer, pictures, captions)
    again, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    loaded = of_open_clip(again.eval(), preprocess, tokenizer, pictures, captions)
    pixels = None
    figures = {
        "open_clip loads": max(largest(a, b) for a, b in zip(theirs, loaded)),
        "image": largest(ours[0], theirs[0]),
        "text": largest(ours[1], theirs[1]),
    }
    if (folder / "config.json").exists():
        images = torch.stack([preprocess(picture) for picture in pictures])
        hf, pixels = of_transformers(folder, images, pictures, captions)
        for kind, a, b, c in zip(("image", "text"), ours, hf, theirs):
            figures[f"{kind}, transformers"] = largest(a, b)
            figures[f"{kind}, transformers to open_clip"] = largest(b, c)
        # Back from transformers' files alone.
        only = scratch / "only"
        shutil.rmtree(only, ignore_errors=True)
        only.mkdir()
        for file in ("model.safetensors", "config.json", "preprocessor_config.json"):
            (folder / file).rename(only / file)
        shutil.rmtree(folder)
        run(program, "convert", only, folder)
        back = load_file(folder / "open_clip_model.safetensors")
        same = same and all(torch.equal(t, back[k]) for k, t in before.items())
    told = {"model": name, "sha256": digest, "bits": same, **figures, "processor's pixels": pixels,
            "between pictures": spread(theirs[0])}
    print(json.dumps(told), flush=True)
    return same and max(figures.values()) <= GOAL


def main():
    program, scratch = sys.argv[1], Path(sys.argv[2])
    scratch.mkdir(parents=True, exist_ok=True)
    good = [check(program, name, scratch) for name in sys.argv[3:] or MODELS]
    sys.exit(0 if all(good) else 1)


main()

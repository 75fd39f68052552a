#!/usr/bin/env python3
"""CPU time a pair of other loaders and of ours, in turn, on the same shards.

    loader_peers.py --shards FOLDER --bench BINARY [--images 2000] [--rounds 3] [--only NAME ...]

FOLDER holds tar shards, as `scripts/loader_corpus.py` makes them; BINARY is the bench that
`cargo bench --bench loader --no-run` names. Every loader delivers batches of 64 normalised pictures
of 224 x 224 in f32 with their tokens, from one worker; each runs in a process of its own, all of
them once a round. Counted is the CPU time, user and system, workers included, from the first
request to the last batch and the end of the workers, after a short run that is not counted. One
table is printed: medians (least to most) and how many times ours they are.

Peers that cannot be imported are left out, with their reason. Needs open_clip_torch, webdataset,
torchvision and pandas; nvidia-dali and ffcv where they install.
"""

import argparse
import functools
import gc
import glob
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import types
import warnings

BATCH, SIDE = 64, 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
KINDS = ["clip", "roclip"]


def shards(folder):
    return sorted(glob.glob(f"{folder}/*.tar"))


@functools.cache
def tokenizer():
    import open_clip

    return open_clip.get_tokenizer("ViT-B-32")


def consume(loader, images):
    """Takes so many pictures; how many came."""
    count = 0
    for pictures, tokens in loader:
        assert tuple(pictures.shape[1:]) == (3, SIDE, SIDE) and len(tokens) == len(pictures)
        count += len(pictures)
        if count >= images:
            break
    return count


def pillow_transform(kind):
    """open_clip's own, and RoCLIP's set in the same library."""
    import open_clip
    from torchvision import transforms as T

    if kind == "clip":
        return open_clip.image_transform(SIDE, is_train=True)
    return T.Compose([
        T.RandomHorizontalFlip(),
        T.RandomResizedCrop(SIDE, scale=(0.08, 1.0)),
        T.RandomApply([T.ColorJitter(0.5, 0.5, 0.5, 0.1)], p=0.8),
        T.RandomGrayscale(0.2),
        T.GaussianBlur(21, (0.1, 2.0)),
        T.ToTensor(),
        T.Normalize(MEAN, STD),
    ])


def open_clip_loader(folder, kind, images):
    """The trainer's function, with the trainer's defaults."""
    from open_clip_train.data import get_wds_dataset

    options = types.SimpleNamespace(
        train_data="::".join(shards(folder)), train_num_samples=images, seed=0, batch_size=BATCH,
        workers=1, world_size=1, train_data_upsampling_factors=None, dataset_resampled=False)
    transform = pillow_transform(kind)
    data = get_wds_dataset(options, transform, True, floor=True, tokenizer=tokenizer())
    return consume(data.dataloader, images)


def tensor_transform(kind):
    import torch
    from torchvision.transforms import v2

    if kind == "clip":
        random = [v2.RandomResizedCrop(
            SIDE, scale=(0.9, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)]
    else:
        random = [
            v2.RandomHorizontalFlip(),
            v2.RandomResizedCrop(SIDE, scale=(0.08, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.5, 0.5, 0.5, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.GaussianBlur(21, (0.1, 2.0)),
        ]
    return v2.Compose([*random, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def torchvision_loader(folder, kind, images):
    """webdataset as above; decoded to a tensor by torchvision, and its second transforms."""
    import torch
    import webdataset as wds
    from torchvision.io import ImageReadMode, decode_jpeg

    transform = tensor_transform(kind)

    def picture(data):
        data = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return transform(decode_jpeg(data, mode=ImageReadMode.RGB))

    pipeline = wds.DataPipeline(
        wds.SimpleShardList(shards(folder)), wds.split_by_worker, wds.tarfile_to_samples(),
        wds.shuffle(bufsize=5000, initial=1000),
        wds.map_dict(jpg=picture, txt=lambda text: tokenizer()(text.decode())[0]),
        wds.to_tuple("jpg", "txt"), wds.batched(BATCH))
    return consume(wds.WebLoader(pipeline, batch_size=None, num_workers=1), images)


def dali_loader(folder, kind, images):
    """Operators for the CPU only, one thread; captions are tokenised as they come."""
    import nvidia.dali.fn as fn
    import nvidia.dali.types as t
    import torch
    from nvidia.dali import pipeline_def

    @pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, seed=0)
    def pipe():
        jpeg, text = fn.readers.webdataset(
            paths=shards(folder), ext=["jpg", "txt"], random_shuffle=True, initial_fill=1000,
            missing_component_behavior="error", dont_use_mmap=True)
        low = 0.9 if kind == "clip" else 0.08
        pictures = fn.decoders.image_random_crop(
            jpeg, device="cpu", output_type=t.RGB, random_area=[low, 1.0],
            random_aspect_ratio=[3 / 4, 4 / 3])
        filtered = t.INTERP_CUBIC if kind == "clip" else t.INTERP_LINEAR
        pictures = fn.resize(pictures, size=[SIDE, SIDE], interp_type=filtered, antialias=True)
        mirror = 0
        if kind == "roclip":
            mirror = fn.random.coin_flip(probability=0.5)
            chosen = fn.random.coin_flip(probability=0.8)
            factor = lambda: 1 + chosen * fn.random.uniform(range=[-0.5, 0.5])
            colour = 1 - fn.random.coin_flip(probability=0.2)
            pictures = fn.color_twist(
                pictures, brightness=factor(), contrast=factor(), saturation=factor() * colour,
                hue=chosen * fn.random.uniform(range=[-36.0, 36.0]))
            sigma = fn.random.uniform(range=[0.1, 2.0])
            pictures = fn.gaussian_blur(pictures, window_size=21, sigma=sigma)
        scaled = [[255 * x for x in values] for values in (MEAN, STD)]
        pictures = fn.crop_mirror_normalize(
            pictures, dtype=t.FLOAT, output_layout="CHW", mean=scaled[0], std=scaled[1],
            mirror=mirror)
        return pictures, text

    pipeline = pipe()
    pipeline.build()

    def batches():
        while True:
            pictures, texts = pipeline.run()
            captions = [bytes(texts.at(n)).decode() for n in range(BATCH)]
            yield torch.from_numpy(pictures.as_array()), tokenizer()(captions)

    return lambda: consume(batches(), images)


def ffcv_loader(folder, kind, images):
    """From a file of its own, written before the clock starts, pictures encoded anew at quality 90;
    each is decoded whole and its part brought to size by averaging areas. It has no bicubic, and
    of RoCLIP's set it has too little, so that it runs open_clip's crop alone."""
    import io

    import numpy as np
    import torch
    import webdataset as wds
    from ffcv.fields import BytesField, RGBImageField
    from ffcv.fields.bytes import BytesDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter
    from PIL import Image

    pairs = list(wds.DataPipeline(wds.SimpleShardList(shards(folder)), wds.tarfile_to_samples()))
    longest = max(len(pair["txt"]) for pair in pairs)

    class Pairs:
        def __len__(self):
            return len(pairs)

        def __getitem__(self, n):
            picture = np.asarray(Image.open(io.BytesIO(pairs[n]["jpg"])).convert("RGB"))
            return picture, np.frombuffer(pairs[n]["txt"].ljust(longest, b"\0"), np.uint8)

    scratch = tempfile.TemporaryDirectory()
    path = os.path.join(scratch.name, "pairs.beton")
    fields = {"picture": RGBImageField(write_mode="jpg", jpeg_quality=90), "text": BytesField()}
    DatasetWriter(path, fields, num_workers=1).from_indexed_dataset(Pairs())
    scaled = [255 * np.array(values) for values in (MEAN, STD)]
    crop = RandomResizedCropRGBImageDecoder((SIDE, SIDE), scale=(0.9, 1.0))
    pictures = [crop, NormalizeImage(*scaled, np.float32), ToTensor(), ToTorchImage()]
    loader = Loader(
        path, batch_size=BATCH, num_workers=1, order=OrderOption.RANDOM, seed=0,
        indices=range(min(images, len(pairs))), pipelines={"picture": pictures, "text": [BytesDecoder()]})

    def batches():
        for pictures, texts in loader:
            captions = [bytes(text).rstrip(b"\0").decode() for text in texts]
            yield torch.as_tensor(pictures), tokenizer()(captions)

    consume(batches(), BATCH)  # compiles

    def run():
        count = consume(batches(), images)
        scratch.cleanup()
        return count

    return run


def webdataset_reader(folder, kind, images):
    """Members to pairs, in this process, nothing else."""
    import webdataset as wds

    def pairs():
        while True:
            yield from wds.DataPipeline(
                wds.SimpleShardList(shards(folder)), wds.tarfile_to_samples())

    for count, pair in enumerate(pairs(), 1):
        assert "jpg" in pair and "txt" in pair
        if count == images:
            return count


def webdataset_worker(folder, kind, images):
    """The same in a worker of its own, from where pairs come here: as a trainer has it."""
    import webdataset as wds

    pipeline = wds.DataPipeline(wds.SimpleShardList(shards(folder)), wds.tarfile_to_samples())
    count = 0
    while True:
        for pair in wds.WebLoader(pipeline, batch_size=None, num_workers=1):
            assert "jpg" in pair and "txt" in pair
            count += 1
            if count == images:
                return count


PEERS = {
    "webdataset": (webdataset_reader, ["read"]),
    "webdataset, a worker": (webdataset_worker, ["read"]),
    "open_clip": (open_clip_loader, KINDS),
    "torchvision v2": (torchvision_loader, KINDS),
    "DALI": (dali_loader, KINDS),
    "FFCV": (ffcv_loader, ["clip"]),
}
# What has to be prepared before the clock starts.
PREPARED = ["DALI", "FFCV"]
OURS = ["read"] + [f"{kind}-{way}" for kind in KINDS for way in ("fast", "exact")]


def cpu_seconds():
    gc.collect()  # workers that nobody waits for any more have to end before they count
    gc.freeze()  # and the next time there is little to collect
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def child(peer, kind, folder, images):
    """Runs one peer in this process and prints a line of JSON."""
    warnings.simplefilter("ignore")
    try:
        import torch
        torch.set_num_threads(1)
    except ImportError:
        pass
    load = PEERS[peer][0]

    def prepared(count):
        made = load(folder, kind, count) if peer in PREPARED else None
        return made or functools.partial(load, folder, kind, count)

    prepared(BATCH)()
    run = prepared(images)
    before = cpu_seconds()
    count = run()
    used = cpu_seconds() - before
    print(json.dumps({"peer": peer, "images": count, "cpu_us": used * 1e6 / count}))


def measure(command):
    """The last line of what the command prints, or why there is none."""
    one = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    done = subprocess.run(command, capture_output=True, text=True, env=one)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])["cpu_us"], None
    errors = [line for line in done.stderr.splitlines() if line.strip()] or ["no word"]
    return None, errors[-1][:150]


def commands(arguments):
    """Name, what is done, and how to start it, for everything that takes part."""
    # What takes less time takes more pairs to tell how much.
    images = lambda kind, times=1: str(arguments.images * times * (10 if kind == "read" else 1))
    for kind in OURS:
        yield "ours", kind, [arguments.bench, "--shards500", arguments.shards, "--peer", kind,
                             "--pairs", "1", "--images", images(kind, 4)]
    for peer, (_, kinds) in PEERS.items():
        for kind in kinds:
            yield peer, kind, [sys.executable, __file__, "--shards", arguments.shards, "--images",
                               images(kind), "--child", peer, kind]


def table(times):
    """Every peer's time, and how many times ours, fast and exact."""
    middle = {key: statistics.median(values) for key, values in times.items()}
    print("\n| work | loader | CPU us a pair, median (least-most) | x ours | x ours, exact |")
    print("|---|---|---|---|---|")
    for work in ["read", *KINDS]:
        mine = [middle.get(("ours", key)) for key in (work, f"{work}-fast", f"{work}-exact")]
        fast, exact = mine[0] or mine[1], mine[2]
        for (name, kind), values in sorted(times.items(), key=lambda item: middle[item[0]]):
            if kind.split("-")[0] != work:
                continue
            ratio = lambda of: f"{middle[name, kind] / of:.1f}" if of and name != "ours" else ""
            label = f"{name}, {kind.split('-')[1]}" if "-" in kind else name
            print(f"| {work} | {label} | {middle[name, kind]:.0f} ({min(values):.0f}-"
                  f"{max(values):.0f}) | {ratio(fast)} | {ratio(exact)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", required=True)
    parser.add_argument("--bench", help="binary of benches/loader.rs")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of peers; ours takes part always")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(*arguments.child, arguments.shards, arguments.images)
    if not arguments.bench:
        parser.error("--bench: name the binary")
    times, refused = {}, set()
    for turn in range(arguments.rounds):
        for name, kind, command in commands(arguments):
            wanted = name == "ours" or not arguments.only or name in arguments.only
            if not wanted or (name, kind) in refused:
                continue
            micros, reason = measure(command)
            if micros is None:
                refused.add((name, kind))
                print(f"{name} {kind}: left out: {reason}", flush=True)
            else:
                times.setdefault((name, kind), []).append(micros)
                print(f"round {turn + 1}: {name} {kind}: {micros:.0f} us", flush=True)
    table(times)


if __name__ == "__main__":
    main()

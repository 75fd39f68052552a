"""The 3x3 convolutions of CLIP's ResNet, channels last: cuDNN's, by its own choice and tuned."""

import torch

# Images, side, channels in and out; images, side, channels out. As in `benches/ops.rs`.
GPU = {
    "convolutions": [
        (256, 112, 32, 32),
        (256, 112, 32, 64),
        (256, 56, 64, 64),
        (256, 56, 128, 128),
        (256, 28, 128, 128),
        (256, 28, 256, 256),
        (256, 14, 256, 256),
        (256, 14, 512, 512),
        (256, 7, 512, 512),
    ],
    "of_pictures": (256, 224, 32),
}
TINY = {"convolutions": [(3, 9, 24, 40)], "of_pictures": (3, 20, 8)}


def run(table, tiny, make):
    shapes = TINY if tiny else GPU
    for images, side, inputs, outputs in shapes["convolutions"]:
        title = f"{images}x{side}x{side} {inputs}x{outputs}"
        x, dy = (last(make(images, channels, side, side)) for channels in (inputs, outputs))
        three(table, "conv2d", title, x, last(make(outputs, inputs, 3, 3)), dy, 1)
    images, side, outputs = shapes["of_pictures"]
    title = f"{images}x{side} 3x{outputs}"
    x = make(images, 3, side, side, dtype=torch.float32)
    dy = last(make(images, outputs, side // 2, side // 2))
    three(table, "conv2d pictures", title, x, last(make(outputs, 3, 3, 3)), dy, 2)


def last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def three(table, op, title, x, w, dy, stride):
    """Forward and the gradients; pictures, in f32, are cast first and have none."""
    cast = lambda: last(x.to(w.dtype))
    backward = lambda dx, dw: lambda: torch.ops.aten.convolution_backward(
        dy, cast(), w, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [dx, dw, False])
    calls = {"forward": lambda: torch.nn.functional.conv2d(cast(), w, None, stride, 1)}
    if x.dtype == w.dtype:
        calls["dx"] = backward(True, False)
    calls["dw"] = backward(False, True)
    for part, call in calls.items():
        for peer, tuned in [("cudnn", False), ("cudnn tuned", True)]:
            def body():
                with torch.backends.cudnn.flags(enabled=True, benchmark=tuned):
                    return call()

            table.add(f"{op} {part} {title}", peer, lambda: body)

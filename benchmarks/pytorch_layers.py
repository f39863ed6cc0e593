"""Time of a training step of VFNet's plain layers in PyTorch, and of a matrix product.

`python benchmarks/pytorch_layers.py` prints seconds, the least and the median of five. The
layers are those of VFNet-R50 for the blood cells: a frozen first stage, an FPN and the
towers, with an ordinary convolution for each deformable one, and neither assignment nor
losses. So it is a lower bound for a step of any VFNet in PyTorch on the same machine.
"""

import statistics
import time

import torch
from torch import nn


def conv(inputs, outputs, size, stride=1):
    """A convolution without bias, padded on all sides."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def norm_act(inputs, outputs, size, stride=1):
    """A convolution, batch norm and ReLU."""
    return nn.Sequential(
        conv(inputs, outputs, size, stride), nn.BatchNorm2d(outputs), nn.ReLU(True)
    )


def tower_conv():
    """A convolution, group norm and ReLU of a tower."""
    return nn.Sequential(conv(256, 256, 3), nn.GroupNorm(32, 256), nn.ReLU(True))


class Block(nn.Module):
    """A bottleneck of ResNet with its shortcut.

    Args:
        inputs: int, channels.
        width: int, channels of the 3x3 convolution; the output has four times as many.
        stride: int.
    """

    def __init__(self, inputs, width, stride):
        super().__init__()
        outputs = 4 * width
        last = nn.Sequential(conv(width, outputs, 1), nn.BatchNorm2d(outputs))
        self.body = nn.Sequential(
            norm_act(inputs, width, 1, stride), norm_act(width, width, 3), last
        )
        self.shortcut = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


class Layers(nn.Module):
    """ResNet-50, FPN and towers; images `[B, 3, H, W]` to a scalar to be minimised."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(norm_act(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1))
        stages, inputs = [], 64
        for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
            strides = [1 if width == 64 else 2] + [1] * (blocks - 1)
            sizes = [inputs] + [4 * width] * (blocks - 1)
            stages.append(
                nn.Sequential(
                    *(
                        Block(size, width, stride)
                        for size, stride in zip(sizes, strides, strict=True)
                    )
                )
            )
            inputs = 4 * width
        self.stages = nn.ModuleList(stages)
        self.lateral = nn.ModuleList(conv(c, 256, 1) for c in (512, 1024, 2048))
        self.output = nn.ModuleList(conv(256, 256, 3) for _ in range(3))
        self.coarse = nn.ModuleList(conv(256, 256, 3, 2) for _ in range(2))
        self.class_tower = nn.Sequential(*(tower_conv() for _ in range(3)))
        self.box_tower = nn.Sequential(*(tower_conv() for _ in range(3)))
        self.boxes = nn.Sequential(tower_conv(), conv(256, 4, 3))
        self.refined = nn.Sequential(conv(256, 256, 3), nn.ReLU(True), conv(256, 4, 3))
        self.classes = nn.Sequential(conv(256, 256, 3), nn.ReLU(True), conv(256, 3, 3))
        for frozen in (self.stem, self.stages[0]):
            frozen.requires_grad_(False)
        for stored in (self.stem, *self.stages[:3]):
            stored.eval()

    def forward(self, x):
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        maps = [layer(x) for layer, x in zip(self.lateral, maps[1:], strict=True)]
        for finer in (1, 0):
            maps[finer] = maps[finer] + nn.functional.interpolate(
                maps[finer + 1], scale_factor=2
            )
        maps = [layer(x) for layer, x in zip(self.output, maps, strict=True)]
        sixth, seventh = self.coarse
        maps.append(sixth(maps[-1]))
        maps.append(seventh(torch.relu(maps[-1])))
        total = 0
        for x in maps:
            classes, boxes = self.class_tower(x), self.box_tower(x)
            predictions = (
                self.boxes(boxes).exp(),
                self.refined(boxes),
                self.classes(classes),
            )
            for values in predictions:
                total = total + 1e-4 * values.sum()
        return total


def make_step(network, images):
    """Returns a function without arguments that takes one step of SGD."""
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.0025, momentum=0.9, weight_decay=1e-4)

    def step():
        optimizer.zero_grad()
        network(images).backward()
        optimizer.step()

    return step


def seconds(function, repeats=5):
    """The least and the median time of a function, after one call that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times), statistics.median(times)


def main():
    """Prints all figures, the layers in both memory formats."""
    torch.set_num_threads(2)
    square = torch.randn(4096, 4096)
    print("matrix product", seconds(lambda: square @ square))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        network = Layers().to(memory_format=memory_format)
        images = torch.randn(4, 3, 256, 320).to(memory_format=memory_format)
        print(memory_format, seconds(make_step(network, images)))


if __name__ == "__main__":
    main()

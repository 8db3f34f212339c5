"""The course's UNet for MNIST in PyTorch, built from the course's page. The tests compare jdiff.mnist.unet with it."""

import torch
from torch import nn

from jdiff.mnist.unet import CLASSES, Config


class Conv(nn.Sequential):
    """Convolution (transposed if `up`), BatchNorm, GELU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1, up: bool = False):
        layer = (nn.ConvTranspose2d if up else nn.Conv2d)(inputs, outputs, kernel, stride, padding)
        super().__init__(layer, nn.BatchNorm2d(outputs), nn.GELU())


def block(inputs: int, outputs: int) -> list[Conv]:
    """The course's ConvBlock."""
    return [Conv(inputs, outputs), Conv(outputs, outputs)]


def fully(inputs: int, outputs: int) -> nn.Sequential:
    """The course's FCBlock."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))


class Course(nn.Module):
    """The network. Its layers have the same names as in jdiff.mnist.unet.UNet."""

    def __init__(self, config: Config):
        super().__init__()
        d = config.width
        self.config = config
        self.first = nn.Sequential(*block(1, d))
        self.down_1 = nn.Sequential(Conv(d, d, 3, 2, 1), *block(d, d))
        self.down_2 = nn.Sequential(Conv(d, 2 * d, 3, 2, 1), *block(2 * d, 2 * d))
        self.unflatten = Conv(2 * d, 2 * d, 7, 7, 0, up=True)
        self.up_1 = nn.Sequential(Conv(4 * d, d, 4, 2, 1, up=True), *block(d, d))
        self.up_2 = nn.Sequential(Conv(2 * d, d, 4, 2, 1, up=True), *block(d, d))
        self.last = nn.Sequential(*block(2 * d, d))
        self.out = nn.Conv2d(d, 1, 3, 1, 1)
        if config.time:
            self.time_1, self.time_2 = fully(1, 2 * d), fully(1, d)
        if config.classes:
            self.class_1, self.class_2 = fully(CLASSES, 2 * d), fully(CLASSES, d)

    def condition(self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor, i: int) -> torch.Tensor:
        """Multiplies x by the class's embedding, and adds or multiplies by the time's embedding."""
        if self.config.classes:
            x = x * getattr(self, f"class_{i}")(c)[..., None, None]
        if self.config.time:
            by = getattr(self, f"time_{i}")(t[:, None])[..., None, None]
            x = x * by if self.config.multiply else x + by
        return x

    def forward(self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Predicts for x [n 1 28 28], t [n] and one-hot classes c [n 10]."""
        at_28 = self.first(x)
        at_14 = self.down_1(at_28)
        at_7 = self.down_2(at_14)
        u = self.condition(self.unflatten(nn.functional.gelu(nn.functional.avg_pool2d(at_7, 7))), t, c, 1)
        u = self.condition(self.up_1(torch.cat([u, at_7], 1)), t, c, 2)
        return self.out(self.last(torch.cat([self.up_2(torch.cat([u, at_14], 1)), at_28], 1)))

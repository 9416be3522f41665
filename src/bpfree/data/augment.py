"""Random changes to raw samples, by key. Each image has its own draws.

Numbers are drawn where the images are, so that a step never waits for a copy. A GPU computes them from the key (see
`bpfree.noise`), and gives other changes than a CPU.

Random crops as in Szegedy et al. 2015, https://arxiv.org/abs/1409.4842; cutout: DeVries & Taylor 2017,
https://arxiv.org/abs/1708.04552; mixup: Zhang et al. 2018, https://arxiv.org/abs/1710.09412.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bpfree.data.part import Part
from bpfree.data.preprocess import Preprocess
from bpfree.data.scaling import constant
from bpfree.data.transforms import Transform, transformed
from bpfree.errors import UserError
from bpfree.noise import Noise, counts

_TRIES = 8  # candidates for a number of the Gamma distribution; all are rejected once in 10^10 numbers


@dataclass(frozen=True)
class PixelValues:
    """The raw values of black, white and the mean, which some changes need.

    Args:
        black: the smallest raw value.
        white: the largest raw value.
        mean: the mean of each channel, or one value for all channels.
    """

    black: float = 0.0
    white: float = 255.0
    mean: tuple[float, ...] = (0.0,)

    @classmethod
    def of(cls, preprocess: Preprocess) -> "PixelValues":
        """Return the values of the training images: bytes from 0 to white, floats from the smallest to the largest."""
        is_image = preprocess.dtype == "uint8"
        black, white = (0.0, preprocess.white) if is_image else preprocess.limits
        return cls(black, white, preprocess.mean)


@dataclass(frozen=True)
class Augment:
    """Random changes to raw images [B, C, H, W], drawn anew for each image and made in the order of this list.

    Args:
        crop: a random part of the image, scaled back to the image's size. `crop` is the smallest share of the image's
            area, above 0 and up to 1; the share is uniform between `crop` and 1, and so is the place. 1 turns it off.
        flip: mirror left and right with probability 1/2.
        shift: the most pixels that an image may move up, down, left or right. Black fills the gap.
        brightness: multiply the distance from black by a factor between 1 - brightness and 1 + brightness.
        contrast: multiply the distance from the image's mean by a factor between 1 - contrast and 1 + contrast.
        cutout: the side in pixels of a square that is filled with the training mean. Its centre is any pixel, so part
            of the square may lie outside the image.
        mixup: alpha; each sample is mixed with another one of its batch by shares from Beta(alpha, alpha), and the
            labels are mixed alike. 0 turns it off. Samples need not be images.
        transforms: functions of the user, which change samples behind all of these except mixup. They get images of
            bytes as numbers from 0 to 1, and other samples as they are.
        values: the raw values of black, white and the mean.

    Example:
        >>> Augment(shift=1, flip=True)(torch.zeros(2, 3, 8, 8), Noise(0)).shape
        torch.Size([2, 3, 8, 8])
    """

    shift: int = 0
    flip: bool = False
    crop: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    cutout: int = 0
    mixup: float = 0.0
    transforms: tuple[Transform, ...] = ()
    values: PixelValues = PixelValues()

    def __call__(self, x: Tensor, noise: Noise, part: Part | None = None) -> Tensor:
        """Return the changed samples; mixup is not among these changes, see `mix`.

        Args:
            x: raw images [B, C, H, W]; with no changes but `transforms`, samples [B, ...].
            noise: the key of the draws.
            part: the rows of a batch that x holds. Draws are those of the whole batch, so that the parts of a batch
                change as the whole does. None if x is the whole batch, which `transforms` need.

        Returns:
            [B, C, H, W], floating if a change computes with values, else of the type of x.

        Raises:
            UserError: the samples are not images, cutout or shift leaves nothing of them, or a transform returns
                something else than samples.
        """
        white = self.values.white if x.dtype == torch.uint8 else None
        x = self._changed(x, noise, part)
        return transformed(x, self.transforms, noise, white) if self.transforms else x

    @property
    def needs_whole_batches(self) -> bool:
        """True if the rows of a batch cannot be changed apart: mixup takes others, and transforms draw as they like."""
        return self.mixup > 0 or bool(self.transforms)

    def _changed(self, x: Tensor, noise: Noise, part: Part | None) -> Tensor:
        """Return images after the changes of bpfree's own, but mixup."""
        moved, valued = self._names(("shift", "flip")), self._names(("crop", "brightness", "contrast", "cutout"))
        if not moved and not valued:
            return x
        if x.dim() != 4:
            raise UserError(
                f"{', '.join([*moved, *valued])}: samples have the shape {list(x.shape[1:])}, allowed: images "
                "[channels, height, width]"
            )
        x, part = _as_values(x, valued), part or Part.of(len(x), None)
        # Each change has a key of its own: to switch one on or off leaves the draws of the others as they are.
        x = _crop(x, self.crop, noise.fold("augment", "crop"), part) if self.crop < 1 else x
        x = self._move(x, noise.fold("augment"), part) if moved else x
        x = self._light(x, noise.fold("augment", "light"), part) if self.brightness or self.contrast else x
        return self._cut_out(x, noise.fold("augment", "cutout"), part) if self.cutout else x

    def mix(self, x: Tensor, y: Tensor, noise: Noise, classes: int) -> tuple[Tensor, Tensor]:
        """Return mixed samples and labels; without mixup, return both as they are.

        Args:
            x: raw samples [B, ...].
            y: class indices [B].
            noise: the key of the draws.
            classes: C.

        Returns:
            Samples [B, ...], and shares of the classes [B, C] in place of labels.

        Raises:
            UserError: the samples are tokens and not quantities, or the labels are not one class for each sample.
        """
        if not self.mixup:
            return x, y
        if y.dim() != 1 or y.is_floating_point():
            raise UserError(
                f"data.augment.mixup: targets are {y.dtype} of shape {list(y.shape)}, allowed: one class for each "
                "sample, [B]. Use data.augment.mixup=0"
            )
        x = _as_values(x, ["data.augment.mixup"])
        noise = noise.fold("augment", "mixup")
        share, other = _mixture(self.mixup, noise, x)
        shares = F.one_hot(y, classes).to(x.dtype)
        return _blend(x, x[other], share), _blend(shares, shares[other], share)

    def refuse_several(self) -> None:
        """Raise UserError if a change is switched on; samples of several inputs cannot be changed."""
        if names := self._names(("shift", "flip", "crop", "brightness", "contrast", "cutout", "mixup", "transforms")):
            raise UserError(
                f"{', '.join(names)}: samples are several inputs, allowed: samples that are one array of images. Leave "
                "it out, and change the samples in your own torch Dataset"
            )

    def _names(self, keys: tuple[str, ...]) -> list[str]:
        """Return the config keys of the changes that are switched on."""
        return [f"data.augment.{key}" for key in keys if getattr(self, key) != getattr(Augment, key)]

    def _move(self, x: Tensor, noise: Noise, part: Part) -> Tensor:
        """Shift each image to a window of the image with a black frame, then flip some of them."""
        b, _, height, width = x.shape
        generator = None if counts(x.device) else noise.generator()  # one for both changes
        flipped = self._flipped(part.whole, x.device, noise, generator)[part.rows] if self.flip else None
        if self.shift:
            _check_within("shift", self.shift, height, width)
            # The frame adds `shift` pixels on each side, so 0 to 2 * shift here are moves from -shift to +shift.
            down, right = self._moves(part.whole, x.device, noise, generator)[:, part.rows]
            windows = F.pad(x, [self.shift] * 4).unfold(2, height, 1).unfold(3, width, 1)  # [B, C, S, S, H, W], a view
            x = windows.permute(0, 2, 3, 1, 4, 5)[_up_to(b, x.device), down, right]
        if flipped is not None:
            x = torch.where(flipped, x.flip(3), x)
        return x.contiguous(memory_format=torch.channels_last)

    def _flipped(self, b: int, device: torch.device, noise: Noise, generator: torch.Generator | None) -> Tensor:
        """Return which images are flipped, bool [B, 1, 1, 1]."""
        if generator is None:
            drawn = noise.fold("flip").rand(b, 1, device=device)
        else:
            drawn = torch.rand(b, 1, generator=generator)
        return (drawn < 0.5).view(b, 1, 1, 1)

    def _moves(self, b: int, device: torch.device, noise: Noise, generator: torch.Generator | None) -> Tensor:
        """Return how far each image moves down and right, [2, B], from 0 to 2 * shift."""
        most = 2 * self.shift + 1
        if generator is None:
            return noise.fold("shift").randint(most, 2, b, 1, device=device)[..., 0]
        return torch.randint(0, most, (2, b, 1), generator=generator)[..., 0]

    def _light(self, x: Tensor, noise: Noise, part: Part) -> Tensor:
        """Change brightness, then contrast; each result is clamped between black and white."""
        black, white = self.values.black, self.values.white
        drawn = 2 * _uniform(noise, (2, part.whole, 1, 1, 1), x)[:, part.rows] - 1
        brighter, starker = drawn.unbind()  # [B, 1, 1, 1], from -1 to 1
        x = (black + (x - black) * (1 + self.brightness * brighter)).clamp(black, white)
        # torch splits the sum over a single image among threads, which rounds otherwise than the sums over several.
        several = torch.cat([x, x]) if len(x) == 1 < part.whole else x
        mean = several.mean((1, 2, 3), keepdim=True)[: len(x)]
        return (mean + (x - mean) * (1 + self.contrast * starker)).clamp(black, white)

    def _cut_out(self, x: Tensor, noise: Noise, part: Part) -> Tensor:
        """Fill a square with the mean; rows and columns inside the square are two masks that are multiplied."""
        sides = x.shape[2:]
        _check_within("cutout", self.cutout, *sides)
        within = []
        for axis, side in enumerate(sides):
            # Each axis has its own key. With one key for both, all centres would lie on the diagonal of the image.
            centre = noise.fold(axis).randint(side, part.whole, 1, device=x.device)[part.rows]
            from_top = _up_to(side, x.device) - (centre - self.cutout // 2)
            within.append((from_top >= 0) & (from_top < self.cutout))
        hidden = within[0][:, None, :, None] & within[1][:, None, None, :]  # [B, 1, H, W]
        return torch.where(hidden, constant(self.values.mean, x.dtype, x.device).view(1, -1, 1, 1), x)


@lru_cache(maxsize=64)
def _up_to(n: int, device: torch.device) -> Tensor:
    """Return the numbers 0 to n - 1, made once: a GPU needs as long to launch such a kernel as a large one."""
    with torch.inference_mode(False):  # see `constant`
        return torch.arange(n, device=device)


def _check_within(key: str, pixels: int, *sides: int) -> None:
    """Raise UserError unless so many pixels leave something of an image."""
    if pixels >= min(sides):
        raise UserError(f"data.augment.{key}: found {pixels}, allowed: less than an image's side, {min(sides)} pixels")


def _as_values(x: Tensor, names: list[str]) -> Tensor:
    """Return samples as floating numbers if changes named `names` compute with their values."""
    if not names or x.is_floating_point():
        return x
    if x.dtype not in (torch.uint8, torch.bool):
        raise UserError(f"{', '.join(names)}: samples are {x.dtype}, which are tokens, allowed: uint8 or floating")
    return x.float()


def _crop(x: Tensor, smallest: float, noise: Noise, part: Part) -> Tensor:
    """Return a random part of each image, scaled to the size of the image; the part has the image's proportions.

    The corners of the part are affine coordinates, in which the image reaches from -1 to 1.
    """
    area, right, down = _uniform(noise, (3, part.whole), x)[:, part.rows].unbind()
    side = (smallest + (1 - smallest) * area).sqrt()  # [B], as a share of the image's side
    frame = x.new_zeros(len(x), 2, 3)
    frame[:, 0, 0] = frame[:, 1, 1] = side
    # The centre of a part keeps a distance of `side` from -1 and 1, so that no part leaves the image.
    frame[:, 0, 2], frame[:, 1, 2] = (1 - side) * (2 * right - 1), (1 - side) * (2 * down - 1)
    grid = F.affine_grid(frame, list(x.shape), align_corners=False)
    # "border", because at the edge bilinear weights reach half a pixel outside, where zeros would give dark borders.
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _uniform(noise: Noise, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return numbers in [0, 1), of the type and on the device of a tensor."""
    return noise.rand(*shape, device=like.device).to(like.dtype)


def _mixture(alpha: float, noise: Noise, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each sample the share that it keeps, from Beta(alpha, alpha), and the sample that it is mixed with."""
    b, own, other = len(x), noise.fold("share"), noise.fold("other")
    if counts(x.device):
        # log X - log Y of two Gamma numbers is the log-odds of X / (X + Y), whose distribution is Beta.
        first, second = (_log_gamma_numbers(alpha, own.fold(i), b, x.device) for i in range(2))
        return torch.sigmoid(first - second).to(x.dtype), other.rand(b, device=x.device).argsort()
    # numpy, because torch's Beta takes no generator: its numbers would depend on what was drawn before.
    drawn = np.random.Generator(np.random.PCG64(own.key())).beta(alpha, alpha, b)
    return torch.from_numpy(drawn).to(x), other.permutation(b)


def _log_gamma_numbers(alpha: float, noise: Noise, n: int, device: torch.device) -> Tensor:
    """Return logarithms of n numbers from Gamma(alpha), drawn without a loop that waits for the device.

    Marsaglia and Tsang 2000, https://doi.org/10.1145/358407.358414. Each number is the first of `_TRIES` candidates
    that is accepted. A candidate is rejected with a probability below 0.05.
    """
    d = alpha + 1 - 1 / 3
    z = noise.fold("z").randn(_TRIES, n, device=device)
    u = noise.fold("u").rand(_TRIES + 1, n, device=device)
    v = (1 + z / (9 * d) ** 0.5) ** 3
    log_v = v.clamp(min=1e-30).log()
    accepted = (v > 0) & ((1 - u[1:]).log() < 0.5 * z.square() + d * (1 - v + log_v))
    chosen = accepted.to(torch.uint8).argmax(0, keepdim=True)  # the first that is accepted
    # d * v is from Gamma(alpha + 1), and times U^(1 / alpha) it is from Gamma(alpha). The constant d cancels out.
    numbers: Tensor = log_v.gather(0, chosen).squeeze(0) + (1 - u[0]).log() / alpha
    return numbers


def _blend(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Return share * a + (1 - share) * b, for a share [B] and tensors [B, ...]."""
    share = share.view(-1, *[1] * (a.dim() - 1))
    return share * a + (1 - share) * b

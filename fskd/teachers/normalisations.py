"""Usual normalisations of images: those that a teacher was probably trained with."""

from collections.abc import Mapping, Sequence

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, of images scaled to [0, 1]."""

_IMAGENET: Normalisation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

COLOUR: Mapping[str, Normalisation] = {
    "ImageNet": _IMAGENET,
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    # A mean over images of each image's own spread; it is in as many scripts as the right one.
    "CIFAR-10, small std": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "Tiny ImageNet": ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
    "ImageNet's mean, pixels 0 to 255": (_IMAGENET[0], (1 / 255,) * 3),
}

GREY: Mapping[str, Normalisation] = {
    "MNIST": ((0.1307,), (0.3081,)),
    "Fashion-MNIST": ((0.2860,), (0.3530,)),
    "ImageNet, grey": ((0.449,), (0.226,)),
}


def usual(channels: int) -> dict[str, Normalisation]:
    """Normalisations in use for images of so many channels, by name.

    Example:
        >>> usual(1)["pixels -1 to 1"]
        ((0.5,), (0.5,))
    """
    known = {1: GREY, 3: COLOUR}.get(channels, {})
    return {
        "pixels 0 to 1": ((0.0,) * channels, (1.0,) * channels),
        "pixels -1 to 1": ((0.5,) * channels, (0.5,) * channels),
        "pixels 0 to 255": ((0.0,) * channels, (1 / 255,) * channels),
        **known,
    }


def others(own: Normalisation, more: Mapping[str, Normalisation]) -> dict[str, Normalisation]:
    """The usual normalisations and more, without those that are the own one or come twice."""
    found: dict[str, Normalisation] = {}
    seen = [own]
    for name, one in {**more, **usual(len(own[0]))}.items():
        if not any(_alike(one, other) for other in seen):
            found[name] = one
            seen.append(one)
    return found


def _alike(one: Normalisation, other: Normalisation) -> bool:
    # Published numbers of one data set differ in their last digit.
    return all(map(_near, one[0], other[0])) and all(map(_near, one[1], other[1]))


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-3 * max(1.0, abs(one))


def written(numbers: Sequence[float]) -> str:
    """Numbers as they would be written in a settings file: one, or a list of them."""
    return f"[{', '.join(f'{number:.4g}' for number in numbers)}]"

"""What the networks of the zoo share: a stage of blocks, initialisation, channel shuffle."""

from torch import Tensor, nn

from fskd.models.staged import Stage


def run_stage(blocks: nn.Sequential, x: Tensor) -> Stage:
    """Runs blocks that return their map before its last ReLU.

    The ReLU is applied here and never in place: both maps are taps.

    Args:
        blocks: At least one block, each mapping (rows, C, H, W) to a map before its ReLU.
        x: Input of the first block, (rows, C, H, W).

    Returns:
        The map (rows, C_l, H_l, W_l), and the same before its ReLU.
    """
    before = x
    for block in blocks:
        before = block(x)
        x = before.relu()
    return Stage(x, before)


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Interleaves the channels of ``groups`` equal groups of (rows, C, H, W).

    Example:
        >>> import torch
        >>> shuffle_channels(torch.arange(6.0).view(1, 6, 1, 1), 2).flatten().tolist()
        [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """
    rows, channels, height, width = x.shape
    x = x.view(rows, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(rows, channels, height, width)


def init_convolutions(net: nn.Module) -> None:
    """Draws convolution weights from N(0, 2 / fan_out), He et al. 2015 (arXiv:1502.01852)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_linears(net: nn.Module, std: float) -> None:
    """Draws linear weights from N(0, std²) and sets biases to 0."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, std)
            nn.init.zeros_(module.bias)

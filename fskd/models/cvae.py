"""A small conditional variational autoencoder of images."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

ROWS = 256  # images that are decoded at once


class CVAE(nn.Module):
    """Images given their class: two strided convolutions, a Gaussian code, and the way back.

    The class reaches the encoder as a further channel, a linear map of its one-hot code, and the
    decoder beside the code z. Any channels and sizes.

    Args:
        size: (C, H, W).
        num_classes: K.
        latent: Length of z.
        width: Channels of the first convolution; the second has twice as many.
    """

    def __init__(
        self, size: tuple[int, int, int], num_classes: int, latent: int = 2, width: int = 16
    ) -> None:
        super().__init__()
        channels, height, across = self.size = size
        self.num_classes, self.latent = num_classes, latent
        inner = 2 * width, -(-height // 4), -(-across // 4)
        flat = inner[0] * inner[1] * inner[2]
        self.condition = nn.Linear(num_classes, height * across)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels + 1, width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(flat, 2 * latent),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(latent + num_classes, flat), nn.ReLU(), nn.Unflatten(1, inner),
            nn.Upsample(scale_factor=2), nn.Conv2d(2 * width, width, 3, 1, 1), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(width, channels, 3, 1, 1),
        )  # fmt: skip

    def encode(self, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of z, (B, latent) each, for images in [0, 1] and classes (B,)."""
        known = self.condition(self._one_hot(classes)).view(-1, 1, *self.size[1:])
        mean, log_var = self.encoder(torch.cat([images, known], 1)).chunk(2, 1)
        return mean, log_var

    def decode(self, z: Tensor, classes: Tensor) -> Tensor:
        """Logits of the pixels, (B, C, H, W)."""
        whole: Tensor = self.decoder(torch.cat([z, self._one_hot(classes)], 1))
        return whole[:, :, : self.size[1], : self.size[2]]

    def forward(
        self, images: Tensor, classes: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the pixels, mean and log variance of z, for noise (B, latent) from N(0, 1)."""
        mean, log_var = self.encode(images, classes)
        return self.decode(mean + (log_var / 2).exp() * noise, classes), mean, log_var

    def _one_hot(self, classes: Tensor) -> Tensor:
        return F.one_hot(classes, self.num_classes).float()


def cvae_loss(
    logits: Float[Tensor, "batch c h w"],
    images: Float[Tensor, "batch c h w"],
    mean: Float[Tensor, "batch latent"],
    log_var: Float[Tensor, "batch latent"],
) -> Float[Tensor, ""]:
    """Binary cross-entropy summed over pixels, plus KL(N(mean, var) || N(0, 1)); mean over rows.

    Kingma and Welling, *Auto-Encoding Variational Bayes*, ICLR 2014, arXiv 1312.6114.

    Args:
        logits: Of the pixels.
        images: In [0, 1].
        mean: Of the code.
        log_var: Logarithm of its variance.
    """
    pixels = F.binary_cross_entropy_with_logits(logits, images, reduction="sum")
    kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()
    return (pixels + kl) / len(images)


def fitted(
    images: UInt8[Tensor, "n c h w"],
    classes: Int[Tensor, " n"],
    num_classes: int,
    steps: int,
    latent: int,
    rng: torch.Generator,
    device: torch.device,
    batch: int = 64,
    lr: float = 1e-3,
) -> tuple[CVAE, float]:
    """A CVAE trained with Adam on random batches, and its last loss.

    Args:
        images: The images.
        classes: Their classes.
        num_classes: K.
        steps: Updates.
        latent: Length of the code.
        rng: CPU generator of weights, batches and noise.
        device: Where it is trained.
        batch: Images a step.
        lr: Learning rate.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
        channels, height, across = images.shape[1:]
        net = CVAE((channels, height, across), num_classes, latent).to(device)
    optimizer, loss = torch.optim.Adam(net.parameters(), lr), torch.tensor(0.0)
    for _ in range(steps):
        rows = torch.randint(len(images), (min(batch, len(images)),), generator=rng)
        noise = torch.randn(len(rows), latent, generator=rng).to(device)
        inputs = images[rows].to(device).float() / 255
        logits, mean, log_var = net(inputs, classes[rows].to(device), noise)
        loss = cvae_loss(logits, inputs, mean, log_var)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval(), loss.item()


@torch.no_grad()
def decoded(
    net: CVAE, z: Float[Tensor, "n latent"], classes: Int[Tensor, " n"]
) -> UInt8[Tensor, "n c h w"]:
    """What the decoder expects of the pixels, in whole levels on the CPU."""
    device, found = next(net.parameters()).device, list[Tensor]()
    for rows, known in zip(z.split(ROWS), classes.split(ROWS), strict=True):
        levels = 255 * net.decode(rows.to(device), known.to(device)).sigmoid()
        found.append(levels.round().to(torch.uint8).cpu())
    return torch.cat(found)

"""A network's blocks in the place of another's, with 1x1 adaptors where widths differ."""

from typing import cast

import torch
from torch import Tensor, nn

from fskd.models.sections import section
from fskd.models.taps import FeatureNet

STAGES = frozenset({"stages"})


class Grafts:
    """The student's blocks, the teacher's parts behind each, and 1x1 adaptors between unlike ones.

    Block 0 is the student's stem and first stage, the last one its last stage and classifier. All
    modules are the networks' own but the adaptors, ``into[k]`` before block k and ``out[k]`` behind
    it, which have no bias and are None where channels are equal.

    Args:
        student: The student.
        teacher: A network with equally many stages and maps of the student's sizes.
        size: (C, H, W) of the images.
        rng: Draws the adaptors.
    """

    def __init__(
        self,
        student: FeatureNet,
        teacher: FeatureNet,
        size: tuple[int, int, int],
        rng: torch.Generator,
    ) -> None:
        ours, theirs = (net.tap_shapes(size, STAGES).stages for net in (student, teacher))
        between = range(len(ours) - 1)
        starts, ends = (None, *between), (*between, None)
        pairs = zip(starts, ends, strict=True)
        self.blocks = [section(student, start, end, size) for start, end in pairs]
        self.tails = [section(teacher, k, None, size) for k in between]
        like = next(student.parameters())
        self.into = [None, *(_adaptor(theirs[k][0], ours[k][0], like, rng) for k in between)]
        self.out = [*(_adaptor(ours[k][0], theirs[k][0], like, rng) for k in between), None]

    def logits(self, x: Tensor, first: int, last: int) -> Tensor:
        """Logits of the teacher with some blocks of the student in the place of its own.

        Args:
            x: The teacher's map before block ``first``; images for block 0.
            first: The first of them.
            last: The last of them.
        """
        for k in range(first, last + 1):
            into, out = self.into[k], self.out[k]
            given = self.blocks[k](x if into is None else into(x))
            if k == len(self.tails):
                return cast(Tensor, given.logits)
            x = given.stages[0] if out is None else out(given.stages[0])
        return cast(Tensor, self.tails[last](x).logits)

    def parameters(self, first: int, last: int) -> list[nn.Parameter]:
        """What is trained when these blocks are grafted: they and their adaptors."""
        parts = [
            one[k] for one in (self.blocks, self.into, self.out) for k in range(first, last + 1)
        ]
        found = (p for part in parts if part is not None for p in part.parameters())
        return [p for p in found if p.requires_grad]

    def joints(self) -> dict[int, Tensor]:
        """The product (C, C) of the two adaptors behind each stage that has them."""
        pairs = zip(self.out[:-1], self.into[1:], strict=True)
        both = {k: pair for k, pair in enumerate(pairs)}
        return {
            k: into.weight[..., 0, 0] @ out.weight[..., 0, 0]
            for k, (out, into) in both.items()
            if out is not None and into is not None
        }


def _adaptor(c_in: int, c_out: int, like: Tensor, rng: torch.Generator) -> nn.Conv2d | None:
    if c_in == c_out:
        return None
    conv = nn.Conv2d(c_in, c_out, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu", generator=rng)
    return conv.to(like)

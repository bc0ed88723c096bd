"""FSKD: a student cut from its teacher, mended block by block by least squares."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from fskd.methods.base import MethodSettings, methods, require
from fskd.models.block_ends import BlockEnd, block_ends
from fskd.models.calls import Listener, record
from fskd.models.cut import check_cut, cut, kept_channels
from fskd.models.pointwise import Moments, merge
from fskd.models.taps import FeatureNet
from fskd.procedures.base import Hands, Procedure
from fskd.procedures.mimic import OPTIM

Size = tuple[int, int, int]
NOTHING = 1e-12  # share of the teacher's mean square: the block gives what it should already


class Pair(NamedTuple):
    """A block of the student, and the number of the call whose map it should give."""

    end: BlockEnd
    goal: int


def pairs_of(student: nn.Module, teacher: nn.Module, size: Size) -> list[Pair]:
    """Each block of a cut student with what the teacher has where the next one begins.

    Args:
        student: A part of the teacher.
        teacher: The network that it was cut from.
        size: (C, H, W) of the images.

    Example:
        >>> from fskd.models.catalog import build
        >>> small, large = (build(name, 10, 1) for name in ("resnet8", "resnet14"))
        >>> pairs = pairs_of(small, large, (1, 8, 8))
        >>> ends = {end.out: end.conv for end in block_ends(large, record(large, (1, 8, 8)))}
        >>> [(pair.end.conv, ends[pair.goal]) for pair in pairs][:2]
        [('conv1', 'conv1'), ('layer1.0.conv2', 'layer1.1.conv2')]
    """
    ours, theirs = (block_ends(net, record(net, size)) for net in (student, teacher))
    place = {end.conv: i for i, end in enumerate(theirs)}
    starts = [place[end.conv] for end in ours]
    stops = [*starts[1:], len(theirs)]
    return [Pair(end, theirs[stop - 1].out) for end, stop in zip(ours, stops, strict=True)]


@methods.register("fskd")
class FSKD(Procedure):
    """Cuts the student from its teacher and mends each block by a 1x1 convolution, without labels.

    The student gets the teacher's first blocks of each stage and channels of largest L1 norm.
    Then, block by block, min over Q, b of sum (Q x + b + c - F_t)^2 over all images and pixels, in
    float64, where x (rows, C, H, W) is what the student's block adds to its shortcut c (0 where it
    has none), its earlier blocks mended already, and F_t the teacher's map where its next block
    begins, before the activation, of the channels that the student has. Q and b are merged into
    the block's last convolution and its batch normalisation: the architecture stays, and the
    function is the same in eval mode. Images are as they are, their labels are not looked at.

    Li, Li, Liu and Zhang, *Few Sample Knowledge Distillation for Efficient Network
    Compression*, CVPR 2020, arXiv 1812.01839. Differences: the public code fits to the last batch
    only, here all images count; it has no b, which is free here, since it is merged, and mends
    what cut channels and blocks gave on average (``bias=false`` gives the paper's form; where
    there is neither a normalisation nor a bias to merge it into there is none). A ridge keeps Q
    near 1 where few pixels say little. Convolutions inside of a residual block are not mended.
    Teacher and student see each image once a block, all of which is counted. By default there are
    no updates, whatever the budget; with ``ce_weight`` or ``kd_weight`` the ordinary loop on
    ce_weight*CE + kd_weight*KD_T follows, with MiR's optimiser. The student's initial weights are
    replaced.
    """

    class Settings(MethodSettings):
        """The fit, and the objective of the updates after it."""

        ce_weight: float = Field(0.0, ge=0)
        kd_weight: float = Field(0.0, ge=0)
        bias: bool = Field(True, description="Fit a bias, too.")
        ridge: float = Field(1e-3, ge=0, description="Pull to the identity, in mean variances.")

    settings: Settings
    family = "few-sample"
    asks = True
    defaults: ClassVar[Mapping[str, Any]] = {"optim": OPTIM}

    @property
    def updates(self) -> bool:
        """Only if there is something to learn after the fits."""
        return self.settings.ce_weight > 0 or self.settings.kd_weight > 0

    def check(self, student: FeatureNet, teacher: nn.Module, size: Size) -> None:
        """The student is a part of the teacher, and has blocks that can be mended."""
        check_cut(student, teacher, size)
        ends = block_ends(student.net, record(student.net, size))
        name = type(student.net).__name__
        require(bool(ends), "fskd", f"'{name}'", "a student with blocks that end in a convolution")

    def run(self, hands: Hands) -> None:
        """Cuts, mends, and trains if asked to."""
        net, source, size = hands.student, cast(FeatureNet, hands.teacher.net), hands.size
        kept = kept_channels(net, source, size)
        hands.say(f"student: {', '.join(cut(net, source, size))}, from the teacher")
        found: dict[str, list[float]] = {}
        rows = hands.teacher.queries
        for pair in pairs_of(net.net, source.net, size):
            mask = kept.get(f"{pair.end.conv}.weight")
            found[pair.end.conv] = before, after = self._mend(hands, pair, mask)
            share = f"{before:.2%} of the teacher's mean square, {after:.2%} after its fit"
            hands.say(f"{pair.end.conv}: squared error {share}")
        hands.note("errors", found)
        hands.note("rows_asked", hands.teacher.queries - rows)
        if self.updates:
            hands.train()
        else:
            hands.say("no updates: method.ce_weight and method.kd_weight are 0")

    def _mend(self, hands: Hands, pair: Pair, mask: Tensor | None) -> list[float]:
        """Errors before and after, as shares of the mean square of the teacher's map."""
        end, moments, squares = pair.end, Moments(), 0.0
        net = hands.student.net
        conv = cast(nn.Conv2d, net.get_submodule(end.conv))
        norm = None if end.norm is None else net.get_submodule(end.norm)
        for images in hands.images():
            with Listener([pair.goal]) as theirs:
                hands.teacher.ask(images)
            with Listener([end.out, end.tail]) as ours:
                hands.look(images)
            goal = theirs.found[pair.goal]
            goal = goal if mask is None else goal[:, mask.to(goal.device)]
            branch, out = ours.found[end.tail], ours.found[end.out]
            moments.add(branch, goal - (out - branch))
            squares += float(goal.double().square().sum())
        scale = max(squares / (moments.pixels * len(moments.mean)), torch.finfo().tiny)
        before = moments.error()
        if before <= NOTHING * scale:
            return [before / scale] * 2
        bias = self.settings.bias and not (norm is None and conv.bias is None)
        layer = moments.fit(bias, self.settings.ridge)
        merge(layer, conv, norm, moments)
        return [before / scale, moments.error(layer) / scale]

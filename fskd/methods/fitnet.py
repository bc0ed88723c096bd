"""FitNet: a middle layer of the student predicts the teacher's."""

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.targets import at_least_float32
from fskd.methods.base import Method, MethodSettings, Step, methods, require
from fskd.methods.words import Term, Terms, student, teacher
from fskd.types import Shapes


def hint_loss(
    student: Float[Tensor, "batch channels height width"],
    teacher: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, ""]:
    """Mean over all elements of the squared difference.

    Args:
        student: Student maps after the regressor.
        teacher: Teacher maps (the hint), treated as constant.
    """
    return F.mse_loss(at_least_float32(student), at_least_float32(teacher.detach()))


def resizing_conv(student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
    """Convolution from the student's (C, H, W) to the teacher's.

    3x3 with stride 2 where the student's map is twice as large, a transposed 4x4 with stride 2
    where it is half as large, otherwise a valid convolution of kernel 1 + H_s - H_t.

    Args:
        student: (C, H, W) of the student's map.
        teacher: (C, H, W) of the teacher's map.

    Raises:
        SettingError: The student's map is smaller than the teacher's, but not half of it.
    """
    (c_s, *size_s), (c_t, *size_t) = student, teacher
    pairs = list(zip(size_s, size_t, strict=True))
    if all(s == 2 * t for s, t in pairs):
        return nn.Conv2d(c_s, c_t, kernel_size=3, stride=2, padding=1)
    if all(2 * s == t for s, t in pairs):
        return nn.ConvTranspose2d(c_s, c_t, kernel_size=4, stride=2, padding=1)
    require(
        all(s >= t for s, t in pairs),
        "fitnet",
        f"a hint of {size_s[0]}x{size_s[1]} in the student and {size_t[0]}x{size_t[1]} in the "
        "teacher",
        "a student map that is at least as large as the teacher's or exactly half of it",
    )
    return nn.Conv2d(c_s, c_t, kernel_size=(1 + size_s[0] - size_t[0], 1 + size_s[1] - size_t[1]))


class Regressor(nn.Module):
    """Student map -> teacher map: convolution, batch normalisation, ReLU.

    Args:
        student: (C, H, W) of the student's map.
        teacher: (C, H, W) of the teacher's map.
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = resizing_conv(student, teacher)
        self.bn = nn.BatchNorm2d(teacher[0])

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (rows, C_t, H_t, W_t), not negative."""
        return self.bn(self.conv(at_least_float32(maps))).relu()


@methods.register("fitnet")
class FitNet(Method):
    """Matches the feature maps of one middle stage, the hint, through a learned regressor.

    L = ce_weight*CE + weight * mean (r(F_s) - F_t)^2 + kd_weight*KD_T, with r a convolution that
    matches sizes, batch normalisation and ReLU; r is trained with the student.

    Romero et al., *FitNets: Hints for Thin Deep Nets*, ICLR 2015, arXiv 1412.6550. The paper trains
    the lower half on the hint first and distils afterwards; as in the CRD benchmark (Tian et al.,
    ICLR 2020) both run together here, with its hint (index 2 of stem, stage 1, stage 2, ...) and
    weight. Generated rows are used like real ones. With a single value per channel (one row of a
    1x1 map) batch normalisation is undefined, and the term is left out.
    """

    family = "features"

    class Settings(MethodSettings):
        """Weight and place of the hint."""

        weight: float = Field(100.0, ge=0)
        hint_index: int = Field(2, ge=0)

    settings: Settings
    passes = student("stem", "stages"), teacher("stem", "stages")

    def build(self, shapes: Shapes) -> None:
        """The regressor from the student's hint to the teacher's."""
        ours = (shapes.student.stem, *shapes.student.stages)
        theirs = (shapes.known.stem, *shapes.known.stages)
        hint, n_maps = self.settings.hint_index, min(len(ours), len(theirs))
        require(hint < n_maps, "hint_index", hint, f"an index of the {n_maps} stages")
        there = bool(ours[hint] and theirs[hint])
        require(there, "hint_index", hint, "1 or more: with taps by name there is no stem")
        self.regressor = Regressor(ours[hint], theirs[hint])

    def terms(self, step: Step) -> Terms:
        """The hint."""
        guess, goal = (
            (net.stem, *net.stages)[self.settings.hint_index]
            for net in (step.student, step.teacher)
        )
        if goal[:, 0].numel() < 2:
            return {}
        return {"fitnet": Term(hint_loss(self.regressor(guess), goal), self.settings.weight)}

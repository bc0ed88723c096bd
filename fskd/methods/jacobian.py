"""Jacobian matching: the student's logit changes with the image as the teacher's does."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from fskd.losses.targets import at_least_float32
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Term, Terms, student, teacher


def seen(inputs: Tensor) -> Tensor:
    """The images that both networks saw: under mixed precision a batch holds a rounded copy."""
    node = inputs.grad_fn
    while node is not None and not hasattr(node, "variable"):
        node = node.next_functions[0][0]
    return inputs if node is None else node.variable


def slopes(
    logits: Float[Tensor, "rows classes"],
    inputs: Float[Tensor, "all_rows ..."],
    targets: Int[Tensor, " rows"],
    differentiable: bool = False,
) -> Float[Tensor, "rows size"]:
    """Gradient of each row's target logit by its own image, at unit length.

    With batch statistics a logit depends on other rows' images, too: what is taken is the gradient
    of the sum of all target logits, in one pass, as in public code.

    Args:
        logits: Logits of the first rows of the inputs, with a graph to them.
        inputs: All rows that the network saw.
        targets: Class of each row of the logits.
        differentiable: Whether the gradient has a gradient itself.
    """
    chosen = at_least_float32(logits).gather(1, targets[:, None]).sum()
    (found,) = torch.autograd.grad(
        chosen, inputs, create_graph=differentiable, retain_graph=True
    )  # others may read the same pass
    return F.normalize(at_least_float32(found[: len(logits)]).flatten(1), dim=1)


def jacobian_loss(
    student: Float[Tensor, "rows size"],
    teacher: Float[Tensor, "rows size"],
    reduction: Literal["row", "element"] = "row",
) -> Float[Tensor, ""]:
    """Mean over rows, or over all elements, of the squared difference; between 0 and 4 by rows.

    Args:
        student: Gradients at unit length.
        teacher: The same of the teacher, treated as constant.
        reduction: Whether the squares of a row are added up.
    """
    loss = F.mse_loss(student, teacher.detach())
    return loss * student.shape[1] if reduction == "row" else loss


@methods.register("jacobian")
class Jacobian(Method):
    """Matches the direction in which the true class's logit grows with the image.

    L = ce_weight*CE + weight * mean_b ||J_s/norm(J_s) - J_t/norm(J_t)||^2 + kd_weight*KD_T, with
    J = d z_y / d x in R^(C*H*W), y the row's label. The student is differentiated twice.

    Srinivas and Fleuret, *Knowledge Transfer with Jacobian Matching*, ICML 2018, arXiv 1803.00443,
    where it goes with soft targets: so ``kd_weight`` is 1 by default. As in the paper the squares
    of a row are added up; ``reduction=element`` is the mean of public re-implementations, smaller
    by the size of an image. The paper's transfer between tasks, by Jacobians of attention maps, is
    not here. Only real rows, for others have no label. It has no modules and takes
    networks of any kind whose operations can be differentiated twice.
    """

    family = "features"

    class Settings(MethodSettings):
        """Weight and reduction."""

        kd_weight: float = Field(1.0, ge=0)
        weight: float = Field(1.0, ge=0)
        reduction: Literal["row", "element"] = "row"

    settings: Settings
    rows = "real"
    passes = student("logits", input_grad=True), teacher("logits", input_grad=True)
    needs = Needs(min_rows=1)

    def terms(self, step: Step) -> Terms:
        """The gradients."""
        own, inputs, targets = self.settings, seen(step.batch.inputs), step.batch.targets
        ours = slopes(step.student.logits, inputs, targets, differentiable=True)
        theirs = slopes(step.teacher.logits, inputs, targets)
        return {"jacobian": Term(jacobian_loss(ours, theirs, own.reduction), own.weight)}

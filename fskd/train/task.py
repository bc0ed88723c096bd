"""Everything that trains in one module, so that one wrapped forward pass does it all."""

from collections.abc import Iterator

from torch import nn

from fskd.methods.base import Losses, Method, Phase
from fskd.models.taps import FeatureNet
from fskd.types import Batch, Outputs, Progress


class DistillTask(nn.Module):
    """Students and method.

    Args:
        students: One or, in online methods, several networks.
        method: The method, with its adapters and buffers.
    """

    def __init__(self, students: list[FeatureNet], method: Method) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)
        self.method = method
        # Layers that were frozen before are not ours to train.
        self._kept = [p for p in self.students.parameters() if not p.requires_grad]

    def forward(
        self, batch: Batch, teacher: Outputs, progress: Progress, read: frozenset[str]
    ) -> Losses:
        """Unweighted losses; the students run only if some of their taps are read."""
        outputs = tuple(net(batch.inputs, read) for net in self.students) if read else ()
        return self.method(outputs, teacher, batch, progress)

    def student_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of all students."""
        return self.students.parameters()

    def enter(self, phase: Phase) -> None:
        """Makes exactly what the phase trains trainable and puts every module into its mode.

        A module of which nothing is trained runs in eval mode, so its BatchNorm buffers stay.

        Raises:
            ValueError: If the phase names something that does not exist.
        """
        self.requires_grad_(False)
        self.eval()
        for name in phase.trains:
            if name == "students.features":
                self.students.train()
                for net in self.students:
                    for parameter in net.feature_parameters():  # type: ignore[operator]
                        parameter.requires_grad_(True)
            elif name.split(".")[0] in ("students", "method"):
                module = self.get_submodule(name)
                module.train().requires_grad_(True)
            else:
                raise ValueError(f"phase {phase.name} trains '{name}', which is no part")
        for parameter in self._kept:
            parameter.requires_grad_(False)

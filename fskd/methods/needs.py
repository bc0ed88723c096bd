"""What a method cannot do without, told in one line before any network is trained."""

from fskd.methods.base import require
from fskd.methods.words import Needs
from fskd.types import Shapes


def check_needs(name: str, needs: Needs, shapes: Shapes) -> None:
    """SettingError about ``method.<name>`` unless the networks and images will do.

    Args:
        name: The method.
        needs: What it needs.
        shapes: Of student, teacher and images.
    """
    ours = [stage[0] for stage in shapes.student.stages]
    theirs = ours if shapes.teacher is None else [stage[0] for stage in shapes.known.stages]
    least = max(needs.stages, 1 if needs.equal_stages or needs.equal_channels else 0)
    both = f"a student with {len(ours)} stages and a teacher with {len(theirs)}"
    require(min(len(ours), len(theirs)) >= least, name, both, f"at least {least} behind the stem")
    if needs.equal_stages:
        require(len(ours) == len(theirs), name, both, "equal numbers of stages behind the stem")
    if needs.equal_channels:
        widths = f"a student with stages of {ours} channels and a teacher with {theirs}"
        require(ours == theirs, name, widths, "equal channels in every stage")
    if needs.square and shapes.inputs:
        height, width = shapes.inputs[-2:]
        require(height == width, name, f"images of {height}x{width}", "square images")
    if needs.teachers > shapes.n_teachers:
        found = f"{shapes.n_teachers} teacher{'s' * (shapes.n_teachers > 1)}"
        require(False, name, found, f"at least {needs.teachers}, such as --teacher a+b")

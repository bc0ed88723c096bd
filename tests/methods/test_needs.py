"""What a method cannot do without is refused in one line that names what was found."""

import pytest
from steps import net, shapes

from fskd.errors import SettingError
from fskd.methods.needs import check_needs
from fskd.methods.words import Needs
from fskd.types import Shapes

SQUARE = (3, 8, 8)


def networks(*widths: tuple[int, ...]) -> Shapes:
    """Student and teacher with stages of these widths."""
    ours, theirs = (net(stages=tuple((c, 4, 4) for c in each)) for each in widths)
    return shapes(ours, theirs, inputs=SQUARE)


@pytest.mark.parametrize(
    ("needs", "of", "found"),
    [
        (Needs(stages=2), networks((4,), (4, 8)), "a student with 1 stages and a teacher with 2"),
        (Needs(stages=2), networks((4, 8), (4,)), "at least 2 behind the stem"),
        (Needs(equal_stages=True), networks((4, 8), (4,)), "equal numbers of stages"),
        (Needs(equal_stages=True), networks((), ()), "at least 1 behind the stem"),
        (Needs(equal_channels=True), networks((), ()), "at least 1 behind the stem"),
        (Needs(equal_channels=True), networks((4, 8), (4, 9)), "stages of [4, 8] channels"),
        (Needs(equal_channels=True), networks((4, 8), (4,)), "equal channels in every stage"),
        (Needs(square=True), networks((4,), (4,))._replace(inputs=(3, 4, 5)), "images of 4x5"),
        (Needs(teachers=2), networks((4,), (4,)), "1 teacher is not accepted; at least 2"),
        (Needs(teachers=3), networks((4,), (4,))._replace(n_teachers=2), "2 teachers"),
    ],
)
def test_refused(needs: Needs, of: Shapes, found: str) -> None:
    with pytest.raises(SettingError) as caught:
        check_needs("toy", needs, of)
    message = str(caught.value)
    assert found.split(" is not")[0] in message
    assert message.startswith("method.toy")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("needs", "of"),
    [
        (Needs(), networks((), ())),
        (Needs(stages=1), networks((4,), (5, 6))),
        (Needs(equal_stages=True), networks((4, 8), (5, 9))),
        (Needs(equal_channels=True), networks((4, 8), (4, 8))),
        (Needs(stages=2), networks((4, 8), (4,))._replace(teacher=None)),
        (Needs(square=True), networks((4,), (4,))),
        (Needs(square=True), networks((4,), (4,))._replace(inputs=())),
        (Needs(teachers=2), networks((4,), (4,))._replace(n_teachers=2)),
    ],
)
def test_accepted(needs: Needs, of: Shapes) -> None:
    check_needs("toy", needs, of)

"""What each method needs besides its name in a short run on digits, and which may be joined."""

from typing import Any

from fskd.methods.base import methods
from fskd.procedures.base import Procedure

ALIKE = {"student": "cnn_small"}
WANTED: dict[str, dict[str, Any]] = {
    "blockwise": ALIKE,  # equal widths
    "fskd": {
        "student": "resnet8",
        "teacher": {"name": "resnet14"},
        "method": {"name": "fskd", "kd_weight": 1.0},  # without weights there are no updates
    },
    "fsp": ALIKE,
    "kdsvd": ALIKE,
    "lit": ALIKE,
    "meal_v2": {"teacher": "cnn_small+cnn_small"},
    "mir": {"student": "resnet8", "teacher": {"name": "resnet14"}},
    "mixmatch": {"data": {"unlabelled": "rest"}},
    "pe": {"generator": {"scale_epochs": False}},
    "remixmatch": {"data": {"unlabelled": "rest"}},
}
WANTED |= {name: dict(found) for name in methods.names() if (found := methods.get(name).example)}
# They choose rows and labels themselves.
ALONE = ("adamixup", "mixmatch", "remixmatch")
JOINED = [
    name
    for name in methods.names()
    if name not in ALONE and not issubclass(methods.get(name), Procedure)
]

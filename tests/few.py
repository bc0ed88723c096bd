"""A teacher that was trained for a moment on digits, and students that are cut from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fskd.config import Runtime
from fskd.data.loader import chunks
from fskd.models.catalog import build
from fskd.models.cut import cut
from fskd.models.taps import FeatureNet
from fskd.raw import merge
from fskd.resolve import resolve
from fskd.results.store import Result
from fskd.runs.images import load_data
from fskd.runs.prepare import prepare
from fskd.runs.runner import run
from fskd.runs.session import Session


class Trained:
    """Runs on 5 images of each class, all with one teacher.

    Attributes:
        teacher: The network, in eval mode.
        images: The 50 images.
    """

    def __init__(self, out: Path, name: str, steps: int) -> None:
        self.out, self.session = out, Session(Runtime(out=str(out), device="cpu"))
        self.raw = {
            "data": {"shots": 5},
            "budget": {"steps": 20},
            "teacher": {"name": name, "budget": {"steps": steps}},
        }
        made = run(resolve(self.raw).teacher_run(), self.session, role="teacher")
        self.teacher = self.network(name, made)
        job = prepare(resolve(self.raw), out)
        parts = chunks(job.data.train, torch.device("cpu"), job.subset.train)
        self.images: Tensor = torch.cat([images for images, _ in parts])

    def run(self, raw: Mapping[str, Any]) -> Result:
        """A run with this teacher."""
        return run(resolve(merge(self.raw, raw)), self.session)

    def network(self, name: str, result: Result) -> FeatureNet:
        """What a run made, in eval mode."""
        net = build(name, 10, 1)
        net.load_state_dict(load_file(Path(result.path) / "student.safetensors"))
        return FeatureNet(net).eval()

    def cut(self, name: str) -> FeatureNet:
        """The student before anything was done to it, in eval mode."""
        student = FeatureNet(build(name, 10, 1)).eval()
        cut(student, self.teacher, (1, 8, 8))
        return student

    @torch.no_grad()
    def accuracy(self, net: FeatureNet) -> float:
        """On the test images."""
        data = load_data(resolve(self.raw)).test
        hits = [
            net(images).logits.argmax(1) == data.targets[place]
            for images, place in chunks(data, torch.device("cpu"))
        ]
        return float(torch.cat(hits).double().mean())

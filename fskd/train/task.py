"""Everything that trains in one module, so that one wrapped forward pass does it all."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from fskd.methods.compose import Joint
from fskd.methods.plan import Given, Run, Source, Stretch
from fskd.methods.words import Role, Term
from fskd.models.modes import in_mode
from fskd.models.taps import FeatureNet
from fskd.types import Batch, Outputs, Progress


class DistillTask(nn.Module):
    """The networks that are trained or averaged, and the methods.

    Args:
        nets: By name: ``student``, its peers, and the networks of roles that have parameters of
            their own.
        method: The methods, with their adapters and buffers.
        sections: Networks of roles whose parameters are another network's.
    """

    def __init__(
        self,
        nets: Mapping[str, nn.Module],
        method: Joint,
        sections: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(nets)
        self.method = method
        # In a plain dictionary, so that their parameters are not saved and trained twice.
        self._sections = dict(sections or {})
        self._averages = {n: role for n, role in method.roles.items() if role.weights == "ema"}
        # Layers that were frozen before are not ours to train.
        self._kept = [p for p in self.nets.parameters() if not p.requires_grad]

    def forward(
        self, batch: Batch, known: Sequence[Given], progress: Progress, stretch: Stretch
    ) -> dict[str, Term]:
        """Weighted terms.

        Args:
            batch: The batch.
            known: What the teacher's runs gave, in order.
            progress: Where training stands.
            stretch: The phase.
        """
        return self.method(self.given(batch, known, stretch), batch, progress, stretch)

    def given(self, batch: Batch, known: Sequence[Given], stretch: Stretch) -> list[Given]:
        """What every run of the phase gives: the teacher's answers are there, others are run."""
        answers, found = iter(known), list[Given]()
        for run in stretch.runs:
            if run.asks:
                found.append(next(answers))
            else:
                x = batch.inputs if run.source is None else _map(found, run.source)
                found.append(self._run(run, x))
        return found

    @torch.no_grad()
    def seen(self, inputs: Tensor, stretch: Stretch) -> list[Given]:
        """What the runs of a phase give in eval mode; ``Outputs()`` where it takes the teacher.

        Args:
            inputs: Images, (rows, C, H, W).
            stretch: The phase.
        """
        found, absent = list[Given](), set[int]()
        for number, run in enumerate(stretch.runs):
            if run.asks or (run.source is not None and run.source.run in absent):
                absent.add(number)
                found.append(Outputs())
                continue
            net, x = self.net(run.net), inputs if run.source is None else _map(found, run.source)
            with in_mode(net, "eval"):
                found.append(net(x, run.taps))
        return found

    def _run(self, run: Run, x: Tensor) -> Outputs:
        net = self.net(run.net)
        if run.mode == "role":
            return net(x, run.taps)
        with in_mode(net, run.mode):
            return net(x, run.taps)

    def net(self, name: str) -> nn.Module:
        """A network by name."""
        return self._sections[name] if name in self._sections else self.nets[name]

    @property
    def students(self) -> list[nn.Module]:
        """The student and its peers."""
        roles = self.method.roles
        peers = (net for name, net in self.nets.items() if name in roles and roles[name].peer)
        return [self.nets["student"], *peers]

    def enter(self, stretch: Stretch) -> None:
        """Makes exactly what the phase trains trainable and puts every module into its mode.

        A module of which nothing is trained runs in eval mode, so its BatchNorm buffers stay.
        """
        self.requires_grad_(False)
        self.eval()
        for module, parameters in self.trained(stretch.trains):
            module.train()
            for parameter in parameters:
                parameter.requires_grad_(True)
        for parameter in self._kept:
            parameter.requires_grad_(False)

    def trained(self, names: Sequence[str]) -> Iterator[tuple[nn.Module, Sequence[nn.Parameter]]]:
        """Modules, and their parameters that are trained, by the names of ``Phase.trains``.

        Raises:
            ValueError: If there is nothing of a name.
        """
        roles: Mapping[str, Role] = self.method.roles
        for name in names:
            root, _, rest = name.partition(".")
            if root == "roles":
                yield from self.trained([n for n in self.nets if n in roles and _trains(roles[n])])
            elif root == "method":
                module = self.get_submodule(name)
                yield module, list(module.parameters())
            elif root in self.nets and rest in ("", "features"):
                net, parameters = self.nets[root], list(self.nets[root].parameters())
                if rest and isinstance(net, FeatureNet):
                    parameters = net.feature_parameters()
                yield net, parameters
            else:
                raise ValueError(f"a phase trains '{name}', which is no part")

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters of the classifiers of all networks, and of the methods."""
        bodies = {
            id(p)
            for net in self.nets.values()
            if isinstance(net, FeatureNet)
            for p in net.feature_parameters()
        }
        return [p for p in self.parameters() if id(p) not in bodies]

    def average(self, step: int) -> None:
        """Moves every exponential moving average towards its network, quickly at first.

        The decay is at most (1 + step) / (10 + step), as in TensorFlow, or an average of a short
        run would mostly be of the untrained network.
        """
        for name, role in self._averages.items():
            decay = min(role.decay, (1 + step) / (10 + step))
            _towards(self.nets[name], self.nets[role.of], decay)


def _trains(role: Role) -> bool:
    return role.weights in ("fresh", "copy") and role.trains


def _towards(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Average <- decay*average + (1-decay)*net, buffers included; counters are copied."""
    for mean, now in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now.to(mean.dtype), 1 - decay)
        else:
            mean.copy_(now)


def _map(given: Sequence[Given], source: Source) -> Tensor:
    found = given[source.run]
    if not isinstance(found, Outputs):
        raise ValueError("the maps of several teachers feed no network")
    tap = getattr(found, source.tap)
    return tap if isinstance(tap, Tensor) else tap[source.stage]

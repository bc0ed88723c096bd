"""A teacher that is a function from images to probabilities, and nothing more is known of it."""

import hashlib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fskd.errors import SettingError, TrainingError
from fskd.methods.words import LOGITS
from fskd.models.catalog import LIBRARIES
from fskd.teachers.base import Source
from fskd.teachers.probabilities import log_probabilities, read_probabilities
from fskd.types import ImageSet, Outputs, TapShapes

Function = Callable[[Tensor], Any]
BOTH = (
    "a function that builds a network from num_classes, or one of images alone that gives their"
    " probabilities"
)
_PROBED: dict[tuple[object, ...], Function] = {}


class BlackBox(Source):
    """A function that is asked for images in [0, 1] and answers with class probabilities.

    It gets float32 images (rows, C, H, W), the data set's normalisation undone and clamped, on the
    device of the run, and returns (rows, K) as a tensor, an array or lists. Every answer is
    checked. The logits are log p with p of at least 1e-12.

    Args:
        function: The function.
        images: Whose normalisation is undone, and whose classes it knows.
        name: What it is called, in messages.
        classes: Numbers of the classes that are kept; all if None.
    """

    kind = "a black box"
    opaque = True
    mean: Tensor
    std: Tensor
    classes: Tensor | None

    def __init__(
        self, function: Function, images: ImageSet, name: str, classes: Tensor | None = None
    ) -> None:
        super().__init__()
        self.function, self.images, self.name = function, images, name
        for part in ("mean", "std"):
            values = torch.tensor(getattr(images, part)).view(1, -1, 1, 1)
            self.register_buffer(part, values, persistent=False)
        self.register_buffer("classes", classes, persistent=False)

    def forward(self, inputs: Tensor, taps: frozenset[str] = LOGITS) -> Outputs:
        """Logits (rows, K), float32, for normalised images.

        Raises:
            TrainingError: If the function fails, or gives something else than probabilities.
        """
        if not len(inputs):
            logits = inputs.new_zeros(0, self.images.num_classes, dtype=torch.float32)
        else:
            logits = log_probabilities(self._ask(inputs.detach().float()))
        return Outputs(logits=logits if self.classes is None else logits[:, self.classes])

    def _ask(self, inputs: Tensor) -> Tensor:
        shown = inputs.mul(self.std).add_(self.mean).clamp_(0, 1).contiguous()
        try:
            with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
                answer = self.function(shown)
        except Exception as error:  # somebody else's code may fail in any way
            reason = (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
            raise TrainingError(f"the teacher {self.name} failed: {reason}") from error
        try:
            return read_probabilities(answer, len(inputs), self.images.num_classes, inputs.device)
        except ValueError as error:
            raise TrainingError(f"the teacher {self.name} gave {error}") from None

    def probe(self) -> "BlackBox":
        """Asks about two images, once in a process for each function and kind of images.

        Raises:
            SettingError: If the answer will not do.
        """
        images = self.images
        kind = (id(self.function), images.size, images.mean, images.std, images.num_classes)
        if kind not in _PROBED:
            try:
                self(torch.zeros(2, *images.size))
            except TrainingError as error:
                accepted = "a function from images in [0, 1] to their class probabilities"
                raise SettingError("teacher", f"'{self.name}' ({error})", accepted) from error
            _PROBED[kind] = self.function  # which also keeps its id from being used again
        return self

    def tap_shapes(self, size: tuple[int, ...], read: frozenset[str] = LOGITS) -> TapShapes:
        """Shape of the logits."""
        kept = self.images.num_classes if self.classes is None else len(self.classes)
        return TapShapes((kept,), (), (), ())

    def restricted(self, classes: Tensor) -> "BlackBox":
        """The same with the logits of some classes."""
        return BlackBox(self.function, self.images, self.name, classes)


def find_function(name: str) -> Function | None:
    """The black box that ``package.module:function`` names.

    Returns:
        None for any other name, for a function that accepts ``num_classes`` and so builds a
        network, and for what cannot be imported, which building a network reports.

    Raises:
        SettingError: If the function is neither.
    """
    module, colon, attribute = name.partition(":")
    if not colon or module in LIBRARIES or "+" in name:
        return None
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError):
        return None
    if not callable(found) or inspect.isclass(found):
        return None
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):  # some built-in callables have none
        raise SettingError("teacher.name", f"'{name}' (no signature)", BOTH) from None
    if "num_classes" in parameters or _of(parameters, "VAR_KEYWORD"):
        return None
    if takes_images(found):
        return found
    raise SettingError("teacher.name", f"'{name}' ({', '.join(parameters) or 'no input'})", BOTH)


def takes_images(function: Callable[..., Any]) -> bool:
    """Whether exactly one argument is required, and it is positional."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True  # a built-in; the probe will tell
    required = [
        p
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return len(required) == 1 and required[0].kind is not inspect.Parameter.KEYWORD_ONLY


def _of(parameters: Any, kind: str) -> bool:
    return any(parameter.kind.name == kind for parameter in parameters.values())


def function_name(function: Callable[..., Any]) -> str:
    """``module:name`` of a function, or of the class of a callable object."""
    plain = _plain(function)
    return f"{plain.__module__}:{plain.__qualname__}"


def function_hash(function: Callable[..., Any]) -> str:
    """sha256 of its name and of the file of its module, or of its source where there is none.

    What else it depends on, such as weights or a service, is not known here.

    Raises:
        SettingError: If there is no source to be read.
    """
    name, plain = function_name(function), _plain(function)
    try:
        file = inspect.getsourcefile(plain)
        whole = file is not None and Path(file).is_file()
        source = Path(str(file)).read_bytes() if whole else inspect.getsource(plain).encode()
    except (OSError, TypeError):
        raise SettingError("teacher", name, "a function whose source can be read") from None
    digest = hashlib.sha256(name.encode())
    digest.update(hashlib.sha256(source).digest())
    return digest.hexdigest()


def _plain(function: Any) -> Any:
    """The function in a partial or a decorated one; the class of a callable object."""
    while hasattr(function, "func"):
        function = function.func
    function = inspect.unwrap(function)
    if inspect.ismethod(function):
        return function.__func__
    return function if inspect.isfunction(function) or inspect.isclass(function) else type(function)

"""SGD, Adam and AdamW of torch without what they do for ``torch.compile``.

``torch.optim`` imports ``torch._dynamo``, which takes a second, when the first optimiser is made,
to keep its methods out of compiled functions. Here optimisers are never called inside of one, so
the methods underneath are used; they compute the same.
"""

import inspect
from typing import Any

import torch

KEPT_OUT = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def _plain(kind: Any) -> Any:
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in KEPT_OUT}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), methods)


SGD: type[torch.optim.SGD] = _plain(torch.optim.SGD)
Adam: type[torch.optim.Adam] = _plain(torch.optim.Adam)
AdamW: type[torch.optim.AdamW] = _plain(torch.optim.AdamW)

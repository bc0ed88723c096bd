"""Optimisers and schedules."""

from typing import Any

import pytest
import torch
from torch import nn

from fskd.settings import OptimConfig
from fskd.train.optim import build_optimizer, lr_factor, set_lr


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "milestones", "constant"])
def test_schedules(schedule: Any) -> None:
    config = OptimConfig(schedule=schedule)
    factors = [lr_factor(config, i / 1000) for i in range(1001)]
    assert max(factors) == pytest.approx(1.0)
    assert all(0 <= factor <= 1 for factor in factors)
    end = {"onecycle": 0.0, "cosine": 0.0, "milestones": 1e-3, "constant": 1.0}[schedule]
    assert factors[-1] == pytest.approx(end, abs=1e-9)


def test_onecycle_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, total_steps=101, final_div_factor=1e12, cycle_momentum=False
    )
    config = OptimConfig(lr=0.2)
    # torch counts its phases in whole steps: the rise ends one step before 30 % of 101.
    for step in range(101):
        position = step / 29.3 * 0.3 if step <= 29.3 else 0.3 + 0.7 * (step - 29.3) / 70.7
        assert schedule.get_last_lr()[0] == pytest.approx(
            0.2 * lr_factor(config, position), abs=1e-6
        )
        optimizer.step()
        if step < 100:
            schedule.step()


def test_the_body_is_slower_than_the_head() -> None:
    body, head = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer([body, head], OptimConfig(lr=0.4, body_lr=0.25), [head])
    set_lr([optimizer], 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.2])
    assert [group["params"] for group in optimizer.param_groups] == [[body], [head]]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimisers_by_name_are_torchs(name: str) -> None:
    """Fused where torch has it, and three steps of the plain one."""
    config = OptimConfig.model_validate({"name": name, "weight_decay": 0.1})
    assert config.lr == (0.2 if name == "sgd" else 1e-3)
    ours, theirs = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    optimizer = build_optimizer([ours], config)
    assert optimizer.defaults["fused"] is True
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": 0.1}
    plain = {
        "sgd": lambda: torch.optim.SGD([theirs], momentum=0.9, nesterov=True, **common),
        "adam": lambda: torch.optim.Adam([theirs], **common),
        "adamw": lambda: torch.optim.AdamW([theirs], **common),
    }[name]()
    for step in range(3):
        for parameter, one in ((ours, optimizer), (theirs, plain)):
            parameter.grad = torch.tensor([0.5, 1.0]) * (step + 1)
            one.step()
    torch.testing.assert_close(ours, theirs)
    elsewhere = build_optimizer([nn.Parameter(torch.ones(3, device="meta"))], config)
    assert not elsewhere.defaults["fused"]

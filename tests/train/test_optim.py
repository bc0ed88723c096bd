"""Schedules and optimisers: torch's numbers, and which parameters they move."""

from typing import Any

import pytest
import torch
from torch import nn

from fskd.config import OptimConfig
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


def test_groups_keep_their_share_of_the_rate() -> None:
    body, head = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2))
    config = OptimConfig(lr=0.4, body_lr=0.25)
    sgd = build_optimizer([body, head], config, [head])
    set_lr([sgd], 0.5)
    assert [group["params"] for group in sgd.param_groups] == [[body], [head]]
    assert [group["lr"] for group in sgd.param_groups] == pytest.approx([0.05, 0.2])
    assert [group["weight_decay"] for group in sgd.param_groups] == [5e-4, 5e-4]
    whole = build_optimizer([body, head], config)
    assert [group["peak"] for group in whole.param_groups] == [0.4]


def test_optimisers_are_fused() -> None:
    weights = [nn.Parameter(torch.ones(3))]
    for name in ("sgd", "adam", "adamw"):
        optimizer = build_optimizer(weights, OptimConfig.model_validate({"name": name}))
        assert type(optimizer).__name__.lower() == name
        assert optimizer.defaults["fused"] is True
    elsewhere = build_optimizer([nn.Parameter(torch.ones(3, device="meta"))], OptimConfig())
    assert not elsewhere.defaults["fused"]

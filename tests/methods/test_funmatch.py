"""Function matching: a preset of objective, generator, augmentation and optimiser."""

import torch
from recorded import Case, maps
from steps import joint, speak
from toys import network, shapes

from fskd.generators.mixup import MixupSettings
from fskd.losses.targets import kl_divergence
from fskd.methods.base import Method
from fskd.methods.funmatch import FunMatch
from fskd.resolve import resolve
from fskd.types import Batch, Outputs


def test_recorded() -> None:
    """Without temperature it is the recorded ``kd`` of the mixed rows."""
    case = Case("kd_c2_T1")
    assert case.hp("T") == FunMatch.Settings().temperature == 1
    student, teacher = case["logits_s"], case["logits_t"]
    rows = len(student)
    none = torch.empty(0, dtype=torch.int64)
    batch = Batch(torch.zeros(rows, 1, 2, 2), none, none, {"generated": slice(0, rows)})
    run = joint("funmatch", shapes(network(0)))
    terms = speak(run, {"student": Outputs(student), "teacher": Outputs(teacher)}, batch)
    assert terms.keys() == {"generated"}
    assert terms["generated"].weight == 1
    case.loss(terms["generated"].value)


def test_real_rows_without_a_generator() -> None:
    """Labels have no weight; one row and rounded logits will do."""
    run = joint("funmatch", shapes(network(0)))
    batch = Batch(torch.zeros(1, 1, 2, 2), torch.tensor([0]), torch.tensor([0]))
    student, teacher = (maps(1, 3, seed=i, dtype=torch.bfloat16) for i in (0, 1))
    terms = speak(run, {"student": Outputs(student), "teacher": Outputs(teacher)}, batch)
    assert {name: term.weight for name, term in terms.items()} == {"ce": 0, "kd": 1}
    exact = kl_divergence(student.float(), teacher.float(), 1.0)
    torch.testing.assert_close(terms["kd"].value, exact)


def test_preset() -> None:
    """What a run is made of unless it says otherwise."""
    config = resolve({"method": "funmatch"})
    assert config.generator is not None
    ((name, mixing),) = config.generator.parts
    assert name == "mixup"
    assert isinstance(mixing, MixupSettings)
    assert (mixing.share, mixing.lam, mixing.lam_per, mixing.alpha) == (1, "beta", "batch", 1)
    assert config.data.augment.affine == 1
    optim = config.optim
    assert (optim.name, optim.lr, optim.weight_decay) == ("adamw", 1e-3, 0.1)
    assert (optim.schedule, optim.warmup, optim.grad_clip) == ("onecycle", 0.1, 1.0)


def test_moves_of_the_data_set_stay() -> None:
    """Small affine moves are added to the crops and flips that suit photographs."""
    config = resolve({"method": "funmatch", "data": "cifar10"})
    assert config.data.augment.crop > 0
    assert config.data.augment.affine == 1


def test_settings_win_over_the_preset() -> None:
    """Any part may be changed, or left out."""
    config = resolve(
        {"method": "funmatch", "generator": "none", "optim": {"lr": 0.5, "name": "sgd"}}
    )
    assert config.generator is None
    assert (config.optim.name, config.optim.lr) == ("sgd", 0.5)


def test_no_code() -> None:
    """The objective does it all."""
    assert FunMatch.terms is Method.terms
    (stretch,) = joint("funmatch", shapes(network(0))).stretches()
    assert [run.net for run in stretch.runs] == ["student", "teacher"]
    assert stretch.generated

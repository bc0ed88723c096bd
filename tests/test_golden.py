"""Recorded values of published reference code: one test per case file.

The files are read from ``$FSKD_GOLDEN``, by default ``shared/golden`` beside the repository. A case
of a method that does not exist yet is skipped by name.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from steps import alone, batch, joint, net, shapes, speak, values, weighted
from torch import Tensor

from fskd.generators.cutmix import box_mask
from fskd.generators.mixpatch import mix_patches, patch_sides
from fskd.generators.mixup import interpolate
from fskd.losses import kd_loss
from fskd.losses.divergences import dkd_loss
from fskd.losses.targets import (
    cross_entropy,
    kl_divergence,
    logits_mse,
    mixed_cross_entropy,
)
from fskd.methods.ab import AB, boundary_costs, boundary_loss
from fskd.methods.at import attention_transfer
from fskd.methods.base import Method
from fskd.methods.cc import correlation_loss
from fskd.methods.compose import Joint
from fskd.methods.crd import CRD
from fskd.methods.fitnet import hint_loss
from fskd.methods.fsp import flow_loss
from fskd.methods.ft import FT, factor_loss
from fskd.methods.jacobian import jacobian_loss, slopes
from fskd.methods.kdsvd import singular_loss
from fskd.methods.nst import selectivity_loss
from fskd.methods.pkt import transfer_loss
from fskd.methods.reviewkd import ReviewKD
from fskd.methods.sp import similarity_loss
from fskd.methods.sskd import SSKD, head_loss
from fskd.models.pointwise import fit_pointwise
from fskd.train.step import total_loss
from fskd.types import Batch, Outputs

FOLDER = Path(os.environ.get("FSKD_GOLDEN", Path(__file__).parents[1] / ".." / "shared" / "golden"))
FILES = sorted(FOLDER.glob("*.npz")) if FOLDER.is_dir() else []


class Case:
    """One file: inputs as float64 leaves, expected values, and comparison at its tolerances."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        meta = json.loads(arrays.pop("meta_json").item())
        self.method: str = meta["method"]
        self.rtol: float = meta["rtol"]
        self.atol: float = meta["atol"]
        self.groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, array in arrays.items():
            group, _, name = key.partition("__")
            self.groups[group][name] = torch.from_numpy(array)
        for name in self.groups["grad"]:
            self.groups["in"][name].requires_grad_(True)

    def __getitem__(self, name: str) -> Tensor:
        """An input."""
        return self.groups["in"][name]

    def hp(self, name: str) -> Any:
        """A hyper-parameter as a Python number."""
        return self.groups["hp"][name].item()

    def stages(self, name: str) -> list[Tensor]:
        """Inputs ``name_0``, ``name_1``, ..."""
        found = self.groups["in"]
        return [found[f"{name}_{i}"] for i in range(len(found)) if f"{name}_{i}" in found]

    def close(self, actual: Tensor, name: str) -> None:
        """Compare a value with ``out__<name>``."""
        expected = self.groups["out"][name].to(actual)
        torch.testing.assert_close(actual.detach(), expected, rtol=self.rtol, atol=self.atol)

    def gradients(self, loss: Tensor, method: Method | None = None) -> None:
        """Backward, then compare with ``grad__*`` and ``gradp__*`` at ten times rtol."""
        loss.backward()
        pairs = [(self[name].grad, g) for name, g in self.groups["grad"].items()]
        for name, g in self.groups["gradp"].items():
            assert method is not None
            pairs.append((method.get_parameter(name).grad, g))
        for actual, expected in pairs:
            torch.testing.assert_close(actual, expected, rtol=10 * self.rtol, atol=self.atol)

    def loss(self, loss: Tensor, method: Method | None = None) -> None:
        """Compare the loss and all gradients."""
        self.close(loss, "loss")
        self.gradients(loss, method)


def run(
    method: Joint,
    case: Case,
    student: Tensor | Outputs,
    teacher: Tensor | Outputs = Outputs(),  # noqa: B008 - stands for no network
    rows: Batch | None = None,
) -> dict[str, Tensor]:
    """Losses of one step; their weighted sum and its gradients are compared."""
    ours, theirs = (x if isinstance(x, Outputs) else Outputs(x) for x in (student, teacher))
    terms = speak(method, {"student": ours, "teacher": theirs}, rows or batch(case["labels"]))
    case.loss(weighted(terms), alone(method))
    return values(terms)


def through_kd_loss(case: Case, teacher: Tensor, targets: Tensor | None, **options: Any) -> None:
    """Loss and gradients by the definition and by the gradient in closed form."""
    for impl in ("reference", "eager"):
        case["logits_s"].grad = None
        case.loss(kd_loss(case["logits_s"], teacher, targets, impl=impl, **options))


def check_kd(case: Case) -> None:
    """Divergence at a temperature."""
    temperature = float(case.hp("T"))
    through_kd_loss(case, case["logits_t"], None, temperature=temperature, kd_weight=1.0)
    case["logits_s"].grad = None
    case.loss(kl_divergence(case["logits_s"], case["logits_t"], temperature))


def check_kd_total(case: Case) -> None:
    """Labels and divergence, through the objective and through the method."""
    options = {"temperature": float(case.hp("T"))}
    options |= {name: float(case.hp(name)) for name in ("ce_weight", "kd_weight")}
    through_kd_loss(case, case["logits_t"], case["labels"], **options)
    case["logits_s"].grad = None
    terms = run(joint("kd", **options), case, case["logits_s"], case["logits_t"])
    case.close(terms["ce"], "ce")
    case.close(terms["kd"], "kl")


def check_dkd(case: Case) -> None:
    """Both terms apart and together, by the definition and by the fused path."""
    tensors = case["logits_s"], case["logits_t"], case["labels"], case.hp("T")
    weights = case.hp("alpha"), case.hp("beta")
    for impl in ("reference", "eager"):
        case.close(dkd_loss(*tensors, 1.0, 0.0, impl=impl), "tckd")
        case.close(dkd_loss(*tensors, 0.0, 1.0, impl=impl), "nckd")
        case["logits_s"].grad = None
        case.loss(dkd_loss(*tensors, *weights, impl=impl))


def check_label_smoothing(case: Case) -> None:
    """Cross-entropy with smoothed labels."""
    logits, eps = case["logits_s"], float(case.hp("eps"))
    options = {"ce_weight": 1.0, "kd_weight": 0.0, "label_smoothing": eps}
    through_kd_loss(case, torch.zeros_like(logits), case["labels"], **options)
    logits.grad = None
    case.loss(cross_entropy(case["logits_s"], case["labels"], case.hp("eps")))


def check_takd_step(case: Case) -> None:
    """(1-lambda) CE + lambda T^2 KL, where the published code averages KL over classes too."""
    share, classes = float(case.hp("lambda_")), case["logits_s"].shape[1]
    options = {"ce_weight": 1 - share, "kd_weight": share / classes}
    temperature = float(case.hp("T"))
    through_kd_loss(case, case["logits_t"], case["labels"], temperature=temperature, **options)


def check_logits_mse(case: Case) -> None:
    """Squared difference of logits."""
    case.loss(logits_mse(case["logits_s"], case["logits_t"]))


def check_at(case: Case) -> None:
    """Attention maps, stage by stage and summed."""
    student, teacher = case.stages("feat_s"), case.stages("feat_t")
    if "parts" in case.groups["out"]:
        parts = [
            attention_transfer([s], [t], float(case.hp("p")))
            for s, t in zip(student, teacher, strict=True)
        ]
        case.close(torch.stack(parts), "parts")
    case.loss(attention_transfer(student, teacher, float(case.hp("p"))))


def check_nst(case: Case) -> None:
    """Discrepancies of channels, stage by stage and summed."""
    student, teacher = case.stages("feat_s"), case.stages("feat_t")
    parts = [selectivity_loss([s], [t]) for s, t in zip(student, teacher, strict=True)]
    case.close(torch.stack(parts), "parts")
    case.loss(selectivity_loss(student, teacher))


def check_fitnet(case: Case) -> None:
    """Hint loss through the regressor, with recorded weights and batch statistics."""
    student, teacher = case["feat_s_0"], case["feat_t_0"]
    ours, theirs = (net(10, stem=tuple(maps.shape[1:])) for maps in (student, teacher))
    method = joint("fitnet", shapes(ours, theirs), hint_index=0, weight=1.0, ce_weight=0.0).double()
    regressor: Any = alone(method).regressor
    alone(method).load_state_dict(case.groups["param"])
    before = regressor.bn.running_mean.clone()
    logits = torch.zeros(len(student), 10, dtype=torch.float64)
    outputs = Outputs(logits, stem=student), Outputs(stem=teacher)
    run(method, case, *outputs, batch(torch.zeros(len(student), dtype=torch.long)))
    assert not torch.equal(before, regressor.bn.running_mean)
    case.close(regressor.bn.running_mean, "running_mean_after")
    case.close(regressor.bn.running_var, "running_var_after")
    assert hint_loss(teacher, teacher) == 0


def check_fsp(case: Case) -> None:
    """Flow matrices, pair by pair and summed."""
    student, teacher = case.stages("feat_s"), case.stages("feat_t")
    pairs = range(len(student) - 1)
    parts = [flow_loss(student[i : i + 2], teacher[i : i + 2]) for i in pairs]
    case.close(torch.stack(parts), "parts")
    case.loss(flow_loss(student, teacher))


def check_ab(case: Case) -> None:
    """Boundaries through recorded connectors, stage by stage and summed."""
    student, teacher = case.stages("pre_s"), case.stages("pre_t")
    nets = (net(10, stages=tuple(tuple(x.shape[1:]) for x in one)) for one in (student, teacher))
    method = joint("ab", shapes(*nets), margin=case.hp("margin")).double()
    own = alone(method)
    assert isinstance(own, AB)

    def rename(group: str) -> dict[str, Tensor]:
        found = {}
        for key, value in case.groups[group].items():
            key = key.removeprefix("connector.")
            found[key.replace(".conv.", ".0.").replace(".bn.", ".1.")] = value
        return found

    assert own.load_state_dict(rename("param"), strict=False).unexpected_keys == []
    case.groups["gradp"] = rename("gradp")
    guesses = [one(s) for one, s in zip(own.connectors, student, strict=True)]
    pairs = zip(guesses, teacher, strict=True)
    scale = case.hp("scale") / len(student[0])
    case.close(
        torch.stack([
            scale * 2.0 ** (i - len(student) + 1) * boundary_costs(s, t).sum()
            for i, (s, t) in enumerate(pairs)
        ]),
        "parts",
    )  # fmt: skip
    nets = {"student": Outputs(pre=tuple(student)), "teacher": Outputs(pre=tuple(teacher))}
    terms = speak(method, nets, batch(len(student[0])), "ab")
    case.loss(weighted(terms), own)


def check_ab_mean(case: Case) -> None:
    """The mean over elements of one stage."""
    maps = case.stages("pre_s"), case.stages("pre_t")
    case.loss(boundary_loss(*maps, case.hp("margin"), "mean"))


def factors(case: Case, student: Tensor | None, teacher: Tensor, **settings: Any) -> Joint:
    """Factor transfer between stages of these shapes, with recorded weights."""
    nets = [net(10, stages=(tuple(x.shape[1:]),)) for x in (teacher, teacher)]
    if student is not None:
        nets[0] = net(10, stages=(tuple(student.shape[1:]),))
    method = joint("ft", shapes(*nets), factor_ratio=case.hp("k"), ce_weight=0.0, **settings)
    method.double()

    def rename(group: str) -> dict[str, Tensor]:
        found = {}
        for key, value in case.groups[group].items():
            own, part, number, name = key.split(".")
            if own == "translator":
                found[f"translator.{number}.{name}"] = value
            else:  # without batch norms there are two layers instead of three
                found[f"{own}.{part}.{int(number) * 2 // 3}.{name}"] = value
        return found

    assert alone(method).load_state_dict(rename("param"), strict=False).unexpected_keys == []
    case.groups["gradp"] = rename("gradp")
    return method


def check_ft_crdcode(case: Case) -> None:
    """The benchmark's form, through paraphraser and translator."""
    student, teacher = case["feat_s_0"], case["feat_t_0"]
    kind = {1: "l1", 2: "mse"}[case.hp("p2")]
    settings = {"factor": "attention", "distance": kind, "weight": 1.0}
    method = factors(case, student, teacher, **settings)
    logits = torch.zeros(len(student), 10, dtype=torch.float64)
    run(method, case, Outputs(logits, stages=(student,)), Outputs(stages=(teacher,)), batch(4))


def check_ft_official(case: Case) -> None:
    """The authors' form, of recorded factors."""
    case.loss(factor_loss(case["factor_s"], case["factor_t"]))


def check_ft_paraphraser(case: Case) -> None:
    """The first phase, with the benchmark's squares."""
    maps = case["feat_t_0"]
    method = factors(case, None, maps, reconstruction="mse")
    own = alone(method)
    assert isinstance(own, FT)
    case.close(own.paraphraser.encoder(maps), "factor")
    nets = {"teacher": Outputs(stages=(maps,))}
    case.loss(weighted(speak(method, nets, batch(len(maps)), "paraphraser")), own)


def check_kdsvd(case: Case) -> None:
    """Directions of channels, pair by pair and summed."""
    student, teacher = case.stages("feat_s"), case.stages("feat_t")
    k, pairs = case.hp("k"), range(len(student) - 1)
    parts = [singular_loss(student[i : i + 2], teacher[i : i + 2], k) for i in pairs]
    case.close(torch.stack(parts), "parts")
    case.loss(singular_loss(student, teacher, k))


def check_kdsvd_mdcode(case: Case) -> None:
    """Directions of image columns, which the reference finds in float32."""
    student, teacher = case.stages("feat_s"), case.stages("feat_t")
    case.loss(singular_loss(student, teacher, case.hp("k"), "columns"))


def check_jacobian(case: Case) -> None:
    """Recorded networks; gradients of second order in the student's weights."""
    image, labels = case["image"].requires_grad_(True), case["labels"]
    weights = {
        key: value.requires_grad_(key.startswith("student"))
        for key, value in case.groups["param"].items()
    }

    def logits(net: str) -> Tensor:
        first, second = ((weights[f"{net}.{i}.weight"], weights[f"{net}.{i}.bias"])
                         for i in ("l1", "l2"))  # fmt: skip
        linear = torch.nn.functional.linear
        return linear(linear(image.flatten(1), *first).tanh(), *second)

    ours = slopes(logits("student"), image, labels, differentiable=True)
    loss = jacobian_loss(ours, slopes(logits("teacher"), image, labels), "element")
    case.close(loss, "loss")
    wanted = case.groups["gradp"]
    found = torch.autograd.grad(loss, [weights[key] for key in wanted], allow_unused=True)
    for grad, expected in zip(found, wanted.values(), strict=True):
        actual = torch.zeros_like(expected) if grad is None else grad
        torch.testing.assert_close(actual, expected, rtol=10 * case.rtol, atol=case.atol)


def check_reviewkd(case: Case) -> None:
    """All levels with recorded fusions; the last stage is the pooled one."""
    student, teacher = case.stages("feat_s"), case.stages("feat_t")
    nets = [
        net(10, maps[-1].shape[1], tuple(tuple(x.shape[1:]) for x in maps[:-1]))
        for maps in (student, teacher)
    ]
    settings = {"max_width": case.hp("mid_channel"), "warmup": 0.0, "ce_weight": 0.0}
    method = joint("reviewkd", shapes(*nets), **settings).double()
    own = alone(method)
    assert isinstance(own, ReviewKD)

    def rename(group: str) -> dict[str, Tensor]:
        return {
            key.replace("abfs.", "levels.").replace("att_conv.0.", "attention."): value
            for key, value in case.groups[group].items()
        }

    assert own.load_state_dict(rename("param"), strict=False).unexpected_keys == []
    case.groups["gradp"] = rename("gradp")
    pooled = [maps[-1].flatten(1) for maps in (student, teacher)]
    logits = torch.zeros(len(student[0]), 10, dtype=torch.float64)
    ours = Outputs(logits, pooled[0], stages=tuple(student[:-1]))
    theirs = Outputs(None, pooled[1], pre=tuple(teacher[:-1]))
    run(method, case, ours, theirs, batch(len(logits)))


def check_rkd(case: Case) -> None:
    """Distances and angles, through the method."""
    method = joint(
        "rkd", dist_weight=case.hp("w_dist"), angle_weight=case.hp("w_angle"), ce_weight=0.0
    )
    rows = len(case["emb_s"])
    outputs = Outputs(torch.zeros(rows, 4).double(), case["emb_s"]), Outputs(None, case["emb_t"])
    terms = run(method, case, *outputs, batch(torch.zeros(rows, dtype=torch.long)))
    for name in ("dist", "angle"):
        if name in case.groups["out"]:
            case.close(terms[f"rkd_{name}"], name)


def check_sp(case: Case) -> None:
    """Similarities of the last stage."""
    case.loss(similarity_loss(case["feat_s_0"], case["feat_t_0"]))


def check_cc_rbf(case: Case) -> None:
    """The kernel of the paper."""
    options = float(case.hp("gamma")), int(case.hp("P"))
    case.loss(correlation_loss(case["emb_s"], case["emb_t"], *options))


def check_cc_crdcode(case: Case) -> None:
    """The differences of the CRD benchmark, with recorded linear maps."""
    student, teacher = case["emb_s"], case["emb_t"]
    ours = {"embed_s.linear": "embed_student", "embed_t.linear": "embed_teacher"}

    def rename(group: str) -> dict[str, Tensor]:
        parts = {key: key.rpartition(".") for key in case.groups[group]}
        return {f"{ours[a]}.{b}": case.groups[group][key] for key, (a, _, b) in parts.items()}

    params = rename("param")
    case.groups["gradp"] = rename("gradp")
    nets = net(4, student.shape[1]), net(4, teacher.shape[1])
    dim = len(params["embed_student.bias"])
    method = joint("cc", shapes(*nets), form="differences", weight=1, feat_dim=dim, ce_weight=0)
    alone(method.double()).load_state_dict(params)
    rows = len(student)
    outputs = Outputs(torch.zeros(rows, 4).double(), student), Outputs(None, teacher)
    run(method, case, *outputs, batch(torch.zeros(rows, dtype=torch.long)))


def check_pkt(case: Case) -> None:
    """Neighbours, each row its own included."""
    assert case.hp("eps") == 1e-7
    case.loss(transfer_loss(case["emb_s"], case["emb_t"]))


def check_irg(case: Case) -> None:
    """Vertices, edges and transformations, through the method."""
    names = {"vert": "vertex", "edge": "edge", "tran": "transform"}
    weights = {f"{ours}_weight": case.hp(f"w_{name}") for name, ours in names.items()}
    nets = [Outputs(case[f"logits_{x}"], case[f"emb_{x}"], case.stages(f"feat_{x}")) for x in "st"]
    maps = [tuple(tuple(one.shape[1:]) for one in each.stages) for each in nets]
    method = joint("irg", shapes(*(net(7, 1, one) for one in maps)), ce_weight=0.0, **weights)
    rows = len(case["logits_s"])
    terms = run(method, case, *nets, batch(torch.zeros(rows, dtype=torch.long)))
    for name, ours in names.items():
        case.close(terms[f"irg_{ours}"], name)


def check_crd(case: Case) -> None:
    """Two consecutive calls: losses, Z, memories and the gradients of the sum."""
    student, teacher = case["emb_s_call1"], case["emb_t_call1"]
    nets = net(10, student.shape[1]), net(10, teacher.shape[1])
    method = alone(
        joint(
            "crd",
            shapes(*nets, n=case.hp("n_data")),
            feat_dim=case.hp("feat_dim"),
            n_negatives=case.hp("nce_k"),
            tau=case.hp("nce_t"),
            momentum=case.hp("nce_m"),
        )
    ).double()
    assert isinstance(method, CRD)
    ours = {"embed_s.linear": "embed_student", "embed_t.linear": "embed_teacher"}

    def rename(group: str) -> dict[str, Tensor]:
        return {
            f"{ours[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value
            for key, value in case.groups[group].items()
        }

    state = rename("param") | {
        "memory_student": case["memory_v1"],
        "memory_teacher": case["memory_v2"],
    }
    assert method.load_state_dict(state, strict=False).unexpected_keys == []
    case.groups["gradp"] = rename("gradp")
    losses = []
    for call in ("call1", "call2"):
        losses.append(
            method.contrast(
                case[f"emb_s_{call}"],
                case[f"emb_t_{call}"],
                case[f"index_{call}"],
                case[f"contrast_idx_{call}"],
            )
        )
        case.close(method.z_student, "Z_v1")
        case.close(method.z_teacher, "Z_v2")
        case.close(method.memory_student, f"memory_v1_after_{call}")
        case.close(method.memory_teacher, f"memory_v2_after_{call}")
    case.close(losses[0], "loss")
    case.close(losses[1], "loss_call2")
    case.close(losses[0] + losses[1], "loss_sum")
    case.gradients(losses[0] + losses[1], method)


def in_blocks(rows: Tensor) -> Tensor:
    """Copies 0, 90, 180, 270 of each image -> all upright rows, all 90, all 180, all 270."""
    return rows.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)


def check_sskd(case: Case) -> None:
    """The main phase, with recorded projections."""
    dim, classes = case["proj_s"].shape[1], case["logits_s"].shape[1]
    settings: dict[str, Any] = {
        **{f"{name}_weight": case.hp(f"{name}_weight") for name in ("ce", "kd", "tf", "ss")},
        **{f"{name}_temperature": case.hp(f"{name}_T") for name in ("kd", "tf", "ss")},
        **{f"{name}_ratio": case.hp(f"ratio_{name}") for name in ("tf", "ss")},
    }
    method = joint("sskd", shapes(net(classes, dim)), **settings).double()
    own = alone(method)
    assert isinstance(own, SSKD)
    # The projections themselves are recorded.
    own.student_head, own.teacher_head = torch.nn.Sequential(), torch.nn.Sequential()
    rows = batch(case["labels"])
    views = {"rotated": slice(rows.n_real, 4 * rows.n_real)}
    terms = run(
        method,
        case,
        Outputs(in_blocks(case["logits_s"]), in_blocks(case["proj_s"])),
        Outputs(in_blocks(case["logits_t"]), in_blocks(case["proj_t"])),
        rows._replace(inputs=torch.zeros(4 * rows.n_real, 1, 2, 2), parts=views),
    )
    case.close(torch.stack([terms[name] for name in ("ce", "kd", "tf", "ss")]), "parts")


def check_sskd_teacher_head(case: Case) -> None:
    """The head phase."""
    copies = case["proj_t"].unflatten(0, (-1, 4))
    owners = torch.arange(len(copies)).repeat_interleave(3)
    case.loss(head_loss(copies[:, 1:].flatten(0, 1), copies[:, 0], owners))


def check_dml(case: Case) -> None:
    """Sum over students; gradients reach each student's own logits."""
    logits = case.stages("logits")
    method = joint("dml", n_students=len(logits))
    assert method.n_students == case.hp("n")
    names = ["student", *method.roles]
    nets = {name: Outputs(one) for name, one in zip(names, logits, strict=True)}
    case.loss(weighted(speak(method, nets, batch(case["labels"]))))


def check_tfkd_reg(case: Case) -> None:
    """Labels and the virtual teacher, through the method."""
    method = joint(
        "tfkd_reg",
        reg_weight=case.hp("reg_alpha"),
        temperature=case.hp("reg_temperature"),
        multiplier=case.hp("multiplier"),
        correct_prob=case.hp("correct_prob"),
    )
    run(method, case, case["logits_s"])


def check_tfkd_self(case: Case) -> None:
    """Labels and the earlier copy, through the method; the code averages over classes, too."""
    settings = {"reg_weight": case.hp("alpha"), "temperature": case.hp("temperature")}
    method = joint("tfkd_self", multiplier=case.hp("multiplier"), **settings)
    run(method, case, case["logits_s"], case["logits_t"])


def check_pe_step(case: Case) -> None:
    """KD+ with weight 1 on the mixed rows."""
    settings = {name: float(case.hp(name)) for name in ("ce_weight", "kd_weight")}
    made = float(case.hp("mix_weight"))
    method = joint("kdplus", temperature=case.hp("T"), generated_weight=made, **settings)
    terms = run(
        method,
        case,
        torch.cat([case["logits_s"], case["logits_s_mixed"]]),
        torch.cat([case["logits_t"], case["logits_t_mixed"]]),
        batch(case["labels"], len(case["logits_s_mixed"])),
    )
    real = settings["ce_weight"] * terms["ce"] + settings["kd_weight"] * terms["kd"]
    case.close(torch.stack([real, terms["generated"]]), "parts")
    # As PE makes them: a step is all real or all generated, under the method's own weights.
    own, labels = joint("pe"), case["labels"]
    none = Batch(
        torch.zeros(len(labels), 1), labels[:0], labels[:0], {"generated": slice(0, len(labels))}
    )
    steps = (("", batch(labels)), ("_mixed", none))
    nets = [
        {"student": Outputs(case[f"logits_s{end}"]), "teacher": Outputs(case[f"logits_t{end}"])}
        for end, _ in steps
    ]
    losses = [
        total_loss(speak(own, net, rows), own.unit)
        for net, (_, rows) in zip(nets, steps, strict=True)
    ]
    case.close(torch.stack(losses), "parts")
    for name in ("logits_s", "logits_s_mixed"):
        case[name].grad = None
    case.gradients(torch.stack(losses).sum())


def check_mixup(case: Case) -> None:
    """Mixed images and their labels, through a recorded linear map."""
    labels = case["labels"]
    lam = torch.full((len(labels),), case.hp("lam"), dtype=torch.float64)
    mixed = interpolate(case["x"], case["perm"], lam)
    case.close(mixed, "x_mixed")
    targets = torch.stack([labels, labels[case["perm"]]], 1)
    weights = torch.stack([lam, 1 - lam], 1)
    case.loss(mixed_cross_entropy(mixed.flatten(1) @ case["W"], targets, weights))


def check_mixpatch(case: Case) -> None:
    """Mixed images; one patch as large as the image is plain interpolation."""
    images, perm, side = case["x"], case["perm"], case.hp("patch_size")
    sides = patch_sides(side, images.shape[1:])
    case.close(mix_patches(images, images[perm], case["lam"], sides), "x_mixed")
    if side == images.shape[-1]:
        lam = case["lam"][0].expand(len(images))
        case.close(interpolate(images, perm, lam), "x_mixed")


def check_cutmix(case: Case) -> None:
    """Box, kept area and mixed images; the reference calls the first spatial axis (rows) W."""
    height, width = case["x"].shape[2:]
    hyper = case.groups["hp"]
    centre = torch.stack([hyper["cx"], hyper["cy"]])[None]
    mask = box_mask(hyper["lam_drawn"][None], centre, (height, width))
    inside = mask[0].nonzero()
    low, high = inside.amin(0), inside.amax(0) + 1
    assert torch.cat([low, high]).tolist() == hyper["bbox"].tolist()
    assert len(inside) == int((high - low).prod())
    kept = 1 - mask.double().mean()
    assert kept.item() == pytest.approx(case.hp("lam_area"), rel=case.rtol)
    case.close(torch.where(mask, case["x"][case["perm"]], case["x"]), "x_mixed")


def check_fskd_pointwise(case: Case) -> None:
    """Least squares over all pixels, without bias."""
    found = fit_pointwise(case["feat_s"], case["feat_t"], case["mask"])
    case.close(found.weight[..., None, None], "weight")


CHECKS: dict[str, Callable[[Case], None]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


@pytest.mark.skipif(not FILES, reason=f"no recorded values in {FOLDER}; set FSKD_GOLDEN")
@pytest.mark.parametrize("path", FILES or [FOLDER], ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    """The recorded loss, its parts and its gradients."""
    case = Case(path)
    if case.method not in CHECKS:
        pytest.skip(f"no method '{case.method}' yet")
    CHECKS[case.method](case)

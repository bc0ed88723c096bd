"""What is measured at the end of a run; the test split is read here and nowhere else."""

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fskd.data.loader import chunks
from fskd.errors import TrainingError
from fskd.models.checkpoint import load_weights, save_weights
from fskd.models.taps import FeatureNet
from fskd.results.store import RunDir
from fskd.runs.answers import TRAIN_POINTS, ask, on_test, on_train
from fskd.runs.evaluate import (
    N_PATHS,
    agreement,
    path_variation,
    scores,
    total_variation,
)
from fskd.runs.finished import finished
from fskd.runs.images import about_images
from fskd.runs.networks import seeded_network
from fskd.runs.prepare import Given, Job
from fskd.runs.session import Session
from fskd.runs.teacher import teacher_runs
from fskd.teachers.base import Teacher, opaque
from fskd.teachers.ensemble import Ensemble, mean_logits
from fskd.train.loop import phase_steps
from fskd.types import Batch, ImageSet, Ranking

_PACKAGES = ("fskd", "torch", "numpy", "lightning-fabric", "scikit-learn")


def measure(
    job: Job,
    teacher: Teacher | None,
    about_teacher: dict[str, Any] | None,
    session: Session,
    n_paths: int = N_PATHS,
) -> tuple[dict[str, Any], Tensor]:
    """The measured fields of a ``Result``, and the student's logits on the test images.

    Of a teacher that is a black box or a table, nothing is measured: it would have to be asked.

    Args:
        job: The run, its students trained.
        teacher: The teacher, or None.
        about_teacher: Its name and key; top1 is added, of its members, too.
        session: Device, screen, and the teacher's answers.
        n_paths: Points between training points on which student and teacher are compared.
    """
    data, subset, student = job.data, job.subset, job.students[0]
    device, points = session.device, job.subset.train[:TRAIN_POINTS]
    logits = ask(student, "student on the test images", data.test, session)
    if not logits.isfinite().all():
        raise TrainingError("the last update made the student's outputs infinite or NaN")
    ours = ask(student, "student on the training images", data.train, session, points)
    found: dict[str, Any] = {
        **scores(logits, data.test.targets),
        "train_top1": scores(ours, data.train.targets[points])["top1"],
        "n_train": len(subset.train),
        "num_classes": data.train.num_classes,
        "classes": list(data.train.classes),
        "files": {name: dict(part.about) for name, part in data._asdict().items() if part.about},
        "data_sha256": data.train.fingerprint,
        "test_sha256": data.test.fingerprint,
        "split_sha256": subset.split_sha256,
        **about_ranking(job.ranking),
        "versions": versions(),
    }
    phases = job.method.stretches()
    lengths = phase_steps(phases, job.steps)
    found["phases"] = dict(zip((phase.name for phase in phases), lengths, strict=True))
    found["peers_top1"] = [
        scores(ask(peer, "peer on the test images", data.test, session), data.test.targets)["top1"]
        for peer in job.students[1:]
    ]
    found["measured"] = measure_others(job, session)
    if job.generator is not None:
        found["searches"] = list(job.generator.found)
    if job.unlabelled is not None:
        found["n_unlabelled"] = len(job.unlabelled.subset)
    if len(subset.val):
        on_val = ask(student, "student on the validation images", data.train, session, subset.val)
        found["val_top1"] = scores(on_val, data.train.targets[subset.val])["top1"]
    if about_teacher is None or teacher is None:
        return found, logits
    if opaque(teacher.net):  # every further answer may cost
        found["teacher"] = about_teacher
        return found, logits
    teacher.net.eval()
    known, found["teacher"] = _teacher_on_test(teacher.net, about_teacher, data.test, session)
    found["agreement"] = agreement(logits, known)
    found["tv_test"] = total_variation(logits, known)
    _, theirs = on_train(teacher.net, about_teacher, data.train, subset.train, session)
    found["tv_train"] = total_variation(ours, theirs)
    found["tv_paths"] = path_variation(
        student, teacher.net, data.train, points, device, job.config.seed, n_paths
    )
    return found, logits


def measure_others(job: Job, session: Session) -> dict[str, dict[str, float]]:
    """Scores on the test images of whole networks of roles, and of what methods measure."""
    data, logits = job.data.test, dict[str, Tensor]()
    for name, role in job.method.roles.items():
        whole = role.after is None and role.upto is None
        if name in job.roles.own and whole and not role.peer:
            logits[name] = ask(job.roles.own[name], f"{name} on the test images", data, session)
    logits |= _of_methods(job, session)
    return {name: _known_scores(rows, data.targets) for name, rows in logits.items()}


def _known_scores(logits: Tensor, targets: Tensor) -> dict[str, float]:
    return {what: value for what, value in scores(logits, targets).items() if value is not None}


@torch.no_grad()
def _of_methods(job: Job, session: Session) -> dict[str, Tensor]:
    """Logits that methods make of the passes of the main phase, float32 (N, K) on the CPU."""
    if not job.method.measures:
        return {}
    task, stretch = job.task().to(session.device).eval(), job.method.stretches()[-1]
    found, data = dict[str, list[Tensor]](), job.data.test
    nobody = torch.empty(0, dtype=torch.int64, device=session.device)
    with session.screen.passing("what the method measures on the test images", len(data)) as seen:
        for inputs, _ in chunks(data, session.device, workers=session.runtime.workers):
            # Without labels, which are for the scores alone.
            batch = Batch(inputs, nobody, nobody, {"unlabelled": slice(0, len(inputs))})
            made = job.method.measured(task.seen(inputs, stretch), batch, stretch)
            for name, rows in made.items():
                found.setdefault(name, []).append(rows.float().cpu())
            seen(len(inputs))
    return {name: torch.cat(rows) for name, rows in found.items()}


def of_links(job: Job, logits: Tensor, session: Session) -> dict[str, dict[str, float]]:
    """Scores of the mean of the softmaxes of the student and of all links before it like it.

    Args:
        job: The run, a chain.
        logits: The student's on the test images.
        session: The folder of the links' runs.
    """
    found, config, data = [logits], job.config, job.data
    while len(runs := teacher_runs(config)) == 1:
        (config,) = runs
        made = finished(config, session.out, Given(data=data))
        if config.student != job.config.student or made is None:
            continue
        folder = Path(made.path)
        net = seeded_network(config.student, data, "teacher", 0, "link", taps=config.student_taps)
        load_weights(net.net, RunDir(folder).student, "teacher")
        about = {"key": made.key, "run": folder.name}
        found.append(on_test(net.to(session.device), about, data.test, session).to(logits))
    if len(found) == 1:
        return {}
    return {"ensemble": _known_scores(mean_logits(found), data.test.targets)}


def save_networks(job: Job, found: Mapping[str, Any]) -> None:
    """Writes what was trained: students, networks of roles, and the methods' own modules.

    Args:
        job: The run.
        found: What was measured.
    """
    folder = job.folder
    for i, net in enumerate(job.students):
        place = folder.student if i == 0 else folder.weights(f"peer{i}")
        top1 = found["top1"] if i == 0 else found["peers_top1"][i - 1]
        save_weights(net.net, place, about_images(job.data.train, top1))
    for name, role in job.method.roles.items():
        if name in job.roles.own and not role.peer:
            own, top1 = job.roles.own[name], found["measured"].get(name, {}).get("top1")
            # A whole network may be a teacher, as the student may.
            about = None if top1 is None else about_images(job.data.train, top1)
            whole = own.net if isinstance(own, FeatureNet) else own
            save_weights(whole, folder.weights(name), about)
    if any(True for _ in job.method.parameters()):
        save_weights(job.method, folder.weights("method"))


def _teacher_on_test(
    net: nn.Module, about: dict[str, Any], images: ImageSet, session: Session
) -> tuple[Tensor, dict[str, Any]]:
    """A teacher's logits on the test images, and what it is, with its accuracy there."""
    if isinstance(net, Ensemble):
        whose = zip(net.members, about["members"], strict=True)
        found = [_teacher_on_test(one, own, images, session) for one, own in whose]
        logits = mean_logits([own for own, _ in found])
        about = {**about, "members": [own for _, own in found]}
    else:
        logits = on_test(net, about, images, session)
    return logits, {**about, "top1": scores(logits, images.targets)["top1"]}


def about_ranking(ranking: Ranking | None) -> dict[str, Any]:
    """Where the order of the training examples is from, and what it asked of a teacher."""
    if ranking is None:
        return {}
    asked = 0 if ranking.teacher is None else 1 + ranking.teacher["name"].count("+")
    queries = asked * len(ranking.order)
    return {"split_file": ranking.source, "split_queries": queries}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found

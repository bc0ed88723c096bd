"""Faults put into methods and generators on purpose: the tests must notice each of them.

Run ``python tests/contract/mutants.py [--contract] [method ...]``. Every mutant is a text that is
replaced in a copy of the package, against which the method's own tests, the recorded values and the
contract run. Prints ``caught`` or ``SURVIVED``; exits with 1 if one survived or no longer fits its
file. A mutant of a method that is not there is skipped. With ``--contract`` only the contract runs,
to see what it finds alone.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TESTS = ("tests/methods/test_{name}.py", "tests/methods/test_{name}_method.py",
         "tests/generators/test_{name}.py",
         "tests/generators/test_{name}_generator.py",
         "tests/procedures/test_{name}.py")  # fmt: skip
SHARED = ("tests/test_golden.py", "tests/contract/test_method_contract.py",
          "tests/contract/test_method_passes.py", "tests/contract/test_method_rows.py",
          "tests/contract/test_method_numbers.py",
          "tests/contract/test_generator_contract.py")  # fmt: skip


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        method: Whose tests run, and the file unless there is another; or a generator.
        fault: What is wrong.
        old: Text that occurs once in the file.
        new: What stands there instead.
        file: Path within the package; the method's by default.
    """

    method: str
    fault: str
    old: str
    new: str
    file: str = ""

    @property
    def path(self) -> str:
        """The file within the package."""
        return self.file or f"methods/{self.method}.py"


MUTANTS = (
    Mutant("adamixup", "interval from the wrong end", "return low + length * u",
           "return low + length * (1 - u)"),
    Mutant("adamixup", "sides of the discriminator swapped", "scores[made], scores[: batch",
           "-scores[made], -scores[: batch"),
    Mutant("adamixup", "policy on the first image", "self.policy(torch.lerp(other, one, r[:, None,"
           " None, None]))", "self.policy(one)"),
    Mutant("adamixup", "no gradient in the shares", "self.policy(torch", "self.policy.eval()"
           ".requires_grad_(False)(torch"),
    Mutant("adamixup", "labels of the other parent", "torch.stack([share, 1 - share], 1)",
           "torch.stack([1 - share, share], 1)"),
    Mutant("adamixup", "rows mixed with themselves", "first.unsqueeze(1), -1.0", "first.unsqueeze"
           "(1), 2.0"),
    Mutant("adamixup", "policy left to the student", 'own.mixed_weight, "policy"',
           "own.mixed_weight"),
    Mutant("afd", "judges deceived, too", "p.detach() for name", "p for name"),
    Mutant("afd", "judges take sides", "(1 - real).square() + fake.square()",
           "real.square() + (1 - fake).square()"),
    Mutant("afd", "students learn to be told apart", "maps[i].detach())))", "maps[i])))"),
    Mutant("afd", "judged by the students", 'by="discriminators")', 'by="main")'),
    Mutant("at", "stem dropped twice", "step.student.stages, step.teacher.stages, own.power",
           "step.student.stages[1:], step.teacher.stages[1:], own.power"),
    Mutant("at", "power ignored", "loss, own.weight)", "loss * 0 + attention_transfer(step.student."
           "stages, step.teacher.stages), own.weight)"),
    Mutant("at", "target not detached", "maps_t.detach()", "maps_t"),
    Mutant("bbkd", "the surest share", ".amax(2).min(1)", ".amax(2).max(1)", "procedures/bbkd.py"),
    Mutant("bbkd", "the surest mixes", "argsort(stable=True)", "argsort(stable=True, descending="
           "True)", "procedures/bbkd.py"),
    Mutant("bbkd", "pairs asked about again", "distinct(pairs, sum(sizes), rng).split(sizes)",
           "[distinct(pairs, size, rng) for size in sizes]", "procedures/bbkd.py"),
    Mutant("bbkd", "a budget for too few", "own > budget:", "own < budget:",
           "procedures/queries.py"),
    Mutant("bbkd", "asked again", 'load_file(path)["rows"]', 'load_file(path)["nothing"]',
           "runs/labelled.py"),
    Mutant("bbkd", "known answers are free", "teacher.recall(len(part))", "pass",
           "runs/labelled.py"),
    Mutant("bbkd", "a stale state", "job.folder.state.unlink(missing_ok=True)", "pass",
           "runs/labelled.py"),
    Mutant("bbkd", "the student starts again", "job.task().load_state_dict(state.task)", "pass",
           "runs/labelled.py"),
    Mutant("bbkd", "labels learned", "Objective(0.0, 1.0", "Objective(1.0, 1.0",
           "procedures/queries.py"),
    Mutant("bbkd", "all trainings alike", "list(accumulate(asked))", "asked",
           "procedures/bbkd.py"),
    Mutant("bbkd", "the log begins anew", "MetricsLog(job.folder.metrics if session.main else "
           "None, before + ", "MetricsLog(job.folder.metrics if session.main else None, ",
           "runs/training.py"),
    Mutant("ce", "smoothing lost", "label_smoothing: float", "label_smooth: float"),
    Mutant("fs_bbt", "shares near 0", "(drawn > margin)", "(drawn > 0)", "procedures/fs_bbt.py"),
    Mutant("fs_bbt", "images mixed with themselves", "(first + 1 + ", "(first + ",
           "procedures/fs_bbt.py"),
    Mutant("fs_bbt", "levels cut off", "mix.round()", "mix", "procedures/pairs.py"),
    Mutant("fs_bbt", "codes pushed away", "-0.5 * (1", "0.5 * (1", "models/cvae.py"),
    Mutant("fs_bbt", "variance for deviation", "(log_var / 2).exp()", "log_var.exp()",
           "models/cvae.py"),
    Mutant("fs_bbt", "samples of no class", "cat([z, self", "cat([z, 0 * self", "models/cvae.py"),
    Mutant("kd", "weights swapped", "ce_weight: float = Field(0.1", "ce_weight: float = Field(0.9"),
    Mutant("kd", "T^2 missing", 'log_target=True) * temperature**2', "log_target=True)",
           "losses/targets.py"),
    Mutant("kdplus", "generated rows ignored", "rows[name]", 'rows[name] and name != "generated"',
           "methods/objective.py"),
    Mutant("kdplus", "unlabelled rows have no soft targets", "slice(0, batch.n_known), batch",
           "slice(0, batch.n_real), batch", "methods/objective.py"),
    Mutant("mixup", "shares of parents swapped", "batch.parents, batch.shares)",
           "batch.parents, batch.shares.flip(1))", "methods/objective.py"),
    Mutant("crd", "memory not updated", "memory.index_copy_(0, indices, F.normalize(mixed, dim=1))",
           "F.normalize(mixed, dim=1)"),
    Mutant("crd", "memory not saved", 'self.register_buffer(f"memory_{role}", memory)',
           'setattr(self, f"memory_{role}", memory)'),
    Mutant("crd", "negatives from the global generator", "generator=rng, dtype=torch.float64",
           "dtype=torch.float64"),
    Mutant("crd", "wrong width", "nn.Linear(shapes.student.embedding[0], dim)",
           "nn.Linear(shapes.known.embedding[0], dim)"),
    Mutant("crd", "negatives of the own class", "(len(targets) - own)", "len(targets)"),
    Mutant("crd", "one class accepted", "n_classes > 1", "n_classes > 0"),
    Mutant("codistillation", "follows itself, too", "(probs.sum(0) - probs)", "probs.sum(0)"),
    Mutant("codistillation", "old predictions overwritten first", "before, seen = self.past[:,"
           " indices], self.known[indices]", "before, seen = probs, self.known[indices]"),
    Mutant("codistillation", "peers not detached", "probs = probs.detach()", "probs = probs"),
    Mutant("codistillation", "no burn-in", "step.progress.fraction < self.settings.burn_in",
           "step.progress.fraction < 0"),
    Mutant("dml", "peers not detached", "kl_divergence(logits[i], logits[j], 1.0)",
           "__import__('torch').nn.functional.kl_div(logits[i].log_softmax(1), logits[j]"
           ".softmax(1), reduction='batchmean')"),
    Mutant("dml", "labels for one student", 'return "student", *self.roles', 'return ("student",)'),
    Mutant("fitnet", "wrong width", "Regressor(ours[hint], theirs[hint])",
           "Regressor(theirs[hint], theirs[hint])"),
    Mutant("fitnet", "sum for mean", "at_least_float32(teacher.detach()))",
           'at_least_float32(teacher.detach()), reduction="sum")'),
    Mutant("fitnet", "stem dropped", "(net.stem, *net.stages)[self", "net.stages[self"),
    Mutant("fsp", "stem dropped", "[(net.stem, *net.stages) for net", "[net.stages for net"),
    Mutant("fsp", "classifier trained on the flow", 'trains=("student.features",)',
           'trains=("student",)'),
    Mutant("nst", "target not detached", "t = t.detach()", "t = t * 1"),
    Mutant("nst", "linear kernel", ".square().mean()", ".mean()"),
    Mutant("nst", "channels not normalised", "F.normalize(one.flatten(2), dim=2)",
           "one.flatten(2)"),
    Mutant("ab", "signs swapped", "-ours, ours)", "ours, -ours)"),
    Mutant("ab", "stages weighted backwards", "/ 2**i", "* 2**i"),
    Mutant("ab", "connectors frozen", '"student.features", "method.connectors"',
           '"student.features",'),
    Mutant("ft", "paraphraser trained on", '"student", "method.translator"',
           '"student", "method"'),
    Mutant("ft", "factors not normalised", "F.normalize(one.flatten(1), dim=1)",
           "one.flatten(1)"),
    Mutant("ft", "first stage for last", "c_s, c_t = shapes.student.stages[-1][0]",
           "c_s, c_t = shapes.student.stages[0][0]"),
    Mutant("kdsvd", "signs left to the library", "top.sum(1, keepdim=True) < 0, -top, top)",
           "top.sum(1, keepdim=True) < 0, top, top)"),
    Mutant("kdsvd", "vectors without gradient", "top + within + beyond", "top"),
    Mutant("kdsvd", "not aligned in sign", "sign * student.gather", "student.gather"),
    Mutant("jacobian", "no second order", "differentiable=True)", "differentiable=False)"),
    Mutant("jacobian", "not normalised", "F.normalize(at_least_float32(found[: len(logits)])"
           ".flatten(1), dim=1)", "at_least_float32(found[: len(logits)]).flatten(1)"),
    Mutant("jacobian", "mean for sum", "loss * student.shape[1] if", "loss if"),
    Mutant("reviewkd", "teacher behind the activation", "*theirs.pre[::-1]", "*[one.relu() for one"
           " in theirs.pre[::-1]]"),
    Mutant("reviewkd", "nothing handed on", "guess, deeper = level(s, deeper)",
           "guess, deeper = level(s, None if deeper is None else 0 * deeper)"),
    Mutant("reviewkd", "ramp of the wrong sign", "own.weight * ramp", "own.weight * (1 - ramp)"),
    Mutant("blockwise", "continued by the student itself", 'of="teacher", ', ""),
    Mutant("blockwise", "always the first block", "pairs_32[block:]", "pairs_32"),
    Mutant("knowledge_flow", "stays with the teacher", "log_softmax(0)[0]", "log_softmax(0)[1]"),
    Mutant("knowledge_flow", "the weight does not rise", " * step.progress.fraction", ""),
    Mutant("aguilar", "top first", "i < now and", "i > now and"),
    Mutant("aguilar", "teacher's widths", "nn.Linear(s[0], t[0], bias=False)",
           "nn.Linear(t[0], t[0], bias=False)"),
    Mutant("aguilar", "linear maps frozen", '"student.features", "method.maps"',
           '"student.features",'),
    Mutant("rkd", "target not detached", "angles(teacher.detach())", "angles(teacher)"),
    Mutant("rkd", "weights swapped", "distance_loss(*pair), self.settings.dist_weight",
           "distance_loss(*pair), self.settings.angle_weight"),
    Mutant("rkd", "generated rows ignored", "needs = Needs(min_rows=3)",
           'rows = "real"\n    needs = Needs(min_rows=3)'),
    Mutant("rkd", "angles of two rows", "needs = Needs(min_rows=3)", "needs = Needs()"),
    Mutant("sp", "first stage for the last", "step.student.stages[-1], step.teacher.stages[-1]",
           "step.student.stages[0], step.teacher.stages[0]"),
    Mutant("sp", "target not detached", "similarities(teacher.detach())", "similarities(teacher)"),
    Mutant("sp", "maps normalised, not rows", "unit_rows(gram(vectors / scale.clamp(min=1e-12)))",
           "gram(unit_rows(vectors))"),
    Mutant("sp", "rows of zeros with a gradient", "torch.where(known, vectors, 0.0)", "vectors",
           "losses/similarities.py"),
    Mutant("cc", "target not detached", "taylor_kernel(teacher.detach(), gamma",
           "taylor_kernel(teacher, gamma"),
    Mutant("cc", "factorial missing", " / math.factorial(p)", ""),
    Mutant("cc", "weights of the forms swapped", '"kernel": 100.0, "differences": 0.02',
           '"kernel": 0.02, "differences": 100.0'),
    Mutant("cc", "teacher's map frozen", "self.embed_teacher(theirs))",
           "self.embed_teacher(theirs).detach())"),
    Mutant("cc", "weight of 0 taken for none", "if own.weight is None else",
           "if not own.weight else"),
    Mutant("pkt", "divergence the other way", "(p * ((p + EPS).log() - (q + EPS).log()))",
           "(q * ((q + EPS).log() - (p + EPS).log()))"),
    Mutant("pkt", "sum over rows", "(q + EPS).log())).mean()", "(q + EPS).log())).sum(1).mean()"),
    Mutant("pkt", "diagonal ignored", "step.teacher.embedding, own.diagonal)",
           "step.teacher.embedding)"),
    Mutant("irg", "no gradient through the largest", "/ largest.clamp(min=LEAST)",
           "/ largest.detach().clamp(min=LEAST)"),
    Mutant("irg", "first stages", "ours.stages[-2:], theirs.stages[-2:]",
           "ours.stages[:2], theirs.stages[:2]"),
    Mutant("irg", "sum over layers", "for s, t in layers]).mean()", "for s, t in layers]).sum()"),
    Mutant("irg", "no shift", "gram(vectors - vectors.detach().mean(0))", "gram(vectors)"),
    Mutant("sskd", "missing permutation", "goal = self.by_image(turned.teacher.logits, batch)",
           "goal = turned.teacher.logits"),
    Mutant("sskd", "teacher's head trained on", '"student", "method.student_head"',
           '"student", "method"'),
    Mutant("sskd", "generated rows as real ones", 'rows = "real"', 'rows = "base"'),
    Mutant("tfkd_reg", "weights swapped", "own.reg_weight * own.multiplier",
           "(1 - own.reg_weight) * own.multiplier"),
    Mutant("kdplus", "passes of other modes merged", "known._replace(taps=run.taps, input_grad",
           "known._replace(taps=run.taps, mode=run.mode, input_grad", "methods/plan.py"),
    Mutant("vid", "wrong width", "Regressor(s[0], t[0])", "Regressor(t[0], t[0])"),
    Mutant("vid", "frozen variance", "self.rho = nn.Parameter(torch.full((c_t,), rho))",
           "self.rho = torch.full((c_t,), rho)"),
    Mutant("vid", "variance a buffer", "self.rho = nn.Parameter(torch.full((c_t,), rho))",
           'self.register_buffer("rho", torch.full((c_t,), rho))'),
    Mutant("vid", "sum for mean", "+ variance.log()).mean() / 2", "+ variance.log()).sum() / 2"),
    Mutant("ofd", "margins never measured", "margin.copy_(cast(Tensor, other if known is None else"
           " known))", "cast(Tensor, other if known is None else known)"),
    Mutant("ofd", "teacher in the wrong mode", 'teacher("pre", mode="batch")', 'teacher("pre")'),
    Mutant("ofd", "stages weighted backwards", "enumerate(reversed(found))", "enumerate(found)"),
    Mutant("one", "ensemble not detached", "ensemble.detach()", "ensemble"),
    Mutant("one", "ramp of the wrong sign", "math.exp(-5 *", "math.exp(5 *"),
    Mutant("one", "T^2 missing", ".sum() * temperature**2", ".sum()"),
    Mutant("one", "labels for one branch", 'return "student", *self.roles',
           'return ("student",)'),
    Mutant("lit", "sections fed with the student's maps", 'f"teacher.stages.{i}"',
           'f"student.stages.{i}"'),
    Mutant("lit", "weights swapped", "(1 - self.settings.beta) / 2", "self.settings.beta / 2"),
    Mutant("lit", "sections of their own", 'weights="shared"', 'weights="fresh"'),
    Mutant("mixmatch", "ramp of the wrong sign", "own.lambda_u * min(ramp, 1.0)",
           "own.lambda_u * (1 - min(ramp, 1.0))"),
    Mutant("mixmatch", "labels not mixed", "soft = mixed(torch.cat([truth, guess, guess]), order,"
           " share)", "soft = torch.cat([truth, guess, guess])"),
    Mutant("mixmatch", "shares below a half", "max(share, 1 - share)", "min(share, 1 - share)",
           "losses/mixes.py"),
    Mutant("kdgan", "student minimises the tutor's loss", '1 - own.share, "tutor"',
           "1 - own.share"),
    Mutant("kdgan", "drawn labels not detached", "(scores * one.detach())", "(scores * one)"),
    Mutant("kdgan", "judge deceived, too", "at_least_float32(scores.detach()) * drawn",
           "at_least_float32(scores) * drawn"),
    Mutant("meal_v2", "mean of logits", "probs = [F.softmax(at_least_float32(one.detach()), dim=1)"
           " for one in teachers]", "probs = [F.softmax(torch.stack([one.detach() for one"
           " in teachers]).mean(0), dim=1)]"),
    Mutant("meal_v2", "origins swapped", "target[: len(student), 0] = target[len(student) :, 1]",
           "target[: len(student), 1] = target[len(student) :, 0]"),
    Mutant("logits_mse", "labels count", "ce_weight: float = Field(0.0", "ce_weight: float = "
           "Field(1.0"),
    Mutant("logits_mse", "generated rows ignored", "needs = Needs(exact", 'rows = "real"\n    needs'
           " = Needs(exact"),
    Mutant("logits_mse", "a black box will do", "Needs(exact_logits=True)", "Needs()"),
    Mutant("dkd", "weights swapped", "own.target_weight * ramp", "own.non_target_weight * ramp"),
    Mutant("dkd", "ramp backwards", "min(fraction / own.warmup, 1.0)",
           "1 - min(fraction / own.warmup, 1.0)"),
    Mutant("dkd", "terms swapped", "dkd_loss(*given, 1.0, 0.0)", "dkd_loss(*given, 0.0, 1.0)"),
    Mutant("dkd", "generated rows as real ones", 'rows = "real"', 'rows = "base"'),
    Mutant("dkd", "temperature ignored", "step.batch.targets, own.temperature",
           "step.batch.targets, 4.0"),
    Mutant("eskd", "teacher never left", ', objective=frozenset({"ce"}), restart', ", restart"),
    Mutant("eskd", "rate begins anew", ", restart=False", ""),
    Mutant("eskd", "shares swapped", 'Phase("followed", stop)', 'Phase("followed", 1 - stop)'),
    Mutant("tfkd_self", "weights swapped", "own.reg_weight * own.multiplier",
           "(1 - own.reg_weight) * own.multiplier"),
    Mutant("tfkd_self", "mean over rows only", " / logits.shape[1])", ")"),
    Mutant("tfkd_self", "not in the divisor", 'unit = frozenset({"tfkd_self"})',
           "unit = frozenset()"),
    Mutant("ls", "smoothing lost", "label_smoothing: float", "label_smooth: float"),
    Mutant("ls", "spread over all classes", "label_smoothing * classes / (classes - 1)",
           "label_smoothing", "losses/targets.py"),
    Mutant("mixupkd", "labels not mixed", "mixed_weight: float", "mixing_weight: float"),
    Mutant("mixupkd", "real rows kept", '"share": 1.0', '"share": 0.5'),
    Mutant("cutmixkd", "own partner", '"pairs": "no_self"', '"pairs": "all"'),
    Mutant("cutmixkd", "other points", '"cutmix"\n', '"mixup"\n'),
    Mutant("okddip", "targets detached", "at_least_float32(target)",
           "at_least_float32(target.detach())"),
    Mutant("okddip", "ramp of the wrong sign", "math.exp(-5 *", "math.exp(5 *"),
    Mutant("okddip", "queries for keys", "self.key(embeddings)", "self.query(embeddings)"),
    Mutant("okddip", "labels for one branch", 'return "student", *self.roles',
           'return ("student",)'),
    Mutant("okddip", "attention over the wrong axis", ".softmax(2)", ".softmax(1)"),
    Mutant("remixmatch", "alignment upside down", "(truth + EPS) / (seen + EPS)",
           "(seen + EPS) / (truth + EPS)"),
    Mutant("pe", "real and mixed in one step", '"when": "alternate"', '"when": "joint"'),
    Mutant("pe", "not lengthened", '"scale_epochs": True', '"scale_epochs": False'),
    Mutant("pe", "no search", '= "blind_mixpatch"', '= "mixpatch"'),
    Mutant("mixpatch", "first patch's share", "lam.mean(1)", "lam[:, 0]", "generators/mixpatch.py"),
    Mutant("mixpatch", "parents swapped", "share * first + (1 - share) * partner",
           "share * partner + (1 - share) * first", "generators/mixpatch.py"),
    Mutant("mixpatch", "ragged patches accepted", "or common % side", "or axes[0] % side",
           "generators/mixpatch.py"),
    Mutant("blind_mixpatch", "smallest divergence", "best = max(means", "best = min(means",
           "generators/blind_mixpatch.py"),
    Mutant("blind_mixpatch", "first pair not left out", "own.sides))[1:]", "own.sides))[:]",
           "generators/blind_mixpatch.py"),
    Mutant("blind_mixpatch", "an epoch that is skipped misses the search",
           "epoch // self.every > before // self.every", "epoch % self.every == 0",
           "generators/blind_mixpatch.py"),
    Mutant("blind_mixpatch", "start never left", "last = self._found[-1] if self._found else",
           "last =", "generators/blind_mixpatch.py"),
    Mutant("blind_mixpatch", "no number taken for one", "if not math.isfinite(mean)",
           "if math.isinf(mean)", "generators/blind_mixpatch.py"),
    Mutant("remixmatch", "unmixed view counted among mixes", "batch.n_known - len(guess)",
           "batch.n_known"),
    Mutant("fskd", "earlier blocks left as they were", "merge(layer, conv, norm, moments)", "layer",
           "procedures/fskd.py"),
    Mutant("fskd", "goals are those of the block itself", "zip(ours, stops,", "zip(ours, starts,",
           "procedures/fskd.py"),
    Mutant("fskd", "shortcut forgotten", "goal - (out - branch)", "goal", "procedures/fskd.py"),
    Mutant("fskd", "teacher asked in secret", "hands.teacher.ask(images)",
           "hands.teacher.net(images)", "procedures/fskd.py"),
    Mutant("fskd", "shift of the norm lost", "mean.double() + q @ offset + b", "mean.double() + b",
           "models/pointwise.py"),
    Mutant("fskd", "ridge pulls nowhere", "values + ridge * values.mean()", "values",
           "models/pointwise.py"),
    Mutant("mir", "head trained", 'trains=("student.features",)', 'trains=("student",)',
           "procedures/mir.py"),
    Mutant("mir", "student not cut", "cut(hands.student, cast(FeatureNet, hands.teacher.net), "
           "hands.size)", '["9 of 15 layers with filters"]', "procedures/mir.py"),
    Mutant("practise", "least recoverable blocks go", "best[path][: n[path]]",
           "best[path][-n[path] :]", "procedures/practise.py"),
    Mutant("practise", "classifier trained", 'trains=("student.features",)',
           'trains=("student",)', "procedures/practise.py"),
    Mutant("practise", "weights not copied", "net.load_state_dict(kept_state(source.net, missing))",
           "kept_state(source.net, missing)", "procedures/practise.py"),
    Mutant("practise", "batches without weight", "sum(value * rows for value, rows in parts) / sum("
           "rows for", "sum(value for value, rows in parts) / sum(1 for",
           "procedures/practise.py"),
    Mutant("practise", "shortcut of the next stack unadapted", "*filter(None, [_shortcut_conv("
           "net, first)])", "", "models/blocks.py"),
    Mutant("netgraft", "adaptors forgotten", "for k, matrix in grafts.joints().items():",
           "for k, matrix in list(grafts.joints().items())[:0]:", "procedures/netgraft.py"),
    Mutant("netgraft", "joint transposed", '"odhw,dc->ochw"', '"odhw,cd->ochw"',
           "models/joints.py"),
    Mutant("netgraft", "blocks in eval mode", "part.train()", "part.eval()",
           "procedures/netgraft.py"),
    Mutant("netgraft", "earlier blocks frozen in chains", "grafts.parameters(first, last)",
           "grafts.parameters(last, last)", "procedures/netgraft.py"),
    Mutant("netgraft", "fed with the block's own map", "known.stages[first - 1]",
           "known.stages[first]", "procedures/netgraft.py"),
)  # fmt: skip


def mutate(mutant: Mutant, folder: Path) -> bool:
    """Makes a copy of the package with the fault; False if its text is not there just once."""
    shutil.copytree(ROOT / "fskd", folder / "fskd", ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "fskd" / mutant.path
    text = file.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return False
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    return True


def copy_tests(folder: Path) -> None:
    """The tests beside a copy of the package."""
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)


def first_failure(mutant: Mutant, folder: Path, contract: bool) -> str:
    """The first test that fails; empty if none does."""
    golden = os.environ.get("FSKD_GOLDEN", str(ROOT / ".." / "shared" / "golden"))
    environment = {**os.environ, "PYTHONPATH": str(folder), "FSKD_GOLDEN": golden}
    own = [test.format(name=mutant.method) for test in TESTS]
    if mutant.file:
        own += ["tests/methods/test_objective.py", "tests/methods/test_passes.py"]
    if mutant.file.startswith(("procedures/", "runs/")):
        own.append("tests/procedures/test_labelled.py")
    # Parameters of shared tests begin with the method's name.
    one = " or ".join(f"[{mutant.method}{end}" for end in ("-", "]", "_"))
    shared = [name for name in SHARED if name.startswith("tests/contract/") or not contract]
    for files, options in (([] if contract else own, []), (shared, ["-k", one])):
        there = [name for name in files if (folder / name).is_file()]
        if not there:
            continue  # pytest would take everything
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "--tb=no"]
        done = subprocess.run(
            [*command, *options, *there],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            lines = [x for x in done.stdout.splitlines() if x.startswith(("FAILED", "ERROR"))]
            return lines[0].split(" - ")[0] if lines else f"exit code {done.returncode}"
    return ""


def judge(mutant: Mutant, contract: bool) -> bool:
    """Prints what became of a mutant; whether it is as it should be."""
    title = f"{mutant.method}: {mutant.fault}"
    if not (ROOT / "fskd" / mutant.path).is_file():
        print(f"skipped   {title} (no {mutant.path})", flush=True)
        return True
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if not mutate(mutant, folder):
            print(f"OUTDATED  {title} ('{mutant.old}' is not once in {mutant.path})", flush=True)
            return False
        copy_tests(folder)
        test = first_failure(mutant, folder, contract)
    print(f"{'caught  ' if test else 'SURVIVED'}  {title}{test and f' ({test})'}", flush=True)
    return bool(test)


def healthy(method: str, contract: bool) -> bool:
    """Whether a method's tests pass without a fault: if not, they would catch anything."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copytree(ROOT / "fskd", folder / "fskd")
        copy_tests(folder)
        test = first_failure(Mutant(method, "", "", ""), folder, contract)
    if test:
        print(f"BROKEN    {method} without any fault ({test})", flush=True)
    return not test


def main(names: Sequence[str]) -> int:
    """All mutants, or those of some methods."""
    contract, wanted = "--contract" in names, set(names) - {"--contract"}
    chosen = [mutant for mutant in MUTANTS if not wanted or mutant.method in wanted]
    there = {
        one.method
        for one in chosen
        for kind in ("methods", "generators", "procedures")
        if (ROOT / "fskd" / kind / f"{one.method}.py").is_file()
    }
    if not all([healthy(method, contract) for method in sorted(there)]):
        return 1
    return 0 if all([judge(mutant, contract) for mutant in chosen]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Protocols of the comparison of all single-stage methods, each alone and with KD+.

    python benchmarks/methods.py search           # writes docs/results/methods/search_*.yaml
    python -m fskd.sweep docs/results/methods/search_digits.yaml --out runs
    python benchmarks/methods.py choose runs      # writes docs/results/methods/chosen_*.yaml
    python -m fskd.sweep docs/results/methods/chosen_digits.yaml --out runs
    python benchmarks/methods.py table runs       # writes docs/results/methods/*.csv and *.svg

Every arm has three candidates, compared on validation images with a seed of its own: its own
weights times 0.2, 1 and 5, or, where it has none beside those of labels and soft targets, three
values of another setting. The chosen one is then trained with other seeds, and those alone are
read on the test images.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from fskd.methods.base import methods
from fskd.results import load
from fskd.results.names import load_names

FOLDER = Path(__file__).parents[1] / "docs" / "results" / "methods"
FACTORS = (0.2, 1.0, 5.0)
# Own weights, multiplied together.
WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "ab": ("weight",), "adamixup": ("intrusion_weight",), "afd": ("adversarial_weight",),
    "aguilar": ("weight",), "at": ("weight",), "blockwise": ("weight",),
    "codistillation": ("distill_weight",), "crd": ("weight",),
    "dkd": ("target_weight", "non_target_weight"), "dml": ("mutual_weight",),
    "fitnet": ("weight",), "fsp": ("weight",), "ft": ("weight",),
    "irg": ("vertex_weight", "edge_weight", "transform_weight"), "jacobian": ("weight",),
    "kdgan": ("student_kd_weight", "tutor_kd_weight"), "kdplus": ("generated_weight",),
    "kdregion": ("generated_weight",), "kdsvd": ("weight",),
    "knowledge_flow": ("independence", "steadiness"), "logits_mse": ("weight",),
    "meal_v2": ("discriminator_weight",), "mixmatch": ("lambda_u",), "mixup": ("mixed_weight",),
    "mixupkd": ("mixed_weight",), "nst": ("weight",), "ofd": ("weight",),
    "okddip": ("consistency_weight",), "one": ("consistency_weight",), "pe": ("generated_weight",),
    "pkt": ("weight",),
    "remixmatch": ("lambda_u", "lambda_s", "lambda_r"), "reviewkd": ("weight",),
    "rkd": ("dist_weight", "angle_weight"), "sp": ("weight",), "sskd": ("tf_weight", "ss_weight"),
    "vid": ("weight",), "cutmixkd": ("generated_weight",),
}  # fmt: skip
# Instead, for methods without weights of their own, or whose weight's default is no number.
VALUES: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "cc": ("weight", (0.004, 0.02, 0.1)),
    "ce": ("label_smoothing", (0.0, 0.05, 0.1)),
    "eskd": ("stop", (0.25, 0.5, 0.75)),
    "funmatch": ("temperature", (1.0, 2.0, 4.0)),
    "kd": ("temperature", (2.0, 4.0, 8.0)),
    "lit": ("beta", (0.25, 0.75, 0.9)),
    "ls": ("label_smoothing", (0.05, 0.1, 0.2)),
    "tfkd_reg": ("reg_weight", (0.5, 0.9, 0.95)),
    "tfkd_self": ("reg_weight", (0.5, 0.9, 0.95)),
}
# Those that need a student with the teacher's widths; compared with KD on a pair of their own.
EQUAL = ("blockwise", "fsp", "kdsvd", "lit")
# Presets of labels, soft targets and generated points, of which KD+ is one.
PRESETS = (
    "adamixup", "ce", "cutmixkd", "eskd", "funmatch", "kd", "kdplus", "kdregion", "mixmatch",
    "mixup", "mixupkd", "pe", "remixmatch",
)  # fmt: skip
NEEDED: Mapping[str, dict[str, Any]] = {
    "meal_v2": {"teacher": "cnn_small+cnn_small"},
    "mixmatch": {"data": {"unlabelled": "rest"}},
    "pe": {"generator": {"scale_epochs": False}},  # as many updates as the others
    "remixmatch": {"data": {"unlabelled": "rest"}},
}
SETTINGS: Mapping[str, dict[str, Any]] = {
    "digits": {
        "data": {"name": "digits", "fraction": 0.05, "val": 600},
        "budget": {"steps": 400},
    },
    "fashion_mnist": {
        "data": {"name": "fashion_mnist", "shots": 20, "val": 2000},
        "budget": {"steps": 400},
    },
}
SEARCH_SEEDS, SEEDS = [10], [0, 1, 2]


def candidates(name: str) -> Iterator[dict[str, Any]]:
    """Three settings of a method."""
    if name in VALUES:
        setting, values = VALUES[name]
        yield from ({setting: value} for value in values)
        return
    known = methods.get(name).Settings()
    for factor in FACTORS:
        yield {w: float(f"{getattr(known, w) * factor:.6g}") for w in WEIGHTS[name]}


def arms() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every arm by name, with the settings of its candidates."""
    for name in sorted({*WEIGHTS, *VALUES} & {*methods.names()}):
        base = dict(NEEDED.get(name, {}))
        if name in EQUAL:
            base["student"] = "cnn_small"
        found = list(candidates(name))
        yield name, [{**base, "method": {"name": name, **own}} for own in found]
        if name not in PRESETS:
            joined = f"kdplus+{name}"
            yield joined, [{**base, "method": {"name": joined, name: own}} for own in found]
    for name in ("ce", "kd", "kdplus"):
        base = {"student": "cnn_small"}
        yield f"{name}_equal", [{**base, "method": {"name": name, **c}} for c in candidates(name)]


class _Plain(yaml.SafeDumper):
    """Without aliases, which protocols do not have."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write(name: str, description: str, dataset: str, seeds: list[int], found: Any) -> None:
    """One protocol file."""
    raw = {
        "name": name, "description": description, "mode": "fixed_updates",
        "base": SETTINGS[dataset], "arms": found, "seeds": seeds,
    }  # fmt: skip
    head = (
        f"# Written by benchmarks/methods.py.\n#     python -m fskd.sweep protocols/{name}.yaml\n"
    )
    text = yaml.dump(raw, Dumper=_Plain, sort_keys=False, width=100, default_flow_style=None)
    (FOLDER / f"{name}.yaml").write_text(head + text, encoding="utf-8")


def search() -> None:
    """The protocols in which candidates are compared."""
    for dataset in SETTINGS:
        found = {
            f"{name}.{number}": own
            for name, several in arms()
            for number, own in enumerate(several)
        }
        about = "three candidates of every method, alone and with KD+, on validation images"
        write(f"search_{dataset}", about, dataset, SEARCH_SEEDS, found)


def choose(runs: Path) -> None:
    """The protocols of what won on validation images.

    Args:
        runs: Folder of the search's runs.
    """
    for dataset in SETTINGS:
        table = load(runs, names=load_names(runs, f"search_{dataset}"))
        best = table[table["dataset"] == dataset].groupby("arm")["val_top1"].mean()
        found = {}
        for name, several in arms():
            scores = [best.get(f"{name}.{number}", float("nan")) for number in range(len(several))]
            known = [score == score for score in scores]
            if all(known):
                found[name] = several[max(range(len(scores)), key=lambda i, s=scores: s[i])]
        if not found:
            continue
        about = "every single-stage method, alone and with KD+, with weights chosen on validation"
        write(f"chosen_{dataset}", about, dataset, SEEDS, found)


def tabulate(runs: Path) -> None:
    """Accuracies of every method alone and with KD+, and differences paired by seed, as CSV.

    Args:
        runs: Folder of the runs.
    """
    for dataset in SETTINGS:
        names = load_names(runs, f"chosen_{dataset}")
        if not names:
            continue
        table = load(runs, names=names)
        scores = 100 * table[table["key"].isin(names)].pivot(columns="arm", index="seed")["top1"]
        rows = [_row(scores, name) for name in scores if not name.startswith("kdplus+")]
        found = pd.DataFrame(rows).sort_values("alone", ascending=False)
        found.to_csv(FOLDER / f"{dataset}.csv", index=False, float_format="%.2f")
        _draw(found, FOLDER / f"{dataset}.svg")


def _row(scores: pd.DataFrame, name: str) -> dict[str, Any]:
    """One method; differences are means with their standard errors, in points."""
    kind = "_equal" if name in EQUAL or name.endswith("_equal") else ""
    baseline, plus = scores[f"kd{kind}"], scores[f"kdplus{kind}"]
    found = {"method": name, "alone": scores[name].mean(), "alone_std": scores[name].std()}
    found |= _difference("minus_kd", scores[name] - baseline)
    found |= _difference("minus_kdplus", scores[name] - plus)
    if (joined := f"kdplus+{name}") in scores:
        found |= {"with_kdplus": scores[joined].mean(), "with_kdplus_std": scores[joined].std()}
        found |= _difference("gain", scores[joined] - scores[name])
        found |= _difference("with_kdplus_minus_kdplus", scores[joined] - plus)
    return found


def _difference(name: str, values: "pd.Series[float]") -> dict[str, float]:
    return {name: values.mean(), f"{name}_se": values.sem()}


def _draw(found: pd.DataFrame, path: Path) -> None:
    """Every method alone and with KD+, one line each."""
    from matplotlib.figure import Figure

    rows = found.iloc[::-1]
    figure = Figure(figsize=(7, 0.19 * len(rows) + 1), layout="constrained")
    axes, places = figure.subplots(), range(len(rows))
    axes.hlines(places, rows["alone"], rows["with_kdplus"], color="#bbbbbb", zorder=1)
    axes.scatter(rows["alone"], places, s=18, color="#0072b2", label="alone")
    axes.scatter(rows["with_kdplus"], places, s=18, color="#d55e00", label="with KD+")
    for name, style in (("kd", ":"), ("kdplus", "--")):
        level = float(rows.loc[rows["method"] == name, "alone"].iloc[0])
        axes.axvline(level, color="black", linewidth=0.8, linestyle=style, label=name)
    axes.set_yticks(places, rows["method"], fontsize=8)
    axes.set_xlabel("top-1 accuracy on the test images, %")
    axes.grid(axis="x", linewidth=0.3)
    axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["search", "choose", "table"])
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs"))
    given = parser.parse_args()
    if given.what == "search":
        search()
    else:
        {"choose": choose, "table": tabulate}[given.what](given.runs)

"""Inputs as people have them: what is wrong is said before training, and the rest just works."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

import fskd
from fskd.data.datasets.base import load
from fskd.data.datasets.listing import readable
from fskd.errors import DoubtWarning, FskdError, SettingError
from fskd.models.catalog import build
from fskd.models.checkpoint import load_weights, read_about, save_weights
from fskd.results.store import Result
from fskd.runs.hashes import held_hash
from fskd.runs.images import about_images

Command = Callable[..., tuple[int, str, str]]


def result_in(folder: Path, student: str = "cnn_tiny") -> Result:
    (path,) = folder.glob(f"*-{student}-*/result.json")
    return Result.from_json(path.read_text())


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An .npz file of digits, and a folder with what Python trained on them, in [0, 1]."""
    place = tmp_path_factory.mktemp("taught")
    data = load("digits")
    arrays = {
        "x": data.train.images.numpy()[:, 0], "y": data.train.targets.numpy(),
        "x_test": data.test.images.numpy()[:, 0], "y_test": data.test.targets.numpy(),
    }  # fmt: skip
    np.savez(place / "digits.npz", **arrays)
    net = build("cnn_tiny", 10, 1)
    result = fskd.distill(
        None, net, (arrays["x"][:, None], arrays["y"]),
        test_data=(arrays["x_test"][:, None], arrays["y_test"]),
        method="ce", steps=300, out=place / "runs",
    )  # fmt: skip
    return place / "digits.npz", Path(result.path)


def options(data: Path, out: Path, *more: str) -> list[str]:
    return [
        "--dataset", "npz", "--data-root", str(data), "--fraction", "0.2", "--steps", "2",
        "--student", "cnn_tiny", "--out", str(out), *more,
    ]  # fmt: skip


def test_weights_from_python_are_used_as_they_were_trained(
    taught: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    data, made = taught
    file = str(made / "student.safetensors")
    code, _, errors = command(
        *options(data, tmp_path, "--teacher", "cnn_tiny", "--teacher-checkpoint", file), folder=None
    )
    assert code == 0, errors
    before = Result.from_json((made / "result.json").read_text())
    result = result_in(tmp_path)
    assert result.teacher is not None
    assert result.teacher["top1"] == before.top1 > 0.9
    assert f"{100 * result.teacher['subset_top1']:.2f} %" in errors
    assert result.doubts == []
    assert result.classes == [str(i) for i in range(10)]


def test_another_normalisation_is_said_and_strict_stops(
    taught: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    data, made = taught
    bare = tmp_path / "bare.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(made / "student.safetensors"), bare)
    given = options(
        data, tmp_path / "runs", "--teacher", "cnn_tiny", "--teacher-checkpoint", str(bare)
    )
    wrong = [*given, "--set", "data.mean=0.9", "data.std=0.05"]
    code, _, errors = command(*wrong, folder=None)
    assert code == 0
    doubts = result_in(tmp_path / "runs").doubts
    assert len(doubts) == 1
    assert "another normalisation" in doubts[0]
    assert f"warning: {doubts[0]}" in errors.replace("\n", "")
    _, shown, errors = command(*wrong, "--quiet", folder=None)  # which is finished
    assert errors.count("warning:") == 1
    assert "doubtful" in shown
    _, shown, _ = command(*wrong, "--method", "kd,kdplus", folder=None)
    assert shown.count("doubtful: teacher: ") == 1
    assert command(*wrong, "--strict", folder=None)[0] == 2
    code, _, errors = command(*wrong, "--strict", "--force", folder=None)
    assert code == 2
    assert errors.splitlines()[-1].startswith("error: teacher: ")


def test_classes_in_another_order_are_refused(
    taught: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    data, made = taught
    net = build("cnn_tiny", 10, 1)
    load_weights(net, made / "student.safetensors")
    images = load("digits").train
    swapped = replace(images, classes=("1", "0", *images.classes[2:]))
    save_weights(net, tmp_path / "w.safetensors", about_images(swapped, 0.9))
    file = str(tmp_path / "w.safetensors")
    given = options(data, tmp_path, "--teacher", "cnn_tiny", "--teacher-checkpoint", file)
    code, _, errors = command(*given, folder=None)
    assert code == 2
    assert "teacher.checkpoint: weights of the classes 1, 0, 2, 3, 4" in errors


def swapped_weights(made: Path, out: Path) -> None:
    """Weights of digits whose outputs changed places, and which do not say so."""
    net = build("cnn_tiny", 10, 1)
    load_weights(net, made / "student.safetensors")
    head = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    order = torch.tensor([*range(5, 10), *range(5)])
    for value in (head.weight, head.bias):
        value.data = value.data[order].clone()
    save_weights(net, out)


def test_one_wrong_member_of_several_is_seen(
    taught: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    data, made = taught
    swapped_weights(made, tmp_path / "w.safetensors")
    files = f"{made / 'student.safetensors'}+{tmp_path / 'w.safetensors'}"
    given = options(data, tmp_path, "--teacher", "cnn_tiny+cnn_tiny", "--teacher-checkpoint", files)
    code, _, errors = command(*given, folder=None)
    assert code == 0, errors
    (doubt,) = result_in(tmp_path).doubts
    assert "cnn_tiny, number 2: its classes are in another order" in doubt


def test_what_each_member_says_of_its_images_is_compared(
    taught: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    data, made = taught
    about = read_about(made / "student.safetensors")
    net = build("cnn_tiny", 10, 1)
    load_weights(net, made / "student.safetensors")
    other = {**about, "classes": json.dumps([str(i) for i in reversed(range(10))])}
    save_weights(net, tmp_path / "w.safetensors", other)
    files = f"{made / 'student.safetensors'}+{tmp_path / 'w.safetensors'}"
    given = options(data, tmp_path, "--teacher", "cnn_tiny+cnn_tiny", "--teacher-checkpoint", files)
    code, _, errors = command(*given, folder=None)
    assert (code, "weights of the classes 9, 8" in errors) == (2, True), errors


def test_settings_that_contradict_the_weights_are_a_doubt(
    taught: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    data, made = taught
    file = str(made / "student.safetensors")
    given = options(data, tmp_path, "--teacher", "cnn_tiny", "--teacher-checkpoint", file)
    code, _, errors = command(*given, "--set", "data.mean=0.05", folder=None)
    assert code == 0, errors
    assert "normalised with mean [0] and std [1], these are with" in result_in(tmp_path).doubts[0]


def test_own_data_are_normalised_as_the_weights_say(
    taught: tuple[Path, Path], tmp_path: Path
) -> None:
    images, net = load("digits").train, build("cnn_tiny", 10, 1)
    load_weights(net, taught[1] / "student.safetensors")
    save_weights(net, tmp_path / "w.safetensors", about_images(images, None))
    result = fskd.distill(
        "cnn_tiny", "cnn_tiny", (images.images, images.targets), steps=1, out=tmp_path,
        settings={"teacher": {"checkpoint": str(tmp_path / "w.safetensors")}},
    )  # fmt: skip
    told = json.loads(read_about(Path(result.path) / "student.safetensors")["mean"])
    assert told == list(images.mean) != [0.0]


def test_a_table_is_looked_at(command: Command, tmp_path: Path) -> None:
    targets = load("digits").train.targets
    probs = torch.full((len(targets), 10), 0.01)
    probs[torch.arange(len(targets)), (targets + 1) % 10] = 0.91
    np.savez(tmp_path / "table.npz", probs=probs.numpy())
    table = f"teacher.table={tmp_path / 'table.npz'}"
    arguments = ("--method", "kd", "--student", "cnn_tiny", "--steps", "1", "--set", table)
    code, _, errors = command(*arguments, "--out", str(tmp_path), folder=None)
    assert code == 0, errors
    assert "its classes are in another order" in result_in(tmp_path).doubts[0]


def test_an_average_says_what_it_was_trained_on(command: Command, tmp_path: Path) -> None:
    arguments = ("--method", "ce", "--steps", "1", "--set", "optim.ema=0.5", "--out", str(tmp_path))
    assert command(*arguments, folder=None)[0] == 0
    (file,) = tmp_path.glob("*/ema.safetensors")
    assert read_about(file)["mean"] == read_about(file.with_name("student.safetensors"))["mean"]


def test_doubts_of_a_teachers_run_are_in_the_students_result(
    taught: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    data, made = taught
    swapped_weights(made, tmp_path / "w.safetensors")
    first = f"teacher.teacher={{name: cnn_tiny, checkpoint: {tmp_path / 'w.safetensors'}}}"
    given = options(data, tmp_path, "--teacher", "cnn_tiny", "--method", "kd", "--set", first)
    given += ["teacher.method=kd", "teacher.budget.steps=1", "data.mean=0", "data.std=1"]
    code, _, errors = command(*given, folder=None)
    assert code == 0, errors
    (path,) = tmp_path.glob("*-20pct-*/result.json")
    doubts = Result.from_json(path.read_text()).doubts
    assert any("in the run of the teacher cnn_tiny: teacher: its" in line for line in doubts)


def test_files_that_changed_are_read_again(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)

    def more(numbers: range) -> None:
        for name in "ab":
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            for i in numbers:
                pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")

    settings = {"data": {"root": str(tmp_path / "photos"), "image_size": 8, "cache_gib": 0}}
    found = []
    for numbers in (range(8), range(8, 16)):
        more(numbers)
        result = fskd.distill(
            None, "cnn_tiny", "folder", method="ce", steps=1, fraction=1.0, settings=settings
        )
        found.append(result.n_train)
    assert found == [12, 24]


def test_what_was_stripped_from_weights_is_said(
    taught: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    data, made = taught
    state = safetensors.torch.load_file(made / "student.safetensors")
    wrapped = {f"module._orig_mod.{name}": value for name, value in state.items()}
    wrapped["module._orig_mod.total_ops"] = torch.zeros(1)
    file = tmp_path / "w.PTH"
    torch.save({"model_state_dict": wrapped, "epoch": np.int64(3)}, file)
    given = options(data, tmp_path, "--teacher", "cnn_tiny", "--teacher-checkpoint", str(file))
    code, _, errors = command(*given, "--set", "data.mean=0", "data.std=1", folder=None)
    assert code == 0, errors
    notes = result_in(tmp_path).notes
    assert any("prefix module._orig_mod. stripped" in note for note in notes), notes
    assert any("total_ops ignored" in note for note in notes)
    assert all(note in errors for note in notes)
    assert result_in(tmp_path).doubts == []


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_body_with_another_head(
    who: str, taught: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    data, _ = taught
    torch.manual_seed(0)
    save_weights(build("cnn_tiny", 1000, 1), tmp_path / "body.safetensors")
    file, out = str(tmp_path / "body.safetensors"), tmp_path / "runs"
    more = ["--teacher", "cnn_tiny", "--set", "teacher.budget.steps=2", f"teacher.seed={5}"]
    for extra in ([], [f"--{who}-init", file]):
        code, _, errors = command(*options(data, out, *extra, *more), folder=None)
        assert code == 0, errors
    (with_body,) = (
        result for path in out.glob("*/result.json")
        if (result := Result.from_json(path.read_text())).config.get("student_init")
    )  # fmt: skip
    assert any("1000 classes in the file" in note for note in with_body.notes)
    save_weights(build("cnn_tiny", 1000, 1), tmp_path / "body.safetensors")
    n_runs = len(list(out.glob("*/result.json")))
    assert command(*options(data, out, f"--{who}-init", file, *more), folder=None)[0] == 0
    assert len(list(out.glob("*/result.json"))) > n_runs  # other weights, another run


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data.mean=[0.5,0.5]", "data.mean: [0.5, 0.5] is not accepted; expected 1 numbers"),
        ("data.mean=123.7", "data.mean: 123.7 is not accepted; expected in [0, 1]"),
        ("data.std=0", "data.std: 0 is not accepted; expected in (0, 1]"),
        ("data.background=whiteish", "data.background"),
        ("student.tap=3", "student.tap"),
        ("teacher.taps=[nothing]", "teacher.taps"),
        ("data.test_share=0.5", "data.test_share"),
    ],
)
def test_wrong_settings_are_one_line(
    setting: str, said: str, taught: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    code, _, errors = command(*options(taught[0], tmp_path, "--set", setting), folder=None)
    assert code == 2
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert said in errors


class TestNetworksHandedOver:
    data = torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(0)), [0, 1, 2, 3] * 12

    @staticmethod
    def net() -> nn.Module:
        parts = (
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip
        return nn.Sequential(*parts)

    def run(self, teacher: Any, student: Any, **more: Any) -> Result:
        return fskd.distill(teacher, student, self.data, steps=3, **more)

    @pytest.mark.parametrize("kind", ["half", "double", "bfloat16", "channels_last", "eval"])
    def test_a_student_comes_back_as_it_was_given(self, kind: str, tmp_path: Path) -> None:
        student = self.net()
        if kind == "channels_last":
            student = student.to(memory_format=torch.channels_last)
        else:
            student = getattr(student, kind)()
        student[1].eval()
        before = {name: (v.dtype, v.stride()) for name, v in student.state_dict().items()}
        modes = [module.training for module in student.modules()]
        result = self.run(self.net(), student)
        assert {n: (v.dtype, v.stride()) for n, v in student.state_dict().items()} == before
        assert [module.training for module in student.modules()] == modes
        if kind != "channels_last":
            safetensors.torch.save_file(student.state_dict(), tmp_path / "w.safetensors")
            nn.utils.parameters_to_vector(student.parameters())
        cast = [note for note in result.notes if "cast from" in note]
        assert len(cast) == (kind in ("half", "double", "bfloat16"))

    def test_what_was_channels_first_stays_so(self, tmp_path: Path) -> None:
        student = self.net()
        self.run(self.net(), student)
        safetensors.torch.save_file(student.state_dict(), tmp_path / "w.safetensors")
        nn.utils.parameters_to_vector(student.parameters())

    def test_frozen_and_one_row(self) -> None:
        with pytest.raises(SettingError, match="requires_grad"):
            self.run(self.net(), self.net().requires_grad_(False))
        flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
        with pytest.raises(SettingError, match=r"optim\.batch_size: 1 .*batch norm"):
            self.run(self.net(), flat, settings={"optim": {"batch_size": 1}}, method="ce")

    def test_what_is_computed_otherwise_is_another_run(self, tmp_path: Path) -> None:
        class Scaled(nn.Module):
            def __init__(self, net: nn.Module, scale: float) -> None:
                super().__init__()
                self.net, self.scale = net, scale
                self.register_buffer("shift", torch.tensor(scale), persistent=False)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.net(x) * self.scale

        class Shifted(Scaled):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.net(x) + self.shift

        teacher, net = self.net(), self.net()
        students = [Scaled(copy.deepcopy(net), scale) for scale in (1.0, 2.0)]
        students += [Shifted(copy.deepcopy(net), scale) for scale in (1.0, 2.0)]
        students.append(copy.deepcopy(students[0]))
        for parameter in list(students[-1].parameters())[:2]:
            parameter.requires_grad_(False)
        kept = [parameter.clone() for parameter in list(students[-1].parameters())[:2]]
        again = copy.deepcopy(students[0]).eval()
        keys = [self.run(teacher, student, out=tmp_path).key for student in students]
        assert len(set(keys)) == len(keys)
        assert all(map(torch.equal, kept, students[-1].parameters()))
        # What does not matter: the mode, and whether the teacher's weights are frozen.
        assert self.run(teacher.requires_grad_(False), again, out=tmp_path).key == keys[0]

    def test_what_a_black_box_holds_is_in_the_key(self, tmp_path: Path) -> None:
        net = self.net().eval()

        def scaled(x: torch.Tensor, scale: float) -> torch.Tensor:
            return (net(x) * scale).softmax(1)

        class Box:
            def __init__(self, scale: float) -> None:
                self.scale = scale

            def __call__(self, x: torch.Tensor) -> torch.Tensor:
                return scaled(x, self.scale)

        def key(box: Any) -> str:
            more: dict[str, Any] = {"method": "kd", "steps": 1, "out": tmp_path}
            return fskd.distill(box, "cnn_tiny", self.data, **more).key

        boxes = [partial(scaled, scale=1.0), partial(scaled, scale=2.0), Box(1.0), Box(2.0)]
        keys, before = [key(box) for box in boxes], held_hash(scaled)
        assert len(set(keys)) == len(keys)
        assert key(Box(1.0)) == keys[2]
        with torch.no_grad():
            net[0].weight.mul_(2)
        assert held_hash(scaled) != before

    def test_a_compiled_student_gets_what_was_learnt(self, tmp_path: Path) -> None:
        net = self.net()
        result = self.run(self.net(), torch.compile(net, backend="eager"), out=tmp_path)
        saved = safetensors.torch.load_file(Path(result.path) / "student.safetensors")
        assert all(torch.equal(saved[name], value) for name, value in net.state_dict().items())

    def test_students_that_cannot_learn_are_one_line(self) -> None:
        class Made(nn.Module):
            def __init__(
                self, net: nn.Module, made: Callable[[torch.Tensor], torch.Tensor]
            ) -> None:
                super().__init__()
                self.net, self.made = net, made

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.made(self.net(x))

        class Stated(nn.Sequential):
            def get_extra_state(self) -> dict[str, int]:
                return {"calls": 1}

            def set_extra_state(self, state: object) -> None: ...

        with pytest.raises(SettingError, match="outputs have no gradient"):
            self.run(self.net(), Made(self.net(), torch.detach))
        with pytest.raises(SettingError, match="extra state"):
            self.run(self.net(), Stated(self.net()))
        self.run(Stated(self.net()), self.net())
        lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
        for teacher, student in ((lazy, self.net()), (self.net(), lazy)):
            with pytest.raises(SettingError, match="shape of its LazyLinear is not known"):
                self.run(teacher, student)
        soft = Made(self.net(), lambda x: x.softmax(1))
        with pytest.warns(DoubtWarning, match="student's outputs are probabilities"):
            self.run(self.net(), soft)

    def test_a_teacher_is_either_handed_over_or_named(self) -> None:
        settings = {"teacher": {"checkpoint": "w.pth"}}
        with pytest.raises(SettingError, match=r"teacher\.checkpoint: 'w\.pth' .*handed over"):
            self.run(self.net(), self.net(), settings=settings)

    def test_several_outputs(self) -> None:
        class Two(nn.Module):
            def __init__(self, net: nn.Module) -> None:
                super().__init__()
                self.net = net

            def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
                return {"features": x.flatten(1), "out": self.net(x)}

        with pytest.raises(SettingError, match="logits="):
            self.run(Two(self.net()), self.net())
        teacher = self.net()
        plain, named = self.net(), self.net()
        named.load_state_dict(plain.state_dict())
        known = self.run(teacher, plain)
        assert self.run(Two(teacher), named, logits="out").top1 == known.top1
        for one, other in zip(plain.parameters(), named.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_a_doubtful_teacher_is_a_warning(self) -> None:
        class Soft(nn.Module):
            def __init__(self, net: nn.Module) -> None:
                super().__init__()
                self.net = net

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.net(x).softmax(1)

        with pytest.warns(DoubtWarning, match="outputs are probabilities"):
            result = self.run(Soft(self.net()), self.net())
        assert any("probabilities" in line for line in result.doubts)

    def test_a_finished_run_is_as_doubtful_as_when_it_was_made(self, tmp_path: Path) -> None:
        def again(**more: Any) -> Result:
            torch.manual_seed(0)
            data = (self.data[0][:1].expand(48, -1, -1, -1), self.data[1])
            return fskd.distill(None, self.net(), data, method="ce", steps=1, out=tmp_path, **more)

        for _ in range(2):
            with pytest.warns(DoubtWarning):
                assert again().doubts
        with pytest.raises(FskdError, match="--strict"):
            again(settings={"runtime": {"strict": True}})

    def test_share_and_order_of_own_data(self) -> None:
        images, _ = self.data
        names = ["10", "9", "2", "1"] * 12
        settings = {"data": {"test_share": 0.5}}
        result = fskd.distill(
            None, self.net(), (images, names), steps=1, method="ce", settings=settings
        )
        assert result.classes == ["1", "2", "9", "10"]
        assert result.n_train == 24
        assert result.files["train"]["test_share"] == 0.5
        with pytest.raises(SettingError, match=r"data\.test_share"):
            fskd.distill(
                None, self.net(), self.data, test_data=self.data, method="ce", settings=settings
            )

    def test_one_number_is_one_channel(self) -> None:
        with pytest.raises(SettingError, match=r"data\.mean: \[0\.5\] .* 3 numbers"):
            self.run(self.net(), self.net(), mean=0.5)


def test_equal_images_are_a_doubt(command: Command, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((40, 8, 8), np.uint8), y=[0, 1] * 20)
    given = ["--dataset", "npz", "--data-root", str(tmp_path / "d.npz"), "--method", "ce"]
    code, _, errors = command(*given, "--steps", "1", "--out", str(tmp_path), folder=None)
    assert code == 0
    assert "warning: all 30 training images are equal" in errors
    assert command(*given, "--steps", "1", "--strict", "--force", folder=None)[0] == 2


def photograph(number: int, label: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 128, (6, 8, 3))
    pixels[..., label] += 127
    return Image.fromarray(pixels.astype(np.uint8)).resize((96, 72), Image.Resampling.BICUBIC)


def test_a_folder_in_ten_formats_with_broken_files(command: Command, tmp_path: Path) -> None:
    kinds = [
        ("jpg", "jpeg"), ("PNG", "png"), ("gif", "gif"), ("bmp", "bmp"), ("tif", "tiff"),
        ("webp", "webp"), ("jfif", "jpeg"), ("ppm", "ppm"), ("tga", "tga"), ("avif", "avif"),
    ]  # fmt: skip
    if ".avif" not in readable():
        kinds[-1] = ("jpeg", "jpeg")
    root = tmp_path / "photos"
    for label, name in enumerate(("cat", "dog", "eel")):
        (root / name).mkdir(parents=True)
        for number in range(30):
            suffix, kind = kinds[number % 10]
            image = photograph(100 * label + number, label)
            image.save(root / name / f"{number}.{suffix}", kind)
        (root / name / "3.bmp").write_bytes(b"broken")
    (root / "cat/notes.txt").write_text("hello")
    given = [
        "--dataset", "folder", "--data-root", str(root), "--method", "ce", "--steps", "4",
        "--student", "cnn_tiny", "--set", "data.on_error=skip", "--out", str(tmp_path / "runs"),
    ]  # fmt: skip
    assert command(*given[:-4], "--out", str(tmp_path), folder=None)[0] == 2
    code, _, errors = command(*given, folder=None)
    assert code == 0, errors
    (line,) = (line for line in errors.splitlines() if "unreadable" in line)
    assert "1 .txt" in line
    assert "3 unreadable and left out: cat/3.bmp, dog/3.bmp, eel/3.bmp" in line
    result = result_in(tmp_path / "runs")
    assert result.files["train"]["unreadable"] == ["cat/3.bmp", "dog/3.bmp", "eel/3.bmp"]
    assert result.n_train == 65
    assert result.classes == ["cat", "dog", "eel"]


@pytest.mark.parametrize("method", ["at", "fitnet", "kdplus"])
def test_transformers_of_timm_with_taps(method: str, command: Command, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 48, 48, 3)).astype(np.uint8)
    np.savez(tmp_path / "d.npz", x=images, y=[0, 1, 2] * 8)
    name = "timm:vit_tiny_patch16_224?img_size=48&depth=4"
    taps = "[blocks.1,blocks.3]"
    code, _, errors = command(
        "--dataset", "npz", "--data-root", str(tmp_path / "d.npz"), "--method", method,
        "--student", name, "--teacher", name, "--steps", "1", "--out", str(tmp_path / "runs"),
        "--set", f"student.taps={taps}", f"teacher.taps={taps}", "teacher.budget.steps=1",
        "optim.batch_size=4", "teacher.optim.batch_size=4", "optim.name=adamw",
        folder=None,
    )  # fmt: skip
    assert code == 0, errors
    assert "\n" not in errors or "error" not in errors


def test_transformers_of_hugging_face_with_taps() -> None:
    transformers = pytest.importorskip("transformers")
    about = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
        image_size=16, patch_size=4, num_labels=4,
    )  # fmt: skip
    nets = [transformers.ViTForImageClassification(about) for _ in range(2)]
    taps = [name for name, _ in nets[0].named_modules() if name.endswith((".layer.1", ".layer.3"))]
    if not taps:
        taps = [n for n, _ in nets[0].named_modules() if n.endswith((".layers.1", ".layers.3"))]
    assert len(taps) == 2
    images = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    settings = {"student": {"taps": taps}, "teacher": {"taps": taps}}
    for method in ("at", "fitnet", "kdplus"):
        result = fskd.distill(
            nets[0], nets[1], (images, [0, 1, 2, 3] * 6), method=method, steps=1, settings=settings
        )
        assert method in result.final_loss or method == "kdplus"

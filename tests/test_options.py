"""The table of options: every command has its entries, and every entry its setting."""

import inspect

import pytest

from fskd import run, sweep
from fskd.api import distill
from fskd.config import RunConfig, Runtime, TeacherConfig
from fskd.errors import SettingError
from fskd.options import OPTIONS, settings_layer
from fskd.raw import EXCLUSIVE
from fskd.settings import DataConfig

SECTIONS = {"data": DataConfig, "teacher": TeacherConfig, "runtime": Runtime}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_stand_for_settings(name: str) -> None:
    section, _, field = OPTIONS[name].setting.rpartition(".")
    owner = RunConfig.model_fields["budget"].annotation if section == "budget" else None
    field = f"student_{field}" if section == "student" else field
    assert field in (owner or SECTIONS.get(section, RunConfig)).model_fields


def test_commands_have_the_options_of_the_table() -> None:
    assert OPTIONS.keys() < inspect.signature(run.command).parameters.keys()
    shared = OPTIONS.keys() & inspect.signature(sweep.command).parameters.keys()
    assert {"data_root", "out", "device", "quiet"} < shared


@pytest.mark.parametrize("rivals", EXCLUSIVE)
def test_rivals_are_refused_everywhere(rivals: tuple[str, ...]) -> None:
    one, *_, other = rivals
    with pytest.raises(SettingError, match=f"^--{one} and --{other}: together"):
        settings_layer({one: "1", other: "2"})
    with pytest.raises(SettingError, match=f"^{one} and {other}: together"):
        distill("cnn_tiny", "cnn_tiny", "digits", **{one: 1, other: 2})  # type: ignore[arg-type]

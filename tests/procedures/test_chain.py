"""Chains: every missing link once, from the first on, and none before a finished one."""

from fskd.config import RunConfig
from fskd.procedures.base import procedures
from fskd.resolve import resolve


class Recorder:
    """Tools that note what they are asked to do."""

    def __init__(self, made: set[str]) -> None:
        self.made, self.order = made, list[str]()

    def teachers(self, config: RunConfig) -> tuple[RunConfig, ...]:
        return () if config.teacher is None else config.teacher_runs()

    def finished(self, config: RunConfig) -> bool:
        return config.student in self.made

    def fit(self, config: RunConfig) -> None:
        self.order.append(config.student)
        self.made.add(config.student)

    def say(self, line: str) -> None:
        raise AssertionError(line)


def chained() -> RunConfig:
    """resnet20 from cnn_medium from cnn_small."""
    first = {"name": "cnn_small", "method": "ce", "budget": {"steps": 2}}
    assistant = {"name": "cnn_medium", "method": "kd", "budget": {"steps": 2}, "teacher": first}
    return resolve({"student": "cnn_tiny", "method": "kd", "teacher": assistant})


def order(*made: str) -> list[str]:
    tools = Recorder(set(made))
    procedures.get("chain")().run(chained(), tools)
    return tools.order


def test_links_are_made_from_the_first_on() -> None:
    assert order() == ["cnn_small", "cnn_medium"]


def test_nothing_before_a_finished_link_is_made() -> None:
    assert order("cnn_medium") == []
    assert order("cnn_small") == ["cnn_medium"]


def test_a_chain_is_listed() -> None:
    assert procedures.names() == ["chain"]

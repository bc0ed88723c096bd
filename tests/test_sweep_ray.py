"""The same sweep on a Ray cluster of two nodes, one of which is removed half-way."""

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sweeps import end_state, protocol

from fskd.sweep import main

pytest.importorskip("ray", reason="the extra fskd[sweep] is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


@pytest.fixture
def cluster() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        memory = {"object_store_memory": 80_000_000}
        made = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, **memory},
        )
        made.second = made.add_node(num_cpus=1, **memory)
        yield made
        made.shutdown()


def test_a_node_is_removed(
    cluster: Any, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file, out, alone = protocol(tmp_path, seeds=3), tmp_path / "ray", tmp_path / "alone"
    options = ["--set", "budget.steps=100", "teacher.budget.steps=60"]
    removed = []

    def remove() -> None:
        end = time.monotonic() + 300
        while len(list(out.glob("*/result.json"))) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        cluster.remove_node(cluster.second, allow_graceful=False)
        removed.append(len(list(out.glob("*/result.json"))))

    thread = threading.Thread(target=remove)
    thread.start()
    device = ["--device", "cpu"]
    ray = ["--engine", "ray", "--address", cluster.address, "--no-report", "--out", str(out)]
    code = main([str(file), *ray, *device, *options])
    thread.join()
    assert code == 0
    assert 3 <= removed[0] < 7  # half-way
    assert command(str(file), *device, *options, folder=alone)[0] == 0
    assert end_state(out) == end_state(alone)

"""What is said when a rank's state is saved as if it were that of all."""

import pytest
import torch

from fedcompress.optim.engine.owners import Exchange, warn_of_parts


def exchange(owners: dict[str, int], *, replicated: bool = True) -> Exchange:
    shapes = dict.fromkeys(owners, (2, 3))
    spans = {name: [(0, 6), (0, 6)] for name in owners}
    device = torch.device("cpu")
    return Exchange(spans=spans, shapes=shapes, owners=owners, rank=0, replicated=replicated, device=device)


def test_a_part_of_the_state_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_parts([exchange({"a": 0, "b": 1, "c": 1}), exchange({"d": 1})])
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "the state of rank 0 has 1 of 3 matrices, under data parallelism"
    ]
    assert "replicate=True" in caplog.text


def test_a_whole_state_and_those_of_shards_are_no_matter(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_parts([exchange({"a": 0, "b": 0}), exchange({"a": 0, "b": 1}, replicated=False)])
    assert not caplog.records

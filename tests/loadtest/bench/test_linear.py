"""Measured products beside vLLM's own: what is compared."""

from loadtest.bench.linear import STOCK, stage_of
from serve.engine.cpu.linear import CPU_LINEAR_VARIABLE


def test_the_base_alone_is_asked_of_both_servers() -> None:
    stage = stage_of("base")
    assert {models for row in stage.rows for models in (row.ours, row.theirs)} == {("base",)}
    assert [(row.load.num_streams, row.load.counted) for row in stage.rows] == [
        (16, "output"),
        (1, "output"),
        (4, "prompt"),
    ]


def test_the_other_server_is_told_to_leave_products_to_vllm() -> None:
    assert {CPU_LINEAR_VARIABLE: "stock"} == STOCK

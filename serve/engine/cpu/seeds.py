"""Seeds of requests whose prompt takes several steps.

Of a step that computes only a part of a prompt, vLLM (0.32, v1/worker/gpu_model_runner.py) discards the sampled token,
and moves the request's random generator back by an offset that generators of a CPU do not have: the engine ends. Here
the generator starts again from its seed.
"""

from typing import Any

from serve.engine.replace import Replacement, install


def restart_seeds() -> None:
    """Replace vLLM's method; done twice, it does no more."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    install(Replacement(GPUModelRunner, "_bookkeeping_sync", _bookkeeping_sync))  # the CPU's runner inherits it


def _bookkeeping_sync(stock: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    batch = runner.input_batch
    if not batch.generators:
        return stock(runner, *args, **kwargs)
    is_discarded = runner.discard_request_mask.np[: batch.num_reqs]
    held = {index: generator for index, generator in batch.generators.items() if is_discarded[index]}
    for index, generator in held.items():
        generator.manual_seed(generator.initial_seed())
        del batch.generators[index]  # vLLM's loop passes it over
    try:
        return stock(runner, *args, **kwargs)
    finally:
        batch.generators.update(held)

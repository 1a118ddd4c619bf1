"""`lorikeet bench linear`: the base's linear layers by what was measured at the start, beside vLLM's own products.

Two servers of ours, alternately, without adapters. The first server logs what it measured and chose.
"""

from loadtest.bench.cost import ComparedServer, measure_cost
from loadtest.bench.lora import ALONE, PREFILL, STREAMS, Row, Stage, compare
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult
from loadtest.bench.servers import kept_logs, made_folder, our_server, same_threads, serve_config

STOCK = {"LORIKEET_CPU_LINEAR": "stock"}
"""What `serve/engine/cpu/linear.py` leaves the products to vLLM by."""

_NOT_SLOWER = 0.97
_CHOSEN = "Linear layers"


def bench_linear(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Serve the state folder's base twice.

    Raises:
        TargetError: A server did not become ready, or a request failed. The logs are kept; the message says where.
    """
    config, environment = serve_config(options), same_threads(options)
    with (
        kept_logs() as folder,
        our_server(config, options.home, made_folder(folder / "measured"), environment) as measured,
        our_server(config, options.home, made_folder(folder / "stock"), environment | STOCK) as stock,
    ):
        for line in measured.log_file.read_text().splitlines():
            if _CHOSEN in line:
                options.say(line)
        sides = ComparedServer(f"{measured.url}/v1", measured.pid), ComparedServer(f"{stock.url}/v1", stock.pid)
        return tuple(compare(stage_of(config.served_model_name), *sides, options, measure_cost, 0))


def stage_of(base: str) -> Stage:
    """The base on both sides: decoding of many streams and of one, and prefill."""
    loads = {"16 streams": STREAMS, "1 stream": ALONE, "prefill of 512 tokens": PREFILL}
    rows = tuple(Row(f"base, {name}", (base,), (base,), load, least=_NOT_SLOWER) for name, load in loads.items())
    return Stage("vLLM's products", {}, {}, rows)

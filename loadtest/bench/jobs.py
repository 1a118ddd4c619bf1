"""`lorikeet bench jobs`: what files, batches and fine-tuning jobs cost the server that also answers clients."""

from loadtest.bench.copies import copy_adapter
from loadtest.bench.cost import ComparedServer
from loadtest.bench.jobs_batches import bench_batches
from loadtest.bench.jobs_training import bench_training
from loadtest.bench.jobs_upload import bench_upload
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult
from loadtest.bench.servers import kept_logs, our_server, same_threads, serve_config


def bench_jobs(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Start a server with a copy of the adapter, and measure one after the other.

    Raises:
        AdapterError: There is no such adapter.
        TargetError: The server did not become ready, or a request failed. Its log is kept; the message says where.
    """
    config = serve_config(options)
    environment = same_threads(options)
    with kept_logs() as folder:
        home, names = copy_adapter(options.home, options.adapter, 1, folder / "home")
        with our_server(config, home, folder, environment) as server:
            side = ComparedServer(f"{server.url}/v1", server.pid)
            concurrency = config.max_num_seqs - config.max_num_seqs // 8
            return (
                *bench_upload(side, folder, options),
                *bench_batches(side, names[0], concurrency, options),
                *bench_training(side, config.served_model_name, names[0], options),
            )

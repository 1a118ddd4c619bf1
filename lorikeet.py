"""Train one LoRA adapter per domain, serve all of them from one vLLM engine, know how good and how fast each one is."""

import typer

import adapters.cli
import demo.cli
import loadtest.analysis_cli
import loadtest.bench.cli
import loadtest.evaluation.cli
import loadtest.evaluation.record_cli
import loadtest.load_cli
import loadtest.simulate_cli
import serve.access.cli
import serve.cli
import serve.monitor.cli
import train.cli
import train.data.cli
import train.export.cli
import train.jobs.cli
import train.sweep.cli

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
app.add_typer(train.cli.base_app, name="base")
app.add_typer(train.data.cli.data_app, name="data")
app.command("init")(train.data.cli.init)
app.command("train")(train.cli.train)
app.command("sweep")(train.sweep.cli.sweep)
app.add_typer(train.export.cli.export_app, name="export")
app.add_typer(adapters.cli.app, name="adapters")
adapters.cli.app.command("merge")(train.export.cli.merge_adapters)
app.command("serve")(serve.cli.serve)
app.command("worker")(train.jobs.cli.worker)
app.add_typer(train.jobs.cli.jobs_app, name="jobs")
app.add_typer(serve.access.cli.app, name="keys")
app.add_typer(serve.monitor.cli.app, name="quality")
app.add_typer(loadtest.evaluation.cli.eval_app, name="eval")
app.command("record")(loadtest.evaluation.record_cli.record)
app.add_typer(loadtest.load_cli.app, name="loadtest")
loadtest.load_cli.app.command("compare")(loadtest.analysis_cli.compare)
loadtest.load_cli.app.command("capacity")(loadtest.analysis_cli.capacity)
loadtest.load_cli.app.command("cliff")(loadtest.analysis_cli.cliff)
app.command("simulate")(loadtest.simulate_cli.simulate)
app.command("bench")(loadtest.bench.cli.bench)
app.command("demo")(demo.cli.demo)

if __name__ == "__main__":
    app()

"""Train one LoRA adapter per domain, serve all of them from one vLLM engine, know how good and how fast each one is."""

import typer

import adapters.cli
import demo.cli
import loadtest.analysis_cli
import loadtest.bench.cli
import loadtest.cli
import loadtest.load_cli
import serve.access.cli
import serve.cli
import serve.monitor.cli
import train.cli
import train.export.cli

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
app.add_typer(train.cli.base_app, name="base")
app.add_typer(train.cli.data_app, name="data")
app.command("init")(train.cli.init)
app.command("train")(train.cli.train)
app.add_typer(train.export.cli.export_app, name="export")
app.add_typer(adapters.cli.app, name="adapters")
adapters.cli.app.command("merge")(train.export.cli.merge_adapters)
app.command("serve")(serve.cli.serve)
app.add_typer(serve.access.cli.app, name="keys")
app.add_typer(serve.monitor.cli.app, name="quality")
app.command("eval")(loadtest.cli.evaluate)
app.add_typer(loadtest.load_cli.app, name="loadtest")
loadtest.load_cli.app.command("compare")(loadtest.analysis_cli.compare)
loadtest.load_cli.app.command("capacity")(loadtest.analysis_cli.capacity)
loadtest.load_cli.app.command("cliff")(loadtest.analysis_cli.cliff)
app.command("bench")(loadtest.bench.cli.bench)
app.command("demo")(demo.cli.demo)

if __name__ == "__main__":
    app()

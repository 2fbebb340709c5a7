"""The command line: one verb a stage. An offline verb reads the current artefacts, publishes one
new one and prints its path. No traceback reaches a user. Knows nothing that a stage does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
except ImportError as e:  # the bare package is the client library
    raise SystemExit("serendip: the command line needs: pip install 'serendip[offline]'") from e

from serendip import artifacts_cli, loadtest
from serendip.artifacts import Artifact, Artifacts
from serendip.config import Config, load_config
from serendip.core import Constraint, InvalidRequest, Merge, SerendipError
from serendip.progress import console

app = typer.Typer(
    help="Serendipitous recommendation: an MLLM plans the interest, a sequence model the items.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(artifacts_cli.app, name="artifacts")
app.add_typer(loadtest.app, name="loadtest")

ConfigName = Annotated[str, typer.Option("--config", help="tiny, or a TOML file.")]
_INTERRUPTED = 130  # exit code
Seed = Annotated[int | None, typer.Option(help="Overrides the configuration's seed.")]


def main() -> None:
    """Entry point of the ``serendip`` command."""
    with exit_on_error():
        app()


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Typed errors of the block become one line on standard error and exit code 2."""
    try:
        yield
    except SerendipError as e:
        print(f"serendip: {e}", file=sys.stderr)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, SystemExit) as e:
        # A command of typer's ends with this code at Ctrl-C, and says nothing.
        if isinstance(e, SystemExit) and e.code != _INTERRUPTED:
            raise
        print("serendip: interrupted; run the same command to go on", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None


def _publish(
    stage: Callable[[Config, Artifacts], Artifact], config: str, seed: int | None
) -> Artifact:
    settings = load_config(config, seed=seed)
    artifact = stage(settings, Artifacts(settings.artifacts_path))
    _show_facts(artifact)
    print(artifact.path)
    return artifact


def _show_facts(artifact: Artifact) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in artifact.facts.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            _show_rows(name, value)
        else:
            table.add_row(name, _shown(value))
    console.print(table)


def _show_rows(name: str, rows: list[dict[str, Any]]) -> None:
    """A fact that is a table: a column a key, those without any value left out."""
    columns = [key for key in rows[0] if any(row.get(key) is not None for row in rows)]
    columns.sort(key=lambda key: key != "level")  # a manifest's keys stand in the alphabet's order
    table = Table(*columns, title=name, title_justify="left")
    for row in rows:
        table.add_row(*(_shown(row[key]) for key in columns))
    console.print(table)


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


@app.command()
def synth(config: ConfigName = "tiny", seed: Seed = None) -> None:
    """Makes the synthetic world: tables, thumbnails, videos, captions."""
    from serendip.catalog.synth import synthesise

    print(synthesise(load_config(config, seed=seed)))


@app.command("import")
def import_(
    kind: Annotated[str, typer.Argument(help="movielens")],
    path: Annotated[Path, typer.Argument(help="MovieLens's folder, or one with posters.")],
    config: ConfigName = "tiny",
) -> None:
    """Brings outside data into the schemas of docs/data.md."""
    if kind != "movielens":
        raise InvalidRequest(
            "cannot be imported", field="kind", value=kind, remedy="Known is: movielens."
        )
    from serendip.catalog.movielens import import_movielens

    target = load_config(config).data_path
    for name, rows in import_movielens(path, target).items():
        console.print(f"  {name}: {rows} rows")
    print(target)


@app.command()
def tree(
    config: ConfigName = "tiny",
    seed: Seed = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build anew where the tree could grow.")
    ] = False,
) -> None:
    """Clusters the catalogue into the 4-level tree, or grows the tree that there is."""
    from serendip.planning.survival import surviving_plans
    from serendip.tree.build import publish_tree

    made = _publish(partial(publish_tree, rebuild=rebuild), config, seed)
    artifacts = Artifacts(load_config(config, seed=seed).artifacts_path)
    if (plans := surviving_plans(artifacts, made)) is not None:
        console.print(f"  {plans[0]} of {plans[1]} plans would keep their meaning; all are stale")


@app.command()
def curate(config: ConfigName = "tiny", seed: Seed = None) -> None:
    """Curates the training pairs from the log."""
    from serendip.curation.curate import publish_pairs

    _publish(publish_pairs, config, seed)


@app.command()
def finetune(config: ConfigName = "tiny", seed: Seed = None) -> None:
    """Trains the MLLM on the curated pairs."""
    from serendip.planning.finetune import publish_planner

    _publish(publish_planner, config, seed)


@app.command()
def plan(
    config: ConfigName = "tiny",
    seed: Seed = None,
    max_hours: Annotated[
        float | None, typer.Option(min=0, help="Begin no item after this; publish what there is.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="serendip or vllm: what runs the model, whatever plans.engine says.")
    ] = "",
    redis: Annotated[str, typer.Option(help="URL of a Redis that gets the plans as well.")] = "",
) -> None:
    """Plans the items that cover most impressions, stale ones only."""
    from serendip.planning.bulk import publish_plans

    if engine not in ("", "serendip", "vllm"):
        raise InvalidRequest(
            "is no engine", field="--engine", value=engine, remedy="Known are: serendip, vllm."
        )

    def stage(settings: Config, artifacts: Artifacts) -> Artifact:
        if engine:
            plans = settings.plans.model_copy(update={"engine": engine})
            settings = settings.model_copy(update={"plans": plans})
        if not redis:
            return publish_plans(settings, artifacts, max_hours=max_hours)
        from serendip.planning.lmdb_store import FILE
        from serendip.planning.redis_store import connect, copy_to_redis

        connect(redis).close()  # a wrong URL shows before the planning, not after it
        artifact = publish_plans(settings, artifacts, max_hours=max_hours)
        copy_to_redis(artifact.file(FILE), redis)
        return artifact

    _publish(stage, config, seed)


@app.command()
def retriever(config: ConfigName = "tiny", seed: Seed = None) -> None:
    """Trains the sequence model and exports it."""
    from serendip.retrieval.train import publish_retriever

    _publish(publish_retriever, config, seed)


@app.command()
def release(config: ConfigName = "tiny") -> None:
    """Names the current tree, planner, plans and retriever as what servers serve."""
    from serendip.release import publish_release

    _publish(lambda _, artifacts: publish_release(artifacts), config, None)


evaluate_app = typer.Typer(invoke_without_command=True)
app.add_typer(evaluate_app, name="evaluate")


@evaluate_app.callback()
def evaluate(context: typer.Context, config: ConfigName = "tiny", seed: Seed = None) -> None:
    """Judges the planner on held-out items."""
    if context.invoked_subcommand is not None:
        if config != "tiny" or seed is not None:
            raise InvalidRequest(
                "is of evaluate alone",
                field="--config" if config != "tiny" else "--seed",
                value=config if config != "tiny" else seed,
                remedy=f"Leave it out: {context.invoked_subcommand} has settings of its own.",
            )
        return
    from serendip.evaluation.offline import publish_report

    _publish(publish_report, config, seed)


@evaluate_app.command()
def figures(
    out: Annotated[Path, typer.Option(help="Where worlds, runs and figures go.")] = Path(
        "artifacts/figures"
    ),
    docs: Annotated[
        Path | None, typer.Option(help="A folder that gets the figures and the table as well.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Each has worlds of its own.")] = 3,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps of two prompts: shows that it works.")
    ] = False,
) -> None:
    """Makes the paper's figures 3 to 5 on synthetic worlds, with a table of its orderings.

    It goes on where it was interrupted. Three seeds take up to 40 minutes on two cores.
    """
    from serendip.evaluation.figures import make_figures
    from serendip.evaluation.figures_study import full_study, quick_study

    study = quick_study() if quick else full_study(seeds)
    command = "serendip evaluate figures" + (" --quick" if quick else f" --seeds {seeds}")
    for path in make_figures(study, out, command, workers=workers, docs=docs):
        print(path)


@app.command()
def serve(
    config: ConfigName = "tiny",
    seed: Seed = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    planner_port: Annotated[int, typer.Option(help="gRPC; metrics are at 1000 above.")] = 50051,
    retriever_port: Annotated[int, typer.Option(help="gRPC; metrics are at 1000 above.")] = 50052,
) -> None:
    """Runs both servers on the current release until interrupted."""
    from serendip.local import both_servers, wait_for_end

    settings = load_config(config, seed=seed)
    ports = (planner_port, retriever_port)
    with both_servers(settings.artifacts_path, settings.data_path, host, ports) as servers:
        for server in servers:
            print(f"{server.name} ready on {server.address}, metrics {server.metrics}", flush=True)
        wait_for_end(servers)


@app.command()
def recommend(
    context_item: Annotated[str, typer.Argument(help="The item that was just enjoyed.")],
    history: Annotated[
        list[str] | None, typer.Option(help="An item watched before; repeat it, oldest first.")
    ] = None,
    k: Annotated[int, typer.Option(help="Items wanted.")] = 10,
    clusters: Annotated[int, typer.Option(help="Planned clusters that they are from.")] = 1,
    merge: Annotated[
        Merge, typer.Option(help="By score, or the clusters take turns.")
    ] = Merge.SCORE,
    constraint: Annotated[
        Constraint, typer.Option(help="Clusters that may be planned.")
    ] = Constraint.NOT_OWN,
    planner: Annotated[str, typer.Option(help="HOST:PORT of the planner server.")] = (
        "127.0.0.1:50051"
    ),
    config: ConfigName = "tiny",
    seed: Seed = None,
) -> None:
    """Asks the running servers for items, and says why these."""
    from serendip_client import SerendipClient

    from serendip.catalog.items import read_items

    with SerendipClient(planner) as client:
        answer = client.recommend(
            history or [],
            context_item,
            k,
            constraint=constraint,
            clusters=clusters,
            merge=merge,
        )
    data = load_config(config, seed=seed).data_path
    titles = {}
    if (data / "items.parquet").is_file():
        wanted = {context_item, *(c.item_id for c in answer.candidates)}
        titles = {i.item_id: i.title for i in read_items(data) if i.item_id in wanted}
    _show_answer(context_item, answer, titles)


def _show_answer(context_item: str, answer: Any, titles: dict[str, str]) -> None:
    out = Table(
        title=escape(f"{context_item}  {titles.get(context_item, '')}"), title_justify="left"
    )
    for column in ("item", "title", "score", "from"):
        out.add_column(column)
    names = {c.node_id: c.description for c in answer.plan.clusters}
    for c in answer.candidates:
        origin = names.get(c.node_id, f"node {c.node_id}") + (" (widened)" if c.widened else "")
        out.add_row(c.item_id, escape(titles.get(c.item_id, "")), f"{c.score:.3f}", escape(origin))
    for line in answer.plan.reasoning.splitlines():
        print(f"  {line}")
    print(f"  Next: {answer.plan.clusters[0].description}  ({answer.source.value})")
    Console().print(out)


if __name__ == "__main__":
    main()

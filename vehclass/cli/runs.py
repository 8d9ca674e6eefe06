"""`vehclass runs`: what has been done, and how it ended."""

from typing import Annotated, Any

import typer

from vehclass.cli import options, show
from vehclass.cli.summary import show_profile
from vehclass.errors import UsageError

app = typer.Typer(help="What has been done, and how it ended.", no_args_is_help=True)


@app.command("list")
def list_runs(
    store: options.Store = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only runs that did not end with exit code 0.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many, the latest first.")] = 20,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """List the runs, the latest first.

    Example: vehclass runs list --failed
    """
    with options.existing_store(options.given(store=store)) as results:
        rows = results.runs(limit=limit, failed=failed)
        if as_json:
            show.print_json(rows)
            return
        show.table(
            None,
            ("run", "status", "exit", "new", "done", "failed", "of"),
            [
                (row["run_id"], row["status"], row["exit_code"], row["new"], row["classified"], row["failed"], _of(row))
                for row in rows
            ],
            right=("exit", "new", "done", "failed"),
            whole=("run", "status"),
        )


def _of(row: dict[str, Any]) -> str:
    """The source's last part and the model's name: `vehclass runs show` has them whole."""
    return f"{row['source'].rstrip('/').rpartition('/')[2]}, {row['model'].partition('@')[0]}"


@app.command("show")
def show_run(
    run_id: Annotated[str, typer.Argument(help="A run's id, or `last`.", show_default=False)] = "last",
    store: options.Store = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show one run: settings, counts, labels, and failures by cause.

    Example: vehclass runs show last
    """
    with options.existing_store(options.given(store=store)) as results:
        found = results.runs(limit=1, run_id=None if run_id == "last" else run_id)
        if not found:
            raise UsageError(reason=f"There is no run {run_id} in {results.url}. See `vehclass runs list`.")
        run = found[0]
        summary, failures = results.run_summary(run["run_id"]), results.failure_codes(run["run_id"])
        profile = results.run_profile(run["run_id"])
        if as_json:
            show.print_json({**run, "summary": summary, "failures": failures, "profile": profile})
            return
        show.table(
            None,
            ("", f"run {run['run_id']}"),
            [
                (key.replace("_", " "), _shown(value))
                for key, value in run.items()
                if key != "run_id" and value is not None
            ],
        )
        if summary:
            show.table(
                "Labels",
                ("task", "label", "images", "mean probability", "to review"),
                [
                    (
                        row["task"],
                        row["label"],
                        f"{row['images']:,}",
                        f"{row['mean_probability']:.3f}",
                        row["needs_review"],
                    )
                    for row in summary
                ],
                right=("images", "mean probability", "to review"),
            )
        if failures:
            show.table(
                "Failures",
                ("stage", "code", "images"),
                [(row["stage"], row["code"], row["images"]) for row in failures],
                right=("images",),
            )
        if profile and run["classified"]:
            show_profile(profile)
            busy = show.percent(profile["cores_busy"])
            show.say(
                f"{profile['seconds']:,.1f} s, cores {busy} busy, {run['classified'] / profile['seconds']:,.0f} images/s."
            )


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)

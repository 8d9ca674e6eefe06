"""`vehclass data`: what there is to learn from."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vehclass.cli import options, show

app = typer.Typer(help="What there is to learn from.", no_args_is_help=True)


@app.command("check")
def check(
    data: Annotated[Path, typer.Argument(help="A folder per label, or a CSV manifest.", show_default=False)],
    task: Annotated[str, typer.Option(help="What the labels of a folder per label answer.")] = "label",
    input_size: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=1024,
            help="The network's input that photos have to suffice for. (default: from the data, at most 160)",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 10, help="The split to look at.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Leave with exit code 1 on warnings, too.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Look labelled photos over before training on them: what is broken, twice there, rare, small or leaking.

    Example: vehclass data check photos

    Exit codes: 0 training can go on, 1 it would stop (with --strict: on any warning), 2 nothing can be read there.
    """
    from vehclass.training import findings as looking
    from vehclass.training.dataset import read_catalogue
    from vehclass.training.decoded import look, targets_of, typical_side
    from vehclass.training.fit import LARGEST_DEFAULT_SIDE, split

    catalogue = read_catalogue(data, task)
    side = input_size or typical_side(catalogue, LARGEST_DEFAULT_SIDE)
    with show.status(quiet=as_json) as status:
        seen = look(
            catalogue,
            (side, side),
            threads=options.cores(),
            progress=lambda done, total: status(f"decoding photos: {done:,} of {total:,}"),
        )
        status("comparing photos")
        found = [*looking.label_findings(catalogue), *looking.photo_findings(catalogue, seen, side)]
        rows = split(catalogue, seen, seed)
        found += looking.split_findings(rows, catalogue, targets_of(catalogue))
    counts = looking.counts_of(catalogue, seen)
    shares = {name: len(part) for name, part in rows.items()}
    grave = [one for one in found if one.severity == "error" or (strict and one.severity == "warning")]
    if as_json:
        show.print_json(
            {
                "data": str(data),
                "counts": counts,
                "split": shares,
                "input_side": side,
                "findings": [one.as_json() for one in found],
            }
        )
    else:
        _show(counts, shares, side, found)
    raise typer.Exit(1 if grave else 0)


def _show(counts: dict[str, Any], shares: dict[str, int], side: int, found: list[Any]) -> None:
    for task, labels in counts["tasks"].items():
        show.table(
            None, (task, "photos"), [(label, f"{count:,}") for label, count in labels.items()], right=("photos",)
        )
    size = f", {counts['median_size'][0]}x{counts['median_size'][1]} pixels as a rule" if counts["median_size"] else ""
    show.say(
        f"{counts['photos']:,} photos, {counts['usable']:,} of them usable{size}; a network would see {side}x{side}."
    )
    show.say("Split: " + ", ".join(f"{count:,} {name}" for name, count in shares.items()) + ".\n")
    if not found:
        show.say("Nothing was found that speaks against training on them.")
        return
    rows = [(one.severity, one.code, one.message, ", ".join(one.examples)) for one in found]
    show.table(None, ("", "finding", "what", "such as"), rows)

"""What `vehclass classify-batch` says at the end of a run: what each model found, what failed, and how fast it was."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vehclass.cli import show

if TYPE_CHECKING:
    from vehclass.batch.hangs import Hangs
    from vehclass.batch.pipeline import Hands, Watch
    from vehclass.batch.runs import Finished
    from vehclass.imaging_apart import Apart
    from vehclass.model.runtime import Runtime
    from vehclass.stores import Store


@dataclass(frozen=True, slots=True)
class Wired:
    """What a run works with, its store as one that can be read from, too, and what each model runs on."""

    hands: "Hands"
    store: "Store"
    runtimes: "tuple[Runtime, ...]"
    hangs: "Hangs"
    apart: "Apart"

    @property
    def models(self) -> str:
        """The models, for a sentence."""
        return " and ".join(model.key for model in self.hands.models)


WORTH_A_PROFILE = 500  # images, from which on the start no longer counts for much


def choice(runtime: "Runtime") -> dict[str, str]:
    """The arithmetic of a model, and why."""
    return {"used": runtime.precision.name, "why": runtime.precision.why}


def as_document(wired: Wired, watch: "Watch", finished: "Finished", number: int) -> dict[str, Any]:
    """What a model's run found, for --json."""
    counts = finished.counts
    return {
        "run_id": finished.run_id,
        "exit_code": int(finished.exit_code),
        "source": wired.hands.source.url,
        "model": finished.model,
        "store": wired.hands.store.url,
        "device": wired.runtimes[number].device,
        "precision": choice(wired.runtimes[number]),
        "listed": watch.progress.listed,
        "asked": watch.progress.asked,
        "new": finished.new,
        "classified": counts.classified,
        "failed": counts.failed,
        "quarantined": counts.quarantined,
        "needs_review": counts.needs_review,
        "summary": wired.store.run_summary(finished.run_id),
        "failures": wired.store.failure_codes(finished.run_id),
    }


def show_summary(
    wired: Wired, watch: "Watch", documents: list[dict[str, Any]], seconds: float, top_k: int, profile: dict[str, Any]
) -> None:
    """Prints what the runs of all models found, as their documents say, in how long, and what that time went into."""
    source, progress = wired.hands.source.url, watch.progress
    done = sum(one["classified"] + one["failed"] for one in documents)
    if not done and progress.listed:
        show.say(f"Nothing is new: {wired.models} looked at all {progress.listed:,} images of {source} before.")
    elif not done:
        show.say(f"There is nothing to look at: no file in {source} is what --prefix, --include and --since ask for.")
    if not done:
        return
    for one in documents:
        if len(documents) > 1:
            show.say(f"{one['model']}, on {one['device']}:")
        _results_of(wired.store, one, top_k)
    where = wired.runtimes[0].device
    show.say(f"{show.duration(seconds)} from start to end, {done / seconds:,.0f} images/s, on {where}.")
    if done >= WORTH_A_PROFILE:
        show.say(_what_it_waited_for(profile, where.startswith("GPU")))
    cost = wired.store.cost()
    if cost:
        show.say(
            f"{cost['request_units']:,.0f} request units: {cost['writes']:,} writes at {cost['request_units_per_write']:.2f} each, "
            f"{cost['reads']:,} reads for {cost['request_units_for_reads']:,.0f}; throttled {cost['throttled']:,} times."
        )
    for one in documents:
        show.say(f"Run {one['run_id']} of {one['model']} on {source}, saved to {wired.store.url}.")


def _what_it_waited_for(profile: dict[str, Any], on_gpu: bool) -> str:
    from vehclass.batch.profile import bound_by

    lanes = {name: show.percent(share) for name, share in profile["lanes"].items()}
    why = {
        "store": "Bound by the store: ",
        "source": "Bound by the source: ",
        "gpu": "Bound by the GPU: ",
        "decode": "Decode-bound: ",
        "cores": "",
    }[found := bound_by(profile, on_gpu)]
    if found in ("store", "source"):
        stages = {"save": "saving", "ask": "asking"} if found == "store" else {"list": "listing", "read": "reading"}
        times = (f"{doing} {show.percent(profile['stages'][one]['busy'])}" for one, doing in stages.items())
        why += f"{' and '.join(times)} of the time; "
    gpu = f", the GPU at work {show.percent(profile['stages']['forward']['busy'])} of the time" if on_gpu else ""
    return (
        f"{why}{profile['cores']} cores {show.percent(profile['cores_busy'])} busy{gpu}; of the lanes' time {lanes['decode']} "
        f"went into decoding, {lanes['forward']} into the network, {lanes['waiting']} into waiting."
    )


def _results_of(store: "Store", document: dict[str, Any], top_k: int) -> None:
    """What a model found, and what failed."""
    classified, failed = document["classified"], document["failed"]
    labels = _top_labels(document["summary"], top_k)
    if labels:
        _label_table(labels, classified)
    if failed:
        from vehclass.records import ResultFilter

        shown = store.first_results("failures", ResultFilter(run_id=document["run_id"]), 10)
        show.table(
            f"{failed:,} image{'s' if failed != 1 else ''} failed",
            ("name", "stage", "code", "why"),
            [(row["name"], row["stage"], row["code"], row["message"]) for row in shown],
        )
        if failed > len(shown):
            more = failed - len(shown)
            show.say(f"... and {more:,} more: vehclass results list --failures --run {document['run_id']}\n")
    show.say(
        f"{classified:,} classified, {failed:,} failed, {document['needs_review']:,} to review, of {document['listed']:,} listed."
    )


def show_profile(profile: dict[str, Any]) -> None:
    """Prints the seconds of each stage."""
    show.table(
        "Seconds of the threads at each stage",
        ("stage", "seconds", "times", "ms each"),
        [
            (
                name,
                f"{spent['seconds']:,.2f}",
                f"{spent['times']:,}",
                f"{1000 * spent['seconds'] / max(1, spent['times']):,.2f}",
            )
            for name, spent in profile["stages"].items()
        ],
        right=("seconds", "times", "ms each"),
    )


def _label_table(labels: list[dict[str, Any]], classified: int) -> None:
    show.table(
        None,
        ("task", "label", "images", "share", "mean probability", "to review"),
        [
            (
                row["task"],
                row["label"],
                f"{row['images']:,}",
                show.percent(row["images"] / classified),
                f"{row['mean_probability']:.3f}",
                f"{row['needs_review']:,}",
            )
            for row in labels
        ],
        right=("images", "share", "mean probability", "to review"),
    )


def _top_labels(rows: list[dict[str, Any]], top_k: int) -> list[dict[str, Any]]:
    """The most frequent labels of each task, the tasks in their order."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    return [row for group in by_task.values() for row in sorted(group, key=lambda row: -row["images"])[:top_k]]

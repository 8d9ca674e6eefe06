"""Where a run's time went, and what it was bound by."""

import threading
import time

import pytest

from vehclass.batch.profile import Profile, bound_by


def test_a_stage_counts_the_seconds_of_all_threads_and_those_with_one_at_it() -> None:
    profile = Profile(lanes=2, cores=2)

    def work(wait: float) -> None:
        time.sleep(wait)
        with profile.stage("forward"):
            time.sleep(0.2)

    threads = [threading.Thread(target=work, args=(wait,)) for wait in (0.0, 0.1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = profile.stages["forward"]
    assert spent.times == 2
    assert spent.seconds == pytest.approx(0.4, abs=0.05)
    assert spent.busy == pytest.approx(0.3, abs=0.05)
    time.sleep(0.3)
    assert profile.summary()["stages"]["forward"]["busy"] == pytest.approx(0.5, abs=0.1)


def test_cores_are_busy_with_what_helpers_do_too() -> None:
    profile = Profile(lanes=1, cores=2, elsewhere=lambda: 0.6)
    time.sleep(0.4)
    assert profile.summary()["cores_busy"] == pytest.approx(0.6 / 0.4 / 2, abs=0.15)


@pytest.mark.parametrize(
    ("waiting", "saving", "computing", "on_gpu", "found"),
    [
        (0.05, 0.3, 0.41, True, "decode"),
        (0.05, 0.3, 0.97, True, "gpu"),
        (0.05, 0.3, 0.97, False, "cores"),
        (0.8, 0.99, 0.2, False, "store"),
        (0.8, 0.1, 0.2, True, "source"),
    ],
)
def test_what_a_run_was_bound_by(waiting: float, saving: float, computing: float, on_gpu: bool, found: str) -> None:
    stages = {"save": {"busy": saving}, "ask": {"busy": 0.1}, "forward": {"busy": computing}}
    assert bound_by({"lanes": {"waiting": waiting}, "stages": stages}, on_gpu) == found


def test_a_store_that_is_slow_to_answer_is_to_blame_too() -> None:
    stages = {"save": {"busy": 0.1}, "ask": {"busy": 0.9}, "forward": {"busy": 0.2}}
    assert bound_by({"lanes": {"waiting": 0.9}, "stages": stages}, False) == "store"

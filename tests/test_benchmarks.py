"""What the benchmarks write down; what they measure is no matter of tests."""

from pathlib import Path

import pytest

from benchmarks.__main__ import NETWORKS, PAGE, SETS, Beside, Speed, record, table


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("photos", [of.name for of in SETS])
def test_each_table_has_a_place_on_the_page(photos: str, network: str, tmp_path: Path) -> None:
    copy = tmp_path / "performance.md"
    copy.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    record(f"{network}, {photos}", ["What was measured:", "", "| much |"], copy)
    before, after = PAGE.read_text(encoding="utf-8"), copy.read_text(encoding="utf-8")
    place = f"<!-- measured: {network}, {photos} -->\n"
    head, _, tail = before.partition(place)
    assert after == f"{head}{place}What was measured:\n\n| much |\n{tail[tail.index('<!-- end -->') :]}"


def test_a_table_without_a_place_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("<!-- measured: another -->\n<!-- end -->\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="has no place for mine"):
        record("mine", ["x"], page)
    assert "x" not in page.read_text(encoding="utf-8")


def test_a_table_says_what_ours_has_of_the_limit_and_of_the_floor() -> None:
    ours, alone = Speed(400, 4.4, 0.7, 200), Speed(1000, 2)
    runs = [Beside(ours, alone, alone, Speed(500, 4))]
    lines = table({"f32": ours, "naive": Speed(100, 9, 5, 800)}, {"f32": runs})
    assert f"| vehclass, f32 | 400 | 0.80 | | 4.40 | 1.10 | {ours.busy:.0%} | 0.7 | 200 |" in lines
    assert any(line.startswith("| the naive loop | 100 | | 4.0 (4.0 in f32) | 9.00 | |") for line in lines)
    assert lines[-1] == "| f32 | 1,000 (2.00) | 1,000 (2.00) | 500 (4.00) | 0.80 |"

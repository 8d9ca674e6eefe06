"""What the documents say is what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "models/sample/card.md",
]


def test_commands_and_settings_are_as_the_code_has_them() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/document.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_are_written_of_exist(page: Path) -> None:
    """Every --option in the prose is one that some command prints in its help."""
    known = set(re.findall(r"--[a-z][a-z-]+", (ROOT / "docs/commands.md").read_text(encoding="utf-8")))
    known |= {
        "--count",
        "--seed",
        "--size",
        "--quality",
        "--by",
        "--with-bad",
        "--all",
        "--fix",
        "--check",
        "--password",
        *("--set", "--network", "--times", "--small"),  # of `python -m benchmarks`
    }
    # The Azure CLI's options are its own affair.
    text = re.sub(r"^ *(?:\w+=)?az (?:.*\\\n)*.*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    written = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert written <= known


def test_tests_that_are_named_exist() -> None:
    text = "".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("reliability.md", "security.md"))
    for name, test in re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?", text):
        assert (ROOT / "tests" / name).is_file(), name
        assert f"def {test}" in (ROOT / "tests" / name).read_text(encoding="utf-8"), f"{name}::{test}"


def test_the_tree_in_the_readme_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("vehclass/\n") : text.index("CHANGELOG.md  ")]
    named = set(re.findall(r"(\w+\.py)\b", tree))
    there = {file.name for file in (ROOT / "vehclass").rglob("*.py") if file.name not in ("__init__.py", "__main__.py")}
    assert there <= named, there - named

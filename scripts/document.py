#!/usr/bin/env python3
"""Writes docs/commands.md and the table in docs/settings.md from the code; with --check only says whether they are true."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vehclass.settings import Settings  # noqa: E402  (found by the line above, wherever this is run from)

COMMANDS = [
    *("", "classify-batch", "classify", "train", "data check", "evaluate"),
    *("schedule", "schedule status", "status"),
    *("results list", "results show", "results export", "results delete", "runs list", "runs show"),
    *("model show", "model sign", "model export", "model push", "model pull", "model list"),
    *("model promote", "model rollback", "model history"),
    *("store init", "store check", "store copy", "doctor"),
]
ENVIRONMENT = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}


def help_of(command: str) -> str:
    """What `vehclass COMMAND --help` prints at a width of 100."""
    code = "import sys; sys.argv[0] = 'vehclass'; from vehclass.cli import main; main()"
    words = [sys.executable, "-c", code, *command.split(), "--help"]
    printed = subprocess.run(words, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return "\n".join(line.rstrip() for line in printed.strip().splitlines())


def commands_page() -> str:
    """docs/commands.md as it should be."""
    parts = [
        "# Commands\n\nWhat each command's `--help` prints (written by `scripts/document.py`, checked by the tests).\n"
    ]
    parts += [f"## vehclass {command}".rstrip() + f"\n\n```text\n{help_of(command)}\n```\n" for command in COMMANDS]
    return "\n".join(parts)


def settings_table() -> str:
    """The table of docs/settings.md as it should be."""
    rows = ["| setting | environment | default | meaning |", "| --- | --- | --- | --- |"]
    for one in dataclasses.fields(Settings):
        if one.metadata:
            default = (
                ""
                if one.default is None
                else f"`{', '.join(one.default) if isinstance(one.default, tuple) else one.default}`"
            )
            name = f"`{one.name}`" if not one.metadata.get("secret") else f"`{one.name}` (environment only)"
            rows.append(f"| {name} | `{one.metadata['env']}` | {default} | {one.metadata['help']} |")
    return "\n".join(rows)


def settings_page(now: str) -> str:
    """docs/settings.md with its table renewed."""
    before, _, rest = now.partition("<!-- settings -->\n")
    _, _, after = rest.partition("<!-- end -->")
    return f"{before}<!-- settings -->\n{settings_table()}\n<!-- end -->{after}"


def main() -> int:
    """Writes, or with --check compares: exit code 1 when a page is behind the code."""
    settings = ROOT / "docs/settings.md"
    wanted = {
        ROOT / "docs/commands.md": commands_page(),
        settings: settings_page(settings.read_text(encoding="utf-8")),
    }
    behind = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in behind:
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)} is behind the code: run scripts/document.py", file=sys.stderr)
        else:
            path.write_text(wanted[path], encoding="utf-8")
    return 1 if behind and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())

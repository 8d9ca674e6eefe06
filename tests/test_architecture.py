"""The house rules that a machine can check: imports point down only, doors stay light, only doors print."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vehclass"

# From the top of the house to the bottom; a module may import what is below it, and within its own place.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"batch", "training", "schedule", "settings"},
    {
        "sources",
        "stores",
        "model",
        "registry",
        "imaging",
        "imaging_apart",
        "resizing",
        "jpeg_eighth",
        "exports",
        "notices",
        "metrics",
        "telemetry",
    },
    {"azure_storage"},
    {"records", "errors", "holders", "congestion", "imaging_limits", "_jpeg_eighth"},
]
# Neighbours that may know each other all the same, and why.
ALLOWED = {
    ("model", "imaging"),  # a network is fed with the pixels that imaging makes: the type, nothing else
    ("batch", "imaging"),  # likewise
    ("telemetry", "metrics"),  # the same figures, another way
    ("imaging_apart", "imaging"),  # the same, in another process
    ("imaging", "resizing"),  # its last step
    ("imaging", "jpeg_eighth"),  # and its first, for large photos
    ("registry", "model"),  # what is handed around is verified by those who know what a model folder is
}
# Training makes models and so knows what they are made of; the nightly batch is handed its hands.
STORY_KNOWS_NO_HANDS = {"batch", "schedule"}


def place(module: str) -> str:
    """The part of the house that a module belongs to."""
    return module.split(".")[1] if "." in module else module


def layer(name: str) -> int:
    return next(number for number, places in enumerate(LAYERS) if name in places)


def imports() -> list[tuple[Path, str, str]]:
    """Every import of ours in the package: the file, its place, the imported place; type-only ones too."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = (
                    [node.module] if node.module != "vehclass" else [f"vehclass.{alias.name}" for alias in node.names]
                )
            found += [(file, parts[0], place(name)) for name in names if name.split(".")[0] == "vehclass"]
    return [entry for entry in found if entry[2] not in ("vehclass", "__version__", "sql")]


def test_imports_point_down() -> None:
    wrong = []
    for file, importer, imported in imports():
        if importer == imported or (importer, imported) in ALLOWED:
            continue
        if layer(imported) <= layer(importer):
            wrong.append(f"{file.relative_to(ROOT)} imports {imported}, which is not below {importer}")
    assert not wrong, "\n".join(wrong)


def test_the_story_knows_its_hands_by_protocol_only() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {imported}"
        for file, importer, imported in imports()
        if importer in STORY_KNOWS_NO_HANDS and imported in LAYERS[3] and (importer, imported) not in ALLOWED
    ]
    assert not wrong, "\n".join(wrong)


def test_only_settings_read_the_environment() -> None:
    readers = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if "os.environ" in file.read_text(encoding="utf-8") or "getenv" in file.read_text(encoding="utf-8")
    }
    # The others make what a child process gets, or set what a framework reads before it is loaded.
    assert readers == {"settings.py", "imaging_apart.py", "model/export.py", "model/frameworks.py"}


def test_openvino_is_loaded_in_one_way_only() -> None:
    """By a function that keeps it from telling a service for statistics that it is used."""
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "openvino" for name in names) and file.name != "frameworks.py":
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, wrong


def test_only_doors_print_or_exit() -> None:
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        if file.relative_to(PACKAGE).parts[0] == "cli":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "exit", "os._exit"):
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, wrong


def test_every_module_says_what_it_is() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), file


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "classify-batch --help",
        "train --help",
        "evaluate --help",
        "model --help",
        "results export --help",
        "--version",
    ],
)
def test_help_stays_light(words: str) -> None:
    code = (
        f"import sys; sys.argv = ['vehclass', *{words.split()!r}]\n"
        "from vehclass.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'tensorflow', 'keras', 'openvino', 'azure', 'PIL', 'numpy', 'pyarrow', 'requests', 'sqlite3'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.strip() == "[]"


def test_no_registry_address_and_no_machine_path_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    registries = ["files.python" + "hosted", "registry." + "npmjs", "pypi" + ".org/simple"]
    for name in filter(None, listed.stdout.split("\0")):
        text = (ROOT / name).read_bytes().decode("utf-8", "ignore")
        assert not [one for one in registries if one in text], name

"""The files in deploy/ are well-formed, say what their comments promise, and name only what exists."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import kubernetes_validate
import pytest
import yaml
from cronsim import CronSim

from tests.conftest import ROOT, Answer

DEPLOY = ROOT / "deploy"
FILES = sorted(file for file in DEPLOY.rglob("*") if file.is_file())
SERVICES = ("vehclass.service", "vehclass-schedule.service")
CRONJOBS = ("cronjob.yaml", "cronjob-gpu.yaml")
DOCKERFILES = ("Dockerfile", "Dockerfile.gpu")
STOP_SECONDS = 20  # what a run takes at most to end after it was asked to
COMMANDS = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
NIGHT = "vehclass classify-batch"
VARIABLES = re.compile(r"\b(?:VEHCLASS_[A-Z_]+|AZURE_(?:STORAGE|SQL|COSMOS)_\w+)\b")


def text(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all(text(name)))


def options_of(command: str) -> set[str]:
    """The options that a command prints in its help."""
    (section,) = re.findall(rf"^## {command}\n(.*?)(?=^## |\Z)", COMMANDS, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", section))


def unit(name: str) -> dict[str, list[str]]:
    """A unit's directives, each with its values, whatever its section."""
    found: dict[str, list[str]] = {}
    for line in text(f"systemd/{name}").replace("\\\n", " ").splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def seconds(span: str) -> int:
    number, word = re.fullmatch(r"(\d+)(min|h|)", span).groups()  # type: ignore[union-attr]
    return int(number) * {"": 1, "min": 60, "h": 3600}[word]


def pod(job: Any) -> Any:
    return job["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def written(name: str) -> Iterator[tuple[str, list[str]]]:
    """Every command of vehclass' that stands in a file: its name and its words, comments included."""
    lines = re.sub(r"^ *# ?", "", text(name), flags=re.MULTILINE)
    lines = re.sub(r"\\\n *", " ", lines)
    commands = "|".join(re.escape(one) for one in re.findall(r"^## vehclass (.+)", COMMANDS, re.MULTILINE))
    # A container's entry point is vehclass itself, so there its words come after the image's name.
    for command, words in re.findall(rf"\bvehclass(?:-gpu|-schedule)? +({commands})(?![\w-]) *([^\n`;|>\"]*)", lines):
        yield f"vehclass {command}", words.split()
    if name.startswith("kubernetes/cronjob"):
        (job,) = documents(name)
        (container,) = pod(job)["containers"]
        assert container["command"] == ["night"]
        yield NIGHT, container["args"]


def nights(name: str) -> list[list[str]]:
    """The words of every `classify-batch` in a file, those after a schedule's two hyphens among them."""
    found = []
    for command, words in written(name):
        if command == "vehclass schedule" and "--" in words:
            found.append(words[words.index("--") + 1 :])
        elif command == NIGHT and words:
            found.append(words)
    return found


def given(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("-") and word != "--"}


NAMES = [str(file.relative_to(DEPLOY)) for file in FILES]
WITH_A_NIGHT = [
    "crontab",
    "docker/Dockerfile",
    "docker/Dockerfile.gpu",
    "github/nightly.yml",
    "kubernetes/cronjob-gpu.yaml",
    "kubernetes/cronjob.yaml",
    "systemd/vehclass-schedule.service",
    "systemd/vehclass.service",
    "windows/schedule.ps1",
]


class TestWhatTheyName:
    def test_no_file_with_a_command_is_left_out(self) -> None:
        assert [name for name in NAMES if nights(name)] == WITH_A_NIGHT

    @pytest.mark.parametrize("name", NAMES)
    def test_options_exist(self, name: str) -> None:
        for command, words in written(name):
            own, night = words, list[str]()
            if command == "vehclass schedule" and "--" in words:
                own, night = words[: words.index("--")], words[words.index("--") + 1 :]
            assert given(own) <= options_of(command), (command, words)
            assert given(night) <= options_of(NIGHT), words

    @pytest.mark.parametrize("name", WITH_A_NIGHT)
    def test_the_command_takes_the_options_as_they_stand(self, name: str, vehclass: Callable[..., Answer]) -> None:
        """A schedule's list of times parses them, and opens nothing."""
        for words in nights(name):
            answer = vehclass("schedule", "--at", "23:00", "--timezone", "UTC", "--list", "--", *words)
            assert answer.code == 0, answer.err

    @pytest.mark.parametrize("name", [*NAMES, "../docs/deploy.md"])
    def test_settings_exist(self, name: str) -> None:
        for variable in VARIABLES.findall(text(name)):
            assert f"`{variable}`" in SETTINGS or variable == "VEHCLASS_LOG_FORMAT", variable

    def test_files_that_the_page_names_exist(self) -> None:
        page = text("../docs/deploy.md")
        named = set(re.findall(r"\]\(\.\./deploy/([^)]+)\)", page))
        assert named == set(NAMES)

    def test_the_file_of_secrets_has_every_one(self) -> None:
        secrets = set(re.findall(r"^#(\w+)=''$", text("systemd/secrets.env.example"), re.MULTILINE))
        assert secrets == set(re.findall(r"\(environment only\) \| `(\w+)`", SETTINGS))

    @pytest.mark.parametrize("name", NAMES)
    def test_lines_are_short_and_end_as_lines_do(self, name: str) -> None:
        lines = text(name).split("\n")
        assert lines[-1] == ""
        assert all(len(line) <= 120 and line == line.rstrip() for line in lines)


class TestSystemd:
    @pytest.fixture
    def units(self, tmp_path: Path) -> Path:
        """The units, with a program in them that this machine has."""
        if shutil.which("systemd-analyze") is None:
            pytest.skip("systemd-analyze is not on this machine (Debian: it is in the package systemd)")
        for file in (DEPLOY / "systemd").glob("vehclass*"):
            unit_text = file.read_text(encoding="utf-8").replace("/opt/vehclass/.venv/bin/vehclass", "/bin/true")
            (tmp_path / file.name).write_text(unit_text)
        return tmp_path

    def analyze(self, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["systemd-analyze", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=60
        )

    @pytest.mark.parametrize("name", ["vehclass.timer", *SERVICES])
    def test_systemd_takes_them_without_a_word(self, units: Path, name: str) -> None:
        done = self.analyze(units, "verify", "--man=no", f"./{name}")
        # An unknown directive is ignored with a warning, so a warning counts, too; those of other units do not.
        assert done.returncode == 0, done.stderr
        assert [line for line in done.stderr.splitlines() if "vehclass" in line] == []

    @pytest.mark.parametrize("name", SERVICES)
    def test_systemd_calls_them_well_confined(self, units: Path, name: str) -> None:
        done = self.analyze(units, "security", "--no-pager", "--offline=true", "--threshold=20", f"./{name}")
        assert done.returncode == 0, done.stdout[-300:] + done.stderr

    def test_the_timer_is_due_at_the_clock_of_its_place(self, units: Path) -> None:
        (when,) = unit("vehclass.timer")["OnCalendar"]
        done = self.analyze(units, "calendar", "--base-time=2027-07-01 12:00 UTC", when)
        assert done.returncode == 0, done.stderr
        assert re.search(r"(Next elapse|\(in UTC\)): Thu 2027-07-01 22:00:00 UTC", done.stdout), done.stdout

    def test_the_timer_comes_back_after_a_night_that_was_slept_through(self) -> None:
        timer = unit("vehclass.timer")
        assert timer["Persistent"] == ["true"]
        assert timer["WantedBy"] == ["timers.target"]

    def test_exit_codes_of_a_night(self) -> None:
        night = unit("vehclass.service")
        assert night["Type"] == ["oneshot"]
        good = {0, *map(int, night["SuccessExitStatus"][0].split())}
        final = set(map(int, night["RestartPreventExitStatus"][0].split()))
        assert night["Restart"] == ["on-failure"]
        codes = {0, 1, 2, 3, 4, 5, 130, 143}
        assert set(map(int, re.findall(r"^\| (\d+)", SETTINGS, re.MULTILINE))) | {143} == codes
        assert good == {0, 3, 130, 143}
        assert codes - good - final == {5}  # what is left is tried again

    def test_a_service_that_is_away_is_tried_for_hours(self) -> None:
        night = unit("vehclass.service")
        pause, span = seconds(night["RestartSec"][0]), seconds(night["StartLimitIntervalSec"][0])
        tries = int(night["StartLimitBurst"][0])
        assert pause >= 120
        assert tries * pause < span  # so that the limit is reached, and a night is not tried until the next one
        assert tries * pause >= 3 * 3600

    def test_the_scheduler_is_started_again_but_not_with_wrong_settings(self) -> None:
        scheduler = unit("vehclass-schedule.service")
        assert scheduler["Restart"] == ["on-failure"]
        assert scheduler["RestartPreventExitStatus"] == ["2"]
        assert scheduler["SuccessExitStatus"] == ["130 143"]
        assert scheduler["OOMPolicy"] == ["continue"]
        assert scheduler["WantedBy"] == ["multi-user.target"]

    @pytest.mark.parametrize("name", SERVICES)
    def test_a_run_that_is_asked_to_stop_is_asked_once_and_given_its_time(self, name: str) -> None:
        found = unit(name)
        assert seconds(found["TimeoutStopSec"][0]) > STOP_SECONDS + 5
        assert found["KillMode"] == ["mixed"]

    @pytest.mark.parametrize("name", SERVICES)
    def test_nothing_is_forbidden_that_a_run_needs(self, name: str) -> None:
        found = unit(name)
        assert not {"MemoryDenyWriteExecute", "ProtectProc", "ProcSubset", "PrivateNetwork"} & set(found)
        assert found["EnvironmentFile"] == ["-/etc/vehclass/secrets.env"]
        assert found["WorkingDirectory"] == [f"/var/lib/{found['StateDirectory'][0]}"]
        assert f"XDG_CACHE_HOME=/var/cache/{found['CacheDirectory'][0]}" in found["Environment"]

    def test_both_services_are_confined_alike(self) -> None:
        one, other = (text(f"systemd/{name}").partition("# What it may not do.")[2] for name in SERVICES)
        assert one
        assert other.partition("\n[Install]")[0] == one


class TestCron:
    def lines(self) -> list[str]:
        return [line for line in text("crontab").splitlines() if line and not line.startswith("#")]

    def test_its_line_is_due_every_night(self) -> None:
        (line,) = (line for line in self.lines() if not re.match(r"\w+=", line))
        *fields, command = line.split(maxsplit=5)
        due = CronSim(" ".join(fields), datetime(2027, 7, 1, tzinfo=UTC))
        assert [f"{next(due):%d %H:%M}" for _ in range(3)] == ["01 23:00", "02 23:00", "03 23:00"]
        assert "%" not in command  # which is a new line to cron
        assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0

    def test_its_zone_exists(self) -> None:
        (zone,) = (line.removeprefix("CRON_TZ=") for line in self.lines() if line.startswith("CRON_TZ="))
        ZoneInfo(zone)

    def test_its_command_runs_where_it_says(self, tmp_path: Path) -> None:
        """With folders of the test's in place of those in the file, and a program that says what it was given."""
        stand_in(tmp_path, 'echo "$PWD $VEHCLASS_MODELS $VEHCLASS_MODEL $VEHCLASS_STORE $*"')
        (command,) = (line.split(maxsplit=5)[5] for line in self.lines() if not re.match(r"\w+=", line))
        environment = dict(line.split("=", 1) for line in self.lines() if re.match(r"\w+=", line))
        assert environment["PATH"].startswith("/opt/vehclass/.venv/bin:")
        environment["PATH"] = f"{tmp_path}:/usr/bin:/bin"
        done = subprocess.run(
            ["sh", "-c", command.replace("/var/lib/vehclass", str(tmp_path))], env=environment, check=False
        )
        assert done.returncode == 0
        assert (tmp_path / "night.log").read_text() == (
            f"{tmp_path} az://MYACCOUNT/models vehicles sqlite:///results.db "
            "classify-batch --container az://MYACCOUNT/uploads\n"
        )


def stand_in(folder: Path, script: str, name: str = "vehclass") -> Path:
    """A program in vehclass' place."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


class TestWindows:
    def test_the_script_hands_its_parameters_on(self) -> None:
        script = text("windows/schedule.ps1")
        (declared,) = re.findall(r"^param\((.*?)^\)", script, re.MULTILINE | re.DOTALL)
        names = set(re.findall(r"\$(\w+) =", declared))
        assert names == {"At", "Distribution", "Folder", "Container", "Model", "Store"}
        after = script.partition(declared)[2]
        assert all(f"${name}" in after for name in names)
        assigned = names | set(re.findall(r"^\$(\w+) =", after, re.MULTILINE))
        assert set(re.findall(r"\$(\w+)", after)) <= assigned

    def test_it_begins_late_and_never_twice(self) -> None:
        script = text("windows/schedule.ps1")
        for option in ("-StartWhenAvailable", "-MultipleInstances IgnoreNew", "-ExecutionTimeLimit"):
            assert option in script

    def test_its_brackets_and_quotes_close(self) -> None:
        code = re.sub(r"^#.*$", "", text("windows/schedule.ps1"), flags=re.MULTILINE)
        assert code.count("(") == code.count(")")
        assert code.count('"') % 2 == code.count("'") % 2 == 0
        assert not re.search(r"` +$", code, re.MULTILINE)  # a backtick goes on to the next line only at the end


class TestGitHub:
    @pytest.fixture
    def workflow(self) -> Any:
        (found,) = documents("github/nightly.yml")
        return found

    @pytest.fixture
    def job(self, workflow: Any) -> Any:
        (found,) = workflow["jobs"].values()
        return found

    def step(self, job: Any, begin: str) -> Any:
        (found,) = (one for one in job["steps"] if str(one.get("name", one.get("uses"))).startswith(begin))
        return found

    def test_when_it_runs(self, workflow: Any) -> None:
        triggers = workflow[True]  # YAML 1.1 reads the key `on` as true
        assert set(triggers) == {"schedule", "workflow_dispatch"}
        (entry,) = triggers["schedule"]
        due = CronSim(entry["cron"], datetime(2027, 7, 1, tzinfo=UTC))
        first, second = next(due), next(due)
        assert (second - first).days == 1
        assert first.minute != 0  # GitHub is busiest at the full hour

    def test_one_at_a_time_with_the_fewest_rights(self, workflow: Any, job: Any) -> None:
        assert workflow["concurrency"] == {"group": "vehclass-nightly", "cancel-in-progress": False}
        assert workflow["permissions"] == {}
        assert job["permissions"] == {"contents": "read", "id-token": "write"}
        assert "secrets." not in text("github/nightly.yml")

    def test_every_step_is_pinned_and_nothing_is_left_behind(self, job: Any) -> None:
        uses = [step["uses"] for step in job["steps"] if "uses" in step]
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|[0-9a-f]{40})", one) for one in uses)
        assert {one.partition("@")[0] for one in uses} == {"actions/checkout", "actions/setup-python", "azure/login"}
        assert (ROOT / self.step(job, "Install vehclass")["run"]).is_file()
        python = self.step(job, "actions/setup-python")["with"]
        assert python["python-version"] in ("3.11", "3.12", "3.13")
        assert (ROOT / python["cache-dependency-path"]).is_file()

    def test_it_signs_in_right_before_the_run(self, job: Any) -> None:
        assert [step.get("uses", "").partition("@")[0] for step in job["steps"][-2:]] == ["azure/login", ""]
        assert set(self.step(job, "azure/login")["with"]) == {"client-id", "tenant-id", "subscription-id"}

    def test_the_run_is_stopped_before_the_job_and_the_tokens_end(self, job: Any) -> None:
        (minutes,) = map(int, re.findall(r" (\d+)m \\", self.step(job, "Classify")["run"]))
        (patience,) = map(int, re.findall(r"--kill-after=(\d+)s", self.step(job, "Classify")["run"]))
        assert minutes < 60 < job["timeout-minutes"]
        assert patience > STOP_SECONDS

    @pytest.mark.parametrize(("code", "ends"), [(0, 0), (1, 1), (2, 2), (3, 0), (4, 4), (5, 5), (143, 143)])
    def test_exit_codes(self, job: Any, tmp_path: Path, code: int, ends: int) -> None:
        stand_in(tmp_path, f'echo "$*" >words; exit {code}', ".venv/bin/vehclass")
        # As GitHub runs a step: bash -e.
        done = subprocess.run(
            ["bash", "-e", "-c", self.step(job, "Classify")["run"]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == ends
        assert ("::warning::" in done.stdout) == (code == 3)
        words = (tmp_path / "words").read_text()
        assert words == "classify-batch --container az://MYACCOUNT/uploads --model vehicles\n"


def instructions(name: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, comments left out and continued lines joined."""
    lines = [line for line in text(f"docker/{name}").splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n *", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in whole.splitlines() if line]  # type: ignore[misc]


def stages(name: str) -> list[list[tuple[str, str]]]:
    """The same, a list for each FROM."""
    found: list[list[tuple[str, str]]] = []
    for one in instructions(name):
        if one[0] == "FROM":
            found.append([])
        found[-1].append(one)
    return found


def copied(name: str) -> list[str]:
    """What a Dockerfile takes from the build context."""
    return [
        source
        for word, rest in instructions(name)
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]


def allowed() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"  # nothing, but for what follows
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


class TestDocker:
    @pytest.mark.parametrize("name", DOCKERFILES)
    def test_instructions_are_known(self, name: str) -> None:
        known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
        assert {word for word, _ in instructions(name)} <= known | {"HEALTHCHECK"}

    @pytest.mark.parametrize("name", DOCKERFILES)
    def test_what_is_copied_is_there_and_in_the_context(self, name: str) -> None:
        assert sorted(copied(name)) == sorted(allowed())
        for source in copied(name):
            assert (ROOT / source).exists(), source

    @pytest.mark.parametrize("name", DOCKERFILES)
    def test_what_comes_from_a_stage_comes_from_one_that_is_there(self, name: str) -> None:
        called = set(re.findall(r"^FROM \S+ AS (\w+)$", text(f"docker/{name}"), re.MULTILINE))
        for word, rest in instructions(name):
            if word == "COPY" and (source := re.match(r"--from=(\w+)", rest)):
                assert source[1] in called
        bases = [one[0][1].split(" AS ")[0] for one in stages(name)]
        # A virtual environment's Python is a link to that of its base, so both are of one base.
        assert len({base for base in bases if base not in called}) == 1

    @pytest.mark.parametrize("name", DOCKERFILES)
    def test_shell_lines_parse(self, name: str) -> None:
        for word, rest in instructions(name):
            if word == "RUN":
                assert subprocess.run(["sh", "-n", "-c", rest], check=False).returncode == 0, rest

    @pytest.mark.parametrize("name", DOCKERFILES)
    def test_the_lock_is_kept(self, name: str) -> None:
        lines = run_lines(stages(name)[0])
        installs = [shlex.split(line) for line in re.findall(r"pip --python \S+ install [^&\n]*", lines)]
        assert len(installs) == lines.count("pip --python")
        locked, *others, project = installs
        assert {"--require-hashes", "--no-deps", "--only-binary=:all:", "-r", "requirements.lock"} <= set(locked)
        assert {"--no-deps", "--no-build-isolation", "."} <= set(project)
        assert len(others) == (name == "Dockerfile.gpu")

    def test_the_gpu_has_the_locked_tensorflow(self) -> None:
        (command,) = re.findall(r'"tensorflow\[and-cuda\]==\$\((sed [^)]*\\\)[^)]*)\)"', text("docker/Dockerfile.gpu"))
        done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
        assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)
        assert f"\ntensorflow=={done.stdout.strip()} " in (ROOT / "requirements.lock").read_text()

    @pytest.mark.parametrize("name", DOCKERFILES)
    def test_the_image_has_no_build_tools_and_no_root(self, name: str) -> None:
        final = stages(name)[1]
        packages = re.findall(r"apt-get install .*? -?-no-install-recommends ([^&]*)", run_lines(final))
        assert set(packages[0].split()) <= {"ca-certificates", "libgssapi-krb5-2", "python3", "tzdata", "unixodbc"}
        assert {"tzdata", "unixodbc"} <= set(packages[0].split())
        assert "pip" not in run_lines(final)
        (user,) = (rest for word, rest in final if word == "USER")
        number = user.partition(":")[0]
        assert number.isdigit()
        assert int(number) != 0
        assert f"--uid {number} " in run_lines(final)

    @pytest.mark.parametrize("name", DOCKERFILES)
    def test_a_root_that_is_read_only_will_do(self, name: str) -> None:
        found = dict(stages(name)[1])
        volumes = yaml.safe_load(found["VOLUME"])
        variables = dict(one.split("=", 1) for one in shlex.split(found["ENV"]))
        assert found["WORKDIR"] in volumes
        assert variables["XDG_CACHE_HOME"] in volumes
        for variable in ("CUDA_CACHE_PATH", "KERAS_HOME"):
            assert (variable in variables) == (name == "Dockerfile.gpu")
            assert variables.get(variable, variables["XDG_CACHE_HOME"]).startswith(variables["XDG_CACHE_HOME"])
        assert f"vehclass {' '.join(volumes)}" in run_lines(stages(name)[1])  # made for that user
        assert found["ENTRYPOINT"] == '["vehclass"]'

    def test_only_a_scheduler_is_asked_for_its_health(self) -> None:
        with_check = [stage for stage in stages("Dockerfile") if "HEALTHCHECK" in dict(stage)]
        assert [stage[0][1] for stage in with_check] == ["night AS schedule"]
        assert stages("Dockerfile")[-1] == [("FROM", "night")]  # which is what is built where no target is named
        assert dict(with_check[0])["CMD"] == '["schedule"]'
        check = dict(with_check[0])["HEALTHCHECK"].partition("CMD ")[2]
        assert yaml.safe_load(check) == ["vehclass", "schedule", "status"]

    def test_the_context_is_enough_for_the_package(self, tmp_path: Path) -> None:
        """Copies what .dockerignore lets through, and builds the package from that as the image does."""
        context = tmp_path / "context"
        for name in allowed():
            source, target = ROOT / name, context / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "--no-index"]
        done = subprocess.run(
            [*pip, "--no-build-isolation", "-w", str(tmp_path), "."],
            cwd=context,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (wheel,) = tmp_path.glob("*.whl")
        shutil.unpack_archive(wheel, tmp_path / "wheel", "zip")
        for file in (*(ROOT / "vehclass").rglob("*.py"), *(ROOT / "sql").rglob("*.sql")):
            inside = file.relative_to(ROOT)
            assert (tmp_path / "wheel" / ("vehclass" if inside.parts[0] == "sql" else "") / inside).is_file(), inside

    def test_no_secret_or_photo_gets_into_the_context(self) -> None:
        for name in (
            "vehclass.toml",
            ".venv/x",
            "demo/uploads/a.jpg",
            "models/mine/model.json",
            "results.db",
            ".git/x",
        ):
            assert not [one for one in allowed() if f"{name}/".startswith(f"{one}/")], name


def run_lines(stage: list[tuple[str, str]]) -> str:
    return "\n".join(rest for word, rest in stage if word == "RUN")


class TestNightScript:
    """`deploy/docker/night`, around a program that ends as the test wants."""

    def start(self, folder: Path, script: str) -> "subprocess.Popen[str]":
        stand_in(folder, script)
        return subprocess.Popen(
            [DEPLOY / "docker/night", "--container", "a b", "--limit", "3"],
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            text=True,
            # As a terminal would start it: what runs in the background may have been told to ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )

    @pytest.mark.parametrize(("code", "ends"), [(0, 0), (1, 1), (2, 2), (3, 0), (4, 4), (5, 5), (143, 143)])
    def test_exit_codes(self, tmp_path: Path, code: int, ends: int) -> None:
        with self.start(tmp_path, f"printf '%s,' \"$@\"; exit {code}") as night:
            out, _ = night.communicate(timeout=20)
        assert night.returncode == ends
        assert out == "classify-batch,--container,a b,--limit,3,"

    def test_a_crash_stays_one(self, tmp_path: Path) -> None:
        with self.start(tmp_path, "kill -SEGV $$") as night:
            night.communicate(timeout=20)
        assert night.returncode == 128 + signal.SIGSEGV

    @pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_is_handed_on_and_the_run_waited_for(self, tmp_path: Path, asked: signal.Signals) -> None:
        # It ends by itself, so that a signal that is not handed on is a failure, and no test that hangs.
        save = "trap 'sleep 1; echo saved; exit 143' TERM; echo ready; for n in $(seq 80); do sleep 0.1; done; exit 9"
        with self.start(tmp_path, save) as night:
            assert night.stdout is not None
            assert night.stdout.readline() == "ready\n"
            night.send_signal(asked)
            time.sleep(0.3)
            night.send_signal(asked)  # one more does not end the waiting, either
            out, _ = night.communicate(timeout=20)
        assert (night.returncode, out) == (143, "saved\n")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the validator leaves its schema files open
class TestKubernetes:
    @pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
    @pytest.mark.parametrize("name", ["serviceaccount.yaml", *CRONJOBS])
    def test_schemas_take_them(self, name: str, version: str) -> None:
        """1.31 is the first with podFailurePolicy for good; strict refuses fields that are not there."""
        for one in documents(f"kubernetes/{name}"):
            kubernetes_validate.validate(one, version, strict=True)

    @pytest.fixture(params=CRONJOBS)
    def cronjob(self, request: pytest.FixtureRequest) -> Any:
        (found,) = documents(f"kubernetes/{request.param}")
        return found

    def test_when_and_how_often(self, cronjob: Any) -> None:
        spec = cronjob["spec"]
        due = CronSim(spec["schedule"], datetime(2027, 7, 1, tzinfo=UTC))
        first, second = next(due), next(due)
        assert (first.hour, (second - first).days) == (23, 1)
        ZoneInfo(spec["timeZone"])
        assert spec["concurrencyPolicy"] == "Forbid"
        assert 3600 <= spec["startingDeadlineSeconds"] < 86_400
        assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 86_400

    def test_what_is_tried_again(self, cronjob: Any) -> None:
        job = cronjob["spec"]["jobTemplate"]["spec"]
        fails, ignores = job["podFailurePolicy"]["rules"]
        assert fails["action"] == "FailJob"
        assert fails["onExitCodes"] == {"containerName": "vehclass", "operator": "In", "values": [1, 2]}
        assert ignores == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        assert pod(cronjob)["restartPolicy"] == "Never"
        pauses = [min(360, 10 * 2**number) for number in range(job["backoffLimit"])]
        lease = 120  # a pod that died without a word holds it for so long, and the next one leaves with 4 until then
        assert sum(pauses) // 60 == 46, "as the comment says"
        assert sum(pauses[:4]) > lease

    def test_a_run_that_is_asked_to_stop_is_given_its_time(self, cronjob: Any) -> None:
        assert pod(cronjob)["terminationGracePeriodSeconds"] > STOP_SECONDS + 5

    def test_it_signs_in_as_a_workload(self, cronjob: Any) -> None:
        namespace, account = documents("kubernetes/serviceaccount.yaml")
        template = cronjob["spec"]["jobTemplate"]["spec"]["template"]
        assert template["metadata"]["labels"]["azure.workload.identity/use"] == "true"
        assert pod(cronjob)["serviceAccountName"] == account["metadata"]["name"]
        assert cronjob["metadata"]["namespace"] == account["metadata"]["namespace"] == namespace["metadata"]["name"]
        assert set(account["metadata"]["annotations"]) == {"azure.workload.identity/client-id"}
        assert "Secret" not in text("kubernetes/cronjob.yaml")

    def test_it_keeps_the_strictest_standard_for_pods(self, cronjob: Any) -> None:
        (container,) = pod(cronjob)["containers"]
        whole, own = pod(cronjob)["securityContext"], container["securityContext"]
        assert whole["runAsNonRoot"] is True
        assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
        user = dict(stages("Dockerfile")[1])["USER"]
        assert f"{whole['runAsUser']}:{whole['runAsGroup']}" == user
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod(cronjob)["automountServiceAccountToken"] is False

    def test_what_the_image_writes_to_can_be_written_to(self, cronjob: Any) -> None:
        (container,) = pod(cronjob)["containers"]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounted) == {"/tmp", *yaml.safe_load(dict(stages("Dockerfile")[1])["VOLUME"])}
        empty = {volume["name"] for volume in pod(cronjob)["volumes"] if "emptyDir" in volume}
        assert set(mounted.values()) == empty

    def test_threads_are_the_cores_that_are_asked_for(self, cronjob: Any) -> None:
        (container,) = pod(cronjob)["containers"]
        variables = {one["name"]: one for one in container["env"]}
        source = variables["VEHCLASS_THREADS"]["valueFrom"]["resourceFieldRef"]
        assert source == {"containerName": container["name"], "resource": "requests.cpu"}
        assert container["resources"]["requests"]["cpu"].isdigit()
        assert "memory" in container["resources"]["limits"]

    def test_the_image_is_of_this_version(self, cronjob: Any) -> None:
        from vehclass import __version__

        (container,) = pod(cronjob)["containers"]
        assert container["image"].partition(":")[2] == __version__

    def test_the_gpu_differs_only_where_it_says(self) -> None:
        (cpu,), (gpu,) = (documents(f"kubernetes/{name}") for name in CRONJOBS)
        (plain,), (fast,) = pod(cpu)["containers"], pod(gpu)["containers"]
        assert fast["resources"]["limits"].pop("nvidia.com/gpu") == 1
        assert fast["args"].pop() == "--require-gpu"
        assert pod(gpu).pop("nodeSelector") == {"kubernetes.azure.com/accelerator": "nvidia"}
        assert {one["key"] for one in pod(gpu).pop("tolerations")} == {"sku", "nvidia.com/gpu"}
        for one in (plain, fast):
            del one["image"], one["resources"]
        for job in (cpu, gpu):
            del job["metadata"]["name"]
        assert gpu == cpu


def test_every_yaml_file_says_each_thing_once() -> None:
    """YAML takes the last of two keys that are the same, without a word."""

    def walk(node: Any) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = sorted(key.value for key, _ in node.value)
            assert not [one for one, other in pairwise(keys) if one == other], keys
            for _, value in node.value:
                walk(value)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                walk(value)

    names = [name for name in NAMES if name.endswith((".yaml", ".yml"))]
    assert len(names) == 4
    for name in names:
        for node in yaml.compose_all(text(name), yaml.SafeLoader):
            walk(node)

"""Settings from flags, the environment and vehclass.toml, in that order, each with where it came from.

Nothing else reads a setting from the environment. Secrets come from the environment alone: a file of settings gets copied,
and committed.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from vehclass.errors import UsageError
from vehclass.imaging_limits import DEFAULT_FORMATS, DEFAULT_MAX_PIXELS, FORMATS

FILE: Final = "vehclass.toml"
SCHEDULES: Final = "schedule"  # the tables in it that are no settings


def _setting(default: Any, env: str, meaning: str, **checks: Any) -> Any:
    """A setting: its default, its name in the environment, what it means; checks: least, most, choices, secret."""
    return field(default=default, metadata={"env": env, "help": meaning, **checks})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings in force; `origins` says of each where it came from."""

    store: str = _setting("sqlite:///vehclass.db", "VEHCLASS_STORE", "where results go")
    model: str | None = _setting(
        None, "VEHCLASS_MODEL", "the model to classify with: a folder, or NAME or NAME@VERSION in a registry"
    )
    models: str = _setting(
        "models", "VEHCLASS_MODELS", "the registry of models: a folder, or a container as az://ACCOUNT/CONTAINER"
    )
    model_key: str | None = _setting(
        None, "VEHCLASS_MODEL_KEY", "a public key (PEM): models that its owner has not signed are refused"
    )
    cache: str = _setting(
        "~/.cache/vehclass/models",
        "VEHCLASS_CACHE",
        "where models from a container are kept, by their version; below XDG_CACHE_HOME where that is set",
    )
    runtime: str = _setting(
        "auto",
        "VEHCLASS_RUNTIME",
        "what runs the network: auto takes Keras on a GPU, OpenVINO on a CPU",
        choices=("auto", "openvino", "keras"),
    )
    precision: str = _setting(
        "auto",
        "VEHCLASS_PRECISION",
        "the arithmetic of the network on a CPU: auto takes bf16 or int8 where the model's own record has measured that the answers stay the same",
        choices=("auto", "f32", "bf16", "int8"),
    )
    batch_size: int | None = _setting(
        None, "VEHCLASS_BATCH_SIZE", "images a forward pass takes; auto when unset", least=1, most=4096
    )
    threads: int | None = _setting(
        None,
        "VEHCLASS_THREADS",
        "lanes that decode and classify, more than two with a process each to decode in; as many as cores when unset",
        least=1,
        most=1024,
    )
    max_failure_rate: float = _setting(
        0.5,
        "VEHCLASS_MAX_FAILURE_RATE",
        "stop when more than this share of the images fails (counted from 100 images on)",
        least=0.0,
        most=1.0,
    )
    max_attempts: int = _setting(
        3, "VEHCLASS_MAX_ATTEMPTS", "runs that try an image before it is quarantined", least=1, most=1000
    )
    image_formats: tuple[str, ...] = _setting(
        DEFAULT_FORMATS, "VEHCLASS_IMAGE_FORMATS", "formats that are decoded, by their bytes", choices=FORMATS
    )
    max_pixels: int = _setting(
        DEFAULT_MAX_PIXELS, "VEHCLASS_MAX_PIXELS", "larger images are refused before they are decoded", least=1
    )
    max_bytes: int = _setting(
        200_000_000, "VEHCLASS_MAX_BYTES", "larger files are refused before they are read", least=1
    )
    image_timeout: float = _setting(
        120.0,
        "VEHCLASS_IMAGE_TIMEOUT",
        "seconds that an image may take to be decoded; one that takes longer is quarantined",
        least=0.1,
        most=86_400.0,
    )
    read_concurrency: int = _setting(
        64,
        "VEHCLASS_READ_CONCURRENCY",
        "blobs read at a time, at most: as many as classifying has to wait for and the service can answer",
        least=1,
        most=256,
    )
    blob_lease: bool = _setting(
        False,
        "VEHCLASS_BLOB_LEASE",
        "take a lease in the Blob container, too, on a blob below .vehclass/, where the identity may write there",
    )
    store_wait: float | None = _setting(
        None,
        "VEHCLASS_STORE_WAIT",
        "seconds to keep trying a store that is locked, busy or away; 30 for a file and 120 for a service when unset, but 15 at most for one that nobody answers for at the start",
        least=0.0,
        most=3600.0,
    )
    store_timeout: float = _setting(
        30.0,
        "VEHCLASS_STORE_TIMEOUT",
        "seconds of silence after which a database server counts as gone",
        least=1.0,
        most=3600.0,
    )
    max_ru: float | None = _setting(
        None,
        "VEHCLASS_MAX_RU",
        "request units a second that a run or a copy may take of a Cosmos DB; no limit when unset",
        least=1.0,
    )
    cosmos_throughput: int = _setting(
        1000,
        "VEHCLASS_COSMOS_THROUGHPUT",
        "autoscale maximum, in RU/s, that `store init` gives a database it makes, for both containers; 0 for a serverless account",
        least=0,
        most=1_000_000,
    )
    cosmos_result_days: int | None = _setting(
        None,
        "VEHCLASS_COSMOS_RESULT_DAYS",
        "days after which Cosmos DB deletes a result; kept when unset",
        least=1,
        most=24_000,
    )
    cosmos_run_days: int = _setting(
        400, "VEHCLASS_COSMOS_RUN_DAYS", "days after which Cosmos DB deletes a run's record", least=1, most=24_000
    )
    allow_http: bool = _setting(
        False, "VEHCLASS_ALLOW_HTTP", "allow an unencrypted service endpoint that is not on this machine"
    )
    notify: str = _setting(
        "on-failure",
        "VEHCLASS_NOTIFY",
        "when a notice is sent of how a run ended, to the webhook and the mail addresses that are set",
        choices=("always", "on-failure", "never"),
    )
    webhook: str | None = _setting(
        None, "VEHCLASS_WEBHOOK", "an address of Slack, Teams or anything else that takes a post of JSON", secret=True
    )
    webhook_format: str = _setting(
        "auto",
        "VEHCLASS_WEBHOOK_FORMAT",
        "how a notice is posted; auto tells Slack and Teams by the host's name",
        choices=("auto", "json", "slack", "teams"),
    )
    mail_to: tuple[str, ...] = _setting((), "VEHCLASS_MAIL_TO", "who gets a notice by mail")
    mail_from: str | None = _setting(None, "VEHCLASS_MAIL_FROM", "who it is from")
    smtp_host: str | None = _setting(None, "VEHCLASS_SMTP_HOST", "the server that sends it")
    smtp_port: int = _setting(587, "VEHCLASS_SMTP_PORT", "its port", least=1, most=65_535)
    smtp_security: str = _setting(
        "starttls",
        "VEHCLASS_SMTP_SECURITY",
        "how the connection to it is encrypted",
        choices=("starttls", "tls", "none"),
    )
    smtp_user: str | None = _setting(None, "VEHCLASS_SMTP_USER", "a user of it")
    smtp_password: str | None = _setting(None, "VEHCLASS_SMTP_PASSWORD", "that user's password", secret=True)
    metrics_file: str | None = _setting(
        None, "VEHCLASS_METRICS_FILE", "a file that a run's figures are written to for Prometheus' node exporter"
    )
    storage_account: str | None = _setting(
        None, "AZURE_STORAGE_ACCOUNT", "the storage account of containers given by name"
    )
    storage_connection_string: str | None = _setting(
        None, "AZURE_STORAGE_CONNECTION_STRING", "connection string of a storage account", secret=True
    )
    storage_key: str | None = _setting(
        None, "AZURE_STORAGE_KEY", "account key; Entra ID is used without one", secret=True
    )
    storage_sas: str | None = _setting(None, "AZURE_STORAGE_SAS_TOKEN", "shared access signature", secret=True)
    sql_connection_string: str | None = _setting(
        None, "AZURE_SQL_CONNECTIONSTRING", "a whole ODBC connection string for --store mssql://", secret=True
    )
    sql_user: str | None = _setting(None, "AZURE_SQL_USER", "user of the SQL database; Entra ID is used without one")
    sql_password: str | None = _setting(None, "AZURE_SQL_PASSWORD", "that user's password", secret=True)
    cosmos_connection_string: str | None = _setting(
        None, "AZURE_COSMOS_CONNECTIONSTRING", "connection string of a Cosmos DB account", secret=True
    )
    cosmos_key: str | None = _setting(
        None, "AZURE_COSMOS_KEY", "account key of Cosmos DB; Entra ID is used without one", secret=True
    )
    origins: Mapping[str, str] = field(default_factory=dict, repr=False)

    def _shown(self, one: Any) -> object:
        value = getattr(self, one.name)
        if one.metadata.get("secret"):
            return "(set)" if value else value
        if not isinstance(value, str):
            return value
        # A store's URL may have a password in it, a container's a shared access signature.
        without_sas = re.sub(r"(://[^?]*\?).*\bsig=.*", r"\1...", value)
        return re.sub(r"(://[^/@:]*):.*@", r"\1:...@", without_sas)

    def shown(self) -> list[dict[str, object]]:
        """Every setting with value, origin, environment name and meaning; secrets as '(set)' or '...'."""
        return [
            {
                "setting": one.name,
                "value": self._shown(one),
                "origin": self.origins.get(one.name, "default"),
                "environment": one.metadata["env"],
                "meaning": one.metadata["help"],
            }
            for one in _fields()
        ]


def _fields() -> list[Any]:
    return [one for one in fields(Settings) if one.name != "origins"]


def load(
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """The settings in force; a flag that is None was not given. Raises UsageError in one sentence."""
    environment = os.environ if environment is None else environment
    path = Path(FILE) if file is None else file
    from_file = _read_file(path)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if Path(environment.get("XDG_CACHE_HOME", "")).is_absolute():  # the standard has others ignored
        values["cache"] = str(Path(environment["XDG_CACHE_HOME"]) / "vehclass" / "models")
    for one in _fields():
        env = one.metadata["env"]
        if flags and flags.get(one.name) is not None:
            raw, origin = flags[one.name], f"--{one.name.replace('_', '-')}"
        elif environment.get(env):
            raw, origin = environment[env], env
        elif one.name in from_file:
            raw, origin = from_file[one.name], f"{path.name}: {one.name}"
        else:
            continue
        values[one.name] = _checked(one, raw, origin)
        origins[one.name] = "flag" if origin.startswith("--") else ("environment" if origin == env else path.name)
    return Settings(**values, origins=origins)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
        repr(content)  # a hexadecimal number of thousands of digits can be read, but not shown
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:  # no TOML, no UTF-8, too many digits or brackets
        raise UsageError(reason=f"{path} cannot be read: {error}.") from error
    known = {one.name: one for one in _fields()}
    for name in content:
        if name == SCHEDULES:
            continue
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise UsageError(
                reason=f"{path} has an unknown setting {name!r}{f'; did you mean {near[0]!r}?' if near else '.'}"
            )
        if known[name].metadata.get("secret"):
            raise UsageError(
                reason=f"{path} holds a secret ({name}). Put it into the environment as {known[name].metadata['env']}."
            )
    return {name: value for name, value in content.items() if name != SCHEDULES}


def collector_is_named(environment: Mapping[str, str] | None = None) -> bool:
    """Whether OpenTelemetry's own variables name a collector, and do not turn all of it off."""
    said = os.environ if environment is None else environment
    names = ("ENDPOINT", "TRACES_ENDPOINT", "METRICS_ENDPOINT")
    off = said.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not off and any(said.get(f"OTEL_EXPORTER_OTLP_{name}") for name in names)


def schedules(file: Path | None = None) -> list[dict[str, Any]]:
    """The tables [[schedule]] of the file of settings, as they stand there; raises UsageError for what is none."""
    path = Path(FILE) if file is None else file
    _read_file(path)
    if not path.exists():
        return []
    with path.open("rb") as content:
        found = tomllib.load(content).get(SCHEDULES, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UsageError(reason=f"{path}: a schedule begins with the line [[{SCHEDULES}]].")
    for one in found:
        if "sig=" in str(one.get("container", "")):
            raise UsageError(
                reason=f"{path} holds a shared access signature. Put it into the environment as AZURE_STORAGE_SAS_TOKEN."
            )
    return found


def _checked(one: Any, raw: object, origin: str) -> object:
    """A raw value as its setting's type, within its bounds."""
    secret = one.metadata.get("secret")
    shown = "its value" if secret else repr(raw)
    kind = str(one.type)
    try:
        if "tuple" in kind:
            parts = raw.split(",") if isinstance(raw, str) else list(raw)  # type: ignore[call-overload]  # what is no list raises TypeError, below
            value: Any = tuple(str(part).strip().lower() for part in parts)
        elif "bool" in kind:
            value = _BOOLEANS[str(raw).lower()]
        elif "int" in kind:
            value = int(str(raw))
        elif "float" in kind:
            value = float(str(raw))
        elif isinstance(raw, str):
            value = raw
        else:
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        kinds = {"tuple": "a list of names", "bool": "yes or no", "int": "a whole number", "float": "a number"}
        wanted = next((text for name, text in kinds.items() if name in kind), "text")
        raise UsageError(reason=f"{origin} is {shown}, where {wanted} is needed.") from error
    least, most, choices = (one.metadata.get(name) for name in ("least", "most", "choices"))
    if (least is not None and not value >= least) or (most is not None and not value <= most):
        bounds = f"at least {least}" if most is None else f"between {least} and {most}"
        raise UsageError(reason=f"{origin} is {shown}; it has to be {bounds}.")
    if choices and not value:
        raise UsageError(reason=f"{origin} is empty; choose from {', '.join(choices)}.")
    if choices and not set(value if isinstance(value, tuple) else (value,)) <= set(choices):
        raise UsageError(reason=f"{origin} is {shown}; choose from {', '.join(choices)}.")
    return value


_BOOLEANS: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}

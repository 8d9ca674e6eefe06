"""From a mssql:// URL and the settings to a connection: which driver, which credential, encrypted unless turned off by name.

Facts: an access token goes to the driver as connection attribute 1256, a 32-bit length and then UTF-16-LE
(learn.microsoft.com, "Using Microsoft Entra ID with the ODBC Driver").
"""

import importlib.util
import platform
import re
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from vehclass.errors import StoreAccessDenied, UsageError
from vehclass.stores.azure_sql_errors import Trouble
from vehclass.stores.options import StoreOptions

ACCESS_TOKEN: Final = 1256  # SQL_COPT_SS_ACCESS_TOKEN
SCOPE: Final = "https://database.windows.net/.default"
TOKEN_SPARE: Final = 300.0  # seconds before its end at which a token counts as used up
SHORTEST_USE: Final = 60.0  # seconds that any token is used, or each statement would sign in anew
DRIVER: Final = "ODBC Driver 18 for SQL Server"
NO_DRIVER: Final = (
    "Azure SQL needs Microsoft's ODBC driver: install msodbcsql18, or the one from PyPI with "
    "`pip install 'vehclass[azure-sql]'`"
)
NO_MANAGER: Final = "Azure SQL needs unixODBC, which is not installed here (Debian: `apt-get install unixodbc`)"
UNCHECKED_LINE: Final = (
    "Entra ID's token goes over encrypted and checked connections only: "
    "leave encryption and certificate checks on, or set AZURE_SQL_USER and AZURE_SQL_PASSWORD."
)
_NAMED: Final = ("encrypt", "trust_server_certificate")


@dataclass(frozen=True, slots=True)
class Login:
    """What a connection is made with; what is a secret is never shown."""

    url: str  # mssql://SERVER/DATABASE
    connection_string: str = field(repr=False)
    address: tuple[str, int] | None = None  # host and port, where they are known
    token: Callable[[], Any] | None = field(default=None, repr=False)

    def attributes(self) -> tuple[dict[int, bytes], float]:
        """The driver's attributes for a new connection, and until when they hold (Unix time)."""
        if self.token is None:
            return {}, float("inf")
        got = self.token()
        secret = str(got.token).encode("utf-16-le")
        until = max(float(got.expires_on) - TOKEN_SPARE, time.time() + SHORTEST_USE)
        return {ACCESS_TOKEN: struct.pack("<I", len(secret)) + secret}, until


def login_of(url: str, options: StoreOptions) -> Login:
    """mssql://[USER[:PASSWORD]@]SERVER[:PORT]/DATABASE[?encrypt=no][&trust_server_certificate=yes]. Raises UsageError.

    A connection string from the settings is used whole, with --store mssql:// or a URL that agrees with it.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        wishes = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise UsageError(reason="The store's URL cannot be read; write mssql://SERVER/DATABASE.") from error
    if "," in parts.netloc:
        raise UsageError(reason="In a mssql:// URL the port follows a colon: mssql://SERVER:PORT/DATABASE.")
    database = unquote(parts.path.strip("/"))
    if options.sql_connection_string:
        return _whole(options.sql_connection_string, host, database)
    if not host or not database or "/" in database:
        raise UsageError(reason="Name the server and the database, as in mssql://SERVER.database.windows.net/DATABASE.")
    unknown = sorted(set(wishes) - set(_NAMED))
    if unknown:
        raise UsageError(reason=f"A mssql:// URL knows {' and '.join(_NAMED)}, not {unknown[0]!r}.")
    encrypt, trust = wishes.get("encrypt", "yes"), wishes.get("trust_server_certificate", "no")
    if not {encrypt, trust} <= {"yes", "no"}:
        raise UsageError(reason=f"In a mssql:// URL, {' and '.join(_NAMED)} are yes or no.")
    keywords = {
        "DRIVER": find_driver(),
        "SERVER": f"tcp:{host},{port or 1433}",
        "DATABASE": database,
        "Encrypt": encrypt,
        "TrustServerCertificate": trust,
    }
    user = unquote(parts.username or "") or options.sql_user
    password = unquote(parts.password or "") or options.sql_password
    token = None
    if user:
        if not password:
            raise UsageError(reason=f"There is no password for the user {user}; put it into AZURE_SQL_PASSWORD.")
        keywords |= {"UID": user, "PWD": password}
    elif encrypt == "no" or trust == "yes":
        raise UsageError(reason=UNCHECKED_LINE)
    else:
        token = _entra(f"mssql://{host}/{database}")
    shown = f"mssql://{host}{f':{port}' if port else ''}/{database}"
    return Login(shown, _joined({**keywords, **_OURS}), (host, port or 1433), token)


# A lost connection is ours to notice and to repeat, since only we know what belongs together.
_OURS: Final = {"ConnectRetryCount": "0", "APP": "vehclass"}


def _whole(connection_string: str, host: str, database: str) -> Login:
    """The settings' own connection string, with what is safe where it is silent."""
    keywords = parse_keywords(connection_string)
    known = {name.lower(): value for name, value in keywords.items()}
    server = known.get("server") or known.get("addr") or known.get("address") or ""
    there = re.sub(r"^tcp:", "", server, flags=re.IGNORECASE)
    named = known.get("database", "")
    if not there or not named:
        raise UsageError(reason="AZURE_SQL_CONNECTIONSTRING has to name Server and Database.")
    if (host and host.lower() != there.split(",")[0].lower()) or (database and database.lower() != named.lower()):
        raise UsageError(
            reason="--store and AZURE_SQL_CONNECTIONSTRING name different databases; write --store mssql:// or unset one."
        )
    if "driver" not in known:
        keywords = {"DRIVER": find_driver(), **keywords}
    if "encrypt" not in known:
        keywords["Encrypt"] = "yes"
    if "microsoft" in keywords.get("DRIVER", known.get("driver", "")).lower() or "driver" not in known:
        keywords = {**_OURS, **keywords}
    entra = not ({"uid", "user id", "user", "authentication", "trusted_connection"} & set(known))
    unchecked = known.get("encrypt", "yes").lower() in ("no", "optional") or (
        known.get("trustservercertificate", "no").lower() in ("yes", "true")
    )
    if entra and unchecked:
        raise UsageError(reason=UNCHECKED_LINE)
    shown = f"mssql://{there.replace(',', ':')}/{named}"
    name, _, port = there.partition(",")
    port = port or known.get("port", "")  # as FreeTDS writes it
    address = (name, int(port or 1433)) if "\\" not in name and (port or "0").isdecimal() else None
    return Login(shown, _joined(keywords), address, _entra(shown) if entra else None)


def parse_keywords(text: str) -> dict[str, str]:
    """The keywords of an ODBC connection string; values may stand in braces, with }} for }. Raises UsageError."""
    found: dict[str, str] = {}
    rest = text.strip()
    pattern = re.compile(r"\s*([^=;{}]+?)\s*=\s*(?:\{((?:[^}]|\}\})*)\}|([^;]*))\s*(?:;|$)")
    while rest:
        match = pattern.match(rest)
        if not match:
            raise UsageError(reason="AZURE_SQL_CONNECTIONSTRING is not an ODBC connection string.")
        name, braced, plain = match.groups()
        found[name] = braced.replace("}}", "}") if braced is not None else plain.strip()
        rest = rest[match.end() :].lstrip("; ")
    return found


def _joined(keywords: Mapping[str, str]) -> str:
    """A connection string in which no value can pass for a keyword."""
    return ";".join(f"{name}={{{value.replace('}', '}}')}}}" for name, value in keywords.items())


def find_driver() -> str:
    """The ODBC driver to use: the installed one, or the library of the PyPI package. Raises UsageError."""
    try:
        import pyodbc
    except ImportError as error:
        raise UsageError(reason=f"{NO_MANAGER}.") from error
    if DRIVER in pyodbc.drivers():
        return DRIVER
    packaged = _packaged_driver()
    if packaged is None:
        raise UsageError(reason=f"{NO_DRIVER}.")
    return str(packaged)


def _packaged_driver() -> Path | None:
    """The driver's library in the package mssql-python-odbc, for this system."""
    found = importlib.util.find_spec("mssql_python_odbc")
    if found is None or found.origin is None:
        return None
    machine = {"aarch64": "arm64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine())
    libraries = sorted((Path(found.origin).parent / "libs").glob(f"*/**/{machine}/lib/libmsodbcsql*"))
    return next((one for one in libraries if _family() in one.parts), None)


def _family() -> str:
    """The package's word for this system."""
    if platform.system() == "Darwin":
        return "macos"
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "debian_ubuntu"
    kin = f"{release.get('ID', '')} {release.get('ID_LIKE', '')}"
    families = {"debian": "debian_ubuntu", "ubuntu": "debian_ubuntu", "alpine": "alpine", "suse": "suse"}
    families |= {"rhel": "rhel", "fedora": "rhel"}
    return next((family for name, family in families.items() if name in kin), "debian_ubuntu")


def _entra(url: str) -> Callable[[], Any]:
    """Asks Entra ID for a token; the credential keeps it until it is about to end."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError
    from azure.identity import DefaultAzureCredential

    credential = DefaultAzureCredential(exclude_interactive_browser_credential=True)

    had_one = False

    def token() -> Any:
        nonlocal had_one
        try:
            got = credential.get_token(SCOPE)
        except ClientAuthenticationError as error:
            if not had_one:
                raise StoreAccessDenied(url=url, reason="nobody is signed in to Azure here") from error
            raise Trouble("connect", "08001", "Entra ID gives no new token") from error
        except AzureError as error:  # a fault of the network on the way there
            raise Trouble("connect", "08001", "Entra ID cannot be reached") from error
        had_one = True
        return got

    return token


def used_up(until: float) -> bool:
    """Whether a connection's credential is about to end."""
    return time.time() > until

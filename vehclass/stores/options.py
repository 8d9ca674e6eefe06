"""How to reach a store that is a service; apart from the adapters, so that SQLite is used without loading an SDK."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to reach a store and how patient to be with it; what is a secret is never shown."""

    wait: float | None = None  # seconds to keep trying; None takes the store's own default
    timeout: float = 30.0  # seconds of silence, after which a server counts as gone
    allow_http: bool = False
    sql_connection_string: str | None = field(default=None, repr=False)
    sql_user: str | None = None
    sql_password: str | None = field(default=None, repr=False)
    cosmos_connection_string: str | None = field(default=None, repr=False)
    cosmos_key: str | None = field(default=None, repr=False)
    cosmos_throughput: int = 1000  # autoscale maximum of a container that is made, RU/s
    cosmos_result_days: int | None = None  # after which a result is deleted; None keeps it
    cosmos_run_days: int = 400
    max_ru: float | None = None  # RU a second that a run may take
    say: Callable[[str], None] = field(default=lambda text: None, repr=False)  # told while a service lets us wait

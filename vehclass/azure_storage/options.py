"""How to reach a storage account; apart from the client, so that a folder is read without loading the SDK."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BlobOptions:
    """How to reach a storage account; what is a secret is never shown."""

    connection_string: str | None = field(default=None, repr=False)
    account: str | None = None
    account_key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    concurrency: int = 64
    allow_http: bool = False
    lease: bool = False

    @property
    def account_known(self) -> bool:
        """Whether a container's name alone can be found."""
        return bool(self.connection_string or self.account)

    @property
    def connected_account(self) -> str | None:
        """The account that the connection string is of, where it names one."""
        parts = dict(part.partition("=")[::2] for part in (self.connection_string or "").split(";"))
        return parts.get("AccountName")

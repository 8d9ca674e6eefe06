"""Where models are handed around: `open_registry(where, options)` chooses by the scheme of the name."""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from vehclass.errors import UsageError

if TYPE_CHECKING:
    from vehclass.azure_storage.options import BlobOptions
    from vehclass.registry.layout import Registry


def open_registry(where: str, options: "BlobOptions") -> "Registry":
    """The registry behind a name; nothing is asked of it yet.

    A folder's path; az://ACCOUNT/CONTAINER/PREFIX; or https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX, with or
    without a SAS. A connection string in the options serves az:// of its own account. Raises UsageError.
    """
    from vehclass.registry.folder import FolderRegistry

    scheme, separator, rest = where.partition("://")
    match scheme if separator else "":
        case "":
            if not where or "\0" in where:
                raise UsageError(reason="The registry's name is empty; name a folder, or az://ACCOUNT/CONTAINER.")
            return FolderRegistry(Path(where))
        case "file":
            return FolderRegistry(Path(unquote(rest.removeprefix("localhost"))))
        case "az":
            from vehclass.azure_storage.containers import open_container
            from vehclass.registry.blob import BlobRegistry

            account, _, path = rest.partition("/")
            container, _, prefix = path.partition("/")
            if "?" in rest:
                raise UsageError(reason="az:// takes no query; give a SAS as AZURE_STORAGE_SAS_TOKEN.")
            elsewhere = account if account != options.connected_account else None
            return BlobRegistry(open_container(options, container=container, prefix=prefix, account=elsewhere))
        case "https" | "http":
            from vehclass.azure_storage.containers import open_url
            from vehclass.registry.blob import BlobRegistry

            return BlobRegistry(open_url(options, where))
        case other:
            raise UsageError(reason=f"{other}:// is no registry of models; name a folder, az://... or https://....")

"""Where photos are: `open_source(where)` chooses by what the name looks like."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from vehclass.errors import SourceNotFound, UsageError

if TYPE_CHECKING:
    from vehclass.azure_storage.options import BlobOptions
    from vehclass.sources.blob import BlobSource
    from vehclass.sources.folder import FolderSource

_CONTAINER_NAME: Final = re.compile(r"[a-z0-9$](?:-?[a-z0-9]){2,62}")


def open_source(where: str, options: "BlobOptions") -> "FolderSource | BlobSource":
    """The source behind a name.

    A folder's path; a container's name, in the storage account of the settings; az://ACCOUNT/CONTAINER/PREFIX;
    or https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX, with or without a SAS. A folder that exists
    goes before a container of the same name. Raises UsageError or SourceNotFound.
    """
    from vehclass.sources.folder import FolderSource

    scheme, separator, rest = where.partition("://")
    match scheme if separator else "":
        case "":
            if not where or "\0" in where:
                raise UsageError(reason="The container's name is empty; name a folder or a container.")
            if not _CONTAINER_NAME.fullmatch(where) or _exists(where):
                if "?" in where and not _exists(where):  # a URL that lost its https://, perhaps with a SAS in it
                    raise UsageError(
                        reason=f"{where.partition('?')[0]}?... is no folder; begin a container's URL with https://."
                    )
                return FolderSource(Path(where))
            if not options.account_known:
                raise SourceNotFound(
                    where=where,
                    reason="there is no such folder, and no storage account is set that could have such a container; "
                    "set AZURE_STORAGE_ACCOUNT or AZURE_STORAGE_CONNECTION_STRING",
                )
            from vehclass.azure_storage.containers import open_container
            from vehclass.sources.blob import BlobSource

            return BlobSource(open_container(options, container=where), options)
        case "file":
            return FolderSource(Path(unquote(rest.removeprefix("localhost"))))
        case "az":
            account, _, path = rest.partition("/")
            container, _, prefix = path.partition("/")
            if "?" in rest:
                raise UsageError(reason="az:// takes no query; give a SAS as AZURE_STORAGE_SAS_TOKEN.")
            from vehclass.azure_storage.containers import open_container
            from vehclass.sources.blob import BlobSource

            opened = open_container(options, container=container, prefix=prefix, account=account)
            return BlobSource(opened, options)
        case "https" | "http":
            from vehclass.azure_storage.containers import open_url
            from vehclass.sources.blob import BlobSource

            return BlobSource(open_url(options, where), options)
        case other:
            raise UsageError(reason=f"{other}:// is no source; name a folder, a container, az://... or https://....")


def _exists(where: str) -> bool:
    """Whether there is such a file or folder; a name that no file can have is none."""
    try:
        return Path(where).exists()
    except OSError:
        return False

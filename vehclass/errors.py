"""What can go wrong, as a tree: each error carries its exit code, and its docstring is what the user reads.

VehclassError                 1  failed
├── UsageError                2  wrong usage or settings
│   ├── SourceNotFound
│   ├── AccessDenied
│   ├── ModelNotFound
│   │   └── ModelNotInRegistry
│   ├── RegistryNotFound
│   ├── RegistryAccessDenied
│   ├── ModelRefused
│   ├── StoreNotFound
│   ├── StoreForeign
│   ├── StoreAccessDenied
│   ├── DataError
│   └── DeviceMissing
├── TooManyFailures           1
├── StoreError                1
│   └── StoreGone
├── HelperMissing             1
├── ExportDiffers             1
├── PromotionRefused          1
├── PromotedMeanwhile         1
├── LeaseHeld                 4  another run holds the lease
├── LeaseLost                 4
└── ServiceUnreachable        5  try later
    └── StoreBusy

Interrupted                   130 or 143: like KeyboardInterrupt, no Exception, so that nothing swallows it
ImageError is no relative: it says what is wrong with one image, becomes that image's row, and never
leaves the batch.
"""

from enum import IntEnum
from signal import Signals


class ExitCode(IntEnum):
    """What a finished command says to the shell that started it."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    SOME_IMAGES_FAILED = 3
    LEASE_HELD = 4
    UNREACHABLE = 5
    INTERRUPTED = 130
    TERMINATED = 143


class VehclassError(Exception):
    """{reason}"""

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, **facts: object) -> None:
        self.facts = facts
        super().__init__((type(self).__doc__ or "").format(**facts))


class UsageError(VehclassError):
    """{reason}"""

    exit_code = ExitCode.USAGE


class SourceNotFound(UsageError):
    """No photos to read at {where}: {reason}."""


class AccessDenied(UsageError):
    """{service} refuses this identity: {reason}. Sign in (`az login`, a managed identity), ask for the role 'Storage Blob Data Reader', or check the key or SAS."""


class ModelNotFound(UsageError):
    """No model at {path}: {reason}. Name a model folder, such as models/sample, or make one with `vehclass train`."""


class ModelNotInRegistry(ModelNotFound):
    """{registry} has no model {wanted}: {reason}."""


class RegistryNotFound(UsageError):
    """There is no registry of models at {where}: {reason}. Name a folder, or a container as az://ACCOUNT/CONTAINER, with --registry or VEHCLASS_MODELS; `vehclass model push` puts the first model there."""


class RegistryAccessDenied(UsageError):
    """{service} refuses this identity: {reason}. Sign in (`az login`, a managed identity), or check the key or SAS; taking a model needs the role 'Storage Blob Data Reader' there, push, promote and rollback 'Storage Blob Data Contributor'."""


class ModelRefused(UsageError):
    """The model in {path} was not loaded: {reason}. Use an unchanged copy of it, or train it again."""


class StoreNotFound(UsageError):
    """There are no results at {url} yet. Fill them with `vehclass classify-batch`, or make an empty store with `vehclass store init`."""


class StoreForeign(UsageError):
    """{url} is not a store of this vehclass: {reason}. Name another file with --store."""


class StoreAccessDenied(UsageError):
    """{url} refuses this identity: {reason}. Sign in (`az login`, a managed identity), check the user or key, and see in docs/stores.md which rights it needs."""


class DataError(UsageError):
    """The training data in {path} cannot be used: {reason}."""


class DeviceMissing(UsageError):
    """No GPU can be used here: {reason}. Leave --require-gpu out to classify on the CPU."""


class TooManyFailures(VehclassError):
    """Stopped: {failed} of {done} images failed, more than the allowed share of {allowed:.0%}. Their reasons are in the store (`vehclass runs show {run_id}`); set --max-failure-rate to allow more."""


class StoreError(VehclassError):
    """The store {url} failed: {reason}. What was saved before is intact; when that is mended, run the same command again."""


class StoreGone(StoreError):
    """{url} is no longer there: its database or its containers were deleted meanwhile. See `vehclass store check`; the same command makes them anew, where it may."""


class HelperMissing(VehclassError):
    """A process to decode images in could not be started ({reason}). Give this one more memory, processes and open files, or name fewer --threads."""


class ExportDiffers(VehclassError):
    """The exported model does not answer as the trained one ({reason}), so nothing was written."""


class PromotionRefused(VehclassError):
    """{key} was not promoted: {reason}. Nothing was written; --force promotes it all the same, and that is recorded."""


class PromotedMeanwhile(VehclassError):
    """{who} pointed production of {name} at {version} at {when}, while this was under way, so nothing was written. See `vehclass model history {name}`, and decide anew."""


class LeaseHeld(VehclassError):
    """Another run ({holder}) is working on this container with this model. Wait until it ends, or see `vehclass runs list`."""

    exit_code = ExitCode.LEASE_HELD


class LeaseLost(LeaseHeld):
    """This run was paused for so long that another one took over, so it wrote nothing more. Run the same command again."""


class ServiceUnreachable(VehclassError):
    """{service} cannot be reached: {reason}. Run the same command again later; nothing that was saved is lost."""

    exit_code = ExitCode.UNREACHABLE


class StoreBusy(ServiceUnreachable):
    """{url} stayed locked by another program for {seconds} s. Run the same command again later; nothing that was saved is lost."""


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM; no Exception, so that no handler takes it for a fault of what was being done."""

    def __init__(self, number: Signals, saved: str = "Nothing was written.") -> None:
        super().__init__(f"Stopped by {number.name}. {saved}")
        self.exit_code = ExitCode(128 + number)


class ImageError(Exception):
    """One image cannot be read, decoded or classified.

    `code` is a short word for machines, the message a sentence for people. A `permanent` error lies
    in the bytes themselves, so that trying again would give the same.
    """

    stage = "classify"

    def __init__(self, code: str, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.permanent = permanent


class ReadError(ImageError):
    """The bytes did not arrive."""

    stage = "read"


class DecodeError(ImageError):
    """The bytes are not a picture that vehclass reads."""

    stage = "decode"

    def __init__(self, code: str, message: str, *, permanent: bool = True) -> None:
        super().__init__(code, message, permanent=permanent)

"""The client calls of the mirrored DLock API (specification, sections 4 to 7).

Each call returns a `DlockStatus`, or the tuple `(DlockStatus, value)`; nothing that C reports by
status is raised. docs/mirror.md has the table of C names. The calls are kept by what they concern:

- `_mirror_life`: library, clients, statistics, heartbeat
- `_mirror_reinit`: re-initialisation, claims
- `_mirror_locks`: operations on one lock, asynchronous ones
- `_mirror_batch`: batches; getting and releasing locks
- `_mirror_objects`: 64-bit atomic objects
"""

from dlock._mirror_batch import (
    batch_get_lock,
    batch_lock_extend,
    batch_release_lock,
    batch_trylock,
    batch_unlock,
    get_lock,
    release_lock,
)
from dlock._mirror_life import (
    clear_client_debug_stats,
    client_deinit,
    client_heartbeat,
    client_init,
    dclient_lib_deinit,
    dclient_lib_init,
    get_client_debug_stats,
)
from dlock._mirror_locks import (
    lock,
    lock_extend,
    lock_request_async,
    lock_result_check,
    trylock,
    unlock,
)
from dlock._mirror_objects import (
    umo_atomic64_cas,
    umo_atomic64_create,
    umo_atomic64_destroy,
    umo_atomic64_faa,
    umo_atomic64_get,
    umo_atomic64_get_snapshot,
    umo_atomic64_release,
)
from dlock._mirror_reinit import client_reinit, client_reinit_done, update_all_locks

__all__ = [
    "batch_get_lock",
    "batch_lock_extend",
    "batch_release_lock",
    "batch_trylock",
    "batch_unlock",
    "clear_client_debug_stats",
    "client_deinit",
    "client_heartbeat",
    "client_init",
    "client_reinit",
    "client_reinit_done",
    "dclient_lib_deinit",
    "dclient_lib_init",
    "get_client_debug_stats",
    "get_lock",
    "lock",
    "lock_extend",
    "lock_request_async",
    "lock_result_check",
    "release_lock",
    "trylock",
    "umo_atomic64_cas",
    "umo_atomic64_create",
    "umo_atomic64_destroy",
    "umo_atomic64_faa",
    "umo_atomic64_get",
    "umo_atomic64_get_snapshot",
    "umo_atomic64_release",
    "unlock",
    "update_all_locks",
]

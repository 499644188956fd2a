"""The calls of the mirror that begin, keep and end the library and its clients (specification,
section 4). What remakes a client's links is in `_mirror_reinit`.
"""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from typing import Final

from dlock import _core, _mirror_table
from dlock._core import lib
from dlock._info import client_info
from dlock._mirror_attach import attach, entered
from dlock._mirror_check import bad_address, bad_number, bad_seconds
from dlock._mirror_client import VERSIONS, MirrorClient, Settings, judge
from dlock._mirror_enter import Refusal, enter_client
from dlock._transport import Wish, wished_by_cfg
from dlock.control.link import ControlLink, LinkError
from dlock.control.messages import ClientDeinit, ClientInit, Heartbeat
from dlock.types import ClientCfg, DebugStats, DlockStatus, TransMode

_log = logging.getLogger("dlock.client")

WAIT_MODES: Final = {
    "adaptive": _core.DLK_WAIT_ADAPTIVE,
    "block": _core.DLK_WAIT_BLOCK,
    "poll": _core.DLK_WAIT_POLL,
}
WAIT_ENVIRONMENT: Final = "DLOCK_WAIT"


# ---- Library -------------------------------------------------------------------------------------


def dclient_lib_init(cfg: ClientCfg | None) -> DlockStatus:
    """Sets the mirror's client up for this process. EINVAL: no configuration, or one of its values
    is out of range; ERROR: it is set up already, or `ssl_enable` is asked for. Section 4."""
    if cfg is None:
        return DlockStatus.EINVAL
    if not isinstance(cfg, ClientCfg):
        raise TypeError(f"a ClientCfg is needed, not {type(cfg).__name__}")
    settings = _settings(cfg)
    if settings is None:
        return DlockStatus.EINVAL
    if cfg.ssl is not None and cfg.ssl.ssl_enable:
        _log.error("ssl_enable is refused: this version of dlock has no TLS")
        return DlockStatus.ERROR
    return DlockStatus.SUCCESS if _mirror_table.open_library(settings) else DlockStatus.ERROR


def dclient_lib_deinit() -> DlockStatus:
    """Lets every client of this process leave, and ends what `dclient_lib_init` began. Section 4.

    All servers together get `reply_timeout` seconds to answer; one that does not ends the session
    when its time to live is over.
    """
    clients = _mirror_table.close_library()
    if clients:
        deadline = time.monotonic() + clients[0].settings.reply_timeout_s
        for client in clients:
            _leave(client, max(deadline - time.monotonic(), 0.01))
    _mirror_table.stop_keeper()
    return DlockStatus.SUCCESS


def _settings(cfg: ClientCfg) -> Settings | None:
    """None where a value is missing or out of range."""
    mode = cfg.wait_mode
    if mode == ClientCfg.wait_mode:
        mode = os.environ.get(WAIT_ENVIRONMENT) or mode
    if mode is not None and not isinstance(mode, str):
        raise TypeError(f"wait_mode must be a str, not {type(mode).__name__}")
    if mode not in WAIT_MODES:
        _log.error("wait_mode %r is not one of %s", mode, ", ".join(WAIT_MODES))
        return None
    wish = _wish(cfg)
    if wish is None:
        return None
    if (
        bad_number(cfg.primary_port, "primary_port", -(2**31), 2**16 - 1)
        | bad_number(cfg.tp_mode, "tp_mode", min(TransMode), max(TransMode))
        | bad_seconds(cfg.lock_wait, "lock_wait")
        | bad_seconds(cfg.reply_timeout, "reply_timeout")
        or cfg.reply_timeout <= 0
    ):
        return None
    return Settings(
        port=cfg.primary_port if cfg.primary_port > 0 else _core.DLK_CONTROL_PORT_DEFAULT,
        wait_mode=WAIT_MODES[mode],
        lock_wait_ms=round(cfg.lock_wait * 1000),
        reply_timeout_s=max(cfg.reply_timeout, 0.001),
        wish=wish,
    )


def _wish(cfg: ClientCfg) -> Wish | None:
    """Over what the data plane is to be; None, logged: that is nothing there could be."""
    for name, value, kinds in (("dev_name", cfg.dev_name, (str,)), ("eid", cfg.eid, (str, bytes))):
        if value is not None and not isinstance(value, kinds):
            raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    try:
        return wished_by_cfg(cfg.dev_name, cfg.eid)
    except ValueError as problem:
        _log.error("%s", problem)
        return None


# ---- Clients -------------------------------------------------------------------------------------


def client_init(ip_str: str | None) -> tuple[DlockStatus, int | None]:
    """Opens a client at the server of this address; `(SUCCESS, client_id)`.

    EINVAL (no address); NOT_READY (the server recovers); BAD_RESPONSE (no server answers); ERROR
    (the 33rd client of this process; no RDMA device, where one is asked for); SERVER_NO_RESOURCE
    (also: it serves no RDMA, where that is asked for); PROTO_VERSION_NEGOTIATION_FAIL;
    CLIENTMGR_NOT_INIT. Section 4.
    """
    settings = _mirror_table.settings()
    if settings is None:
        return DlockStatus.CLIENTMGR_NOT_INIT, None
    if bad_address(ip_str):
        return DlockStatus.EINVAL, None
    assert ip_str is not None
    if not _mirror_table.reserve_place():
        return DlockStatus.ERROR, None
    client: MirrorClient | None = None
    try:
        opened = entered("client_init", partial(_open_client, settings, ip_str))
        if isinstance(opened, DlockStatus):
            return opened, None
        client = opened
    finally:
        placed = _mirror_table.fill_place(client)
    if not placed:
        _leave(client, settings.reply_timeout_s)
        return DlockStatus.CLIENTMGR_NOT_INIT, None
    return DlockStatus.SUCCESS, client.id


def _open_client(settings: Settings, address: str) -> MirrorClient | DlockStatus:
    """Unreached."""
    timeout_s = settings.reply_timeout_s
    client = MirrorClient(settings)
    try:
        client.link = ControlLink.connect(address, settings.port, timeout_s)
    except LinkError as problem:
        _log.info("client_init: %s", problem)
        return DlockStatus.BAD_RESPONSE
    kept = False
    try:
        welcome = client.ask(ClientInit(*VERSIONS, client_info()))
        status = judge(welcome)
        if welcome is None or status is not DlockStatus.SUCCESS:
            return status
        client.sealed_epoch = welcome.epoch
        client.welcome(welcome, client.link)
        status = DlockStatus.BAD_RESPONSE
        try:
            status = attach(client, welcome, client.link)
        finally:
            if status is not DlockStatus.SUCCESS:
                client.ask(ClientDeinit())
        if status is not DlockStatus.SUCCESS:
            return status
        kept = True
        return client
    finally:
        if not kept:
            client.leave()


def client_deinit(client_id: int) -> DlockStatus:
    """Ends a client; the server frees everything of it at once. CLIENT_NOT_INIT; NOT_READY;
    BAD_RESPONSE. Whatever it returns, the client is gone here. Section 4."""
    if not _mirror_table.is_open(client_id):
        return DlockStatus.CLIENTMGR_NOT_INIT
    if _mirror_table.missing(client_id):
        return DlockStatus.EINVAL
    client = _mirror_table.find(client_id) and _mirror_table.take_out(client_id)
    if client is None:
        return DlockStatus.CLIENT_NOT_INIT
    return _leave(client, client.settings.reply_timeout_s)


def _leave(client: MirrorClient, timeout_s: float) -> DlockStatus:
    with client.lifecycle:
        if client.removed:
            client.leave()
            return DlockStatus.SUCCESS
        try:
            reply = client.ask(ClientDeinit(), timeout_s)
        finally:
            client.leave()
    return DlockStatus.BAD_RESPONSE if reply is None else reply.status


# ---- Statistics, heartbeat -----------------------------------------------------------------------


def get_client_debug_stats(client_id: int) -> tuple[DlockStatus, DebugStats | None]:
    """A copy of the counters of a client. CLIENTMGR_NOT_INIT, CLIENT_NOT_INIT. Section 4."""
    status, client = _for_stats(client_id)
    return status, None if client is None else client.stats()


def clear_client_debug_stats(client_id: int) -> DlockStatus:
    """Sets the counters of a client to 0. CLIENTMGR_NOT_INIT, CLIENT_NOT_INIT. Section 4."""
    status, client = _for_stats(client_id)
    if client is not None:
        client.clear_stats()
    return status


def _for_stats(client_id: int) -> tuple[DlockStatus, MirrorClient | None]:
    if not _mirror_table.is_open(client_id):
        return DlockStatus.CLIENTMGR_NOT_INIT, None
    if _mirror_table.missing(client_id):
        return DlockStatus.EINVAL, None
    client = _mirror_table.find(client_id)
    return (DlockStatus.SUCCESS if client else DlockStatus.CLIENT_NOT_INIT), client


def client_heartbeat(client_id: int, timeout: int | None) -> DlockStatus:
    """Renews the session; waits at most `timeout` seconds, 1..300, for the answer.

    EINVAL (timeout out of range, unknown client); BAD_RESPONSE; NOT_READY. Section 4. The library
    keeps sessions alive by itself; a program need not call this.
    """

    def bad() -> bool:
        return bad_number(timeout, "timeout", 1, _core.DLK_HEARTBEAT_SECONDS_MAX)

    try:
        client = enter_client(client_id, bad, counts_invalid=False)
    except Refusal as refusal:
        unknown = refusal.status is DlockStatus.CLIENT_NOT_INIT
        return DlockStatus.EINVAL if unknown else refusal.status
    epoch, sent_ns = client.epoch, _core.now_ns()
    reply = client.ask(Heartbeat(), timeout)
    status = DlockStatus.BAD_RESPONSE if reply is None else client.said(reply.status)
    if status is DlockStatus.SUCCESS:
        lib.dlk_client_heard(client.pointer, epoch, sent_ns)
    client.count(status)
    return status

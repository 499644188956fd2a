"""What pyverbs says of devices: the limits and the atomic capability that sysfs does not tell. For
`dlock rdma`, where the C core has no verbs, and for its numbers that the core does not give.
"""

from __future__ import annotations

from typing import Any, Final

from dlock.rdma.facts import Device, Port

ATOMICS: Final = ("none", "device", "global")  # by the numbers of ibv_atomic_cap
MTU_LEAST: Final = 128  # times two to the number that verbs have for it


def with_limits(modules: Any, device: Device) -> Device:
    """The device with what its driver says; as it was if it cannot be opened."""
    try:
        context = modules.device.Context(name=device.name)
    except modules.pyverbs_error.PyverbsError:
        return device
    try:
        return _told(context, device)
    except modules.pyverbs_error.PyverbsError:
        return device
    finally:
        context.close()


def _told(context: Any, device: Device) -> Device:
    attributes = context.query_device()
    ports = tuple(_with_mtu(context, port) for port in device.ports)
    known = {name: getattr(device, name) for name in Device._fields}
    return Device(**{
        **known,
        "ports": ports,
        "atomics": ATOMICS[min(int(attributes.atomic_caps), 2)],
        "windows_max": int(attributes.max_mw),
        "completions_max": int(attributes.max_cqe),
        "receives_max": int(attributes.max_srq_wr),
        "queue_pairs_max": int(attributes.max_qp),
        "reads_max": int(attributes.max_qp_rd_atom),
    })


def _with_mtu(context: Any, port: Port) -> Port:
    known = {name: getattr(port, name) for name in Port._fields}
    return Port(**{**known, "mtu": MTU_LEAST << int(context.query_port(port.number).active_mtu)})

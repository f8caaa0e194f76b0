"""The stores through which processes find each other: private files on one machine, one port between several."""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, Store, TCPStore

FOLDER_VARIABLE = "REFCLI_STORE_FOLDER"
"""The private folder through whose files the processes of one machine find each other."""
LOOPBACK_NAMES = ("lo", "lo0")
"""The loopback interface on Linux, and on BSD and macOS."""
BACKLOG = 2048
ELSEWHERE = ("192.0.2.1", 9)
"""An address for documentation (RFC 5737): the route to it starts at the address that other machines see."""
ANY_WORKER = -1
"""World size of a file store whose file is removed with its folder."""


def loopback_interface() -> str | None:
    """The name of this machine's loopback interface."""
    return next((name for _, name in socket.if_nameindex() if name in LOOPBACK_NAMES), None)


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address; None if the system does not report it."""
    try:
        from fcntl import ioctl
    except ImportError:  # Windows
        return None
    get_address = 0x8915  # SIOCGIFADDR of Linux
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = ioctl(any_socket, get_address, name.encode()[:15].ljust(256, b"\0"))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def addresses_of(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    """The addresses of a host name, IPv4 first.

    Raises:
        OSError: the name is unknown.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found)
    return sorted(addresses, key=lambda it: it[0] != socket.AF_INET)


def is_local_alias(host: str, address: str) -> bool:
    """Whether a host name resolves to loopback here only: Debian maps its own name to 127.0.1.1."""
    return _is_loopback(address) and not _is_loopback(host)


def is_every_interface(address: str) -> bool:
    """Whether an address stands for all interfaces: others cannot connect to it, and listening there is open to all."""
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_unspecified


def external_address() -> str | None:
    """This machine's address as others see it; None without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(ELSEWHERE)  # sends nothing
        return str(probe.getsockname()[0])
    return None


def bind(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    """A socket that listens at this one address.

    Raises:
        OSError: it is not an address of this machine, or the port is in use.
    """
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def serve_store(listener: socket.socket, *, timeout: timedelta) -> TCPStore:
    """A store served through a bound socket; torch's own would listen on every interface.

    Args:
        timeout: for the operations of this process.
    """
    address, port = listener.getsockname()[:2]
    return TCPStore(
        address,
        port,
        is_master=True,
        multi_tenant=True,
        wait_for_workers=False,
        timeout=timeout,
        master_listen_fd=listener.detach(),
    )


def world_store(name: str, *, rank: int, size: int, timeout: timedelta) -> Store:
    """The store through which the processes of a world connect, as the environment describes it.

    Args:
        name: distinguishes this world from one before a restart.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is not None:
        files = FileStore(str(Path(folder) / f"world-{name}"), size)
        files.set_timeout(timeout)
        return files
    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    if rank == 0 and not is_served:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        with suppress(OSError):
            family, address = addresses_of(host, port)[0]
            if not is_local_alias(host, address):
                return serve_store(bind(family, address, port), timeout=timeout)
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))  # type: ignore[attr-defined]
    return store  # type: ignore[no-any-return]


def error_report_store(name: str, *, timeout: timedelta) -> Store:
    """A store in which failing processes agree on the one that reports, even if their connections are lost.

    Raises:
        KeyError, RuntimeError: it is no longer available.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is not None:
        if not Path(folder).is_dir():
            raise KeyError(folder)
        store: Store = FileStore(str(Path(folder) / f"settled-{name}"), ANY_WORKER)
        store.set_timeout(timeout)
        return store
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(*address, is_master=False, timeout=timeout, wait_for_workers=False)


def set_collective_interface(address: str | None) -> None:
    """Make gloo, and NCCL on one machine, connect through the interface of an address; None for a single machine.

    They read environment variables; by default they listen at whatever address the host name resolves to. The user's
    own settings for several machines stay.
    """
    is_local = address is None or _is_loopback(address)
    name = loopback_interface() if is_local else interface_of(str(address))
    if name is not None and is_local:
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name
    elif name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.endswith(".localhost") or host.startswith("127.") or host == "::1"

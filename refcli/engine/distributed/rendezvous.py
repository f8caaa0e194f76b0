"""How the launchers of one run find each other: without any port on one machine, else through one store."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import HashStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStateError,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

from refcli.engine.distributed.stores import (
    addresses_of,
    bind,
    external_address,
    is_every_interface,
    is_local_alias,
    serve_store,
)
from refcli.errors import UsageError

CONNECT_SECONDS = 45.0
"""How long a launcher tries to reach the store of the others before it fails."""
STORE_TIMEOUT = timedelta(seconds=60)
RUN_KEY = "refcli/run"
"""Key of the store that names the run at its endpoint."""
MAX_STATE_BYTES = 1 << 20
"""Maximum size of a rendezvous state, which is a list of machines."""
STATE_MODULE = "torch.distributed.elastic.rendezvous.dynamic_rendezvous"
STATE_CLASS = "_RendezvousState"
STATE_CLASSES = {
    (STATE_MODULE, STATE_CLASS),
    (STATE_MODULE, "_NodeDesc"),
    ("datetime", "datetime"),
    ("datetime", "timezone"),
    ("datetime", "timedelta"),
}
"""The classes in torch's rendezvous state, besides plain values."""


class LocalRendezvous(RendezvousHandler):
    """The rendezvous of a single machine: it opens no port and reads no data from others."""

    def __init__(self) -> None:
        self._run_id = uuid.uuid4().hex

    def get_backend(self) -> str:
        """A name for torch's records."""
        return "alone"

    def next_rendezvous(self) -> RendezvousInfo:
        """A world of one launcher, with a store in its own memory."""
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("localhost", 0))  # nothing listens at port 0

    def is_closed(self) -> bool:
        """Never: no other launcher could close it."""
        return False

    def set_closed(self) -> None:
        """Nothing to do."""

    def num_nodes_waiting(self) -> int:
        """No launcher joins later."""
        return 0

    def get_run_id(self) -> str:
        """A random one."""
        return self._run_id

    def shutdown(self) -> bool:
        """Nothing to do."""
        return True


class NetworkRendezvous(DynamicRendezvousHandler):
    """torch's elastic rendezvous, with every port bound to one address."""

    def _create_tcp_store_server(self, master_addr: str, master_port: int) -> TCPStore:
        family, address = addresses_of(master_addr, master_port)[0]
        return serve_store(bind(family, address, master_port), timeout=STORE_TIMEOUT)


class CheckedBackend(C10dRendezvousBackend):
    """torch's backend, but it refuses anything that is not a rendezvous state before torch unpickles it."""

    def get_state(self) -> Any:  # noqa: ANN401 - torch does not name the type
        """The state and its token, as torch returns them.

        Raises:
            RendezvousStateError: it is not a rendezvous state.
        """
        return _checked(super().get_state())

    def set_state(self, state: bytes, token: Any = None) -> Any:  # noqa: ANN401
        """Store a new state unless another launcher was faster; returns the state that the store then has.

        Raises:
            RendezvousStateError: it is not a rendezvous state.
        """
        return _checked(super().set_state(state, token))


def join_rendezvous(
    endpoint: str, *, identity: str, min_nodes: int, max_nodes: int, connect_seconds: float = CONNECT_SECONDS
) -> tuple[DynamicRendezvousHandler, str]:
    """Join the other launchers of a run at HOST:PORT, hosting their store if HOST is this machine.

    Args:
        identity: the same for all launchers of a run, and different for every other run.
        connect_seconds: how long to try to reach the store of another launcher.

    Returns:
        The rendezvous, and the address at which the others reach this machine.

    Raises:
        UsageError: another run uses the endpoint, or it is not the address of one machine.
        RendezvousConnectionError: nothing answers, or something other than a run of refcli.
    """
    host, _, number = endpoint.rpartition(":")
    host, port = host.strip("[]"), int(number)
    try:
        if any(is_every_interface(address) for _, address in addresses_of(host, port)):
            raise UsageError(
                f"not an endpoint: {endpoint!r} stands for every interface of a machine",
                where=f"--rdzv-endpoint {endpoint}",
                hint="HOST:PORT, with the name or an address of one machine",
            )
        listener = _bind_here(host, port)
        if listener is not None:
            address = str(listener.getsockname()[0])
            store = serve_store(listener, timeout=STORE_TIMEOUT)
            store.set(RUN_KEY, json.dumps([identity, uuid.uuid4().hex]))
            there, run_id = _read_run(store)
        else:
            store, address, (there, run_id) = _join(host, port, connect_seconds)
    except OSError as error:
        raise RendezvousConnectionError(error.strerror or str(error)) from error
    if there != identity:
        raise UsageError(
            "another run uses this endpoint",
            where=f"--rdzv-endpoint {endpoint}",
            hint="give this run another port; the machines of one run need the same command, settings, data and --out",
        )
    handler = NetworkRendezvous.from_backend(
        run_id, store, CheckedBackend(store, run_id), min_nodes=min_nodes, max_nodes=max_nodes, local_addr=address
    )
    return handler, address


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    """The addresses of an endpoint that other machines can use."""
    return [
        (family, (external_address() or address) if is_local_alias(host, address) else address)
        for family, address in addresses_of(host, port)
    ]


def _bind_here(host: str, port: int) -> socket.socket | None:
    """Listen at an endpoint; None if it is on another machine, or in use."""
    for family, address in _addresses(host, port):
        try:
            return bind(family, address, port)
        except PermissionError:
            raise
        except OSError:
            continue
    return None


def _join(host: str, port: int, seconds: float) -> tuple[TCPStore, str, tuple[str, str]]:
    """Connect to the store of another launcher; also returns this machine's address on that route, and the run."""
    deadline = time.monotonic() + seconds
    there, here = _connect(host, port, deadline, seconds)
    found: list[tuple[TCPStore, tuple[str, str]]] = []

    def connect() -> None:
        left = timedelta(seconds=max(1.0, deadline - time.monotonic() - 1))
        with suppress(RuntimeError, ValueError):  # torch's errors about a connection
            store = TCPStore(there, port, is_master=False, wait_for_workers=False, timeout=left)
            run = _read_run(store)
            store.set_timeout(STORE_TIMEOUT)
            found.append((store, run))

    connecting = threading.Thread(target=connect, daemon=True)  # torch would wait forever for an answer
    with _silent_stderr():
        connecting.start()
        connecting.join(max(1.0, deadline - time.monotonic()))
    if not found:
        raise RendezvousConnectionError("the program that listens there is not a refcli run")
    store, run = found[0]
    return store, here, run


def _connect(host: str, port: int, deadline: float, seconds: float) -> tuple[str, str]:
    """The first address of an endpoint that accepts a connection, and this machine's address on that route."""
    reason = ""
    while True:
        for _, address in _addresses(host, port):
            try:
                with socket.create_connection((address, port), timeout=max(1.0, deadline - time.monotonic())) as probe:
                    return address, str(probe.getsockname()[0])
            except OSError as error:
                reason = error.strerror or str(error)
        if time.monotonic() > deadline - 1:
            raise RendezvousConnectionError(f"no answer within {seconds:g} seconds: {reason}")
        time.sleep(0.2)


def _read_run(store: TCPStore) -> tuple[str, str]:
    """The identity and the id of the run that a store serves.

    Raises:
        RuntimeError, ValueError: the store names no run.
    """
    identity, run_id = json.loads(store.get(RUN_KEY).decode())
    return str(identity), str(run_id)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hide torch's own messages about a connection; one error reports it."""
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


class _StateUnpickler(pickle.Unpickler):
    """Builds torch's rendezvous states, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """The class, if a state may hold it."""
        if (module, name) not in STATE_CLASSES:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a rendezvous state")
        return super().find_class(module, name)


def _checked(found: Any) -> Any:  # noqa: ANN401
    """The value that a backend returned, if it is a rendezvous state.

    Raises:
        RendezvousStateError: it holds something else, or is too large.
    """
    if found is not None:
        state: bytes = found[0]
        try:
            if len(state) > MAX_STATE_BYTES:
                raise pickle.UnpicklingError("it is too large")
            if type(_StateUnpickler(io.BytesIO(state)).load()).__name__ != STATE_CLASS:
                raise pickle.UnpicklingError("it is not a rendezvous state")
        except Exception as error:  # a damaged pickle can raise anything
            raise RendezvousStateError(f"the state of the rendezvous is damaged: {error}") from error
    return found

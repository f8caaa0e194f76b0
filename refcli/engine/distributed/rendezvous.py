"""How launchers of one run meet: alone without any port, or at one address whose store holds plain data only."""

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
    is_every_interface,
    is_known_here_only,
    outer_address,
    serve_store,
)
from refcli.errors import UsageError

CONNECT_SECONDS = 45.0
"""How long a launcher tries to reach the store of the others; an endpoint without an answer is an error then."""
STORE_TIMEOUT = timedelta(seconds=60)
RUN_KEY = "refcli/run"
"""Where the store at an endpoint says which run meets there."""
LARGEST_STATE = 1 << 20
"""Bytes; the state of a meeting is a list of machines."""
STATE_MODULE = "torch.distributed.elastic.rendezvous.dynamic_rendezvous"
STATE_CLASS = "_RendezvousState"
STATE_CLASSES = {
    (STATE_MODULE, STATE_CLASS),
    (STATE_MODULE, "_NodeDesc"),
    ("datetime", "datetime"),
    ("datetime", "timezone"),
    ("datetime", "timedelta"),
}
"""All that torch's state of a meeting is made of, besides plain values."""


class LocalRendezvous(RendezvousHandler):
    """The rendezvous of a single machine: it opens no port and reads no data from others."""

    def __init__(self) -> None:
        self._run_id = uuid.uuid4().hex

    def get_backend(self) -> str:
        """A name for torch's records."""
        return "alone"

    def next_rendezvous(self) -> RendezvousInfo:
        """A world of one launcher, with a store in its own memory."""
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("localhost", 0))  # nobody serves a port 0

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
    """torch's elastic meeting, with every port bound to one address."""

    def _create_tcp_store_server(self, master_addr: str, master_port: int) -> TCPStore:
        family, address = addresses_of(master_addr, master_port)[0]
        return serve_store(bind(family, address, master_port), timeout=STORE_TIMEOUT)


class CheckedBackend(C10dRendezvousBackend):
    """Torch's backend, but a state that holds anything except states is refused before torch unpickles it."""

    def get_state(self) -> Any:  # noqa: ANN401 - torch does not name the type
        """The state and its token, as torch has it.

        Raises:
            RendezvousStateError: it is something else.
        """
        return _checked(super().get_state())

    def set_state(self, state: bytes, token: Any = None) -> Any:  # noqa: ANN401
        """Put in a new state unless another launcher was quicker; the state that is then in the store.

        Raises:
            RendezvousStateError: it is something else.
        """
        return _checked(super().set_state(state, token))


def join_rendezvous(
    endpoint: str, *, identity: str, min_nodes: int, max_nodes: int
) -> tuple[DynamicRendezvousHandler, str]:
    """Meet the other launchers of a run at HOST:PORT, as the host of their store if HOST is this machine.

    Args:
        identity: the same for all launchers of a run, and another one for every other run.

    Returns:
        The meeting, and the address of this machine at which the others reach it.

    Raises:
        UsageError: another run meets there, or it is no address of one machine.
        RendezvousConnectionError: there is no answer, or none from a run of refcli.
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
            store, address, (there, run_id) = _join(host, port)
    except OSError as error:
        raise RendezvousConnectionError(error.strerror or str(error)) from error
    if there != identity:
        raise UsageError(
            "another run uses this endpoint",
            where=f"--rdzv-endpoint {endpoint}",
            hint="give this run another port; the machines of one run need the same command, settings, data and --out",
        )
    meeting = NetworkRendezvous.from_backend(
        run_id, store, CheckedBackend(store, run_id), min_nodes=min_nodes, max_nodes=max_nodes, local_addr=address
    )
    return meeting, address


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    """The addresses of an endpoint as every machine knows them."""
    return [
        (family, (outer_address() or address) if is_known_here_only(host, address) else address)
        for family, address in addresses_of(host, port)
    ]


def _bind_here(host: str, port: int) -> socket.socket | None:
    """Listen at an endpoint; None where it is on another machine, or where somebody listens already."""
    for family, address in _addresses(host, port):
        try:
            return bind(family, address, port)
        except PermissionError:
            raise
        except OSError:
            continue
    return None


def _join(host: str, port: int) -> tuple[TCPStore, str, tuple[str, str]]:
    """Reach the store that another launcher serves; also this machine's address on the way there, and the run."""
    deadline = time.monotonic() + CONNECT_SECONDS
    there, here = _reachable(host, port, deadline)
    found: list[tuple[TCPStore, tuple[str, str]]] = []

    def ask() -> None:
        left = timedelta(seconds=max(1.0, deadline - time.monotonic() - 1))
        with suppress(RuntimeError, ValueError):  # torch's errors about a connection
            store = TCPStore(there, port, is_master=False, wait_for_workers=False, timeout=left)
            run = _read_run(store)
            store.set_timeout(STORE_TIMEOUT)
            found.append((store, run))

    asking = threading.Thread(target=ask, daemon=True)  # torch waits for ever for an answer where there is none
    with _silent_stderr():
        asking.start()
        asking.join(max(1.0, deadline - time.monotonic()))
    if not found:
        raise RendezvousConnectionError("the program that listens there is not a refcli run")
    store, run = found[0]
    return store, here, run


def _reachable(host: str, port: int, deadline: float) -> tuple[str, str]:
    """The first address of an endpoint that takes a connection, and this machine's address on the way there."""
    reason = ""
    while True:
        for _, address in _addresses(host, port):
            try:
                with socket.create_connection((address, port), timeout=max(1.0, deadline - time.monotonic())) as probe:
                    return address, str(probe.getsockname()[0])
            except OSError as error:
                reason = error.strerror or str(error)
        if time.monotonic() > deadline - 1:
            raise RendezvousConnectionError(f"no answer within {CONNECT_SECONDS:g} seconds: {reason}")
        time.sleep(0.2)


def _read_run(store: TCPStore) -> tuple[str, str]:
    """The identity and the id of the run that a store is for.

    Raises:
        RuntimeError, ValueError: it is for none.
    """
    identity, run_id = json.loads(store.get(RUN_KEY).decode())
    return str(identity), str(run_id)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hide torch's own messages about a connection: the user gets one sentence."""
    voice, silence = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    try:
        yield
    finally:
        os.dup2(voice, 2)
        os.close(voice)
        os.close(silence)


class _StateUnpickler(pickle.Unpickler):
    """Builds torch's states of a meeting, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """The class, if it is one that states are made of."""
        if (module, name) not in STATE_CLASSES:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a state")
        return super().find_class(module, name)


def _checked(found: Any) -> Any:  # noqa: ANN401
    """What a backend returns, if its state holds nothing but states.

    Raises:
        RendezvousStateError: it holds something else, or too much.
    """
    if found is not None:
        state: bytes = found[0]
        try:
            if len(state) > LARGEST_STATE:
                raise pickle.UnpicklingError("it is too large")
            if type(_StateUnpickler(io.BytesIO(state)).load()).__name__ != STATE_CLASS:
                raise pickle.UnpicklingError("it is something else")
        except Exception as error:  # a damaged pickle raises whatever it likes
            raise RendezvousStateError(f"the state of the meeting is damaged: {error}") from error
    return found

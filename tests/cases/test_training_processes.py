"""Several training processes: none listens on the network, no foreign value is executed, and runs stay separate."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousStateError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _RendezvousState

from refcli.data.sources.synthetic.write import write_synthetic
from refcli.engine.distributed import rendezvous
from refcli.engine.distributed.launching import Launch, launch
from refcli.engine.distributed.rendezvous import CheckedBackend, join_rendezvous
from refcli.engine.distributed.world import World
from refcli.engine.stopping import StopSignals
from refcli.errors import TrainingError, UsageError

LINUX = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="finds open ports in Linux's /proc")
LOOPBACK = ("0100007F", "00000000000000000000000001000000")
"""127.0.0.1 and ::1 as /proc/net writes them."""
LISTENS = "0A"
PATIENCE = 120


def process_tree(process: int) -> list[int]:
    children = [
        int(child)
        for task in Path(f"/proc/{process}/task").glob("*")
        for child in (task / "children").read_text().split()
    ]
    return [process, *(below for child in children for below in process_tree(child))]


def open_ports(process: int) -> set[tuple[str, str]]:
    """(protocol, address) at which a process or its descendants can be reached, as /proc writes it."""
    sockets = set()
    for number in process_tree(process):
        for link in Path(f"/proc/{number}/fd").iterdir():
            try:
                sockets.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue  # closed in the meantime
    found = set()
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in sockets and (protocol.startswith("udp") or fields[3] == LISTENS):
                found.add((protocol, fields[1].partition(":")[0]))
    return found


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return (Path.touch, (self.proof,))


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ports_until_the_end(process: int, is_running: Callable[[], bool]) -> set[str]:
    """All addresses at which a process and its descendants can be reached until it ends."""
    seen = set()
    latest = time.monotonic() + PATIENCE
    while is_running() and time.monotonic() < latest:
        try:
            seen |= {address for _, address in open_ports(process)}
        except OSError:  # a process ended while it was inspected
            continue
        time.sleep(0.02)
    return seen


JOINS = """
import sys, time
from pathlib import Path
from refcli.engine.distributed.world import join_world
world = join_world("cpu")
assert world.gather(world.rank) == [0, 1]
assert world.any(world.rank == 1)
time.sleep(0.2)
world.close()
"""


@LINUX
def test_the_processes_of_one_machine_listen_on_loopback_only(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")  # set by a cluster's profile; one machine needs no network
    monkeypatch.setenv("MASTER_ADDR", "0.0.0.0")
    codes = []
    before = {address for _, address in open_ports(os.getpid())}
    seen: set[str] = set()
    done = threading.Event()
    watcher = threading.Thread(
        target=lambda: seen.update(ports_until_the_end(os.getpid(), lambda: not done.is_set()) - before)
    )
    watcher.start()
    codes.append(launch([sys.executable, "-c", JOINS], Launch(2), note=print))
    done.set()
    watcher.join()

    assert codes == [0]
    assert seen and seen <= set(LOOPBACK), "gloo listens, and only there"


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_nothing_of_a_training_command_on_one_machine_listens_beyond_loopback(tmp_path, parallel):
    write_synthetic(tmp_path / "store", size=4, seed=3, splits=["train"])
    settings = ["data.validation=[]", "train.validate_every=null", "train.batch_size=2", "train.steps=3"]
    settings += [f"train.parallel={parallel}", "data.workers=1"]
    command = ["finetune", "--preset", "synthetic_tiny", "--data", str(tmp_path / "store"), "--device", "cpu"]
    command += ["--nproc", "2", "--out", str(tmp_path / "run"), *(x for one in settings for x in ("--set", one))]
    with (tmp_path / "messages").open("w") as messages:
        process = subprocess.Popen([sys.executable, "-m", "refcli", *command], stdout=messages, stderr=messages)
    seen = ports_until_the_end(process.pid, lambda: process.poll() is None)
    process.kill()

    assert process.wait() == 0, (tmp_path / "messages").read_text()
    assert seen and seen <= set(LOOPBACK)


def test_processes_of_one_machine_meet_in_a_folder_that_only_their_user_can_open(tmp_path):
    look = """
import os, pathlib, stat, sys
folder = pathlib.Path(os.environ["REFCLI_STORE_FOLDER"])
facts = [oct(stat.S_IMODE(folder.stat().st_mode)), os.environ["MASTER_PORT"], os.environ["GLOO_SOCKET_IFNAME"]]
pathlib.Path(sys.argv[1]).write_text(" ".join(facts))
"""
    assert launch([sys.executable, "-S", "-c", look, str(tmp_path / "facts")], Launch(1), note=print) == 0
    mode, served, interface = (tmp_path / "facts").read_text().split()

    assert (mode, served) == ("0o700", "0")
    assert interface in ("lo", "lo0")


@LINUX
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_store_for_several_machines_is_bound_to_the_given_address_only(host, port):
    before = open_ports(os.getpid())
    others, address = join_rendezvous(f"{host}:{port}", identity="a run", min_nodes=1, max_nodes=2)
    server = others._create_tcp_store_server(address, 0)

    assert address == "127.0.0.1"
    assert server.port != port
    assert {found for _, found in open_ports(os.getpid()) - before} <= set(LOOPBACK)
    with socket.socket() as everywhere:
        everywhere.bind(("127.0.0.2", port))  # would be in use if the store listened on all addresses


@pytest.mark.parametrize("hidden", [False, True])
def test_a_value_in_the_store_of_several_machines_never_runs(tmp_path, hidden):
    proof = tmp_path / "ran"
    value = [Evil(proof)] if hidden else Evil(proof)
    store = dist.HashStore()
    backend = CheckedBackend(store, "a run")
    token = backend.set_state(pickle.dumps(_RendezvousState()))[1]
    store.set("torch.rendezvous.a run", b64encode(pickle.dumps(value)))

    with pytest.raises(RendezvousStateError, match="not part of a rendezvous state"):
        backend.get_state()
    with pytest.raises(RendezvousStateError, match="not part of a rendezvous state"):
        backend.set_state(pickle.dumps(_RendezvousState()), token)
    assert not proof.exists()


@pytest.mark.slow  # torch gives up a rendezvous only after a while
def test_a_launcher_that_finds_a_foreign_value_ends_the_run_and_runs_nothing(tmp_path, port):
    def attack():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        _, run_id = json.loads(store.get("refcli/run"))
        store.set(f"torch.rendezvous.{run_id}", b64encode(pickle.dumps(Evil(tmp_path / "ran"))))

    attacker = threading.Thread(target=attack)
    attacker.start()
    waits = "import pathlib, sys, time; pathlib.Path(sys.argv[1], 'ready').touch(); time.sleep(60)"
    command = [sys.executable, "-S", "-c", waits, str(tmp_path)]
    with pytest.raises(TrainingError, match="not part of a rendezvous state"):
        launch(command, Launch(1, 1, 2, f"localhost:{port}", identity="mine"), note=print)
    attacker.join()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"\x80", b"nonsense", pickle.dumps({}), pickle.dumps("x" * (2 << 20))])
def test_a_damaged_state_of_several_machines_is_refused(content):
    store = dist.HashStore()
    store.set("torch.rendezvous.a run", b64encode(content))

    with pytest.raises(RendezvousStateError, match="damaged"):
        CheckedBackend(store, "a run").get_state()


def test_a_value_from_another_process_never_runs(tmp_path, monkeypatch):
    sent = torch.frombuffer(bytearray(pickle.dumps(Evil(tmp_path / "ran"), protocol=2)), dtype=torch.uint8)

    def all_gather(received, mine):
        for place in received:
            place.copy_(torch.tensor([len(sent)]) if len(place) == 1 else sent[: len(place)])

    monkeypatch.setattr(dist, "all_gather", all_gather)
    with pytest.raises(pickle.UnpicklingError):
        World(rank=0, size=2, device=torch.device("cpu")).gather(1)
    assert not (tmp_path / "ran").exists()


def test_a_run_of_another_identity_is_refused_and_the_first_stays(port):
    first, _ = join_rendezvous(f"localhost:{port}", identity="first", min_nodes=1, max_nodes=2)

    with pytest.raises(UsageError, match="another run uses") as caught:
        join_rendezvous(f"localhost:{port}", identity="second", min_nodes=1, max_nodes=2)
    assert caught.value.where == f"--rdzv-endpoint localhost:{port}"
    same, _ = join_rendezvous(f"127.0.0.1:{port}", identity="first", min_nodes=1, max_nodes=2)
    assert same.get_run_id() == first.get_run_id()


def test_two_consecutive_runs_of_one_identity_have_different_ids(port):
    ids = set()
    for _ in range(2):
        others, _ = join_rendezvous(f"localhost:{port}", identity="same", min_nodes=1, max_nodes=1)
        ids.add(others.get_run_id())
        del others
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

    assert len(ids) == 2


ANSWERS = {"silent": None, "a web server": b"HTTP/1.1 400 Bad Request\r\n\r\n", "ssh": b"SSH-2.0-x\r\n", "closes": b""}


@pytest.mark.parametrize(
    "kind",
    [
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("a web server", "ssh")),
        "silent",
        "closes",
        "another store",
    ],
)
def test_a_port_that_another_program_uses_is_an_error(kind):
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    kept = []

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            kept.append(connection)
            if ANSWERS[kind]:
                connection.sendall(ANSWERS[kind])
            elif kind == "closes":
                connection.close()

    if kind == "another store":
        store = dist.TCPStore(
            "127.0.0.1", port, is_master=True, master_listen_fd=listener.detach(), wait_for_workers=False
        )
        assert store.port == port
    else:
        threading.Thread(target=serve, daemon=True).start()
    with pytest.raises(RendezvousConnectionError, match="not a refcli run"):
        join_rendezvous(f"localhost:{port}", identity="a run", min_nodes=1, max_nodes=2, connect_seconds=2.5)
    listener.close()


def test_an_endpoint_that_does_not_answer_is_an_error(monkeypatch, port):
    def bind(family, address, port):
        raise OSError("as if it were another machine")

    monkeypatch.setattr(rendezvous, "bind", bind)

    with pytest.raises(RendezvousConnectionError, match="no answer within"):
        join_rendezvous(f"127.0.0.1:{port}", identity="a run", min_nodes=2, max_nodes=2, connect_seconds=1.5)
    with pytest.raises(RendezvousConnectionError, match=r"[Nn]ame"):
        join_rendezvous(
            f"no-such-machine.invalid:{port}", identity="a run", min_nodes=2, max_nodes=2, connect_seconds=1.5
        )


EVERYWHERE = ["0.0.0.0:29500", "0:29500", "0x0:29500", "[::]:29500", "[0::0]:29500", "[::ffff:0:0]:29500"]


@pytest.mark.parametrize("endpoint", ["localhost:0", "localhost:65536", "localhost", *EVERYWHERE])
def test_an_endpoint_without_one_address_and_port_is_refused(refcli, tmp_path, endpoint):
    write_synthetic(tmp_path / "store", size=2, seed=3, splits=["train"])
    code, _, messages = refcli(
        "finetune", "--preset", "synthetic_tiny", "--data", tmp_path / "store", "--out", tmp_path / "run",
        "--nproc", "1", "--nnodes", "2", "--rdzv-endpoint", endpoint,
    )  # fmt: skip

    assert code == 2
    assert "not an endpoint" in messages
    assert not (tmp_path / "run").exists()


SECOND = [("--set", "optim.lr=0.01"), ("--set", "train.seed=99"), ("--out", "second")]


@pytest.mark.parametrize("difference", SECOND, ids=["settings", "seed", "out"])
def test_a_second_run_at_the_endpoint_of_another_is_refused_by_the_command(
    refcli, tmp_path, port, monkeypatch, difference
):
    monkeypatch.chdir(tmp_path)
    write_synthetic(tmp_path / "store", size=2, seed=3, splits=["train", "val"])
    common = ["finetune", "--preset", "synthetic_tiny", "--data", "store", "--device", "cpu", "--out", "first"]
    common += ["--nproc", "1", "--nnodes", "1:2", "--rdzv-endpoint", f"localhost:{port}"]
    kept = []

    def stay(command, plan, *, note):
        kept.append(join_rendezvous(plan.endpoint, identity=plan.identity, min_nodes=1, max_nodes=2))
        return 0

    monkeypatch.setattr("refcli.engine.distributed.launching.launch", stay)

    assert refcli(*common)[0] == 0
    code, output, messages = refcli(*common, *difference)
    assert (code, output) == (2, "")
    assert f"localhost:{port}" in messages
    assert refcli(*common)[0] == 0, "another machine of the first run is welcome"
    assert len(kept) == 2


def hang_up(ready: Path) -> threading.Thread:
    def wait_and_send():
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGHUP)
        ready.with_name("sent").touch()

    thread = threading.Thread(target=wait_and_send)
    thread.start()
    return thread


SAVES = """
import pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
if not ignored:
    signal.signal(signal.SIGHUP, lambda number, frame: sys.exit(75))
(here / "ready").touch()
while not (here / "sent").exists():
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(0 if ignored else 1)
"""


@pytest.mark.parametrize(("handler", "code"), [(signal.SIG_IGN, 0), (signal.SIG_DFL, 75)], ids=["nohup", "terminal"])
def test_a_closed_terminal_stops_the_processes_cleanly_and_nohup_protects_them(tmp_path, handler, code):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        closing = hang_up(tmp_path / "ready")
        assert launch([sys.executable, "-S", "-c", SAVES, str(tmp_path)], Launch(1), note=print) == code
        closing.join()
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("handler", "noted"), [(signal.SIG_IGN, None), (signal.SIG_DFL, signal.SIGHUP)])
def test_a_single_process_records_a_closed_terminal_unless_it_is_ignored(handler, noted):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
        assert signals.received == noted
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)

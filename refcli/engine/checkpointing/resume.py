"""Resume a run: the facts that it records in env.json, changes since then, and the restored checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refcli.config.load import read_yaml, validate
from refcli.config.pretraining import PretrainSettings
from refcli.config.schema import FinetuneSettings
from refcli.data.store.read import Store
from refcli.engine.checkpointing.run_dir import RunDir
from refcli.engine.checkpointing.state import BatchLayout, TrainingState, seed_generators
from refcli.engine.context import TrainingContext
from refcli.engine.distributed.launching import is_restart
from refcli.engine.optimisation.schedule import lr_factor
from refcli.engine.validation import restore_validation
from refcli.errors import ConfigError

DATA, LAUNCH = "data", "launch"
"""Keys of env.json."""
LAUNCH_VARIABLE = "TORCHELASTIC_RUN_ID"
"""The id that torchrun (and `--nproc`) gives to all processes of one launch, restarted ones included."""
OF_ONE_MACHINE = {"train": {"device"}, "data": {"workers"}}
"""Settings in which the machines of one run may differ."""

AnySettings = FinetuneSettings | PretrainSettings


def resume(state: TrainingState, layout: BatchLayout, context: TrainingContext) -> None:
    """Seed the random generators, and restore the run's last checkpoint if there is one.

    With the same number of processes training continues exactly. With another number it continues at the same sample,
    or up to one global batch before it, with newly seeded random generators.
    """
    world, run = context.world, context.run
    pointer = run.checkpoints.pointer("last")
    last = world.gather(pointer.step if pointer else None)[0]  # as the main process sees the disk
    seed_generators(context.train.seed + world.rank + world.size * (last or 0))
    if last is not None:
        before = run.checkpoints.load(last, state, world=world)
        state.samples -= state.samples % layout.global_batch
        if before.processes != layout.processes:
            context.reporter.noted(
                f"the number of processes changed from {before.processes} to {layout.processes}: training continues at "
                f"sample {state.samples} with {layout.global_batch * layout.accumulate} samples per step instead of "
                f"{before.global_batch * before.accumulate}, and draws new random numbers"
            )
        restore_validation(state, context)
    if world.is_main:
        run.drop_metrics_after(state.step, validated=state.validated)


def is_restarted_run(out: Path) -> bool:
    """Whether this process replaces one that crashed after it had started the run in `out`.

    A run of an earlier launch does not count: `--force` asks to remove it, and the crash may have come before that.
    """
    if not (is_restart() and (out / "run.yaml").is_file()):
        return False
    facts = RunDir(out).facts()
    return LAUNCH in facts and facts[LAUNCH] == os.environ.get(LAUNCH_VARIABLE)


def run_facts(settings: AnySettings, *, store_path: Path, processes: int) -> dict[str, Any]:
    """The entries of env.json besides versions and hardware.

    Raises:
        DataError: no such store.
    """
    return {
        "store": str(store_path.resolve()),
        "processes": processes,
        DATA: data_facts(settings, store_path),
        LAUNCH: os.environ.get(LAUNCH_VARIABLE),
    }


def data_facts(settings: AnySettings, store_path: Path) -> dict[str, Any]:
    """The sha256 and the number of examples of each split that a run uses, by name.

    Raises:
        DataError: no such store.
    """
    store = Store(store_path)
    names = set(store.complete_names())
    return {name: store.contents(name) for name in (*settings.data.train, *settings.data.validation) if name in names}


def run_identity(command: str, settings: AnySettings, *, store_path: Path, out: Path) -> str:
    """A digest that is the same on all machines of one run, and different for every other run.

    Raises:
        DataError: no such store.
    """
    parts = [
        command,
        settings.model_dump(mode="json", exclude=OF_ONE_MACHINE),
        data_facts(settings, store_path),
        str(out.resolve()),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def changed_data(run: RunDir, settings: AnySettings, store_path: Path) -> list[str]:
    """Warnings about data that differs from what the run was trained on before.

    Raises:
        ConfigError: a training split has another number of examples, so that the position in it is lost.
        DataError: no such store.
    """
    before = _recorded_data(run)
    now = data_facts(settings, store_path)
    changed = [name for name in now if name in before and before[name] != now[name]]
    resized = [name for name in changed if before[name].get("examples") != now[name]["examples"]]
    resized = [name for name in resized if name in settings.data.train]
    if resized:
        raise ConfigError(
            "the data is not what the run was trained on: "
            + ", ".join(
                f"{name} had {before[name].get('examples')} examples, now {now[name]['examples']}" for name in resized
            ),
            where=str(store_path),
            hint="name the unchanged store with --data, or start a new run from these weights with --init",
        )
    if not changed:
        return []
    return [
        f"warning: the data has changed since the run began: {', '.join(changed)} in {store_path}; the steps and "
        "validations before and after this line used different data"
    ]


def changed_schedule(run: RunDir, settings: AnySettings) -> list[str]:
    """A note if the number of steps differs from the run's own.

    Raises:
        ConfigError: the run's own settings cannot be read.
    """
    file, last = run.path / "run.yaml", run.checkpoints.pointer("last")
    if last is None or not file.is_file():
        return []
    before = validate(type(settings), read_yaml(file), where=str(file)).train.steps
    now, optim = settings.train.steps, settings.optim
    if before == now:
        return []
    rates = [
        optim.lr
        * lr_factor(last.step, total_steps=steps, warmup_steps=optim.warmup_steps, final_ratio=optim.final_lr_ratio)
        for steps in (before, now)
    ]
    return [
        f"train.steps changed from {before} to {now}: the learning rate follows the schedule of the new length, so at "
        f"step {last.step} it jumps from {rates[0]:.3g} to {rates[1]:.3g}"
    ]


def _recorded_data(run: RunDir) -> Mapping[str, Mapping[str, Any]]:
    """The facts about the data in env.json; empty if there are none, as in older versions."""
    data = run.facts().get(DATA)
    return {name: one for name, one in data.items() if isinstance(one, dict)} if isinstance(data, dict) else {}

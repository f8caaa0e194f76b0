"""Which data a run trains on: recorded in env.json, compared when it is resumed, and part of what machines agree on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refcli.config.pretraining import PretrainSettings
from refcli.config.schema import FinetuneSettings
from refcli.data.store.read import Store
from refcli.engine.checkpointing.run_dir import RunDir
from refcli.errors import ConfigError
from refcli.recipes.restarts import launch_facts

DATA = "data"
"""Key of env.json."""
OF_ONE_MACHINE = {"train": {"device"}, "data": {"workers"}}
"""Settings in which the machines of one run may differ."""

AnySettings = FinetuneSettings | PretrainSettings


def data_facts(settings: AnySettings, store_path: Path) -> dict[str, Any]:
    """What env.json says about the splits that a run uses, by name: their sha256 and number of examples.

    Raises:
        DataError: no such store.
    """
    store = Store(store_path)
    names = set(store.complete_names())
    return {name: store.contents(name) for name in (*settings.data.train, *settings.data.validation) if name in names}


def run_facts(settings: AnySettings, *, store_path: Path, processes: int) -> dict[str, Any]:
    """What env.json says about a run besides versions and hardware.

    Raises:
        DataError: no such store.
    """
    return {
        "store": str(store_path.resolve()),
        "processes": processes,
        DATA: data_facts(settings, store_path),
        **launch_facts(),
    }


def changed_data(run: Path, settings: AnySettings, store_path: Path) -> list[str]:
    """What the user should know where a resumed run gets other data than it has trained on.

    Raises:
        ConfigError: training splits have another number of examples, so that there is no place in them to go on from.
        DataError: no such store.
    """
    before = _recorded(run)
    now = data_facts(settings, store_path)
    changed = [name for name in now if name in before and before[name] != now[name]]
    resized = [name for name in changed if before[name].get("examples") != now[name]["examples"]]
    resized = [name for name in resized if name in settings.data.train]
    if resized:
        raise ConfigError(
            "this is not the data that the run has trained on: "
            + ", ".join(
                f"{name} had {before[name].get('examples')} examples, now {now[name]['examples']}" for name in resized
            ),
            where=str(store_path),
            hint="give the store as it was with --data, or start a new run from these weights with --init",
        )
    if not changed:
        return []
    return [
        f"warning: the data has changed since the run began: {', '.join(changed)} in {store_path}; steps and "
        "validations before and after this line are of different data"
    ]


def run_identity(command: str, settings: AnySettings, *, store_path: Path, out: Path) -> str:
    """What the machines that train one run have in common, and no other run has.

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


def _recorded(run: Path) -> Mapping[str, Mapping[str, Any]]:
    """What env.json says about the data; empty where it says nothing, as those of older versions do."""
    data = RunDir(run).facts().get(DATA)
    return {name: one for name, one in data.items() if isinstance(one, dict)} if isinstance(data, dict) else {}

"""Commands, options, presets, settings and names in the documentation exist, also where a block cannot be run."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import typer.main
import yaml
from documentation import NAMES, ROOT, Block, blocks_of, code_spans, pipeline_of, prose_of, statements_of
from pydantic import BaseModel

from refcli.cli.app import app
from refcli.config.load import apply_overrides, load_finetune, load_pretrain, validate
from refcli.config.presets import list_presets, preset_groups
from refcli.config.pretraining import PretrainSettings
from refcli.config.schema import FinetuneSettings
from refcli.data.sources.synthetic.settings import SyntheticSettings
from refcli.data.sources.table import SOURCES
from refcli.data.spec import list_specs, load_spec
from refcli.errors import ConfigError
from refcli.evaluation.metrics.conventions import choose_conventions
from refcli.heads.table import head_settings
from refcli.tables import lookup
from refcli.weights.catalog import Catalog

every_page = pytest.mark.parametrize("name", NAMES)
PLACEHOLDER = re.compile(r"[A-Z]+([:/][A-Z]+)*")
SETTING = re.compile(r"((?:model|data|optim|train|mrefm)(?:\.[a-z_]+)+)(?:=(.*))?")
FILE_SUFFIXES = (".safetensors", ".txt", ".yaml")
OPTIONS_OF_OTHERS = {"--index-url", "--nproc-per-node", "--dist"}
"""Of pip, torchrun and pytest."""
HOME_OF_PRESETS = {"finetune": load_finetune, "pretrain": load_pretrain}


def command_of(arguments: list[str]) -> tuple[Any, Any, list[str]]:
    """The click command that arguments name, the context above it, and the arguments left for it."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("refcli", ["presets", "list"], resilient_parsing=True)
    rest = list(arguments)
    while hasattr(command, "list_commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name!r}"
        command, context = found, type(context)(found, info_name=name, parent=context)
    return command, context.parent or context, rest


def options_of(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts} | {"-h", "--help"}


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The command and the values of its parameters, parsed and converted but not run."""
    command, above, rest = command_of(arguments)
    if set(rest) & {"-h", "--help", "--version"}:
        assert set(rest) <= options_of(command)
        return command.name, {}
    parsed = command.make_context(command.name, rest, parent=above)
    by_option = {parameter.opts[0].lstrip("-"): parsed.params.get(parameter.name) for parameter in command.params}
    return command.name, by_option


def refcli_commands(block: Block) -> list[list[str]]:
    if block.language != "bash":
        return []
    pipelines = [pipeline_of(statement) for statement in statements_of(block.text)]
    found = [command.refcli_arguments for pipeline in pipelines for command in pipeline]
    return [arguments for arguments in found if arguments is not None]


@every_page
def test_every_refcli_command_in_a_block_is_valid(name):
    for block in blocks_of(ROOT / name):
        for arguments in refcli_commands(block):
            try:
                check(*parse(arguments))
            except Exception as error:
                shown = error.format_message() if hasattr(error, "format_message") else str(error)
                pytest.fail(f"{block}: refcli {' '.join(arguments)}: {shown}")


def check(command: str, values: dict[str, Any]) -> None:
    """Presets, settings and data sets that a parsed command names exist."""
    overrides = list(values.get("set") or ())
    if command in HOME_OF_PRESETS and values.get("preset"):
        check_settings(command, values["preset"], overrides)
    if command == "prepare-data":
        names = [each for each in values.get("names", ()) or () if not PLACEHOLDER.fullmatch(each)]
        for name in names:
            check_source_settings(name, overrides)
    if command == "evaluate":
        choose_conventions(values.get("convention") or ())


def check_settings(command: str, preset: str, overrides: list[str]) -> None:
    """A named preset takes the overrides; a placeholder or a file stands for any preset that does."""
    if not PLACEHOLDER.fullmatch(preset) and not preset.endswith(".yaml"):
        load(command, preset, overrides)
        return
    problems = []
    for candidate in list_presets(command):
        try:
            load(command, candidate, overrides)
        except ConfigError as error:
            problems.append(error)
        else:
            return
    raise problems[0]


def load(command: str, preset: str, overrides: list[str]) -> None:
    """Read a preset as the command does, with the settings of its head."""
    head_settings(HOME_OF_PRESETS[command](preset, overrides).model.head)


def check_source_settings(name: str, overrides: list[str]) -> None:
    spec = load_spec(name)
    given = apply_overrides({}, overrides)
    if spec.source == "synthetic":
        validate(SyntheticSettings, given, where=name)
    elif spec.source is not None:
        validate(lookup(SOURCES, spec.source, what="source").settings, {**spec.settings, **given}, where=name)
    elif given:
        raise ConfigError("a mixture has no settings", where=name)


@every_page
def test_every_inline_refcli_command_names_commands_and_options_that_exist(name):
    for span in code_spans(ROOT / name):
        words = [word.split("|")[0] for word in span.split()]
        if words[0] != "refcli" or len(words) == 1 or PLACEHOLDER.fullmatch(words[1]):
            continue
        command, _, rest = command_of(words[1:])
        unknown = {word for word in rest if word.startswith("-") and word != "-"} - options_of(command)
        assert not unknown, f"`{span}` in {name}"


@every_page
def test_every_inline_override_fits_a_command(name):
    for span in code_spans(ROOT / name):
        words = shlex.split(span) if span.startswith(("--set ", "-s ")) else []
        overrides = [word for word in words if "=" in word and word.partition("=")[0].islower()]
        assert not overrides or fits_a_command(overrides), f"`{span}` in {name}"


def fits_a_command(overrides: list[str]) -> bool:
    checks = [partial(check_settings, command, "PRESET") for command in HOME_OF_PRESETS]
    checks += [partial(check_source_settings, name) for name in list_specs()]
    checks += [partial(check_format_settings, name) for name in SOURCES]
    for check_overrides in checks:
        with suppress(ConfigError):
            check_overrides(overrides)
            return True
    return False


def check_format_settings(name: str, overrides: list[str]) -> None:
    validate(lookup(SOURCES, name, what="source").settings, apply_overrides({}, overrides), where=name)


@every_page
def test_every_option_in_the_text_exists(name):
    known = set(OPTIONS_OF_OTHERS) | options_of(typer.main.get_command(app))
    for each in all_commands():
        known |= options_of(each)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", prose_of(ROOT / name))) <= known


def all_commands() -> list[Any]:
    group: Any = typer.main.get_command(app)
    context = group.make_context("refcli", ["presets", "list"], resilient_parsing=True)
    found = [group.get_command(context, name) for name in group.list_commands(context)]
    subgroups = [each for each in found if hasattr(each, "list_commands")]
    return [*found, *(each.get_command(context, name) for each in subgroups for name in each.list_commands(context))]


@every_page
def test_every_setting_in_the_text_exists(name):
    for span in code_spans(ROOT / name):
        match = SETTING.fullmatch(span.removeprefix("--set "))
        if match and not span.endswith(FILE_SUFFIXES):
            assert exists(match[1], FinetuneSettings) or exists(match[1], PretrainSettings), f"`{span}` in {name}"


def exists(key: str, kind: type[BaseModel]) -> bool:
    *groups, last = key.split(".")
    for group in groups:
        field = kind.model_fields.get(group)
        if field is None:
            return False
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return True  # a mapping, such as the settings of a head
        kind = field.annotation
    return last in kind.model_fields


@every_page
def test_every_preset_that_is_listed_with_braces_exists(name):
    known = {preset for group in preset_groups() for preset in list_presets(group)}
    for span in code_spans(ROOT / name):
        if re.fullmatch(r"[a-z][a-z0-9_]*\{[a-z0-9_,]+\}[a-z0-9_]*", span):
            before, choices, after = re.split(r"[{}]", span)
            assert {f"{before}{choice}{after}" for choice in choices.split(",")} <= known, f"`{span}` in {name}"


@every_page
def test_every_name_of_published_weights_is_in_the_catalogue(name):
    known = set(Catalog.load().names())
    text = (ROOT / name).read_text(encoding="utf-8")
    assert set(re.findall(r"\b(?:oneref|mrefm)-(?:base|large)-[a-z0-9-]+\b", text)) <= known


def test_every_data_set_of_the_guide_exists():
    spans = set(code_spans(ROOT / "docs" / "guides" / "data-sets.md"))
    named = {span for span in spans if re.fullmatch(r"(refcoco|grefcoco|referit|flickr30k|mixup)[a-z_]*", span)}
    assert named - set(SOURCES) <= set(list_specs())
    assert set(list_specs()) <= spans


@every_page
def test_every_json_or_yaml_block_can_be_read(name):
    for block in blocks_of(ROOT / name):
        if block.language == "yaml":
            yaml.safe_load(block.text)
        if block.language == "json":
            try:
                json.loads(block.text)
            except ValueError:
                for line in block.text.splitlines():
                    json.loads(line)

"""mkdocs hook: generates the reference pages from the command line, the settings, the presets and the data sets."""

from __future__ import annotations

import ast
import html
import inspect
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, get_args

import typer.main
from pydantic import BaseModel

from refcli.answers.formats import ANSWER_FORMATS, REFCLI
from refcli.answers.table import WRITERS
from refcli.cli.app import app
from refcli.cli.predict import LINE_FORMATS
from refcli.config.presets import headline, list_presets, preset_groups, preset_path
from refcli.config.pretraining import PretrainSettings
from refcli.config.schema import FinetuneSettings
from refcli.data.sources.labels import LabelSettings
from refcli.data.sources.record import Source
from refcli.data.sources.synthetic.settings import SyntheticSettings
from refcli.data.sources.table import SOURCES
from refcli.data.spec import DatasetSpec, list_specs, load_spec
from refcli.heads.table import HEADS, head_class
from refcli.tables import lookup
from refcli.text.vlm_text import INPUT_PIXELS

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

NONE_KNOWN = "not stated"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages before the navigation is built."""
    from mkdocs.structure.files import File

    for address, write in PAGES.items():
        files.append(File.generated(config, address, content=write()))
    return files


def commands() -> Iterator[tuple[str, Any, Any]]:
    """Every command with its full name, its click command and a context for its help.

    typer requires click or contains a copy, depending on its version, so click's classes are not named here.
    """
    group = typer.main.get_command(app)
    root: Any = group.make_context("refcli", ["presets", "list"], resilient_parsing=True)
    yield "refcli", group, root
    yield from _below(group, root)


def _below(group: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        own = type(context)(command, info_name=name, parent=context)
        if hasattr(command, "list_commands"):
            yield from _below(command, own)
        else:
            yield own.command_path, command, own


def cli_page() -> str:
    """The reference of every command, argument and option."""
    parts = ["# Commands", "Generated from `refcli --help`. See also [exit codes and streams](exit-codes.md)."]
    for name, command, context in commands():
        parts += [f"## {name}", f"```text\n{command.get_usage(context)}\n```"]
        parts += [_escape(paragraph) for paragraph in _paragraphs(command.help or "")]
        for title, kind in (("Argument", "argument"), ("Option", "option")):
            records = [each.get_help_record(context) for each in command.get_params(context) if _is(each, kind)]
            if rows := [(_code(left), _escape(right)) for left, right in filter(None, records)]:
                parts.append(_table((title, "Meaning"), rows))
    return "\n\n".join(parts) + "\n"


def _is(parameter: Any, kind: str) -> bool:  # noqa: ANN401
    return bool(parameter.param_type_name == kind and not getattr(parameter, "hidden", False))


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n")]


def settings_page() -> str:
    """The reference of every setting with its type, default and meaning."""
    parts = [
        "# Settings",
        "Generated from the schema. A preset or `--set KEY=VALUE` gives values; an unknown key is an error that names "
        "the nearest one. `refcli presets show NAME --resolved` prints all settings of a preset.",
        "## refcli finetune",
        *_settings(FinetuneSettings, ""),
        "## refcli pretrain",
        "`model`, `data`, `optim` and `train` are as for `refcli finetune`.",
        *_settings(PretrainSettings, "", skip=frozenset({"model", "data", "optim", "train"})),
        "## Heads",
        "Settings of a head are below `model.head.settings`.",
    ]
    for name in sorted(HEADS):
        parts += [f"### {name}", *_settings(head_class(name).Config, "model.head.settings.", titles=False)]
    parts += ["## Sources", "Settings of a source are given to `refcli prepare-data --set`."]
    for name in SOURCES:
        source: Source = lookup(SOURCES, name, what="source")
        if source.settings.model_fields:
            parts += [f"### {name}", *_settings(source.settings, "", titles=False)]
    parts += ["### synthetic", *_settings(SyntheticSettings, "", titles=False)]
    return "\n\n".join(parts) + "\n"


def _settings(
    kind: type[BaseModel], prefix: str, *, titles: bool = True, skip: frozenset[str] = frozenset()
) -> list[str]:
    """A table of the plain settings of a class, then those of the classes nested in it."""
    schema, meanings = kind.model_json_schema(), _meanings(kind)
    definitions = schema.get("$defs", {})
    rows: list[tuple[str, ...]] = []
    nested: list[str] = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if name in skip:
            continue
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            nested += [f"### {prefix}{name}", *_paragraphs(_escape(inner.__doc__ or ""))] if titles else []
            nested += _settings(inner, f"{prefix}{name}.", titles=titles)
            continue
        property_ = schema["properties"][name]
        default = "required" if field.is_required() else ""
        if "default" in property_:
            default = _code(json.dumps(property_["default"], ensure_ascii=False))
        rows.append((f"`{prefix}{name}`", _type_of(property_, definitions), default, _escape(meanings.get(name, ""))))
    table = [_table(("Setting", "Type", "Default", "Meaning"), rows)] if rows else []
    return [*table, *nested]


def _type_of(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The type of a setting in words: `integer >= 1 or null`."""
    if "$ref" in schema:
        return _type_of(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type_of(choice, definitions) for choice in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{choice}`" for choice in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "any"))
    if kind == "array":
        inner = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return f"list of {_type_of(inner, definitions)}" if inner else "list"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:,}" for key, sign in signs.items() if key in schema]
    return " ".join([{"object": "mapping"}.get(kind, kind), ", ".join(bounds)]).strip().replace("<", "&lt;")


def _meanings(kind: type[BaseModel]) -> dict[str, str]:
    """The docstring below each field, base classes included."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not (issubclass(each, BaseModel) and each.__module__.startswith("refcli.")):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                    found[name] = " ".join(meaning.split())
    return found


def presets_page() -> str:
    """The presets with their first comment line."""
    parts = [
        "# Presets",
        "Generated from `data_specs/presets`. `refcli presets show NAME` prints a preset, "
        "`refcli presets copy NAME FILE` copies it.",
    ]
    for group in preset_groups():
        rows = [(f"`{name}`", _escape(headline(preset_path(group, name)))) for name in list_presets(group)]
        parts += [f"## refcli {group}", _table(("Preset", "Purpose"), rows)]
    return "\n\n".join(parts) + "\n"


def data_sets_page() -> str:
    """The data sets with origin, licence, files and counts."""
    parts = [
        "# Data sets",
        "Generated from `data_specs/datasets`. refcli downloads none of them. "
        "[Public data sets](../guides/data-sets.md) explains how they are read.",
    ]
    for name in list_specs():
        spec = load_spec(name)
        parts += [f"## {name}", _escape(spec.description), _table(("", ""), list(_facts(spec)))]
        if spec.splits:
            rows = [
                (f"`{split}`", *map(_count, (counts.images, counts.refs, counts.expressions)), counts.basis)
                for split, counts in spec.splits.items()
            ]
            parts.append(_table(("Split", "Images", "Refs", "Expressions", "Basis"), rows))
    return "\n\n".join(parts) + "\n"


def _facts(spec: DatasetSpec) -> Iterator[tuple[str, str]]:
    yield "Origin", _escape(spec.origin)
    yield "Licence", _escape(spec.licence)
    if not spec.verified:
        yield "Verified", "no: no real record was available to check the reader"
    if spec.citation:
        yield "Citation", _escape(spec.citation)
    if spec.homepage:
        yield "Homepage", f"<{spec.homepage}>"
    for role, names in spec.files.items():
        yield f"File `{role}`", ", ".join(f"`{each}`" for each in names)
    for split, members in spec.mixture.items():
        yield f"Split `{split}`", ", ".join(f"`{each}`" for each in members)


def _count(number: int | None) -> str:
    return NONE_KNOWN if number is None else f"{number:,}"


def formats_page() -> str:
    """All formats that are read and written, each with a command."""
    return "\n\n".join([
        "# Formats",
        "Generated from the program. Every command is tested on a small file.",
        "## Annotations",
        "`refcli prepare-data` reads them. `--format auto`, the default, recognises each by its content. Files beside "
        "the main one are found by name, or given as `--with ROLE=FILE`. All files but Parquet may be gzipped.",
        _table(("Format", "Reads", "Files beside the main one"), list(_sources())),
        _commands(prepare_command(name) for name in SOURCES),
        "For labelled boxes, `--expressions template` writes expressions, and `--expressions category` uses the class "
        "names. [Your own data](../guides/own-data.md#boxes-without-expressions) explains both, "
        "[Settings](settings.md#sources) all other options.",
        _commands(f"{prepare_command(name)} --expressions template" for name in SOURCES if is_labelled(name)),
        "## Public data sets",
        "`refcli prepare-data` reads them as their authors publish them. [Data sets](data-sets.md) has files, splits "
        "and counts. 'Verified: no' means that no real record was available to check the reader; the command says so.",
        _table(("Data set", "Format", "Expressions", "Verified", "Licence"), list(_data_sets())),
        _commands(["refcli prepare-data DATASET --raw DIR --images DIR --out store"]),
        "## Prediction files",
        "`refcli evaluate --predictions FILE --answers-format NAME` reads them; "
        "[Evaluate](../guides/evaluate.md#answers-of-other-systems) explains how. The last column has the coordinate "
        "space. `--coordinates` replaces one in brackets: `pixels` of the image, `input-pixels` of the "
        "model's resized input, fractions of the image (`unit`) or of the image padded to a square (`unit-padded`), "
        "0 to 1000 (`thousand`), 0 to 999 (`bins-999`) or 0 to 1024 (`bins-1024`) of the image.",
        _table(("Format", "Content", "A line or entry", "Boxes"), list(_answer_formats())),
        _commands(evaluate_command(name) for name in ANSWER_FORMATS),
        "## Files for other tools",
        "`refcli predict --format` and `refcli convert-answers --to` write them. "
        "[Predict in bulk](../guides/predict.md#files-for-other-tools) explains the options.",
        _table(("Format", "Content"), [(f"`{name}`", _purpose(writer)) for name, writer in WRITERS.items()]),
        _commands(convert_command(name) for name in WRITERS),
        f"`refcli predict` accepts the same names; {_listed(LINE_FORMATS)} are formats of stdout:",
        _commands(['refcli predict photos/ -e "the cup" --out answers --format coco']),
    ]) + "\n"  # fmt: skip


def prepare_command(source: str) -> str:
    """The command that reads a file of a format, with an example of each setting that has no default."""
    fields = lookup(SOURCES, source, what="source").settings.model_fields
    needed = "".join(
        f" --set {name}={get_args(one.annotation)[0]}" for name, one in fields.items() if one.is_required()
    )
    return f"refcli prepare-data --from FILE --format {source} --name mine{needed} --out store"


def convert_command(answers_format: str) -> str:
    """The command that writes a prediction file in a format."""
    return f"refcli convert-answers predictions.jsonl --to {answers_format} --out {answers_format}"


def evaluate_command(answers_format: str) -> str:
    """The command that scores a prediction file of a format."""
    row = ANSWER_FORMATS[answers_format]
    size = " --input-size qwen2.5-vl" if row.coordinates == INPUT_PIXELS else ""
    declared = "" if answers_format == REFCLI else f" --answers-format {answers_format}{size}"
    return f"refcli evaluate --predictions FILE{declared} --data store --split DATASET:SPLIT"


def is_labelled(source: str) -> bool:
    """Whether a format has labelled boxes, about which expressions can be written."""
    return issubclass(lookup(SOURCES, source, what="source").settings, LabelSettings)


def _sources() -> Iterator[tuple[str, ...]]:
    for name in SOURCES:
        source: Source = lookup(SOURCES, name, what="source")
        beside = [role for role in source.files if role != "*"][0 if source.has_file_per_split else 1 :]
        optional = dict.fromkeys(source.optional, " (optional)")
        yield (
            f"`{name}`",
            _escape(source.description),
            ", ".join(f"`{role}`{optional.get(role, '')}" for role in beside),
        )


def _answer_formats() -> Iterator[tuple[str, ...]]:
    for name, row in ANSWER_FORMATS.items():
        space = f"(`{row.coordinates}`)" if row.has_spaces else f"`{row.coordinates}`"
        yield f"`{name}`", _escape(row.about), _code(row.example), space


def _data_sets() -> Iterator[tuple[str, ...]]:
    for name in list_specs():
        spec = load_spec(name)
        counts = [split.expressions for split in spec.splits.values()]
        total = None if not counts or None in counts else sum(filter(None, counts))
        known = f"`{spec.source}`" if spec.source else "mixture"
        link = f"[`{name}`](data-sets.md#{name})"
        verified = ("yes" if spec.verified else "no") if spec.files else ""
        yield link, known, _count(total), verified, _escape(spec.licence)


def _purpose(writer: str) -> str:
    """The first paragraph of a writer's docstring, without its verb."""
    module, function = writer.split(":")
    first = _paragraphs(inspect.getdoc(getattr(import_module(module), function)) or "")[0]
    return _escape(first.removeprefix("Write "))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _commands(lines: Iterable[str]) -> str:
    return "\n".join(["```bash", *lines, "```"])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |" for line in lines)


def _code(text: str) -> str:
    """Text as code in a cell of a table, where a code span cannot hold a bar."""
    return f"`{text}`" if "|" not in text else f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>"


def _escape(text: str) -> str:
    """Escape text for Markdown tables; code spans stay code spans."""
    parts = text.split("`")
    for index, part in enumerate(parts):
        if index % 2 == 0:
            part = part.replace("&", "&amp;").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
            parts[index] = part.replace("[", "\\[").replace("]", "\\]")
    return "`".join(parts).replace("|", "\\|")


PAGES = {
    "reference/commands.md": cli_page,
    "reference/settings.md": settings_page,
    "reference/presets.md": presets_page,
    "reference/data-sets.md": data_sets_page,
    "reference/formats.md": formats_page,
}
"""Address of a generated page -> the function that writes it."""

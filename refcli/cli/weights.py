"""`refcli weights`: list, pull, convert, describe and verify weights."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refcli.cli.options import WEIGHTS_METAVAR, WEIGHTS_NAMES
from refcli.weights.official.conversions.table import CONVERSIONS

if TYPE_CHECKING:
    from refcli.recipes.weights import ListedWeights
    from refcli.weights.checks import WeightsInfo
    from refcli.weights.official.convert import ConversionReport

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, pull, convert and verify published weights.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
NameOrPath = Annotated[str, typer.Argument(help=f"The weights: {WEIGHTS_NAMES}.", metavar=WEIGHTS_METAVAR)]
HEADER = ("NAME", "TASKS", "IMAGE", "FILE", "CHECKSUM", "HERE", "WHAT")
SHOWN_NAMES = 5
"""Names of tensors shown per line; the JSON report and meta.json have all."""
UNKNOWN_LICENCE = "not known: ask the author of the file"


class Dtype(str, Enum):
    """The stored number type."""

    FP32 = "fp32"
    BF16 = "bf16"
    KEEP = "keep"


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """List all named weights.

    "unverified": no checksum of the file is known.
    """
    import json

    from refcli.cli.output import printable, write_line
    from refcli.recipes.weights import list_weights

    _note_no_home()
    listed = list_weights()
    if as_json:
        write_line(json.dumps([each.to_json() for each in listed], indent=1))
        return
    rows = [HEADER, *(_row(each) for each in listed)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        line = "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        write_line(printable(line.rstrip()))


@app.command("pull")
def pull_command(
    name: Annotated[
        str, typer.Argument(help="A NAME of the list, or hf://org/repo@rev/file.", metavar="NAME|hf://...")
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of the repository.", metavar="REVISION")
    ] = None,
    pin: Annotated[
        bool, typer.Option("--pin", help="Record the commit and checksum; later pulls require the same.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Download and convert again.")] = False,
) -> None:
    """Download weights from the Hugging Face Hub and convert them.

    They are verified first. Prints the directory.

    HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and HF_HUB_CACHE are respected. An interrupted download is resumed.
    """
    from refcli.cli.output import log, write_line
    from refcli.weights.pull import pull

    write_line(str(pull(name, revision=revision, pin=pin, force=force, report=log)))


@app.command("convert")
def convert_command(
    file: Annotated[Path, typer.Argument(help="An official checkpoint (.pth).", metavar="FILE")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to write; new or empty.", metavar="DIR")],
    kind: Annotated[str, typer.Option("--kind", help=f"auto, {', '.join(CONVERSIONS)}.")] = "auto",
    dtype: Annotated[Dtype, typer.Option("--dtype", help="How to store floating-point numbers.")] = Dtype.FP32,
    image_size: Annotated[
        int | None,
        typer.Option("--image-size", help="Resample the positions to this model frame.", metavar="PIXELS", min=1),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option("--heads", help="Number of attention heads, if not of 64 channels each.", min=1),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="beit3.spm; by default the pulled one.", metavar="FILE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert an official checkpoint to a weights directory.

    Code in the checkpoint is never run.
    """
    import json
    from dataclasses import asdict

    from refcli.cli.output import write_line
    from refcli.recipes.weights import convert_weights

    report = convert_weights(
        file, out=out, kind=kind, dtype=dtype.value, image_size=image_size, heads=heads, tokenizer=tokenizer
    )
    _log_report(report)
    write_line(json.dumps(asdict(report), indent=1, default=str) if as_json else str(report.out))


@app.command("info")
def info_command(name_or_path: NameOrPath, as_json: AsJson = False) -> None:
    """Describe weights: tasks, parameters, origin, licence, scores."""
    import json
    from dataclasses import asdict

    from refcli.cli.output import printable, write_line
    from refcli.recipes.weights import describe_weights

    description = describe_weights(name_or_path)
    listed, info = description.listed, description.info
    if info is None:
        _note_no_home()
    if as_json:
        catalogue, files = listed.to_json() if listed else None, asdict(info) if info else None
        write_line(json.dumps({"catalogue": catalogue, "files": files}, indent=1, default=str))
        return
    lines = (_catalogue_lines(listed) if listed else []) + (_file_lines(info) if info else [])
    if listed is None and info is not None:
        lines.append(("licence", info.licence or UNKNOWN_LICENCE))
    width = max(len(key) for key, _ in lines)
    for key, value in lines:
        write_line(printable(f"{key:{width}}  {value}"))


@app.command("verify")
def verify_command(name_or_path: NameOrPath) -> None:
    """Verify the files of weights: checksums, shapes, finite numbers.

    Prints the directory.
    """
    from refcli.cli.output import log, printable, write_line
    from refcli.recipes.weights import require_intact, verify_weights
    from refcli.weights.checks import unchecked

    directory, problems = verify_weights(name_or_path)
    for problem in problems:
        log(printable(problem))
    require_intact(directory, problems)
    for note in unchecked(directory):
        log(f"note: {note}")
    write_line(str(directory))


def _note_no_home() -> None:
    from refcli.cli.output import log
    from refcli.weights.locate import HOME_VARIABLE, has_home

    if not has_home():
        log(f"note: without a home directory, pulled weights cannot be found; set {HOME_VARIABLE} or HOME")


def _row(listed: ListedWeights) -> tuple[str, ...]:
    entry = listed.entry
    file = f"~{entry.stated_size}" + (" zip" if entry.member else "") if entry.stated_size else ""
    return (
        entry.name,
        ",".join(entry.tasks),
        str(entry.image_size or ""),
        file,
        listed.checksum,
        "yes" if listed.directory else "",
        entry.title,
    )


def _catalogue_lines(listed: ListedWeights) -> list[tuple[str, str]]:
    from refcli.recipes.weights import UNVERIFIED
    from refcli.weights.catalog import Catalog

    entry, origin, tables = listed.entry, listed.origin, Catalog.load().tables
    known = listed.pin or entry
    lines = [("name", entry.name), ("what", entry.title), ("tasks", ", ".join(entry.tasks))]
    if entry.file is not None:
        lines += [("repository", " or ".join(origin.repos)), ("file", entry.file)]
        lines += [("member", entry.member)] if entry.member else []
        lines += [
            ("revision", known.revision or UNVERIFIED),
            ("sha256", known.sha256 or UNVERIFIED),
            ("size", f"{known.num_bytes:,} bytes" if known.num_bytes else f"~{entry.stated_size} ({UNVERIFIED})"),
        ]
    lines += [("image size", f"{entry.image_size} x {entry.image_size}")] if entry.image_size else []
    lines += [("starts from", entry.starts_from)] if entry.starts_from else []
    lines += [("trained on", ", ".join(entry.trained_on))] if entry.trained_on else []
    for name, sets in entry.scores.items():
        table = tables[name]
        source = f"{table.source}; {table.note}" if table.note else table.source
        for data_set, scores in sets.items():
            cells = ", ".join(f"{split} {value:.2f}" for split, value in scores.items())
            lines.append((f"paper {table.metric}", f"{data_set}: {cells} ({source})"))
    lines += [("licence", origin.licence)]
    lines += [("citation", origin.citation)] if origin.citation else []
    lines += [("notes", entry.notes)] if entry.notes else []
    return [*lines, ("directory", str(listed.directory or f"not here; refcli weights pull {entry.name}"))]


def _file_lines(info: WeightsInfo) -> list[tuple[str, str]]:
    lines = [("files", str(info.directory)), ("kind", info.kind), ("answers", ", ".join(info.tasks) or "nothing yet")]
    lines += [("frame", " x ".join(str(side) for side in info.image_size))] if info.image_size else []
    lines += [("stored as", ", ".join(info.dtypes))]
    lines += [("parameters", f"{info.num_parameters:,}")]
    for parts in (info.parameters, info.pretraining_parameters):
        lines += [("", f"{part} {count:,}") for part, count in parts.items()]
    if info.tokenizer:
        lines.append(("tokenizer", info.tokenizer + ("" if info.tokenizer_is_there else ", which is missing")))
    if {"repo", "revision", "file"} <= info.origin.keys():
        lines.append(("pulled from", "{repo}@{revision}/{file}".format_map(info.origin)))
    if info.source:
        source = {**info.source}
        args = ", ".join(f"{name}={value!r}" for name, value in (source.pop("args", None) or {}).items())
        lines.append(("made from", ", ".join(f"{key} {value}" for key, value in source.items())))
        lines.append(("training args", args or "none in the file"))
    lines += [("pretraining", f"{name}={value}") for name, value in info.pretraining.items()]
    lines += [(key.replace("_", " "), _as_text(value)) for key, value in info.training.items()]
    lines += [("scores", f"{split}: {_as_text(figures)}") for split, figures in info.scores.items()]
    return [*lines, ("model sha256", info.sha256), *(("note", note) for note in info.notes)]


def _as_text(value: object) -> str:
    """A value of meta.json as readable text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_as_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_as_text(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else "none" if value is None else str(value)


def _log_report(report: ConversionReport) -> None:
    from refcli.cli.output import log, printable
    from refcli.weights.tokenizers import pulled_tokenizer

    tasks = ", ".join(report.tasks) or "none"
    log(f"{report.kind}: {report.num_parameters:,} parameters as {report.dtype}; tasks: {tasks}")
    for what, names in (("kept apart", report.kept_apart), ("left out", tuple(report.dropped))):
        if names:
            more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
            log(printable(f"{what}: {len(names)} ({', '.join(names[:SHOWN_NAMES])}{more})"))
    for note in report.notes:
        log(printable(note))
    if report.needs_tokenizer:
        or_pull = "" if pulled_tokenizer() else ", or `refcli weights pull beit3-tokenizer`"
        log(f"the model needs its tokenizer: put it into {report.out} as beit3.spm{or_pull}")

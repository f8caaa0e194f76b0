"""`refcli prepare-data`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refcli.cli.options import Set

if TYPE_CHECKING:
    from refcli.data.preparation.plan import Plan
    from refcli.recipes.prepare_data import Preparation

Out = Annotated[Path | None, typer.Option("--out", "-o", help="The store to write to or add to.", metavar="STORE")]
Raw = Annotated[Path | None, typer.Option("--raw", "-r", help="Folder with the files as published.", metavar="DIR")]
Images = Annotated[
    list[Path] | None,
    typer.Option("--images", "-i", help="Folder, zip or tar with images; may be given several times.", metavar="DIR"),
]


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Data sets, e.g. refcoco_unc; see --list.", metavar="[NAME]..."),
    ] = None,
    raw: Raw = None,
    out: Out = None,
    images: Images = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="Only this split; may be given several times.")
    ] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="A file of your own instead of a NAME.", metavar="FILE")
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="auto, refer, grefcoco, referit, flickr, pth, coco, odvg or jsonl.")
    ] = "auto",
    name: Annotated[str | None, typer.Option("--name", help="What to call the data set of --from.")] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option("--with", help="A further file for --from, e.g. instances=FILE.", metavar="ROLE=FILE"),
    ] = None,
    set_: Set = None,
    expressions: Annotated[
        str | None,
        typer.Option("--expressions", help="category: class names are the expressions (coco, odvg).", metavar="WHAT"),
    ] = None,
    check_images: Annotated[bool, typer.Option("--check-images", help="Decode every image, compare sizes.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail, writing nothing, where anything is missing, broken or miscounted.")
    ] = False,
    reproduce_paper: Annotated[
        bool, typer.Option("--reproduce-paper", help="Mixtures keep training images that are in evaluation splits.")
    ] = False,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Mixtures are made although evaluation splits to keep out are missing."),
    ] = False,
    workers: Annotated[int, typer.Option("--workers", help="Processes that work.", min=1)] = 1,
    shard: Annotated[
        str | None, typer.Option("--shard", help="Prepare only part i of n; the parts make one split.", metavar="i/n")
    ] = None,
    size: Annotated[int, typer.Option("--size", help="synthetic: images in each --split, or in train.", min=1)] = 2000,
    seed: Annotated[int, typer.Option("--seed", help="synthetic: other seeds give other images.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Do again what is unchanged.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be read and written.")] = False,
    verify: Annotated[
        Path | None, typer.Option("--verify", help="Compare a store with its manifest and leave.", metavar="STORE")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the data sets and leave.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Read expressions, boxes and masks of data sets, check them, and write them into a store.

    Splits that the store already has stay; one of the same name is replaced, unless nothing has changed.
    """
    from refcli.cli import prepare_report as show
    from refcli.cli.output import write_line
    from refcli.errors import ExitCode, UsageError

    if list_:
        show.data_sets(as_json)
        return
    if verify is not None:
        show.verification(verify)
        return
    if bool(names) == bool(from_):
        raise UsageError(
            "name data sets, or give one file with --from", where="NAME", hint="see `refcli prepare-data --list`"
        )
    if out is None:
        raise UsageError("no store is named", where="--out", hint="add --out STORE")
    if out.exists() and not out.is_dir():
        raise UsageError("the store must be a directory", where=f"--out {out}", hint="name another place")
    if split and len(set(split)) < len(split):
        raise UsageError(f"a split is named twice: {', '.join(split)}", where="--split")
    for root in images or ():
        if not root.exists():
            raise UsageError("there is no such folder or archive", where=f"--images {root}")

    from refcli.config.load import apply_overrides
    from refcli.data.preparation.plan import plan_file, plan_named
    from refcli.data.shard import Shard
    from refcli.recipes.prepare_data import Preparation

    how = Preparation(
        out=out,
        images=tuple(images or ()),
        splits=tuple(split) if split else None,
        workers=workers,
        shard=None if shard is None else Shard.parse(shard),
        check_images=check_images,
        strict=strict,
        force=force,
    )
    overrides = apply_overrides({}, set_ or [])
    if expressions is not None:
        overrides["expressions"] = _expressions(expressions)
    kind_of = {each: _kind(each) for each in names or ()}
    kinds = set(kind_of.values()) or {"file"}
    for is_given, option, users in (
        (raw is not None, "--raw", {"published"}),
        (bool(images), "--images", {"published", "file"}),
        (shard is not None, "--shard", {"published", "file"}),
        (expressions is not None, "--expressions", {"published", "file"}),
        (bool(set_), "--set", {"published", "file", "generated"}),
        (name is not None, "--name", {"file"}),
        (bool(with_), "--with", {"file"}),
        (format_ != "auto", "--format", {"file"}),
        (reproduce_paper, "--reproduce-paper", {"mixture"}),
        (allow_missing, "--allow-missing", {"mixture"}),
    ):
        if is_given and not kinds & users:
            raise UsageError(
                f"{option} does nothing here", where=option, hint=f"it is for {' and '.join(sorted(users))} data sets"
            )
    if check_images and not images and kinds & {"published", "file"}:
        raise UsageError("there are no images to check", where="--check-images", hint="add --images DIR")
    done: list[dict[str, Any]] = []
    if from_ is not None:
        if not name:
            raise UsageError("the data set of --from has no name", where="--name", hint="add --name my_set")
        only = split[0] if split else None
        plan = plan_file(from_, name=name, form=format_, split=only, beside=_roles(with_), overrides=overrides)
        done += _carry_out(plan, how, dry_run)
    for each, kind in kind_of.items():
        if kind == "mixture":
            done += show.mixed(each, how, keep_leaks=reproduce_paper, allow_missing=allow_missing, dry_run=dry_run)
        elif kind == "generated":
            done += show.generated(each, how, size=size, seed=seed, overrides=overrides, dry_run=dry_run)
        elif raw is None:
            hint = f"refcli prepare-data {each} --raw DIR ..."
            raise UsageError(f"{each} is read from its published files", where="--raw", hint=hint)
        else:
            done += _carry_out(plan_named(each, raw=raw, splits=split, overrides=overrides), how, dry_run)
    audit = None
    if not dry_run:
        audit = show.overlaps(out, {one["dataset"] for one in done}, check_images=check_images, workers=workers)
    if as_json:
        show.as_json(out, done, audit)
    elif not dry_run:
        write_line(str(out))
    if any(one.get("lost_masks") for one in done):
        raise typer.Exit(int(ExitCode.PARTIAL))


def _kind(name: str) -> str:
    """Where a data set comes from: "published" files, a "mixture" of splits, or "generated"."""
    from refcli.data.sources.table import GENERATORS
    from refcli.data.spec import load_spec

    spec = load_spec(name)
    if spec.mixture:
        return "mixture"
    return "generated" if spec.source in GENERATORS else "published"


def _carry_out(plan: Plan, how: Preparation, dry_run: bool) -> list[dict[str, Any]]:
    from refcli.cli import prepare_report as show
    from refcli.cli.output import log
    from refcli.recipes.prepare_data import prepare

    if dry_run:
        return show.plan(plan, how)
    for note in plan.notes:
        log(note)
    with show.Counting() as bar:
        report = prepare(plan, how, progress=bar.read)
    show.report(report)
    return [report.to_json()]


def _expressions(what: str) -> str:
    from refcli.errors import UsageError

    if what not in ("given", "category"):
        raise UsageError(
            "expressions are the texts in the file (given) or the names of classes (category)",
            where=f"--expressions {what}",
            hint="--expressions category",
        )
    return what


def _roles(pairs: Sequence[str] | None) -> dict[str, Path]:
    from refcli.errors import UsageError

    roles = {}
    for pair in pairs or ():
        role, equals, file = pair.partition("=")
        if not (role and equals and file):
            raise UsageError("a further file is role=FILE", where=f"--with {pair}", hint="--with instances=FILE")
        roles[role] = Path(file)
    return roles

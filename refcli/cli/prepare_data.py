"""`refcli prepare-data`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refcli.cli.options import Set
from refcli.cli.output import log, write_line
from refcli.data.sources.table import SOURCES
from refcli.errors import DataError, ExitCode, UsageError

if TYPE_CHECKING:
    from refcli.data.preparation.plan import FilePlan, GeneratedPlan, MixturePlan, Plan
    from refcli.recipes.prepare_data import Preparation


@dataclass(frozen=True)
class PrepareOptions:
    """The options of the command."""

    names: tuple[str, ...]
    file: str | None
    """A path, or an hf:// address; as is `raw`."""
    format: str
    dataset: str | None
    beside: tuple[str, ...]
    """Further files of a custom data set, as ROLE=FILE."""
    overrides: tuple[str, ...]
    expressions: str | None
    not_exhaustive: bool
    raw: str | None
    download: bool
    out: Path | None
    images: tuple[Path, ...]
    splits: tuple[str, ...]
    check_images: bool
    strict: bool
    keep_leaks: bool
    allow_missing: bool
    workers: int
    shard: str | None
    size: int
    seed: int | None
    force: bool
    dry_run: bool
    as_json: bool


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Data sets, e.g. refcoco_unc; see --list.", metavar="[NAME]..."),
    ] = None,
    raw: Annotated[
        str | None,
        typer.Option(
            "--raw", "-r", help="Folder with the files as published, or hf://datasets/ORG/NAME.", metavar="DIR|hf://..."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The store to write to or add to.", metavar="STORE")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images", "-i", help="Folder, zip or tar with images; may be given several times.", metavar="DIR"
        ),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="Only this split; may be given several times.")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Your own file or folder instead of a NAME, or hf://datasets/ORG/NAME[@REV][/FOLDER] with Parquet.",
            metavar="FILE|hf://...",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download the missing files of hf:// addresses.")
    ] = False,
    format_: Annotated[
        str, typer.Option("--format", help=f"auto, or the format of --from: {', '.join(SOURCES)}.", metavar="FORMAT")
    ] = "auto",
    name: Annotated[str | None, typer.Option("--name", help="Name of the data set of --from.")] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option("--with", help="A further file for --from, e.g. instances=FILE.", metavar="ROLE=FILE"),
    ] = None,
    set_: Set = None,
    expressions: Annotated[
        str | None,
        typer.Option(
            "--expressions",
            help="For labelled boxes: category (class names) or template (refcli writes them).",
            metavar="WHAT",
        ),
    ] = None,
    not_exhaustive: Annotated[
        bool,
        typer.Option("--not-exhaustive", help="template: not every object of the classes is labelled."),
    ] = False,
    check_images: Annotated[bool, typer.Option("--check-images", help="Decode every image, compare sizes.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail, writing nothing, if anything is missing, broken or miscounted.")
    ] = False,
    reproduce_paper: Annotated[
        bool, typer.Option("--reproduce-paper", help="Mixtures keep training images that are in evaluation splits.")
    ] = False,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Write mixtures although some evaluation splits are not in the store."),
    ] = False,
    workers: Annotated[int, typer.Option("--workers", help="Number of processes.", min=1)] = 1,
    shard: Annotated[
        str | None, typer.Option("--shard", help="Prepare only part I of N; the parts form one split.", metavar="I/N")
    ] = None,
    size: Annotated[int, typer.Option("--size", help="synthetic: images in each --split, or in train.", min=1)] = 2000,
    seed: Annotated[
        int | None, typer.Option("--seed", help="synthetic, template: seed of the random choices.", min=0)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Repeat unchanged work.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and splits that would be read and written.")
    ] = False,
    verify: Annotated[
        Path | None, typer.Option("--verify", help="Compare a store with its manifest and exit.", metavar="STORE")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the data sets and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Convert data sets into a store of checked examples.

    Other splits in the store stay; a split of the same name is replaced if anything has changed.
    """
    if list_:
        _list_datasets(as_json)
        return
    if verify is not None:
        _verify(verify)
        return
    _prepare(
        PrepareOptions(
            names=tuple(names or ()),
            file=None if from_ is None else str(from_),
            format=format_,
            dataset=name,
            beside=tuple(with_ or ()),
            overrides=tuple(set_ or ()),
            expressions=expressions,
            not_exhaustive=not_exhaustive,
            raw=None if raw is None else str(raw),
            download=download,
            out=out,
            images=tuple(images or ()),
            splits=tuple(split or ()),
            check_images=check_images,
            strict=strict,
            keep_leaks=reproduce_paper,
            allow_missing=allow_missing,
            workers=workers,
            shard=shard,
            size=size,
            seed=seed,
            force=force,
            dry_run=dry_run,
            as_json=as_json,
        )
    )


def _list_datasets(as_json: bool) -> None:
    from refcli.data.spec import list_specs, load_spec

    specs = {name: load_spec(name) for name in list_specs()}
    if as_json:
        write_line(json.dumps([{"name": name, **spec.model_dump(mode="json")} for name, spec in specs.items()]))
        return
    for name, spec in specs.items():
        write_line(f"{name}  {spec.description} [{spec.licence}]")


def _verify(store: Path) -> None:
    from refcli.data.preparation.origin import verify_store

    differences = verify_store(store)
    for line in differences:
        log(line)
    if differences:
        raise DataError(
            f"{len(differences)} files differ from the manifest", where=str(store), hint="prepare those splits again"
        )
    write_line(str(store))


def _prepare(options: PrepareOptions) -> None:
    from refcli.cli.audit import show_overlaps
    from refcli.cli.preparation_report import show_report
    from refcli.cli.progress import ProgressBars
    from refcli.data.preparation.plan import FilePlan
    from refcli.recipes.audit import audit
    from refcli.recipes.prepare_data import DatasetReport, prepare

    preparation = _preparation(options)
    _refuse_unused(options)
    if options.dry_run:
        documents = [_show_plan(plan, preparation) for plan in _plans(options)]
        if options.as_json:
            write_line(json.dumps({"store": str(options.out), "datasets": documents, "audit": None}))
        return
    reports = []
    for plan in _plans(options):
        for note in plan.notes if isinstance(plan, FilePlan) else ():
            log(note)
        with ProgressBars() as bars:
            reports.append(prepare(plan, preparation, progress=bars.show))
        show_report(reports[-1])
    datasets = {report.dataset for report in reports}
    found = audit(preparation.out, only=datasets, check_images=options.check_images, workers=options.workers)
    show_overlaps(found, datasets)
    if options.as_json:
        documents = [report.to_json() for report in reports]
        write_line(json.dumps({"store": str(options.out), "datasets": documents, "audit": found.to_json()}))
    else:
        write_line(str(options.out))
    if any(isinstance(report, DatasetReport) and report.exit_code for report in reports):
        raise typer.Exit(int(ExitCode.PARTIAL))


def _preparation(options: PrepareOptions) -> Preparation:
    """The settings that all data sets share.

    Raises:
        UsageError: an option is missing or has an impossible value.
    """
    from refcli.data.shard import Shard
    from refcli.recipes.prepare_data import Preparation

    if bool(options.names) == (options.file is not None):
        raise UsageError(
            "name data sets, or give one file with --from", where="NAME", hint="see `refcli prepare-data --list`"
        )
    if options.out is None:
        raise UsageError("no store is given", where="--out", hint="add --out STORE")
    for root in options.images:
        if not root.exists():
            raise UsageError("there is no such folder or archive", where=f"--images {root}")
    return Preparation(
        out=options.out,
        images=options.images,
        splits=options.splits or None,
        workers=options.workers,
        shard=None if options.shard is None else Shard.parse(options.shard),
        check_images=options.check_images,
        strict=options.strict,
        force=options.force,
    )


def _refuse_unused(options: PrepareOptions) -> None:
    """Refuse options that have no effect on any of the data sets.

    Raises:
        UsageError: there is such an option.
    """
    from refcli.data.preparation.plan import origin_of

    origins = {str(origin_of(name)) for name in options.names} or {"file"}
    for is_given, option, users in (
        (options.raw is not None, "--raw", {"published"}),
        (bool(options.images), "--images", {"published", "file"}),
        (options.shard is not None, "--shard", {"published", "file"}),
        (options.expressions is not None, "--expressions", {"published", "file"}),
        (bool(options.overrides), "--set", {"published", "file", "generated"}),
        (options.dataset is not None, "--name", {"file"}),
        (bool(options.beside), "--with", {"published", "file"}),
        (options.format != "auto", "--format", {"file"}),
        (options.keep_leaks, "--reproduce-paper", {"mixture"}),
        (options.allow_missing, "--allow-missing", {"mixture"}),
    ):
        if is_given and not origins & users:
            raise UsageError(
                f"{option} has no effect here", where=option, hint=f"it is for {' and '.join(sorted(users))} data sets"
            )
    if options.download and not any(str(place).startswith("hf:") for place in (options.file, options.raw)):
        raise UsageError("--download has no effect here", where="--download", hint="it is for hf:// addresses")
    if (
        options.check_images
        and not options.images
        and not _may_hold_images(options)
        and origins & {"published", "file"}
    ):
        raise UsageError("there are no images to check", where="--check-images", hint="add --images DIR")


def _may_hold_images(options: PrepareOptions) -> bool:
    """Whether the annotation files may contain images."""
    from refcli.data.sources.parquet.files import is_parquet
    from refcli.data.spec import load_spec

    specs = map(load_spec, options.names)
    is_custom = options.file is not None and (options.file.startswith("hf:") or is_parquet(Path(options.file)))
    return is_custom or any(spec.source == "parquet" for spec in specs)


def _plans(options: PrepareOptions) -> Iterator[Plan]:
    """The plans, in order; each is made when its turn comes, so that an error stops only later data sets."""
    from refcli.data.preparation.plan import FilePlan, plan_file, plan_named, with_files

    overrides = _overrides(options)
    if options.file is not None:
        if not options.dataset:
            raise UsageError("the data set of --from has no name", where="--name", hint="add --name my_set")
        file, hub = _located(options.file, options)
        found = plan_file(
            file,
            name=options.dataset,
            form=options.format,
            split=options.splits[0] if options.splits else None,
            beside=_roles(options.beside),
            overrides=overrides,
        )
        yield replace(found, hub=hub)
    raw, hub = (None, None) if options.raw is None else _located(options.raw, options)
    for name in options.names:
        plan = plan_named(
            name,
            raw=raw,
            splits=options.splits or None,
            overrides=overrides,
            size=options.size,
            seed=options.seed or 0,
            keep_leaks=options.keep_leaks,
            allow_missing=options.allow_missing,
        )
        yield replace(with_files(plan, _roles(options.beside)), hub=hub) if isinstance(plan, FilePlan) else plan


def _located(place: str, options: PrepareOptions) -> tuple[Path, dict[str, str | None] | None]:
    """The path of --from or --raw, and the origin of a data set on the Hub."""
    from refcli.recipes.hub_datasets import SCHEME, fetch_dataset

    if not place.startswith(SCHEME.partition("//")[0]):
        return Path(place), None
    found = fetch_dataset(place, names=options.names, download=options.download, report=log)
    return found.path, found.origin()


def _overrides(options: PrepareOptions) -> dict[str, Any]:
    """The settings of the source that options change.

    Raises:
        UsageError: an option has an impossible value, or no effect without others.
    """
    from refcli.config.load import apply_overrides
    from refcli.data.preparation.plan import origin_of

    overrides = apply_overrides({}, list(options.overrides))
    if options.expressions is not None:
        overrides["expressions"] = _expressions(options.expressions)
    is_template = overrides.get("expressions") == "template"
    is_generated = any(origin_of(name) == "generated" for name in options.names)
    for is_given, option, is_used in (
        (options.not_exhaustive, "--not-exhaustive", is_template),
        (options.seed is not None, "--seed", is_template or is_generated),
    ):
        if is_given and not is_used:
            raise UsageError(f"{option} has no effect here", where=option, hint="add --expressions template")
    if options.not_exhaustive:
        overrides["exhaustive"] = False
    if is_template and options.seed is not None:
        overrides["seed"] = options.seed
    return overrides


def _expressions(what: str) -> str:
    if what not in ("given", "category", "template"):
        raise UsageError(
            "expressions are the texts in the file (given), the names of classes (category), or written from classes, "
            "positions, sizes and colours (template)",
            where=f"--expressions {what}",
            hint="--expressions category",
        )
    return what


def _roles(pairs: Sequence[str]) -> dict[str, Path]:
    roles = {}
    for pair in pairs:
        role, equals, file = pair.partition("=")
        if not (role and equals and file):
            raise UsageError("a further file must be ROLE=FILE", where=f"--with {pair}", hint="--with instances=FILE")
        roles[role] = Path(file)
    return roles


def _show_plan(plan: Plan, preparation: Preparation) -> dict[str, Any]:
    """Show the files and splits that would be read and written; returns them as plain data."""
    from refcli.data.preparation.plan import FilePlan, MixturePlan

    if isinstance(plan, FilePlan):
        _show_file_plan(plan, preparation)
    elif isinstance(plan, MixturePlan):
        _show_mixture_plan(plan)
    else:
        _show_generated_plan(plan, preparation)
    return plan.to_json()


def _show_file_plan(plan: FilePlan, preparation: Preparation) -> None:
    for note in plan.notes:
        log(note)
    log(f"{plan.dataset}: format {plan.source_name}, settings {plan.settings.model_dump(mode='json')}")
    for role, path in plan.files.items():
        log(f"  would read {role}: {path}")
    known = tuple(plan.spec.splits) if plan.spec else ()
    splits = preparation.splits or known or ("every split of the files",)
    log(f"  would write {', '.join(splits)} to {preparation.out / plan.dataset}")
    log(f"  images: {', '.join(map(str, preparation.images)) or 'not searched for'}")


def _show_mixture_plan(plan: MixturePlan) -> None:
    for split, members in plan.spec.mixture.items():
        log(f"{plan.dataset}:{split} would be {' + '.join(members)}")


def _show_generated_plan(plan: GeneratedPlan, preparation: Preparation) -> None:
    splits = ", ".join(preparation.splits or ("train", "val", "test"))
    log(f"{plan.dataset}: would generate {plan.size} images with seed {plan.settings.seed} for {splits}")

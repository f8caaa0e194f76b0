"""`refcli demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refcli.cli.options import Device, OutForce, OutResume

if TYPE_CHECKING:
    from refcli.recipes.demo import DemoRow


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="The output folder.", metavar="DIR")] = Path("refcli-demo"),
    scenes: Annotated[int, typer.Option("--scenes", help="Number of scenes to draw.", min=1, max=500)] = 6,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the scenes.", min=0)] = 0,
    device: Device = None,
    resume: OutResume = False,
    force: OutForce = False,
) -> None:
    """Try refcli offline on new synthetic scenes."""
    from shlex import quote

    from refcli.cli.output import log, write_line
    from refcli.recipes.demo import demo
    from refcli.recipes.predict import Output

    rows = demo(Output(out, force=force, resume=resume), num_scenes=scenes, seed=seed, device=device or "auto")
    width = max(len(row.expression) for row in rows)
    write_line(f"{'expression':{width}}  {'kind':11}  {'answer':9}  score  IoU with the truth")
    for row in rows:
        write_line(_line(row, width))
    write_line(f"{sum(row.is_right for row in rows)} of {len(rows)} right")
    log(f"wrote {out / 'contact_sheet.png'}; scenes, overlays, masks and predictions.jsonl are in the same folder")
    found = next((row for row in rows if not row.answer.no_target), rows[0])
    scene, mine = quote(str(out / found.scene)), quote(str(out / "mine"))
    log(f'to ask your own: refcli predict {scene} -e "{found.expression}" --out {mine}')


def _line(row: DemoRow, width: int) -> str:
    answer = row.answer
    verdict = "no target" if answer.no_target else "found"
    score = answer.no_target_score if answer.no_target else answer.targets[0].score
    certainty = "" if score is None else f"{score:.0%}"
    if row.iou is None:
        outcome = f"{'right' if row.is_right else 'wrong'}: there is no target"
    else:
        outcome = f"{row.iou:.2f}{'' if row.is_right else '  (missed)'}"
    return f"{row.expression:{width}}  {row.kind:11}  {verdict:9}  {certainty:>5}  {outcome}"

"""Cases as figures of a page: the drawing, what was said and how it went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from refcli.errors import ImageError
from refcli.evaluation.case_drawing import case_jpeg
from refcli.evaluation.cases import Case, Cases
from refcli.evaluation.markup import figure, picture, text
from refcli.evaluation.scores import says_none

PICTURE_BYTES = 3_000_000
"""All drawings of a page together; base64 makes four bytes of three."""
LEGEND = (
    '<p class="small soft"><span class="key truth" style="margin-left:0"></span>truth'
    '<span class="key answer"></span>answer, before a "no target". IoU in %.</p>'
)
WORST = 'The worst: the mean of box and mask IoU, 0 after a wrong "no target". Equally bad ones are in random order.'
RANDOM = "Drawn at random from all samples that count; the seed is fixed."


def bytes_per_picture(cases: Mapping[str, Cases]) -> int:
    """What one drawing may take so that the page stays small."""
    return PICTURE_BYTES // max(sum(len(part.worst) + len(part.random) for part in cases.values()), 1)


def cases_section(cases: Cases, *, max_bytes: int) -> str:
    """The worst and the random cases of one split, each at most so many bytes."""
    return "\n".join(
        [
            *_gallery("Worst cases", WORST, cases.worst, max_bytes),
            *_gallery("Random cases", RANDOM, cases.random, max_bytes),
        ]
    )


def _gallery(title: str, about: str, cases: Sequence[Case], max_bytes: int) -> list[str]:
    if not cases:
        return []
    drawn = [_case_figure(case, max_bytes) for case in cases]
    figures = [one for one in drawn if one is not None]
    parts = [f"<h3>{title}</h3>", f'<p class="small soft">{text(about)}</p>']
    if len(figures) < len(cases):
        missing = f"{len(cases) - len(figures)} of {len(cases)} are left out: their images cannot be read."
        parts.append(f"<p>{missing}</p>")
    if figures:
        parts += [LEGEND, '<div class="cases">', *figures, "</div>"]
    return parts


def _case_figure(case: Case, max_bytes: int) -> str | None:
    """None where the image cannot be read."""
    try:
        jpeg = case_jpeg(case, max_bytes=max_bytes)
    except ImageError:
        return None
    example = case.example
    about = " · ".join(text(one) for one in (example.id, example.kind) if one)
    return (
        f"<figure>{picture(jpeg, alt=f'{example.expression}: truth and answer')}<figcaption>"
        f'<div class="says" dir="auto">{text(example.expression)}</div>'
        f'<div class="small">{_verdict(case)}</div><div class="small soft">{about}</div></figcaption></figure>'
    )


def _verdict(case: Case) -> str:
    """How it went, as markup."""
    answer, regions = case.answer, len(case.example.regions)
    if answer is None:
        return '<span class="bad">no usable answer</span>'
    none = says_none(answer)
    parts = []
    if regions and none:
        parts.append('<span class="bad">says "no target"</span>')
    if regions:
        for name, iou in (("box IoU", case.box_iou), ("mask IoU", case.mask_iou)):
            if not math.isnan(iou):
                parts.append(f'<span class="{"good" if iou >= 0.5 else "bad"}">{name} {figure(iou, decimals=1)}</span>')
        if regions > 1 or len(answer.targets) > 1:
            parts.append(f"{regions} meant, {len(answer.targets)} answered")
    else:
        said = '<span class="good">says so</span>' if none else '<span class="bad">answers something</span>'
        parts.append(f"nothing is meant: {said}")
    if answer.no_target_score is not None:
        parts.append(f'"no target" at {figure(answer.no_target_score, decimals=0)} %')
    return " · ".join(parts)

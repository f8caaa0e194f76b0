"""Writers and readers of answers: JSON lines and the files of other tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["answer_from_json", "answer_line", "answer_to_json"]

if TYPE_CHECKING:
    from refcli.answers.jsonl import answer_from_json, answer_line, answer_to_json
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.answers.jsonl": "answer_from_json answer_line answer_to_json",
        },
    )

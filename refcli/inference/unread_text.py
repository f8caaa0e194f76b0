"""Counts of expressions that a model could not read completely, and notes about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from refcli.contracts.prediction import Answer

MAX_WORDS = 8
"""Maximum number of words that a note quotes."""
MAX_LETTERS = 40
"""Maximum length of each of these words."""


class UnreadText:
    """Counts expressions with some unknown words, with only unknown words, and with an end that is cut off."""

    def __init__(self) -> None:
        self.num_expressions = 0
        self.num_partly = 0
        self.num_wholly = 0
        self.num_cut = 0
        self._of_partly: dict[str, None] = {}
        self._of_wholly: dict[str, None] = {}

    def add(self, answer: Answer) -> None:
        """Count the expression of an answer, unless the answer is an error."""
        if answer.error is None:
            self.count(answer.expression, answer.unknown_words, answer.unread_text)

    def count(self, expression: str, unknown_words: Sequence[str], unread_text: str) -> None:
        """Count one expression."""
        self.num_expressions += 1
        self.num_cut += bool(unread_text)
        is_wholly = len(unknown_words) == len(expression.split())
        if is_wholly:
            self.num_wholly += 1
        elif unknown_words:
            self.num_partly += 1
        words = self._of_wholly if is_wholly else self._of_partly
        for word in unknown_words:
            if len(words) <= MAX_WORDS:
                words.setdefault(word.strip(".,;:!?\"'()").lower() or word)

    def notes(self) -> list[str]:
        """One sentence for each kind that occurred."""
        notes = []
        if self.num_wholly:
            notes.append(
                f"the model knows no word of {self._share(self.num_wholly)}; its answers to them are meaningless "
                f"(unknown_words: {_named(self._of_wholly)})"
            )
        if self.num_partly:
            notes.append(
                f"the model does not know all words of {self._share(self.num_partly)} "
                f"(unknown_words: {_named(self._of_partly)})"
            )
        if self.num_cut:
            notes.append(f"the model does not read the end of {self._share(self.num_cut)}: too long (unread_text)")
        return notes

    def _share(self, count: int) -> str:
        return f"{count:,} of {self.num_expressions:,} expression{'' if self.num_expressions == 1 else 's'}"


def _named(unknown: Iterable[str]) -> str:
    words = [word if len(word) <= MAX_LETTERS else word[:MAX_LETTERS] + "..." for word in unknown]
    return ", ".join(words[:MAX_WORDS]) + (", ..." if len(words) > MAX_WORDS else "")

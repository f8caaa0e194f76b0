"""The rows of COCO-style grounding files: MDETR, GLIP, or plain COCO with expressions."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from refcli.data.sources.coco.instances import ANNOTATION_EXTRAS, IMAGE_EXTRAS, NO_MASK, id_of, xywh_to_xyxy
from refcli.data.sources.known_keys import KnownKeys
from refcli.data.sources.rows import NUMBERS_OF_A_BOX, Id, comparable_id
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY

Span = tuple[int, int]
"""Half-open range of characters of a caption."""
EXPRESSION_KEYS = ("expression", "expressions", "referring", "sentences", "caption")
"""Keys of an annotation that hold its expressions: a string, or a list of strings or of REFER's sentences
({"sent": ...}). If there are several, the first in this order is used."""

_Id = int | str


_NO_TYPE = frozenset({"", "0", "none", "null", "false", "no", "positive"})


class _Sentence(msgspec.Struct):
    """A text in REFER's form."""

    sent: str | None = None
    raw: str | None = None
    exist: bool | None = None
    """False: it has no target in the image."""


_Texts = str | list[str | _Sentence] | None


class ImageRow(msgspec.Struct):
    """An image; in the files of MDETR and GLIP, an image with one caption."""

    id: _Id
    file_name: str | None = None
    height: int | None = None
    width: int | None = None
    caption: str | None = None
    dataset_name: str | None = None
    """refcoco, refcoco+, refcocog, flickr, mixed, ..."""
    data_source: str | None = None
    """In mixed files: coco or vg."""
    original_id: _Id | None = None
    """The image's id in COCO or Visual Genome."""
    coco_url: str | None = None

    @property
    def is_of_coco(self) -> bool:
        """Whether `original_id` is a COCO id."""
        return self.data_source == "coco" or "refcoco" in (self.dataset_name or "").lower()


class AnnotationRow(msgspec.Struct):
    """A box in an image row."""

    id: _Id
    image_id: _Id
    bbox: list[float] | None = None
    """Left, top, width, height; empty counts as missing."""
    iscrowd: int | bool = 0
    category_id: _Id | None = None
    empty: bool = False
    no_target: bool | None = None
    exist: bool | None = None
    negative_type: int | str | None = None
    """FineCops-Ref: what makes the expression wrong; given only if it has no target."""
    negative_cate: int | str | None = None
    """FineCops-Ref: whether the text or the image was edited; given with `negative_type`."""
    level: int | str | None = None
    """FineCops-Ref: the difficulty of the expression, 1 to 3."""
    tokens_positive: list[Span | int] | None = None
    """The characters of the image row's caption that refer to this box."""
    original_id: _Id | None = None
    """The annotation's id in COCO."""
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    expression: _Texts = None
    expressions: _Texts = None
    referring: _Texts = None
    sentences: _Texts = None
    caption: _Texts = None

    def check(self) -> None:
        """Check the values that could be read in two ways.

        Raises:
            DataError: `tokens_positive` is neither a list of spans nor a single span, or `negative_type` may stand for
                an expression with a target or is missing beside `negative_cate`.
        """
        if self.negative_type is None and self.negative_cate not in (None, ""):
            raise DataError(f"negative_cate is {self.negative_cate!r}, and there is no negative_type")
        if self.negative_type is not None and str(self.negative_type).casefold() in _NO_TYPE:
            raise DataError(f"negative_type is {self.negative_type!r}: it does not say whether there is a target")
        numbers = [one for one in self.tokens_positive or () if isinstance(one, int)]
        if numbers and (len(numbers) != len(self.tokens_positive or ()) or len(numbers) != len(("begin", "end"))):
            raise DataError("tokens_positive is not a list of [begin, end]")

    @property
    def has_sentences(self) -> bool:
        """Whether a text has REFER's form."""
        given = (getattr(self, key) for key in EXPRESSION_KEYS)
        return any(isinstance(part, _Sentence) for value in given if isinstance(value, list) for part in value)

    @property
    def spans(self) -> list[Span]:
        """The spans of `tokens_positive`, which may be a single span."""
        given = self.tokens_positive or []
        numbers = [one for one in given if isinstance(one, int)]
        return [(numbers[0], numbers[1])] if numbers else [one for one in given if isinstance(one, tuple)]

    @property
    def mask(self) -> bytes | None:
        """The undecoded segmentation, if there is any."""
        text = bytes(self.segmentation)
        return None if text in NO_MASK else text

    def box_xyxy(self, where: str) -> BoxXYXY | None:
        """The box, with pixels counted as in the file.

        Raises:
            DataError: it is not four numbers.
        """
        if not self.bbox:
            return None
        if len(self.bbox) != NUMBERS_OF_A_BOX:
            raise DataError(f"bbox has {len(self.bbox)} numbers", where=where, hint="it needs x, y, width and height")
        x, y, width, height = self.bbox
        return xywh_to_xyxy((x, y, width, height))

    def marks_no_target(self, where: str) -> bool:
        """Whether the row states that the caption has no target in the image.

        The marks are `exist` false and a `negative_type` (whatever the box), `empty`, `no_target`, iscrowd -1, and
        category -1 with a box without extent.

        Raises:
            DataError: the row is marked but has a box.
        """
        if self.exist is False or self.negative_type is not None:
            return True
        has_extent = any(self.bbox[2:]) if self.bbox else False
        if self.empty or self.no_target or self.iscrowd == -1:
            if has_extent or self.mask:
                raise DataError("the annotation is marked as no target but has a box or a mask", where=where)
            return True
        return self.category_id in (-1, "-1") and not has_extent and not self.mask

    def texts(self) -> dict[str, list[tuple[str, bool]]]:
        """Key of `EXPRESSION_KEYS` -> its expressions, each with whether it has a target."""
        found: dict[str, list[tuple[str, bool]]] = {}
        for key in EXPRESSION_KEYS:
            value: _Texts = getattr(self, key)
            parts = [value] if isinstance(value, str) else value or []
            texts = [(part, True) if isinstance(part, str) else _of_sentence(part) for part in parts]
            if kept := [(text, exists) for text, exists in texts if text is not None]:
                found[key] = kept
        return found


_FINECOPS_KEYS = frozenset(
    {"objects_id", "tuple", "tuple_type", "spatial", "attribute", "positive_id", "negative_level", "shuffle_index",
     "ori_type"}
)  # fmt: skip
IMAGE_KEYS = KnownKeys(
    "image",
    frozenset(ImageRow.__struct_fields__),
    IMAGE_EXTRAS
    | {"tokens_negative", "original_img_id", "original_image_id", "sentence_id", "tokens_positive_eval", "tokens",
       "dataset", "question_id", "url"},
)  # fmt: skip
ANNOTATION_KEYS = KnownKeys(
    "annotation",
    frozenset(AnnotationRow.__struct_fields__),
    ANNOTATION_EXTRAS
    | _FINECOPS_KEYS
    | {"phrase_ids", "phrase", "query", "sentence", "image_w", "image_h", "ref_id", "split"},
    has_box=True,
)
SENTENCE_KEYS = KnownKeys("sentence", frozenset(_Sentence.__struct_fields__), frozenset({"sent_id", "tokens"}))


def _of_sentence(sentence: _Sentence) -> tuple[str | None, bool]:
    return sentence.sent or sentence.raw, sentence.exist is not False


def join_words(spans: list[Span], caption: str) -> list[Span]:
    """Join spans that only blanks divide: mixed files have one span per word of a phrase."""
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin >= joined[-1][1] and not caption[joined[-1][1] : begin].strip():
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return list(dict.fromkeys(joined))


def have_several_phrases(images: Iterable[ImageRow], rows: Iterable[AnnotationRow]) -> bool:
    """Whether the annotations of one of the captions mark different words, so that each is of a phrase."""
    captions = {comparable_id(image.id): image.caption for image in images if image.caption is not None}
    marked: dict[Id, list[Span]] = {}
    for row in rows:
        identity = comparable_id(row.image_id)
        if identity in captions and row.spans:
            words = join_words(row.spans, captions[identity])
            if marked.setdefault(identity, words) != words:
                return True
    return False


class _Target(msgspec.Struct):
    image_id: msgspec.Raw = msgspec.Raw(b"null")
    category_id: msgspec.Raw = msgspec.Raw(b"null")


def target_of(raw: msgspec.Raw) -> tuple[Id | None, Id | None]:
    """Image and category of a row that cannot be used, as far as they are readable."""
    try:
        target = msgspec.json.decode(raw, type=_Target)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None, None
    return id_of(target.image_id), id_of(target.category_id)

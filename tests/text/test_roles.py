"""Subject and object are found in referring expressions of all corpora, and in their word pieces."""

import io
import sys
from types import SimpleNamespace

import pytest
import sentencepiece as spm

from refcli.config.schema import TextSettings
from refcli.errors import ConfigError
from refcli.text.roles import Roles, SpacyRoles, find_roles, role_finder, roles_of_parse
from refcli.text.tokenizer import Tokenizer

EXPRESSIONS = """
the small striped red star left of the green ring | star  | ring
man in blue holding a bat                      | man      | bat
second zebra from the left                     | zebra    |
both stars                                     | stars    |
woman who is eating pizza                      | woman    | pizza
left guy                                       | guy      |
sky top left                                   | sky      |
grass bottom right corner                      | grass    |
man's left hand                                | hand     |
the baseball player's glove                    | glove    |
girl white dress                               | girl     | dress
man hat                                        | man      | hat
blue shirt lady with purse                     | lady     | purse
dark-haired woman                              | woman    |
the one in red                                 | one      | red
man in second row                              | man      |
woman in pink top                              | woman    | pink
the third one from the bottom                  | one      |
one of the men in the back row                 | men      |
left side of the couch                         | couch    |
in red shirt                                   |          | shirt
far right                                      |          |
bunch of bananas on right                      | bananas  |
the bowl of soup closest to the camera         | bowl     | soup
orange on left                                 | orange   |
large orange ring                              | ring     |
the tallest                                    | tallest  |
3rd guy from left                              | guy      |
guy w/ glasses                                 | guy      | glasses
lady on right hand side                        | lady     |
black and white cat on the couch               | cat      | couch
this is a red car                              | car      |
a giraffe eating leaves from a tree            | giraffe  | leaves
a woman holds a cup                            | woman    | cup
man about to hit the ball                      | man      | ball
the chair that the cat sits on                 | chair    | cat
the person whose head is cut off               | person   | head
a boy who skis                                 | boy      |
umbrella held by woman in pink                 | umbrella | woman
car parked behind the bus                      | car      | bus
dining table                                   | table    |
white car on the left side of the picture      | car      |
a group of young men playing soccer            | men      | soccer
an older man in a white t-shirt                | man      | t-shirt
a blue , white and red uniform                 | uniform  |
his hand                                       | hand     |
a brown teddy bear sitting on a chair          | bear     | chair
everything except the red circle               | everything | circle
the spotted thing that is not red              | thing    |
the outlined one that is left of the cyan arrow | one     | arrow
""".strip().splitlines()


def printed(expression, span):
    return None if span is None else expression[slice(*span)]


@pytest.fixture(scope="module")
def builtin() -> Tokenizer:
    return Tokenizer.load(TextSettings())


def roles_by_piece(tokenizer, expression, **settings):
    """(piece, role) of an expression, the special tokens left out."""
    pieces = spm.SentencePieceProcessor(model_proto=tokenizer.model).encode(expression.lower(), out_type=str)
    roles = tokenizer.piece_roles([expression], **settings)[0].tolist()
    assert roles[0] == roles[-1] == 0
    return list(zip(pieces, roles[1:-1], strict=True))


@pytest.mark.parametrize("line", EXPRESSIONS)
def test_subject_and_object_are_found(line):
    expression, subject, relative = (part.strip() or None for part in line.split("|"))
    roles = find_roles(expression)
    assert (printed(expression, roles.subject), printed(expression, roles.object)) == (subject, relative)


def test_case_does_not_matter_and_spans_are_of_the_text_as_given():
    assert find_roles("The  Red STAR, left of\tthe Ring") == Roles((9, 13), (27, 31))


@pytest.mark.parametrize("nothing", ["", "   ", "?!", "the", "of of of", "who", "'s", "東京"])
def test_text_that_is_no_expression_is_no_error(nothing):
    roles = find_roles(nothing)
    assert roles.object is None
    assert roles.subject is None or nothing[slice(*roles.subject)].strip()


def test_all_pieces_of_a_word_have_its_role(builtin):
    found = roles_by_piece(builtin, "The big Zebra left of a ring")
    zebra = [piece for piece, role in found if role == 1]
    assert len(zebra) > 1 and "".join(zebra).lstrip("▁") in ("zebra", "ebra")
    assert [piece for piece, role in found if role == 2] == ["▁ring"]


def test_roles_stay_on_their_words_among_signs_that_are_normalised(builtin):
    found = roles_by_piece(builtin, "  the ﬁrst ½ ring,   «» 𝄞 with the star ")
    assert [piece for piece, role in found if role == 1] == ["▁ring"]
    assert [piece for piece, role in found if role == 2] == ["▁star"]


def test_roles_are_aligned_with_the_ids_of_a_batch(builtin):
    expressions = ["red star", "the small striped star left of the green ring", "far left"]
    ids, is_pad = builtin.encode_batch(expressions)
    roles = builtin.piece_roles(expressions)
    assert roles.shape == ids.shape
    assert not roles[is_pad].any() and not roles[2].any()
    star, ring = builtin.encode("star")[1], builtin.encode("ring")[1]
    assert (ids[roles == 1] == star).all() and (roles == 1).sum() == 2
    assert (ids[roles == 2] == ring).all() and (roles == 2).sum() == 1


def test_truncated_words_have_no_role(builtin):
    short = Tokenizer(builtin.model, max_tokens=6)
    expressions = ["the small striped red star left of the green ring", "star under a ring in the middle"]
    roles = short.piece_roles(expressions)
    assert roles.shape == short.encode_batch(expressions)[0].shape == (2, 6)
    assert roles.tolist() == [[0] * 6, [0, 1, 0, 0, 2, 0]]


def test_another_finder_can_be_given(builtin):
    found = roles_by_piece(builtin, "RED star", find=lambda text: Roles((0, text.index("d") + 1), None))
    assert found == [("▁red", 1), ("▁star", 0)]


def parsed(*words):
    """A spaCy document: (text, dependency) of each word, blanks between."""
    starts = [sum(len(text) + 1 for text, _ in words[:number]) for number in range(len(words))]
    return [SimpleNamespace(text=text, dep_=dep, idx=start) for (text, dep), start in zip(words, starts, strict=True)]


def test_dependencies_become_roles_as_in_the_official_code():
    clause = parsed(("a", "det"), ("man", "nsubj"), ("holds", "ROOT"), ("a", "det"), ("bat", "dobj"), ("he", "nsubj"))
    assert roles_of_parse(clause) == Roles((2, 5), (14, 17))
    phrase = parsed(("star", "ROOT"), ("under", "prep"), ("ring", "pobj"), ("of", "prep"), ("gold", "pobj"))
    assert roles_of_parse(phrase) == Roles((0, 4), (11, 15))
    assert roles_of_parse(parsed(("star", "ROOT"))) == Roles((0, 4), None)
    assert roles_of_parse([]) == Roles(None, None)


def test_the_parser_of_the_settings_is_used(monkeypatch):
    loaded = []

    def load(name):
        loaded.append(name)
        return lambda text: parsed(*((word, "pobj" if word == "ring" else "ROOT") for word in text.split()))

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    find = SpacyRoles("a model for this test")
    assert find("star under ring") == Roles((0, 4), (11, 15))
    assert find("ring") == Roles(None, (0, 4))
    assert loaded == ["a model for this test"]
    assert role_finder("rules") is find_roles


def test_spacy_or_its_model_missing_is_a_config_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ConfigError, match=r"spaCy is not installed[\s\S]*refcli\[spacy\]"):
        role_finder("spacy")

    def load(name):
        raise OSError(f"[E050] Can't find model '{name}'.")

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    with pytest.raises(ConfigError, match=r"en_core_web_md is not installed[\s\S]*spacy download en_core_web_md"):
        role_finder("spacy")


def test_a_word_cut_into_pieces_elsewhere_than_at_blanks_keeps_its_role():
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["a man holding a bat", "the striped umbrella"] * 50), model_writer=model,
        model_type="char", vocab_size=20, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    tokenizer = Tokenizer(model.getvalue(), max_tokens=64)
    found = roles_by_piece(tokenizer, "striped umbrella, a bat")
    assert "".join(piece for piece, role in found if role == 1) == "umbrella"
    assert "".join(piece for piece, role in found if role == 2) == "bat"

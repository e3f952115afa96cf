"""What models are run on: token classes, shipped probes, and users' files."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from catalog.errors import InputError, ModelError
from ingest.probes import haystack
from ingest.probes.classes import NAMES, TokenClasses, declared
from ingest.probes.files import from_file
from ingest.probes.sequences import Encoded, Needle, Vocabulary
from ingest.probes.shipped import shipped

PLAIN = TokenClasses()
TEXTS = {
    "#": {"hash", "punctuation"},
    " ##": {"hash", "punctuation"},
    "#1": set(),
    "*": {"star", "punctuation"},
    "**\n": {"star", "punctuation", "newline"},
    "*.": {"punctuation"},
    "\n\n": {"newline", "whitespace"},
    "\r\n": {"newline", "whitespace"},
    "   ": {"whitespace"},
    "\t": {"whitespace"},
    "12": {"digit"},
    " 7": {"digit"},
    "\u0663": set(),  # a digit, and none of ASCII's
    "1.": set(),
    ".\n": {"punctuation", "newline"},
    "\u2014": set(),  # a dash, and no punctuation of ASCII
    " word": set(),
    "a\nb": {"newline"},
}
"""Classes of a token by its text, from the definitions."""


def vocabulary(
    pieces: Sequence[str], *, context: int | None = 512, bos: str | None = None
) -> Vocabulary:
    """Whose tokens are these texts; unknown text is the first of them, `<unk>`."""
    ids = {piece: index for index, piece in enumerate(["<unk>", "<s>", *pieces])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token=bos)
    return Vocabulary(tokenizer=made, size=len(ids), context=context)


def words(*, context: int | None = 256) -> Vocabulary:
    return Vocabulary(tokenizer=tiny.tokenizer(), size=tiny.VOCABULARY, context=context)


def byte_level() -> Vocabulary:
    """A token per byte, as byte-level BPE has them without merges, and one more."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    made.add_tokens(["##"])
    return Vocabulary(tokenizer=made, size=len(made), context=4096)


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def encoded(path: Path, vocabulary: Vocabulary, classes: TokenClasses = PLAIN) -> Encoded:
    return from_file(path, classes).encode(vocabulary)


class TestClasses:
    @pytest.mark.parametrize("text", TEXTS)
    def test_a_token_is_in_the_classes_of_its_text(self, text: str) -> None:
        one = vocabulary([text])
        found = PLAIN.members(one, [2])
        assert {name for name, inside in found.items() if inside} == TEXTS[text]

    def test_special_tokens_are_in_no_other_class(self) -> None:
        one = vocabulary(["#"], bos="<s>")
        assert one.tokenizer is not None
        one.tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("#")]})
        found = declared(["any=.*"]).members(one, [1, 2])
        assert {name: set(inside) for name, inside in found.items() if inside} == {
            "special": {1, 2}
        }

    def test_added_tokens_that_are_not_special_are_text(self) -> None:
        one = byte_level()
        assert one.tokenizer is not None
        (added,) = one.tokenizer.encode("##", add_special_tokens=False)
        assert PLAIN.members(one, [added])["hash"] == {added}

    def test_parts_of_a_character_and_rows_without_a_token_are_in_no_class(self) -> None:
        one = byte_level()
        assert one.tokenizer is not None
        parts = one.tokenizer.encode("\u20ac", add_special_tokens=False)
        assert len(parts) == 3
        beyond = len(one.tokenizer) + 5
        assert one.text_of(parts[0]) == "\ufffd"
        assert not any(PLAIN.members(one, [*parts, beyond]).values())

    def test_a_users_class_matches_the_whole_text(self) -> None:
        one = vocabulary(["{", " {", "{x", "[", "é"])
        found = declared(["brace=[{}]", "any_brace= ?[{}].*", "accent=é"]).members(one, range(2, 7))
        assert found["brace"] == {2}
        assert found["any_brace"] == {2, 3, 4}
        assert found["accent"] == {6}

    def test_marks_stand_beside_tokens(self) -> None:
        one = vocabulary(["#", "*", "a"])
        marks = PLAIN.marks(one, [[2, 4, 2], [3]])
        assert marks["hash"] == [[True, False, True], [False]]
        assert marks["star"] == [[False, False, False], [True]]
        assert set(marks) == set(NAMES)

    @pytest.mark.parametrize(
        ("definition", "reason"),
        [
            ("brace", r"token class 'brace': expected NAME=REGEX"),
            ("brace=", "expected NAME=REGEX"),
            ("=x", "'' cannot name a class; expected small letters"),
            ("a-b=x", "'a-b' cannot name a class"),
            ("Hash=x", "'Hash' cannot name a class"),
            ("hash=x", "token class hash comes with the project"),
            ("special=x", "token class special comes with the project"),
            ("open=(", r"token class open: '\(' is no regular expression: missing \)"),
        ],
    )
    def test_a_bad_declaration_is_refused(self, definition: str, reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            declared([definition])

    def test_a_name_is_declared_once(self) -> None:
        with pytest.raises(InputError, match="token class a is declared twice"):
            declared(["a=x", "a=y"])
        assert declared(["a=x=y"]).own == {"a": "x=y"}

    def test_without_a_tokenizer_there_are_none(self) -> None:
        bare = Vocabulary(tokenizer=None, size=50, context=None)
        assert PLAIN.marks(bare, [[1, 2]]) == {}


class TestShipped:
    def test_each_comes_with_and_without_bos(self) -> None:
        found = {probe.spec.name: probe.encode(words()) for probe in shipped(words(), PLAIN)}
        assert sorted(found) == [
            "markdown",
            "markdown_bos",
            "needle",
            "needle_bos",
            "plain",
            "plain_bos",
            "random_repeat",
            "random_repeat_bos",
        ]
        for name in ("markdown", "needle", "plain"):
            without, with_bos = found[name], found[f"{name}_bos"]
            assert (without.bos, with_bos.bos) == (0, 1)
            assert all(tokens[0] == 1 for tokens in with_bos.tokens)
            marks = with_bos.classes["special"]
            assert all(mark[0] for mark in marks)
        assert not found["random_repeat"].classes

    def test_what_they_are_of_changes_their_hash(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def hashes(classes: TokenClasses) -> dict[str, str]:
            return {p.spec.name: p.spec.content_hash for p in shipped(words(), classes)}

        before, own = hashes(PLAIN), hashes(declared(["a=x"]))
        assert {name for name in before if before[name] == own[name]} == {
            "random_repeat",
            "random_repeat_bos",
        }
        assert own != hashes(declared(["a=y"]))
        monkeypatch.setattr("ingest.probes.classes.VERSION", 99)
        assert hashes(PLAIN)["plain"] != before["plain"]

    def test_markdown_has_what_figures_are_about(self) -> None:
        texts = _texts("markdown")
        assert 8 <= len(texts) <= 12
        for text in texts:
            assert 150 <= len(re.findall(r"\w+|[^\w\s]+|\n+", text)) <= 400
            assert len(set(re.findall(r"^#+(?= )", text, re.MULTILINE))) >= 3
            assert re.search(r"^[*-] ", text, re.MULTILINE)
            assert re.search(r"\*\*\w[^*]*\*\*", text)
        together = "\n".join(texts)
        for mark in ("\n1. ", "\n| ", "\n```", "\n> ", "\n***\n"):
            assert together.count(mark) > 1

    def test_texts_are_cut_to_the_context(self) -> None:
        for probe in shipped(words(context=100), PLAIN):
            tokens = probe.encode(words(context=100)).tokens
            assert max(map(len, tokens)) <= 100

    def test_random_tokens_are_as_many_as_positions_and_vocabulary_allow(self) -> None:
        def random_repeat(*, size: int, context: int | None) -> Encoded:
            few = Vocabulary(tokenizer=None, size=size, context=context)
            [probe] = shipped(few, PLAIN)
            return probe.encode(few)

        assert random_repeat(size=30, context=20).period == 9
        assert random_repeat(size=64, context=None).period == 64
        with pytest.raises(InputError, match="30 ordinary tokens; random_repeat needs 64 differ"):
            random_repeat(size=30, context=None)
        nothing = Vocabulary(tokenizer=None, size=30, context=2)
        assert shipped(nothing, PLAIN) == []

    def test_a_model_without_a_tokenizer_has_random_tokens(self) -> None:
        special = {"bos": frozenset({1}), "eos": frozenset({2, 9}), "pad": frozenset({0})}
        bare = Vocabulary(tokenizer=None, size=100, context=None, configured=special)
        found = {probe.spec.name: probe.encode(bare) for probe in shipped(bare, PLAIN)}
        assert sorted(found) == ["random_repeat", "random_repeat_bos"]
        used = {token for tokens in found["random_repeat"].tokens for token in tokens}
        assert used == set(range(100)) - {0, 1, 2, 9}
        assert all(tokens[0] == 1 for tokens in found["random_repeat_bos"].tokens)
        nameless = Vocabulary(tokenizer=None, size=100, context=None)
        assert [p.spec.name for p in shipped(nameless, PLAIN)] == ["random_repeat"]


class TestNeedle:
    @pytest.mark.parametrize("first", [[], [1]])
    @pytest.mark.parametrize("context", [None, 4096, 128])
    def test_the_answer_is_the_needle_and_lies_deeper_each_time(
        self, context: int | None, first: list[int]
    ) -> None:
        built = haystack.build(words(context=context), first)
        assert len(built) == haystack.COUNT >= 8
        assert len({len(tokens) for tokens, _ in built}) == 1
        depths = []
        for tokens, needle in built:
            needle.verify(tokens)
            assert tokens[: len(first)] == first
            assert needle.answer.stop == len(tokens) <= (context or 1 << 30)
            assert len(needle.needle) >= 4
            depths.append(needle.needle.start / len(tokens))
        if context != 128:  # where sentences are not long beside the whole
            assert depths == sorted(depths)
            assert depths[0] < 0.15
            assert depths[-1] > 0.7

    def test_the_needle_stands_in_its_sentence_and_is_asked_for(self) -> None:
        one = byte_level()
        assert one.tokenizer is not None
        for tokens, needle in haystack.build(one, []):
            text = str(one.tokenizer.decode(tokens))
            said = str(one.tokenizer.decode([tokens[i] for i in needle.needle]))
            assert text.count(said) == 2
            haystack_part, _, answer = text.rpartition("\nAnswer: ")
            assert f"{answer}." in haystack_part
            assert answer.endswith(said)

    def test_filler_fills_what_is_left(self) -> None:
        ((tokens, needle), *_) = haystack.build(words(context=None), [])
        part = haystack._parts(words())[0]
        fixed = sum(map(len, part.values())) + len(part["needle"])
        assert len(tokens) - fixed >= haystack.FILLER
        assert needle.needle.stop + len(part["stop"]) < needle.answer.start

    @pytest.mark.parametrize(("context", "is_there"), [(40, False), (63, False), (128, True)])
    def test_a_short_context_has_none(self, context: int, *, is_there: bool) -> None:
        names = {probe.spec.name for probe in shipped(words(context=context), PLAIN)}
        assert ("needle" in names) is is_there

    @pytest.mark.parametrize(
        ("needle", "answer", "reason"),
        [
            (range(0), range(3, 3), r"needle is \[0, 0\]"),
            (range(2), range(5, 7), r"answer is \[5, 7\].*of the 6 tokens"),
            (range(-1, 1), range(3, 5), r"needle is \[-1, 1\]"),
            (range(3), range(2, 5), "must begin after the needle's end"),
            (range(2), range(4, 6), "not those of the needle"),
            (range(2), range(3, 6), "not those of the needle"),
        ],
    )
    def test_what_is_no_needle_is_refused(self, needle: range, answer: range, reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            Needle(needle=needle, answer=answer).verify([7, 8, 3, 7, 8, 5])
        Needle(needle=range(2), answer=range(3, 5)).verify([7, 8, 3, 7, 8, 5])


class TestFiles:
    def test_text_chat_and_ids_have_classes(self, tmp_path: Path) -> None:
        one = vocabulary(["#", "*", "a", "b"])
        assert one.tokenizer is not None
        one.tokenizer.chat_template = "{% for m in messages %}# {{ m.content }} {% endfor %}"
        path = write(
            tmp_path / "mine.jsonl",
            {"text": "a # b"},
            {"tokens": [3, 2, 2]},
            {"messages": [{"role": "user", "content": "a b"}]},
        )
        found = encoded(path, one)
        assert found.tokens == [[4, 2, 5], [3, 2, 2], [2, 4, 5]]
        assert found.classes["hash"] == [
            [False, True, False],
            [False, True, True],
            [True, False, False],
        ]

    def test_a_files_own_classes_add_to_the_declared_ones_and_win(self, tmp_path: Path) -> None:
        path = write(
            tmp_path / "mine.jsonl",
            {"tokens": [2, 3, 4], "classes": {"hash": [0, 0, 1], "mine": [1, 0, 1]}},
            {"tokens": [2, 3]},
        )
        found = encoded(path, vocabulary(["#", "*", "a"])).classes
        assert found["hash"] == [[False, False, True], [True, False]]
        assert found["mine"] == [[True, False, True], [False, False]]
        assert found["star"] == [[False, True, False], [False, True]]
        bare = Vocabulary(tokenizer=None, size=9, context=None)
        assert set(encoded(path, bare).classes) == {"hash", "mine"}

    @pytest.mark.parametrize(
        ("classes", "reason"),
        [
            ([1], r"line 2: classes is \[1\]; expected an object"),
            ({"hash": [1]}, "line 2: class hash has 1 numbers for 2 tokens"),
            ({"hash": [1, 2]}, "line 2: expected class hash to be a list of 0 and 1"),
            ({"hash": [1, True]}, "expected class hash to be a list of 0 and 1"),
            ({"hash": "10"}, "expected class hash to be a list of 0 and 1"),
            ({"a b": [0, 1]}, "line 2: 'a b' cannot name a class"),
        ],
    )
    def test_bad_classes_are_refused(self, tmp_path: Path, classes: Any, reason: str) -> None:
        path = write(
            tmp_path / "mine.jsonl", {"tokens": [3, 4]}, {"tokens": [3, 4], "classes": classes}
        )
        with pytest.raises(InputError, match=reason):
            encoded(path, words())

    def test_needles_are_read(self, tmp_path: Path) -> None:
        line = {"tokens": [7, 8, 3, 7, 8], "needle": [0, 2], "answer": [3, 5]}
        found = encoded(write(tmp_path / "mine.jsonl", line), words())
        assert found.needles == [Needle(needle=range(2), answer=range(3, 5))]
        assert encoded(write(tmp_path / "none.jsonl", {"tokens": [3, 4]}), words()).needles is None

    @pytest.mark.parametrize(
        ("facts", "reason"),
        [
            ({"needle": [0, 2]}, "line 2: has no answer; where one line has"),
            ({}, "line 2: has no needle; where one line has"),
            ({"needle": [0], "answer": [3, 5]}, r"line 2: needle is \[0\]; expected \[start, stop"),
            ({"needle": [0, 2], "answer": [3, 9]}, r"line 2: answer is \[3, 9\]; expected"),
            ({"needle": [0, 2], "answer": [2, 4]}, "line 2: the tokens of the answer are not"),
        ],
    )
    def test_bad_needles_are_refused(
        self, tmp_path: Path, facts: dict[str, Any], reason: str
    ) -> None:
        line = {"tokens": [7, 8, 3, 7, 8]}
        good = line | {"needle": [0, 2], "answer": [3, 5]}
        with pytest.raises(InputError, match=reason):
            encoded(write(tmp_path / "mine.jsonl", good, line | facts), words())

    def test_a_plain_text_is_cut_at_blank_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "story.txt"
        path.write_text("w3 w4\nw5\n\n  \nw6 w7\n\n\n", encoding="utf-8-sig")
        assert encoded(path, words()).tokens == [[3, 4, 5], [6, 7]]
        path.write_text("w3 w4\n\nw5", encoding="utf-8")
        with pytest.raises(InputError, match=r"story\.txt, paragraph 2: has 1 tokens"):
            encoded(path, words())
        path.write_text("\n \n")
        with pytest.raises(InputError, match="holds no sequence"):
            encoded(path, words())

    def test_a_byte_order_mark_is_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.jsonl"
        path.write_text('{"text": "w3 w4"}', encoding="utf-8-sig")
        assert encoded(path, words()).tokens == [[3, 4]]

    def test_what_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "none.jsonl"):
            with pytest.raises(InputError, match="cannot be read"):
                from_file(path, PLAIN)
        latin = tmp_path / "latin.txt"
        latin.write_bytes("caf\u00e9 au lait".encode("latin-1"))
        with pytest.raises(InputError, match=r"latin\.txt cannot be read"):
            from_file(latin, PLAIN)
        prose = tmp_path / "prose.jsonl"
        prose.write_text("Once upon a time")
        with pytest.raises(InputError, match=r"a file of plain text is to be called \.txt"):
            from_file(prose, PLAIN)

    def test_texts_need_a_tokenizer(self, tmp_path: Path) -> None:
        bare = Vocabulary(tokenizer=None, size=50, context=None)
        path = write(tmp_path / "mine.jsonl", {"text": "a b"})
        with pytest.raises(InputError, match=r"has no tokenizer; bring \{\"tokens\": \[\.\.\.\]\}"):
            encoded(path, bare)
        assert encoded(write(path, {"tokens": [3, 4]}), bare).tokens == [[3, 4]]

    def test_the_hash_is_of_contents_and_classes(self, tmp_path: Path) -> None:
        path = write(tmp_path / "mine.jsonl", {"tokens": [3, 4]})
        specs = [from_file(path, one).spec for one in (PLAIN, PLAIN, declared(["a=x"]))]
        assert specs[0] == specs[1]
        assert specs[0].content_hash != specs[2].content_hash


def test_a_suite_that_needs_a_tokenizer_says_so() -> None:
    with pytest.raises(ModelError, match="relations: needs a tokenizer"):
        Vocabulary(tokenizer=None, size=5, context=None).require_tokenizer("relations")


def _texts(name: str) -> list[str]:
    from importlib.resources import files

    lines = (files("ingest.probes") / "data" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]

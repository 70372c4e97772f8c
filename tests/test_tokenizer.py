"""The tokenizer against transformers' CLIP tokenizer, and its three kinds of file against one another."""

import gzip
import html
import json
import os
import random

import pytest
from checkpoints import full_merges, vocabulary, write_merges

import minibaret
from minibaret.models.tokenizer import ClipTokenizer, TextTooLong, parse_merges
from minibaret.weights.folder import save_merges
from minibaret.weights.miniature.training.merges import learn_merges
from minibaret.weights.vocabulary import find_tokenizer, read_tokenizer_at

WRITTEN = [
    "", " ", "a", "A photo of a CAT", "a dog, lying down on grass.", "don't", "it's we're I've I'm you'll he'd she'S",
    "dogs' 's 't 'tis", "3 dogs and 12345 cats", "v1.5-pruned", "a  b   c", "\ttabs\tand\nlines\r\n", "(a:1.2) [b] {c}",
    "naïve café crème brûlée", "cafe\u0301 e\u0301 n\u0303", "ÀÉÎÕÜ ß ẞ İI ı", "Straße", "ﬁne ½ ² Ⅷ",
    "日本語 テキスト", "中文测试。", "한국어", "Привет, мир!", "שלום", "مرحبا", "हिन्दी", "ไทย",
    "😀", "a 🐕 on 🌱🌱", "👨‍👩‍👧‍👦 family", "🇩🇪 flag", "❤️", "#a", "# a", "a_b-c+d=e", "...!!!???",
    "“quoted” ‘single’ — dash…", "x\u00a0y", "x\u200by", "x\u2028y", "\x00\x01\x1f", "a\x7fb", "\ufeffbom",
    "\u3000wide\u3000space", "100%", "$5 €6 £7 ¥8", "email@example.com https://example.com/?q=1&r=2", "<b>&amp;</b>",
    "the <|endoftext|> token", "<|startoftext|>", "<|ENDOFTEXT|>", "<|END", "\ud7ff\ue000", "\U0001d54f \U0001f9ff",
    "ab" * 30, "'''", "''s",
]  # fmt: skip
PIECES = [
    *"abcXYZ019 \t\n'’.,!?#-_éüßñ字日語한я", "  ", "'s", "'t", "'re", "'LL", "🐕", "e\u0301", "\u00a0", "\u200d",
]  # fmt: skip


def made_up(count: int) -> list[str]:
    """Random strings over pieces that meet in odd ways."""
    rng = random.Random(0)
    return ["".join(rng.choice(PIECES) for _ in range(rng.randint(1, 24))) for _ in range(count)]


@pytest.fixture(scope="module")
def merges() -> list[tuple[str, str]]:
    """A vocabulary that merges within the texts below, in every script they use."""
    words = ["the", "photo", "dog", "cat", "lying", "grass", "family", "token", "single", "quoted", "example", "pruned"]
    return learn_merges([*WRITTEN * 3, *made_up(300), *words * 20], 1500)


@pytest.fixture(scope="module")
def theirs(merges):
    transformers = pytest.importorskip("transformers", reason="compares with transformers' CLIP tokenizer")
    return transformers.CLIPTokenizer(vocab=vocabulary(merges), merges=merges)


def meant(text: str) -> str:
    """What the texts above mean with straight quotes and so on; transformers takes them as they are."""
    for typed, plain in {**dict.fromkeys("‘’", "'"), **dict.fromkeys("“”", '"'), "ﬁ": "fi", "&amp;": "&"}.items():
        text = text.replace(typed, plain)
    return text


def test_id_for_id_against_transformers(merges, theirs):
    ours = ClipTokenizer(merges)
    texts = WRITTEN + made_up(400)
    longest = 0
    for text in texts:
        wanted = theirs(meant(text), padding="max_length", max_length=77, truncation=True).input_ids
        untruncated = theirs(meant(text)).input_ids
        if len(untruncated) <= 77:
            assert ours(text) == wanted, repr(text)
        else:
            with pytest.raises(ValueError, match=f"the text has {len(untruncated) - 2} tokens and at most 75 fit"):
                ours(text)
        longest = max(longest, len(untruncated))
    assert len(texts) > 400 and len(merges) > 500
    assert sum(len(piece) > 5 for text in texts for piece in ours.tokens(text)) > 20  # merges are at work


TYPED = {  # as phones, word processors and web pages have it; and what was trained on
    "the dog’s ‘hat’, it’s “red”": """the dog's 'hat', it's "red\"""",
    "‚low‛ „low‟ ʼn ŉ": """'low' "low" 'n 'n""",
    "ＡＢＣ １２３！　ﾊﾝｶｸ ｶﾞ": "ABC 123! ハンカク ガ",
    "ﬁne ﬂower aﬀair oﬃce ǆ Ĳ ﬅ ﬆ": "fine flower affair office dž IJ ſt st",
    "R&amp;B &lt;b&gt; caf&eacute; &#39;n&#x27; &rsquo;s": """R&B <b> café 'n' 's""",
    "&amp;amp; &amp;lt;": "& <",
    "<b>it&#39;s &amp;amp; R&amp;B</b>": "<b>it's & R&B</b>",
    "AT&T fish & chips ½ ² Ⅷ …": "AT&T fish & chips ½ ² Ⅷ …",
}


@pytest.mark.parametrize(("typed", "plain"), TYPED.items())
def test_quotes_and_the_like_are_straightened_as_by_the_original(merges, theirs, typed, plain):
    tokenizer = ClipTokenizer(merges)
    assert tokenizer(typed) == tokenizer(plain) == theirs(plain, padding="max_length", max_length=77).input_ids
    assert tokenizer.tokens(typed) == tokenizer.tokens(plain)


@pytest.mark.parametrize("typed", [*TYPED, *(text for text in WRITTEN if text.isprintable())])
def test_the_original_tokenizers_cleaning_gives_the_same_ids(merges, theirs, typed):
    """clip/simple_tokenizer.py: ftfy, HTML entities twice, and then what transformers does too."""
    ftfy = pytest.importorskip("ftfy", reason="compares with the library that the original tokenizer calls")
    cleaned = html.unescape(html.unescape(ftfy.fix_text(typed))).strip()
    assert ClipTokenizer(merges)(typed) == theirs(cleaned, padding="max_length", max_length=77).input_ids


def test_what_does_not_fit_is_said_as_it_was_read():
    tokenizer = ClipTokenizer([])
    with pytest.raises(TextTooLong, match=r"76 tokens and at most 75 fit; these words do not: \"'\""):
        tokenizer("’ " * 76)


def test_padding_is_the_end_token_and_the_full_vocabulary_has_its_size():
    ours = ClipTokenizer(full_merges())
    assert ours.size == 49408 and ours("") == [49406] + [49407] * 76
    assert ours.vocabulary == vocabulary(full_merges())


def test_only_the_first_line_is_a_comment(tmp_path):
    merges = [("#", "a"), ("#", "#"), ("##", "#version")]
    lines = "#version: 0.2\n# a\n# #\n"
    assert parse_merges(lines) == merges[:2]
    for text, said in (
        ("a b\n", "its first line should hold"),
        ("#version\na b c\n", "line 2 should be two symbols"),
        ("#version\na b\nabc d\n", "line 3 should be two symbols that are known by then, not 'abc d'"),
        ("#version\na b\n\nb c\n", "line 3 should be"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_merges(text)


@pytest.fixture
def spellings(tmp_path, merges):
    """The same tokenizer as merges.txt, with vocab.json, as tokenizer.json in both styles, and in OpenAI's file."""
    table = vocabulary(merges)
    lines = [f"{a} {b}" for a, b in merges]
    made = {"merges": write_merges(tmp_path / "plain", merges), "vocab": write_merges(tmp_path / "both", merges)}
    (tmp_path / "both" / "vocab.json").write_text(json.dumps(table))
    for name, listed in (("strings", lines), ("pairs", merges)):
        made[name] = tmp_path / f"{name}.json"
        made[name].write_text(json.dumps({"model": {"type": "BPE", "vocab": table, "merges": listed}}))
    made["openai"] = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    more = "\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *lines, "z q", "zq q", "zqq q"]) + "\n"
    made["openai"].write_bytes(gzip.compress(more.encode()))
    return made


def test_every_spelling_is_the_same_tokenizer(spellings, merges):
    table = vocabulary(merges)
    for name, path in spellings.items():
        tokenizer = read_tokenizer_at(path, len(table))
        assert tokenizer.vocabulary == table, name
        assert [tokenizer(text) for text in WRITTEN] == [ClipTokenizer(merges)(text) for text in WRITTEN], name


def test_transformers_files_load(tmp_path, theirs, merges):
    theirs.save_pretrained(tmp_path)
    tokenizer = read_tokenizer_at(find_tokenizer(tmp_path), len(vocabulary(merges)))
    assert tokenizer.vocabulary == vocabulary(merges)


@pytest.mark.parametrize("content", ["[1, 2]", "null"])
def test_a_vocabulary_that_is_no_object_is_refused(spellings, content):
    spellings["vocab"].with_name("vocab.json").write_text(content)
    with pytest.raises(minibaret.InputError, match=r"merges\.txt is .*: vocab\.json should hold an object"):
        read_tokenizer_at(spellings["vocab"], 521)


def test_a_vocabulary_that_contradicts_the_merges_is_refused(spellings, merges):
    table = vocabulary(merges)
    table["a"], table["b"] = table["b"], table["a"]
    beside = spellings["vocab"].with_name("vocab.json")
    for path, content in ((beside, table), (spellings["pairs"], {"model": {"vocab": table, "merges": merges}})):
        path.write_text(json.dumps(content))
    for name in ("vocab", "pairs"):
        with pytest.raises(minibaret.InputError, match=r"entry 'a' is number 64 by the merges and 65 by"):
            read_tokenizer_at(spellings[name], len(table))


@pytest.mark.parametrize("odd", ["x" * 5000, "a\nb", [[1]], None])
def test_an_entry_of_something_else_is_one_short_sentence(spellings, merges, odd):
    spellings["vocab"].with_name("vocab.json").write_text(json.dumps({**vocabulary(merges), "a": odd}))
    with pytest.raises(minibaret.InputError, match="entry 'a' is number 64 by the merges and ") as caught:
        read_tokenizer_at(spellings["vocab"], len(vocabulary(merges)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_files_far_too_large_are_not_read(tmp_path):
    (tmp_path / "merges.txt").touch()
    os.truncate(tmp_path / "merges.txt", 3_000_000_000)  # with a hole in it: no disk is used
    with pytest.raises(minibaret.InputError, match="must have at most 20,000,000 bytes, it has 3,000,000,000"):
        read_tokenizer_at(tmp_path / "merges.txt", 521)
    bomb = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    bomb.write_bytes(gzip.compress(b"#version" + b" " * 200_000_000, 1))
    with pytest.raises(minibaret.InputError, match=r"is not CLIP's tokenizer|is another model's"):
        read_tokenizer_at(bomb, 521)


def test_a_tokenizer_that_is_a_link_to_nowhere(tmp_path):
    (tmp_path / "merges.txt").symlink_to("../blobs/0123")
    with pytest.raises(minibaret.InputError, match=r"merges\.txt is a link to \.\./blobs/0123, which is not there"):
        find_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("merges.txt", b"no version\n", "its first line should hold"),
        ("merges.txt", b"\xff\xfe", "is not CLIP's tokenizer"),
        ("tokenizer.json", b"[]", "with \"model\", \"merges\" and \"vocab\" in it was wanted"),
        ("tokenizer.json", b"{", "is not CLIP's tokenizer"),
        ("bpe_simple_vocab_16e6.txt.gz", b"no gzip", "is not CLIP's tokenizer"),
        ("bpe_simple_vocab_16e6.txt.gz", gzip.compress(b"#version\na b\n" * 9)[:-9], "is not CLIP's tokenizer"),
    ],
)  # fmt: skip
def test_broken_tokenizer_files_are_one_sentence(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(minibaret.InputError, match=said) as caught:
        read_tokenizer_at(find_tokenizer(tmp_path), 521)
    assert "\n" not in str(caught.value)


# What CLIP does with words

FEW = learn_merges(["a cat, it's the cat's 12 cats", "a dog's café"], 13)


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    """A small one, of a few words."""
    return ClipTokenizer(FEW)


def test_the_vocabulary_is_bytes_bytes_that_end_words_merges_and_two(tokenizer):
    assert ClipTokenizer([]).size == 514 and ClipTokenizer([]).end == 513
    assert len(FEW) == 13 and tokenizer.size == 527
    assert (tokenizer.start, tokenizer.end) == (tokenizer.size - 2, tokenizer.size - 1)
    ids = ClipTokenizer([])("!a")[:5]
    assert ids == [512, 256 + 0, 256 + 64, 513, 513]  # both end a word: "!" is the first printable byte, "a" the 65th


def test_texts_are_padded_with_the_end_token_to_77(tokenizer):
    ids = tokenizer("a cat")
    assert len(ids) == 77 and ids[0] == tokenizer.start
    assert ids[3:] == [tokenizer.end] * 74 and tokenizer.end not in ids[:3]
    assert tokenizer("") == [tokenizer.start] + [tokenizer.end] * 76


def test_words_split_at_punctuation_digits_and_contractions(tokenizer):
    pieces = tokenizer.tokens("Cat,  cat's\n12!!")
    words = "".join(pieces).replace("</w>", " ").split()
    assert words == ["cat", ",", "cat", "'s", "1", "2", "!!"]


def test_case_spaces_and_composed_accents_do_not_matter(tokenizer):
    assert tokenizer("A  CAFE\u0301\t") == tokenizer("a caf\u00e9")


def test_a_text_may_have_75_tokens_and_no_more(tokenizer):
    assert tokenizer("a " * 75)[76] == tokenizer.end
    with pytest.raises(TextTooLong, match="76 tokens and at most 75 fit; these words do not: 'dog'"):
        tokenizer("a " * 75 + "dog")


def test_merges_there_and_back(tmp_path, tokenizer):
    merges = learn_merges(["a cat sat on a mat"], 10)
    save_merges(merges, tmp_path / "merges.txt")
    again = ClipTokenizer.from_merges(tmp_path / "merges.txt")
    assert again("the cat sat") == ClipTokenizer(merges)("the cat sat")

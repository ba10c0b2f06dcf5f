"""Token ids: what tokenizers add to a text, and long texts in windows, as if tokenised at once."""

import lzma
import random

import pytest
import torch
from conftest import tiny_llama
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

import sparselab as sl
from sparselab import SparselabError
from sparselab.data import tokenising
from sparselab.data.tokenising import encode
from sparselab.evaluation.zeroshot import loglikelihoods
from sparselab.runtime import memory

# What tokenizers put before a text and append to it.

BEGIN, END, CLASS = 126, 127, 128
TEMPLATES = {
    "none": ("$A", [], []),
    "begin": ("<s> $A", [BEGIN], []),
    "end": ("$A </s>", [], [END]),
    "both": ("<s> $A </s>", [BEGIN], [END]),
    "two at the end": ("$A </s> <cls>", [], [END, CLASS]),
    "classes": ("<cls> $A </s>", [CLASS], [END]),
}


def numbered_words(template: str) -> PreTrainedTokenizerFast:
    """Words w0 to w125 are the ids 0 to 125."""
    special = [("<s>", BEGIN), ("</s>", END), ("<cls>", CLASS)]
    words = {f"w{number}": number for number in range(BEGIN)}
    tokenizer = Tokenizer(WordLevel({**words, **dict(special)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if template != "$A":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=special
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def words(ids: list[int]) -> str:
    return " ".join(f"w{number}" for number in ids)


@pytest.fixture(scope="module")
def model():
    return tiny_llama(vocab_size=400)


@torch.no_grad()
def by_definition(model, before: list[int], context: list[int], continuation: list[int]) -> float:
    """The log-likelihood of the continuation's tokens, one by one, in float64."""
    row = before + context + continuation
    scores = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
    first = len(before + context)
    return sum(scores[first + i - 1, token].item() for i, token in enumerate(continuation))


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_tokenizer_adds_is_told_apart(name):
    template, before, behind = TEMPLATES[name]
    assert tokenising.added(numbered_words(template)) == (before, behind)


def test_a_tokenizer_without_a_token_for_english():
    """It drops what it does not know; the text itself then tells what is added to it."""
    letters = Tokenizer(BPE({"<s>": 0, "</s>": 1, "中": 2, "文": 3}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=with_ends(letters))
    assert encode(tokenizer, "中文文").tolist() == [0, 2, 3, 3]
    assert encode(tokenizer, "中文" * 100_000).tolist() == [0, *[2, 3] * 100_000]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_continuation_is_scored_and_not_the_end(name, model):
    template, before, _ = TEMPLATES[name]
    pairs = [([5, 6, 7, 8], [9, 10]), ([5, 6, 7], [11]), ([50, 51, 52], [55, 56, 57])]
    requests = [(words(context), " " + words(continuation)) for context, continuation in pairs]
    found = loglikelihoods(model, numbered_words(template), requests, progress=False)
    expected = [by_definition(model, before, *pair) for pair in pairs]
    assert [value for value, _ in found] == pytest.approx(expected, abs=1e-4)


def test_a_tokenizer_of_bytes_that_appends_an_end(model):
    """ByT5's, which is written in Python."""
    tokenizer = ByT5Tokenizer()
    assert tokenising.added(tokenizer) == ([], [tokenizer.eos_token_id])
    context, continuation = "A ship", " sank"
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (context, continuation)]
    found = loglikelihoods(model, tokenizer, [(context, continuation)], progress=False)
    assert found[0][0] == pytest.approx(by_definition(model, [], *ids), abs=1e-4)
    assert encode(tokenizer, context).tolist() == ids[0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_text_has_no_end(name, tmp_path):
    """Its tokens, the windows cut from it, and the perplexity of what a tokenizer makes of it."""
    template, before, _ = TEMPLATES[name]
    file, ids = tmp_path / "text.txt", [number % 100 + 10 for number in range(500)]
    file.write_text(words(ids))
    tokenizer = numbered_words(template)
    assert sl.tokens(tokenizer, file).tolist() == before + ids
    windows = sl.calibration(tokenizer, file, samples=20, seqlen=16)
    assert END not in windows and CLASS not in windows[:, 1:]
    with pytest.raises(SparselabError, match=f"has {len(before) + 500} tokens, too short"):
        sl.calibration(tokenizer, file, samples=1, seqlen=len(before) + 500)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_model_goes_on_after_the_prompt_and_not_after_its_end(name, model):
    template, before, _ = TEMPLATES[name]
    tokenizer = numbered_words(template)
    ids = torch.tensor([before + [5, 6, 7]])
    for _ in range(6):
        with torch.no_grad():
            following = model(ids).logits[:, -1:]
        following[..., END] = -torch.inf  # the text does not end before it has its six tokens
        ids = torch.cat([ids, following.argmax(-1)], 1)
    expected = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert sl.write(model, tokenizer, "w5 w6 w7", tokens=6) == expected


def test_a_prompt_without_tokens_is_a_sentence(model):
    with pytest.raises(SparselabError, match="has no tokens"):
        sl.write(model, numbered_words("$A"), "")
    with pytest.raises(SparselabError, match="another model's tokenizer"):
        sl.write(tiny_llama(vocab_size=20), numbered_words("$A"), "w5 w90")
    with pytest.raises(SparselabError, match="another model's tokenizer"):
        loglikelihoods(tiny_llama(vocab_size=20), numbered_words("$A"), [("w5", " w90")])


# Long texts: windows of a few characters in place of 65,536.

PROSE = (
    "It was the best of times; it wasn't the worst of times, and 1,234,567 whales swam 20,000"
    " leagues under the sea.\n\nThe café's naïve crew didn't see them.  They'd gone below.\t"
)
TEXTS = {
    "prose": PROSE * 6,
    "spaces": "The end" + " " * 700 + "of" + " " * 301,
    "spaces before a line's end": "a" + " " * 500 + "\n" + " " * 200 + "b",
    "newlines": "one\n" + "\n" * 400 + "two" + "\r\n" * 200 + "\n three",
    "no spaces": PROSE.replace(" ", "").replace("\n", "").replace("\t", "") * 6,
    "one letter": "a" * 1500,
    "two letters": "ab" * 400 + "ba" * 400,
    "digits": "3141592653589793238462643383279502884197" * 20,
    "strange separators": "one\u2028two\u2029three\x85four\u00a0five\u3000six\ufeffseven" * 20,
    "emoji": "👩‍👩‍👧‍👦🇫🇷🏴󠁧󠁢󠁥󠁮󠁧󠁿👍🏽" * 40,
    "combining marks": "e\u0301a\u0327\u0301 n\u0303o" * 80 + "\u0301" * 150 + "x",
    "scripts": "中文字沒有空格日本語のテキスト नमस्ते दुनिया привет мир " * 25,
    "special tokens": "a <s> b</s>c<mask> <mask>" * 20 + " " * 200 + "<mask>" + " " * 200 + "d",
    "control characters": "a\x00b\x01 \x7f" * 150,
    "meta symbols": "▁the▁▁sea ▁ " * 60,
}


def trained(tokenizer: Tokenizer, trainer: type, special: list[str], **options):
    """A tokenizer that has learnt a vocabulary from the prose above."""
    texts = [PROSE, " the sea and the ship", "0123456789 " * 9, "ab" * 9, "aaaa " * 9, " " * 20]
    trainer = trainer(vocab_size=600, special_tokens=special, show_progress=False, **options)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trained(tokenizer, trainers.WordLevelTrainer, ["<unk>", "<s>", "</s>"])
    return with_ends(tokenizer)


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(unk_token="<unk>", max_input_chars_per_word=20))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained(tokenizer, trainers.WordPieceTrainer, ["<unk>", "<s>", "</s>"])
    return with_ends(tokenizer)


def with_ends(tokenizer: Tokenizer) -> Tokenizer:
    special = [("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=special
    )
    return tokenizer


def llama(pre_tokenizer=None, normalizer=None) -> Tokenizer:
    """Byte pairs over the whole text with a space at its beginning, and bytes for what is
    unknown."""
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trained(tokenizer, trainers.BpeTrainer, ["<unk>", "<s>", "</s>", *every_byte])
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizer, normalizer
    return with_ends(tokenizer)


def prepend() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def unigram(**options) -> Tokenizer:
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(**options)
    special = ["<unk>", "<s>", "</s>"]
    return with_ends(trained(tokenizer, trainers.UnigramTrainer, special, unk_token="<unk>"))


def byte_pairs(words=None, **options) -> Tokenizer:
    """Byte-level, as GPT-2's."""
    tokenizer = Tokenizer(BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=words == "prefix")
    if isinstance(words, pre_tokenizers.PreTokenizer):
        of_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, of_bytes])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained(tokenizer, trainers.BpeTrainer, ["<s>", "</s>"], initial_alphabet=alphabet)
    return with_ends(tokenizer)


def roberta() -> Tokenizer:
    """Offsets without the space before a word, and a token that takes spaces around it with it."""
    from tokenizers import AddedToken

    tokenizer = byte_pairs("prefix")
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS_FROM_THE_RIGHT = r"\d{1,3}(?=(?:\d{3})*(?!\d))|\D+"
MADE = {
    "WordLevel": word_level,
    "WordPiece": word_piece,
    "LLaMA": lambda: llama(normalizer=prepend()),
    "Metaspace": lambda: llama(pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "Metaspace by words": lambda: llama(pre_tokenizers.Metaspace()),
    "Unigram": unigram,
    "Unigram without words": lambda: unigram(split=False),
    "RoBERTa": roberta,
    "LLaMA 3": lambda: byte_pairs(split(LLAMA_3), ignore_merges=True),
    "words of five": lambda: byte_pairs(pre_tokenizers.FixedLength(length=5)),
    "digits from the right": lambda: byte_pairs(split(DIGITS_FROM_THE_RIGHT)),
}
TOKENIZERS = ["opt-mini", "smollm2-135m", *MADE]


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    if request.param in MADE:
        made = MADE[request.param]()
        return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    return sl.load(request.param)[1]


def at_once(tokenizer, text: str) -> list[int]:
    ids = tokenizer(text).input_ids
    return ids[: len(ids) - len(tokenising.added(tokenizer)[1])]


def small_windows(monkeypatch, window: int, overlap: int) -> None:
    monkeypatch.setattr(tokenising, "WINDOW", window)
    monkeypatch.setattr(tokenising, "OVERLAP", overlap)
    monkeypatch.setattr(tokenising, "AT_ONCE", 2)


@pytest.mark.parametrize("window, overlap", [(40, 16), (96, 32), (200, 64)])
def test_windows_give_the_tokens_of_the_whole(tokenizer, monkeypatch, window, overlap):
    small_windows(monkeypatch, window, overlap)
    for name, text in TEXTS.items():
        assert encode(tokenizer, text).tolist() == at_once(tokenizer, text), name


@pytest.mark.parametrize("seed", range(3))
def test_random_mixtures(tokenizer, monkeypatch, seed):
    draw = random.Random(seed)
    for _ in range(15):
        pieces = []
        for _ in range(draw.randrange(1, 30)):
            text = TEXTS[draw.choice([*TEXTS])]
            start = draw.randrange(len(text))
            pieces.append(text[start : start + draw.choice([1, 3, 10, 40])])
        overlap = draw.choice([16, 32, 48])
        small_windows(monkeypatch, draw.choice([2, 3, 5]) * overlap, overlap)
        text = "".join(pieces)
        assert encode(tokenizer, pieces).tolist() == at_once(tokenizer, text), text


@pytest.mark.parametrize("name", ["opt-mini", "smollm2-135m", "LLaMA", "Metaspace", "RoBERTa"])
def test_byte_pairs_are_cut_in_any_text(name, monkeypatch):
    """No text is tokenised at once for want of a cut, not even one without spaces."""
    made = MADE[name]() if name in MADE else None
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made) if made else sl.load(name)[1]
    small_windows(monkeypatch, 400, 160)
    lengths, window = [], tokenising._Window
    monkeypatch.setattr(
        tokenising, "_Window", lambda text, *rest: lengths.append(len(text)) or window(text, *rest)
    )
    for text in (PROSE * 40, TEXTS["no spaces"] * 8, TEXTS["scripts"] * 4):
        lengths.clear()
        encode(tokenizer, text)
        assert max(lengths) < len(text) / 3


def test_where_nothing_is_certain_the_whole_is_tokenised(monkeypatch):
    """A cut that a longer window takes back, and parts that are read again."""
    tokenizer, text = sl.load("opt-mini")[1], PROSE * 4
    small_windows(monkeypatch, 96, 32)
    cuts = iter([(20, 3)])  # a wrong one, and no other
    monkeypatch.setattr(tokenising, "_cut", lambda *_: next(cuts, (0, 0)))
    monkeypatch.setattr(tokenising, "_longer", lambda *_: (_ for _ in ()).throw(tokenising.NoCut()))
    assert encode(tokenizer, [text[:300], text[300:]]).tolist() == at_once(tokenizer, text)


def test_texts_without_tokens():
    tokenizer = numbered_words("$A")
    assert encode(tokenizer, "").tolist() == encode(tokenizer, " " * 200_000).tolist() == []
    assert encode(tokenizer, "").dtype == encode(tokenizer, " " * 200_000).dtype == torch.long


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_file_in_parts_is_the_file_as_read_at_once(ending, tmp_path, monkeypatch):
    """Line ends as Python reads them, wherever a part ends; packed files too."""
    tokenizer = sl.load("opt-mini")[1]
    small_windows(monkeypatch, 96, 32)
    monkeypatch.setattr("sparselab.data.corpora.PART", 7)
    text = (PROSE * 3).replace("\n", ending)
    plain, packed = tmp_path / "a.txt", tmp_path / "a.txt.xz"
    plain.write_bytes(text.encode())
    packed.write_bytes(lzma.compress(text.encode()))
    expected = tokenizer(plain.read_text(encoding="utf8")).input_ids
    assert sl.tokens(tokenizer, plain).tolist() == expected
    assert sl.tokens(tokenizer, packed).tolist() == expected


def test_a_long_text_takes_little_more_memory_than_its_tokens(tmp_path):
    """3 MB, which take 580 MB where they are tokenised at once."""
    tokenizer, file = sl.load("opt-mini")[1], tmp_path / "long.txt"
    draw = random.Random(0)
    vocabulary = PROSE.split(" ")
    with open(file, "w") as opened:
        for _ in range(20_000):
            opened.write(" ".join(draw.choices(vocabulary, k=25)) + "\n")
    sl.tokens(tokenizer, file)  # what libraries keep is there from now on
    held = memory.reset_peak(torch.device("cpu"))
    ids = sl.tokens(tokenizer, file)
    grown = memory.peak_bytes(torch.device("cpu")) - held
    assert file.stat().st_size > 2.5e6
    assert grown < 8 * len(ids) + 200e6

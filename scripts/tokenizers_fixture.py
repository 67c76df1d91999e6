"""Writes tests/fixtures/tokenizers.json: tokenizers of five families, 250 texts, and the ids that transformers gives.

    python scripts/tokenizers_fixture.py

Needs tokenizers and transformers. The tokenizers are trained here on a few sentences, so that the file is small.
"""
import json
import pathlib
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).resolve().parent.parent
CORPUS = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "In 2024 it cost 1,299.50 euros; in 1999 only 3.14!",
    "def f(x):\n    return x ** 2  # a comment\n\n\nprint(f(3))",
    "Wir wüßten gern, ob Straße und Fluß so geschrieben werden.",
    "Ça va? L'été, c'est déjà là; n'est-ce pas?",
    "你好，世界。今天天气很好。 こんにちは世界 안녕하세요",
    "don't can't won't I'll they're we've it's",
    "Привет, мир! Как дела сегодня?",
    "tabs\tand  two spaces   and three    and four",
]


def texts():
    """Texts that are hard in one way or another, and random mixtures of them."""
    hard = [
        "", " ", "  ", "\n", "\n\n\n", "\t", " \n ", "a", " a", "a ", "  a  b  ", "don't", "DON'T", "I'll've",
        "é", "e\u0301", "ﬁ", "Å", "\u00a0x", "x\u200by", "\ufeffx", "😀", "👩‍👩‍👧", "🇩🇪", "\u0000x", "\x7f", "½ ² ³",
        "１２３", "12345", "1,234.5", "你好", "こんにちは", "안녕", "مرحبا", "ไทย", "𝔘𝔫𝔦", "Ǆ", "ẞ", "İ", "ß",
        "\r\n", "a\r\nb", "http://a.b/c?d=e&f=g", "<s>", "</s>", "<s></s>", "a<s>b</s>c", "<s> a </s> b", "<|im_start|>user\nHi<|im_end|>",
        "<|im_start|> <|im_end|>", "<mask>", " <mask> x", "x <mask>", "x<mask>y", "word", "sword", "word.", "swordfish word", " word ",
        "<TAG>", "<tag>", "x<Tag>y", "<left> a", "a <left>", "a  <left>  b", "<right> a", "a <right>  b", "<both>", " <both> ", "a  <both>  b",
        "▁a", "a▁b", "Ġa", "<0x0A>", "<unk>", "[UNK]", "[CLS] a [SEP]", "{{ x }}", "\\n", "\\u00e9", "a" * 60, "ab " * 30, " " * 33,
    ]
    draw = random.Random(5)
    mixed = []
    while len(hard) + len(mixed) < 250:
        parts = draw.choices(hard + CORPUS, k=draw.randint(2, 5))
        mixed.append("".join(p + draw.choice(["", "", " ", "\n"]) for p in parts))
    return hard + mixed


ADDED = [
    AddedToken("<|im_start|>", special=True, normalized=False), AddedToken("<|im_end|>", special=True, normalized=False),
    AddedToken("<mask>", special=True, lstrip=True, normalized=False), AddedToken("word", single_word=True, normalized=False),
    AddedToken("<left>", lstrip=True, normalized=False), AddedToken("<right>", rstrip=True, normalized=False),
    AddedToken("<both>", lstrip=True, rstrip=True, normalized=True), AddedToken("<tag>", normalized=True),
]
SPECIAL = ["<unk>", "<s>", "</s>"]


def begins(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])


def byte_level():
    t = Tokenizer(models.BPE())
    split = Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    begins(t)
    return t


def byte_fallback():
    base = Tokenizer(models.BPE())
    base.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    base.train_from_iterator(CORPUS[:3], trainers.BpeTrainer(vocab_size=480, special_tokens=SPECIAL + bytes_, show_progress=False))
    trained = json.loads(base.to_str())["model"]
    t = Tokenizer(models.BPE(vocab=trained["vocab"], merges=[tuple(m) for m in trained["merges"]], byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    t.normalizer = base.normalizer
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    begins(t)
    return t


def unigram():
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    t.decoder = decoders.Metaspace(prepend_scheme="always")
    t.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=220, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False))
    begins(t)
    return t


def word_level():
    t = Tokenizer(models.WordLevel(unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)])
    t.train_from_iterator(CORPUS, trainers.WordLevelTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False))
    begins(t)
    return t


def added():
    t = byte_level()
    t.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    t.add_tokens([AddedToken("Fox", normalized=True), AddedToken("Dog", normalized=False), AddedToken(" over", normalized=False), AddedToken("\n\n", normalized=False)])
    return t


def main():
    families = {"byte-level BPE": byte_level, "BPE with byte fallback": byte_fallback, "Unigram": unigram, "WordLevel": word_level,
                "added tokens": added}
    all_texts, made = texts(), []
    for name, make in families.items():
        t = make()
        for token in ADDED:
            (t.add_special_tokens if token.special else t.add_tokens)([token])
        fast = PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
        ids = [fast(text)["input_ids"] for text in all_texts]
        plain = [fast(text, add_special_tokens=False)["input_ids"] for text in all_texts]
        decoded = [fast.decode(i, skip_special_tokens=True, clean_up_tokenization_spaces=False) for i in ids]
        made.append({"name": name, "tokenizer": json.loads(t.to_str()), "ids": ids, "plain": plain, "decoded": decoded})
    out = {"texts": all_texts, "tokenizers": made}
    (HERE / "tests/fixtures/tokenizers.json").write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")) + "\n")


main()

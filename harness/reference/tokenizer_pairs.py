"""Makes small-tokenizer.json and small-sentencepiece*.json* in tests/data/tokenizers, with the ids that the Python packages `tokenizers` and
`sentencepiece` give.

    python3 -m venv venv && venv/bin/pip install -r harness/reference/requirements.txt
    venv/bin/python harness/reference/tokenizer_pairs.py

`tokenizers` cuts text with another engine (Oniguruma) than this project, so this proves both the translation of the expressions and the
encoding. `small-cuts.jsonl` holds, per name of tokenizer.ggml.pre and text, how many characters each piece has; `small-pairs.jsonl`, per text,
the ids of small-tokenizer.json: `ids` with no special tokens added and none read in the text, `special_ids` with both.

`small-sentencepiece.json` holds two models that `sentencepiece` trained, as lists of [piece, score, type], and per text their ids: "prefix" puts
a space before a text, has bytes, control tokens, and runs of spaces of one score, as the vocabulary of Llama 2 has them; "bare" puts none and has
user-defined runs of spaces and line ends, as that of Gemma. `special_ids` reads control tokens in the text; what lies between two of them is
encoded for itself. `small-sentencepiece-tokenizer.json` is "prefix" as a tokenizer.json, and small-sentencepiece-pairs.jsonl has its ids in the
forms in which such files mark spaces: first the forms, one a line, then the texts.

The output is the same on every run.
"""

import io
import json
import re
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers import processors, trainers

FOLDER = Path(__file__).resolve().parents[2] / "tests/data/tokenizers"

CORPUS = [
    "The worker reads a line and answers with a line; it's as simple as that, isn't it?",
    "We've 12 tokens, 345 tokens, 6789 tokens and they'll all be counted. I'm sure you'd agree.",
    "def main(argc, argv):\n    for i in range(0, 10):\n        print(i, argv[i])\n\n    return 0\n",
    "{\"name\": \"value\", \"list\": [1, 2, 3], \"nested\": {\"a\": null}}\r\n\r\n",
    "Das Wetter in München ist heute schön, naïve façade, çok güzel, Ελλάδα, Россия, ქართული.",
    "日本語のテキスト。中文的文本，可以吗？한국어 텍스트입니다. हिन्दी पाठ। النص العربي.",
    "   spaces    and\ttabs\t\tand\n\n\nlines   \n  \n",
    "😀😀 🦙🦙 ½ ² Ⅷ … — ‘quotes’ “double” !!! ??? ------ ====== ###",
] * 4

TEXTS = [
    "",
    " ",
    "   ",
    "a",
    " a  b   c    ",
    "\n \n\n \t \t\t \t\n  \n   \n",
    "x \n y\r\n\r\n  z\t\n",
    "trailing \u00a0\u3000 spaces\u2003\u2028",
    "I'm I'M we'LL they'Re it's IT'S 'tis 'D'd don'T ſ'ſ 's",
    "1 12 123 1234 12345 123456 ½ ² Ⅷ ٣٤٥ 1,234.50",
    "HelloWorld helloWORLD HTTPServer iPhone ǅungla Ǆ ʰa éÉ",
    "e\u0301cole n\u0303 A\u030a \u1e9b\u0323 हिन्दी กำลัง",
    "日本語のテキスト。中文的文本，可以吗？한국어 텍스트",
    "!!!??? ...--- ==== /// \\\\ ///\n\n!\n ?\r\n$+<=>^`|~",
    "¡hola! «cita» „Zitat“ ‘a’ “b” … ・。、「」！＠＃ａＡ",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f999 \ufe0f x\u200by",
    "Ελλάδα Россия ქართული ᲐᲑ ꭰꮿ Ⴀ ώ Ω K ℭ \U00010400\U0001044f",
    "def f(x):\n    return x+1  # comment\n\n\n\tif a==b: pass",
    "a\u0000b\u0001c\u007fd\u0085e\u00ade",
    "https://example.org/a_b-c?d=e&f=%20#g foo_bar __init__",
]

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (
    CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
START = r"[^\r\n\p{L}\p{N}]?"
GPT4O = (
    f"{START}{UPPER}*{LOWER}+{CONTRACTION}?|{START}{UPPER}+{LOWER}*{CONTRACTION}?"
    r"|\p{N}{1,3}|" + TAIL
)
TEKKEN = f"{START}{UPPER}*{LOWER}+|{START}{UPPER}+{LOWER}*" + r"|\p{N}|" + TAIL
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The letters of DeepSeek LLM: ranges of code points, so that no editor composes them.
LETTERS = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 "
    "388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA "
    "1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 "
    "1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB "
    "1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D "
    "212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 "
    "A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A "
    "FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
LETTERS = "".join(
    "-".join(chr(int(code, 16)) for code in part.split("-")) for part in LETTERS.split()
)
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


def split(expression):
    return pre.Split(Regex(expression), "isolated")


BYTES = pre.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre.ByteLevel(add_prefix_space=False, use_regex=True)

PRE_TOKENIZERS = {
    "gpt-2": [GPT2],
    "smollm": [pre.Digits(individual_digits=True), GPT2],
    "llama-bpe": [split(LLAMA3), BYTES],
    "qwen2": [split(QWEN2), BYTES],
    "qwen35": [split(QWEN35), BYTES],
    "gpt-4o": [split(GPT4O), BYTES],
    "tekken": [split(TEKKEN), BYTES],
    "falcon": [
        pre.Split(Regex(r"[\p{P}\$\+<=>\^~\|`]+"), "isolated"),
        pre.Split(
            Regex(
                r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
            ),
            "isolated",
        ),
        split("[0-9][0-9][0-9]"),
        BYTES,
    ],
    "deepseek-llm": [
        split("[\r\n]"),
        split(r"\s?[" + LETTERS + "]+"),
        split("\\s?[!-/:-~！-／：-～‘-‟　-。]+"),
        split(r"\s+$"),
        split(CJK),
        pre.Digits(individual_digits=False),
        BYTES,
    ],
    "deepseek-coder": [
        split("[\r\n]"),
        split(r"\s?\p{L}+"),
        split(r"\s?\p{P}+"),
        split(CJK),
        pre.Digits(individual_digits=True),
        BYTES,
    ],
    "deepseek-v3": [
        split(r"\p{N}{1,3}"),
        split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
        split(DEEPSEEK3),
        BYTES,
    ],
}


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre.Sequence([split(r"\p{N}{1,3}|\s?\p{L}+|\s+|."), BYTES])
    trainer = trainers.BpeTrainer(
        vocab_size=760,
        initial_alphabet=sorted(pre.ByteLevel.alphabet()),
        special_tokens=["<|begin|>", "<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    cuts = []
    for name, parts in PRE_TOKENIZERS.items():
        cutter = pre.Sequence(parts)
        for text in TEXTS:
            pieces = cutter.pre_tokenize_str(text)
            lengths = [end - start for _, (start, end) in pieces]
            assert sum(lengths) == len(text)
            cuts.append({"pre": name, "text": text, "lengths": lengths})
    with open(FOLDER / "small-cuts.jsonl", "w", encoding="utf-8") as file:
        for cut in cuts:
            file.write(json.dumps(cut) + "\n")

    pairs = []
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.Sequence(PRE_TOKENIZERS["llama-bpe"])
    tokenizer.add_special_tokens([AddedToken("<|pad|>", lstrip=True, normalized=False)])
    tokenizer.add_tokens(
        [
            AddedToken("<think>", normalized=False),
            AddedToken("</think>", rstrip=True, normalized=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A <|end|>",
        special_tokens=[("<|begin|>", 0), ("<|end|>", 1)],
    )
    texts = TEXTS + [
        "<|begin|>system<|end|> text<|end|>",
        "a   <|pad|>  b<think> 1234 </think>  \n c",
        "<think><think></think>\t</think> x <|pad|><|pad|>",
        "<|begin|<|begin|>|> e\u0301<|end|>\u0301",
    ]
    for text in texts:
        tokenizer.encode_special_tokens = False
        special_ids = tokenizer.encode(text, add_special_tokens=True).ids
        tokenizer.encode_special_tokens = True
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        pairs.append({"text": text, "ids": ids, "special_ids": special_ids})
    tokenizer.encode_special_tokens = False
    with open(FOLDER / "small-tokenizer.json", "w", encoding="utf-8") as file:
        json.dump(json.loads(tokenizer.to_str()), file, ensure_ascii=False, separators=(",", ":"))
    with open(FOLDER / "small-pairs.jsonl", "w", encoding="utf-8") as file:
        for pair in pairs:
            file.write(json.dumps(pair) + "\n")


CONTROL = ["<s>", "</s>", "<|user|>", "<|end|>"]
RUNS = ["\u2581" * count for count in range(2, 17)]
USER_DEFINED = ["\u2581\u2581", "\u2581\u2581\u2581\u2581", "\n\n", "\n\n\n", "<table>", "\t\t", "<br>\u2581<br>"]
# Texts on which sentencepiece, which reads no control tokens, has nothing to say.
SPECIAL_TEXTS = ["<s>a b</s>", "<|user|>\nHi<|end|>\n<|user|> x<|end|>", "<|end|><|end|> <s", "  <s>  a"]
RUN_TEXTS = [" " * 37 + "the", "a" + " " * 21, "\n\n\n\n\n x", "  the\n\n   a\t\t\tb", "<table>a</table> <br> <br>", "a <br>  <br>b"]


def train(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 8),
        model_writer=model,
        model_type="bpe",
        vocab_size=640,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return proto


def described(proto, texts):
    """A model's pieces, and the ids of texts."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    control = {piece.piece: index for index, piece in enumerate(proto.pieces) if piece.type == piece.CONTROL}
    marks = re.compile("(" + "|".join(map(re.escape, control)) + ")") if control else None
    cases = []
    for text in texts:
        parts = [part for part in marks.split(text) if part]
        special = [[control[part]] if part in control else processor.encode(part) for part in parts]
        cases.append({"text": text, "ids": processor.encode(text), "special_ids": sum(special, [])})
    pieces = [[piece.piece, piece.score, piece.type] for piece in proto.pieces]
    return {"pieces": pieces, "cases": cases}


def llama_tokenizer(proto):
    """A model as the transformers library writes it: every way to cut a piece in two is a merge, the best scores first, and of equal ones
    that with the longest left part."""
    vocab = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    merges = [
        (piece[:cut], piece[cut:], score)
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    merges.sort(key=lambda merge: (merge[2], len(merge[0]), len(merge[1])), reverse=True)
    tokenizer = Tokenizer(
        models.BPE(
            vocab, [(left, right) for left, right, _ in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ["<unk>", "<s>", "</s>", "<|user|>"]])
    tokenizer.add_special_tokens([AddedToken("<|end|>", normalized=False, rstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return tokenizer


def save(path, value):
    with open(FOLDER / path, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, separators=(",", ":"))


def with_sentencepiece():
    prefix = train(add_dummy_prefix=True, control_symbols=CONTROL[2:])
    for run in RUNS:
        if all(piece.piece != run for piece in prefix.pieces):
            prefix.pieces.add(piece=run, score=-1e9, type=1)
    bare = train(add_dummy_prefix=False, control_symbols=CONTROL[2:], user_defined_symbols=USER_DEFINED)
    texts = TEXTS + RUN_TEXTS + SPECIAL_TEXTS
    save("small-sentencepiece.json", {"prefix": described(prefix, texts), "bare": described(bare, texts)})

    mark = normalizers.Replace(" ", "\u2581")
    forms = {
        "prepend": (normalizers.Sequence([normalizers.Prepend("\u2581"), mark]), None),
        "replace": (mark, pre.Split(" ", "merged_with_previous")),
        "first": (None, pre.Metaspace(prepend_scheme="first", split=False)),
        "always": (None, pre.Metaspace(prepend_scheme="always", split=True)),
    }
    lines, cases = [], []
    for name, (normalizer, pre_tokenizer) in forms.items():
        tokenizer = llama_tokenizer(prefix)
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        if pre_tokenizer is not None:
            tokenizer.pre_tokenizer = pre_tokenizer
        parts = json.loads(tokenizer.to_str())
        lines.append({"form": name, "normalizer": parts["normalizer"], "pre_tokenizer": parts["pre_tokenizer"]})
        for text in texts:
            tokenizer.encode_special_tokens = False
            special_ids = tokenizer.encode(text, add_special_tokens=True).ids
            tokenizer.encode_special_tokens = True
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            cases.append({"form": name, "text": text, "ids": ids, "special_ids": special_ids})
    tokenizer = llama_tokenizer(prefix)
    save("small-sentencepiece-tokenizer.json", json.loads(tokenizer.to_str()))
    with open(FOLDER / "small-sentencepiece-pairs.jsonl", "w", encoding="utf-8") as file:
        for line in lines + cases:
            file.write(json.dumps(line) + "\n")


byte_level()
with_sentencepiece()

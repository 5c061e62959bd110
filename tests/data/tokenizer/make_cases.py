#!/usr/bin/env python3
"""Writes the small tokenizers of this folder and their cases, with Hugging Face's `tokenizers`.

    make_cases.py [SMOLLM2.gguf]      with the file, smollm2_cases.json too

kjv.json is the tokenizer of a small Qwen3.5 model of the project's own, with that model's cases.
"""
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "bench" / "peers"))
sys.dont_write_bytecode = True

from check_tokenizer import CODE, WORDS, mixed_text, pre_tokenizer, reference  # noqa: E402
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers  # noqa: E402

TEXTS = [
    "", " ", "   ", "\n", "\r\n\r\n", " \n \n  x", "\t\tx", "a" * 70, " " * 70 + "x", "x" + " " * 70,
    "Hello, world!", "don't  DON'T we'LL they'Re I'm 'tis 's'S 'ſ ſ's", "1 12 123 1234 12345 1,234.50",
    "x=3.14e-10;y[0]+=1", "٣٤٥ १२३ ² ½ Ⅷ 一二三", "café cafe\u0301 A\u030a\u0327 q\u0307\u0323 \u1100\u1161\u11a8 각",
    "ﬁ ß İ ı ǅ Å K", "नमस्ते दुनिया", "สวัสดี", "你好，世界", "こんにちは が が", "שָׁלוֹם", "مَرْحَبًا", "Ελλάδα ἄλφα",
    "😀👍🏽👨‍👩‍👧🇫🇷❤️1️⃣", "a\u00a0b\u2003c\u3000d\u0085e\u180ef\u2028g\u200bh\ufeffi", "\u3000\u3000x\u00a0\u00a0 y",
    "a \u0301b", "\u0301", "\u0300\u0316a\u0316\u0300", "a\x00b\x01\x7f", "tab\tnewline\ncr\rend\v\f", " \r\n\t \r\n",
    "!!!???...---===", "foo_bar __init__ CamelCase x86_64", "<|im_start|>user\nhi<|im_end|>\n",
    "<|im_start|><|im_start|>", "a<|im_end|>b <|im_end|> c", "<|im_start", "word<tag> <tag>word <tag> .<tag>.",
    "x  <l>  y", "x  <r>  y", "x <r> <l> y", "e\u0301<é>É é", "<special><special >", "PAD aPADb PAD",
    *CODE.split("\n\n"), " ".join(WORDS),
]
FLAGS = [
    AddedToken("<|im_start|>", normalized=False, special=True),
    AddedToken("<|im_end|>", normalized=False, special=True),
    AddedToken("<tag>", single_word=True, normalized=False),
    AddedToken("<l>", lstrip=True, normalized=False),
    AddedToken("<r>", rstrip=True, normalized=False, special=True),
    AddedToken("<e\u0301>", normalized=True),
    AddedToken("<special>", normalized=True, special=True),
    AddedToken("<special", normalized=True),
    AddedToken("PAD", single_word=True, lstrip=True, rstrip=True, normalized=True, special=True),
]


def cases(tok, texts):
    out = []
    for text in texts:
        case = {"text": text, "ids": tok.encode(text).ids}
        tok.encode_special_tokens = True
        plain = tok.encode(text).ids
        tok.encode_special_tokens = False
        if plain != case["ids"]:
            case["plain"] = plain  # special tokens in the text not parsed
        out.append(case)
    return out


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def write_list(path, values):  # one a line, for readable differences
    lines = ",\n".join(json.dumps(v, ensure_ascii=False, separators=(",", ":")) for v in values)
    path.write_text(f"[\n{lines}\n]\n")


def make(name, pre, adapt=lambda root: None):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, normalizer = pre_tokenizer(pre)
    if normalizer:
        tok.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=1000, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator([" ".join(WORDS) * 9, CODE * 5, mixed_text(60_000, 7)], trainer)
    for token in FLAGS:
        (tok.add_special_tokens if token.special else tok.add_tokens)([token])
    root = json.loads(tok.to_str())
    adapt(root)
    write(HERE / f"{name}.json", root)
    tok = Tokenizer.from_str(json.dumps(root))
    texts = TEXTS + mixed_text(6_000, 11).split("  ")
    write_list(HERE / f"{name}_cases.json", cases(tok, texts))


def gpt2(root):
    root["pre_tokenizer"]["add_prefix_space"] = True
    root["model"]["merges"] = [" ".join(m) for m in root["model"]["merges"]]  # the older spelling


def llama3(root):
    root["model"]["ignore_merges"] = True
    del root["model"]["merges"][500:]  # later tokens are only ever whole pieces
    template = processors.TemplateProcessing(single="<|im_start|> $A <|im_end|>",
                                             special_tokens=[("<|im_start|>", 1000), ("<|im_end|>", 1001)])
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    root["post_processor"] = {"type": "Sequence", "processors": [byte_level, json.loads(template.__getstate__())]}


make("gpt2", "gpt-2", gpt2)
make("llama3", "llama-bpe", llama3)
make("qwen2", "qwen2")
make("qwen35", "qwen35")
make("smollm", "smollm")
kjv = json.loads((HERE / "kjv_cases.json").read_text())
write_list(HERE / "kjv_cases.json",
           cases(Tokenizer.from_file(str(HERE / "kjv.json")), [case["text"] for case in kjv]))
if len(sys.argv) > 1:
    write_list(HERE / "smollm2_cases.json",
               cases(reference(pathlib.Path(sys.argv[1])), TEXTS + mixed_text(25_000, 5).split("  ")))

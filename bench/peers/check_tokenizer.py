#!/usr/bin/env python3
"""Nibble's token ids against Hugging Face's `tokenizers`, on 1 MB of mixed text and broken UTF-8.

    check_tokenizer.py MODEL [--nibble build/nibble] [--bytes 1000000] [--seed 1]

MODEL is a GGUF file (needs the `gguf` package) or a directory with a tokenizer.json. The text is
the same for every run with one seed. Exit code 0: every id equal.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

SCRIPTS = {  # inclusive ranges; only characters of Unicode 3.2, which every library knows
    "latin": (0x41, 0x24F), "greek": (0x370, 0x3FF), "cyrillic": (0x400, 0x4FF),
    "armenian": (0x531, 0x587), "hebrew": (0x591, 0x5F4), "arabic": (0x60C, 0x6D5),
    "devanagari": (0x901, 0x970), "bengali": (0x981, 0x9FA), "tamil": (0xB82, 0xBF2),
    "thai": (0xE01, 0xE5B), "tibetan": (0xF00, 0xFCF), "georgian": (0x10A0, 0x10F6),
    "jamo": (0x1100, 0x11F9), "ethiopic": (0x1200, 0x137C), "mongolian": (0x1800, 0x18A9),
    "khmer": (0x1780, 0x17E9), "greek_extended": (0x1F00, 0x1FFE), "kana": (0x3041, 0x30FE),
    "han": (0x4E00, 0x9FA5), "hangul": (0xAC00, 0xD7A3), "fullwidth": (0xFF01, 0xFFEE),
    "compatibility": (0xF900, 0xFAD9), "math": (0x1D400, 0x1D7FF), "han_b": (0x20000, 0x2A6D6),
    "gothic": (0x10330, 0x1034A), "symbols": (0x2010, 0x27BE), "numbers": (0x2070, 0x2189),
    "controls": (0x00, 0x20),
}
MARKS = [0x300, 0x301, 0x302, 0x303, 0x308, 0x30A, 0x316, 0x323, 0x327, 0x328, 0x338, 0x345,
         0x5B0, 0x64B, 0x93C, 0x94D, 0x3099, 0x309A, 0x20DD]
SPACES = [" ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", "\r", "\v", "\f", "\u0085", "\u00a0",
          "\u1680", "\u180e", "\u2000", "\u2003", "\u2009", "\u200a", "\u200b", "\u2028", "\u2029",
          "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff"]
EMOJI = ["\U0001F600", "\U0001F44D\U0001F3FD", "\U0001F468\u200D\U0001F469\u200D\U0001F467",
         "\U0001F1EB\U0001F1F7", "\u2764\uFE0F", "\U0001F3F4\U000E0067\U000E0062\U000E007F", "1\uFE0F\u20E3"]
CODE = """def f(xs, n=10):\n    \"\"\"Doc.\"\"\"\n    return {k: v ** 2 for k, v in xs.items() if k != 'it''s'}\n
#include <vector>\nint main(void) {\n\tfor (int i = 0; i < 1e6; ++i) { a[i] += b[i] * 0x1F; }\n}\n
SELECT * FROM "t" WHERE x >= 3.14 AND y LIKE '%foo%'; -- done\r\n<a href="x?y=1&amp;z=2">A\tB</a>\n
$ git commit -m "don't" && ./run --n=128 | tee /dev/null 2>&1  # I'LL we've THEY'RE 'Tis\n"""
WORDS = """the of and Don't I'll we've you're it's THEY'LL can't O'Neil naïve café ſ'ſ 's'S 'ſ
internationalization antidisestablishmentarianism e.g. U.S.A. foo_bar CamelCaseWord x86_64 10,000
3.14159 1/2 2024-02-29 ½ Ⅷ ² ₃ ٣٤ १२३ 一二三 <|im_start|> <|endoftext|> </s> ... !!! ??? --- ==> ‘q’ “q”
ǅ ß İ ı ﬁ Å Å Ω Ω 각 각 が が é é ậ ậ""".split()


def mixed_text(size, seed):
    rng = random.Random(seed)
    chars = {name: [chr(c) for c in range(lo, hi + 1)
                    if unicodedata.ucd_3_2_0.category(chr(c)) not in ("Cn", "Cs")]
             for name, (lo, hi) in SCRIPTS.items()}
    names = sorted(chars)

    def word():
        pool = chars[rng.choice(names)]
        w = "".join(rng.choice(pool) for _ in range(rng.randint(1, 9)))
        return "".join(c + (chr(rng.choice(MARKS)) * rng.randint(1, 2) if rng.random() < .1 else "")
                       for c in w)

    def code():
        at = rng.randrange(len(CODE))
        return CODE[at:at + rng.randint(5, 200)]

    makers = [(6, lambda: rng.choice(WORDS)), (5, word), (1, code), (1, lambda: rng.choice(EMOJI)),
              (1, lambda: str(rng.randrange(10 ** rng.randint(1, 12)))),
              (1, lambda: chr(rng.choice(MARKS))),
              (1, lambda: rng.choice("-=*# \n\t\u3000") * rng.randint(2, 90))]
    weights = [w for w, _ in makers]
    out, total = [], 0
    while total < size:
        s = rng.choices(makers, weights)[0][1]()
        s += rng.choice([" "] * 12 + SPACES * 1 + [""] * 6)
        out.append(s)
        total += len(s.encode())
    return "".join(out)


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def pre_tokenizer(pre):
    """The pre-tokenizer and normalizer the published tokenizer.json of a GGUF `pre` has."""
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre in ("gpt-2", "gpt2"):
        return plain, None
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain]), None
    pattern = {"llama-bpe": LLAMA3, "qwen2": LLAMA3.replace("{1,3}", ""),
               "qwen35": LLAMA3.replace("{1,3}", "").replace(r"?\p{L}+", r"?[\p{L}\p{M}]+")
                               .replace(r" ?[^\s\p{L}\p{N}]", r" ?[^\s\p{L}\p{M}\p{N}]")}[pre]
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    nfc = normalizers.NFC() if pre.startswith("qwen") else None
    return pre_tokenizers.Sequence([split, byte_level]), nfc


def reference(model):
    if model.is_dir():
        return Tokenizer.from_file(str(model / "tokenizer.json"))
    import gguf
    fields = gguf.GGUFReader(model).fields
    get = lambda name: fields[f"tokenizer.ggml.{name}"].contents()
    tokens, pre = get("tokens"), get("pre")
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)},
                               merges=[tuple(m.split(" ")) for m in get("merges")],
                               ignore_merges=pre == "llama-bpe"))
    tok.pre_tokenizer, normalizer = pre_tokenizer(pre)
    if normalizer:
        tok.normalizer = normalizer
    tok.decoder = decoders.ByteLevel()
    control = [AddedToken(t, normalized=False) for t, kind in zip(tokens, get("token_type")) if kind == 3]
    tok.add_special_tokens(control)
    user = [AddedToken(t, normalized=False) for t, kind in zip(tokens, get("token_type")) if kind == 4]
    tok.add_tokens(user)
    return tok


def broken_text(text, seed):
    """Bytes with invalid UTF-8 in them, as [(valid text, invalid bytes), ...]."""
    rng = random.Random(seed)
    junk = [b"\xff", b"\xc0\xaf", b"\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88", b"\xfe\xff"]
    parts, at = [], 0
    while at < len(text):
        n = rng.randint(1, 400)
        parts.append((text[at:at + n], b"".join(rng.choices(junk, k=rng.randint(1, 3)))))
        at += n
    return parts


BYTE_TO_CHAR = {b: chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256)]}
BYTE_TO_CHAR |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in BYTE_TO_CHAR)}


def broken_ids(tok, parts):
    """What Nibble documents: each run of invalid bytes is a piece of its own."""
    ids = []
    for valid, junk in parts:
        ids += tok.encode(valid, add_special_tokens=False).ids
        ids += [t.id for t in tok.model.tokenize("".join(BYTE_TO_CHAR[b] for b in junk))]
    return ids


def nibble_ids(command, model, data):
    with tempfile.NamedTemporaryFile() as f:
        f.write(data)
        f.flush()
        out = subprocess.run([*command.split(), "tokenize", str(model), "--ids", "--file", f.name],
                             check=True, capture_output=True, text=True).stdout
    return [int(x) for x in out.replace(",", " ").split()]


def compare(name, tok, ours, theirs):
    if ours == theirs:
        print(f"{name}: {len(ours)} ids equal")
        return True
    i = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    print(f"{name}: DIFFERENT at id {i} of {len(theirs)} (ours {len(ours)})")
    for who, ids in (("nibble", ours), ("tokenizers", theirs)):
        print(f"  {who}: {ids[max(0, i - 4):i + 8]} {[tok.id_to_token(t) for t in ids[max(0, i - 4):i + 8]]}")
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--nibble", default="build/nibble", help="the command")
    parser.add_argument("--bytes", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=pathlib.Path, help="write text and ids as test cases (JSON)")
    args = parser.parse_args()
    tok = reference(args.model)
    text = mixed_text(args.bytes, args.seed)
    start = time.perf_counter()
    theirs = tok.encode(text, add_special_tokens=False).ids
    print(f"{len(text.encode())} bytes, {len(theirs)} ids; "
          f"tokenizers: {len(text.encode()) / 1e6 / (time.perf_counter() - start):.1f} MB/s")
    ok = compare("mixed text", tok, nibble_ids(args.nibble, args.model, text.encode()), theirs)
    parts = broken_text(text[:200_000], args.seed)
    data = b"".join(valid.encode() + junk for valid, junk in parts)
    ok &= compare("broken UTF-8", tok, nibble_ids(args.nibble, args.model, data), broken_ids(tok, parts))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())

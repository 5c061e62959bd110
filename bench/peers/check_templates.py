#!/usr/bin/env python3
"""Nibble's chat templates against Python's jinja2, set up as Hugging Face's transformers does.

    check_templates.py PATH... [--nibble build/nibble] [--show 3]
    check_templates.py --record tests/data/templates

PATH is a template, a directory of them (*.jinja), or a GGUF file that carries one (needs the
`gguf` package). Every template renders every conversation below, with every set of variables, with
and without the generation prompt; the text must agree byte for byte, and where one fails the other
must too. llama.cpp's source has many templates under models/templates. Exit code 0: all agree.

--record writes what jinja2 gives for the tests' own snippets and templates beside them.
"""
import argparse
import collections
import concurrent.futures
import functools
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
from datetime import datetime

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """transformers' {% generation %}: marks what the assistant wrote, changes no text."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("same")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def same(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


@functools.lru_cache(maxsize=1)
def compiled(source):
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return env.from_string(source)


def render(template, messages, extra, prompt):
    """(text, None) or (None, error)."""
    try:
        variables = {"tools": None, "documents": None, **extra, "messages": messages,
                     "add_generation_prompt": prompt}
        text = compiled(template).render(**variables)
        text.encode()
        return text, None
    except Exception as e:  # templates raise whatever Python raises
        return None, f"{type(e).__name__}: {e}"


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, arguments, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


SYSTEM = {"role": "system", "content": "You are Nibble."}
ODD = "  Zoë “quotes” \t<b>&amp;</b> {{ x }} {% y %}\r\n日本語 👩‍👩‍👧 e\u0301\u00a0\u3000 'single' \"double\" \\n \n\n"
WEATHER = {"city": "Zürich", "days": 3, "exact": True, "ratio": 0.1, "none": None,
           "list": [1, "two", {"k": []}], "empty": {}}
TOOL_TURN = [user("Weather?"), assistant("", tool_calls=[call("weather", WEATHER, id="abcdefgh1")]),
             {"role": "tool", "name": "weather", "tool_call_id": "abcdefgh1", "content": "{\"t\": 21.5}"}]
CONVERSATIONS = {
    "one": [user("Hi")],
    "system": [SYSTEM, user("Hi")],
    "turns": [user("Hi"), assistant("Hello!"), user("And?")],
    "system turns": [SYSTEM, user("Hi"), assistant("Hello!"), user("And?"), assistant("So."), user("?")],
    "ends with assistant": [SYSTEM, user("Hi"), assistant("Hello!")],
    "odd text": [{"role": "system", "content": ODD}, user(ODD), assistant(ODD), user(ODD)],
    "empty text": [{"role": "system", "content": ""}, user(""), assistant(""), user("x")],
    "think": [user("2+2?"), assistant("<think>\nadd\n</think>\n\n4"), user("3+3?")],
    "think last": [user("2+2?"), assistant("<think>\nadd\n</think>\n\n4")],
    "think broken": [user("2+2?"), assistant("a</think>b</think>c<think>"), user("3+3?")],
    "reasoning": [user("2+2?"), assistant("4", reasoning_content="two and two"), user("3+3?")],
    "reasoning last": [user("2+2?"), assistant("4", reasoning_content="\ntwo\n", reasoning="r")],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]}],
    "parts all": [{"role": "system", "content": [{"type": "text", "text": "Sys"}]},
                  {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "Yo"}]},
                  {"role": "user", "content": [{"type": "text", "text": "?"}]}],
    "image": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"},
                                           {"type": "image_url", "image_url": {"url": "x"}}]}],
    "tool": TOOL_TURN,
    "tool answered": [SYSTEM] + TOOL_TURN + [assistant("21 degrees."), user("Thanks")],
    "tool no content": [user("Weather?"), {"role": "assistant", "tool_calls": [call("weather", WEATHER)]},
                        {"role": "tool", "content": "ok"}],
    "tool null content": [user("Weather?"), assistant(None, tool_calls=[call("weather", {})]),
                          {"role": "tool", "content": "ok"}],
    "tool text": [user("Weather?"), assistant("Let me see.", tool_calls=[call("weather", {"city": "Rome"})]),
                  {"role": "tool", "content": "ok"}, user("So?")],
    "tool string arguments": [user("W?"), assistant("", tool_calls=[call("weather", json.dumps(WEATHER), id="123456789")]),
                              {"role": "tool", "tool_call_id": "123456789", "content": "ok"}],
    "two tools": [user("W?"), assistant("", reasoning_content="why", tool_calls=[
        call("weather", {"city": "A"}, id="aaaaaaaa1"), call("time", {}, id="aaaaaaaa2")]),
        {"role": "tool", "name": "weather", "tool_call_id": "aaaaaaaa1", "content": "1"},
        {"role": "tool", "name": "time", "tool_call_id": "aaaaaaaa2", "content": {"h": 12}}, user("?")],
    "bare call": [user("W?"), assistant("", tool_calls=[{"name": "weather", "arguments": {"a": 1}}])],
    "tool parts": [user("W?"), assistant("", tool_calls=[call("weather", {"a": "b\nc"})]),
                   {"role": "tool", "content": [{"type": "text", "text": "parts"}]}],
    "system late": [user("Hi"), SYSTEM, user("Hi")],
    "two systems": [SYSTEM, SYSTEM, user("Hi")],
    "developer": [{"role": "developer", "content": "Dev"}, user("Hi")],
    "assistant first": [assistant("Hello"), user("Hi")],
    "same role twice": [user("a"), user("b"), assistant("c"), assistant("d")],
    "unknown role": [{"role": "narrator", "content": "x"}, user("Hi")],
    "no content": [{"role": "user"}],
    "no role": [{"content": "x"}],
    "number content": [user(42), assistant(1.5), user(True)],
    "null content": [user(None)],
    "object content": [user({"a": 1})],
    "empty": [],
}
PARAMETERS = {"type": "object", "required": ["city"], "properties": {
    "city": {"type": "string", "description": "The <city> & its 'name'", "enum": ["A", "B"]},
    "days": {"type": "integer", "default": 1, "minimum": 0.5},
    "where": {"type": "object", "properties": {"lat": {"type": ["number", "null"]}}},
    "tags": {"type": "array", "items": {"type": "string"}},
    "any": {"anyOf": [{"type": "string"}, {"type": "null"}], "nullable": True}}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The weather,\nby day — «ok»",
                                      "parameters": PARAMETERS,
                                      "return": {"type": "string", "description": "text"}}},
    {"type": "function", "function": {"name": "time", "description": "Now",
                                      "parameters": {"type": "object", "properties": {}}}},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
FLAT_TOOL = {"type": "function", "function": {"name": "time", "description": "Now", "parameters": {
    "type": "object", "required": ["zone"], "properties": {
        "zone": {"type": "string", "description": "Where"}, "utc": {"type": "boolean"}}}}}
VARIABLES = {
    "none": {},
    "tokens": TOKENS,
    "tools": {**TOKENS, "tools": TOOLS},
    "think": {**TOKENS, "enable_thinking": True, "thinking": True},
    "no think": {**TOKENS, "enable_thinking": False, "thinking": False, "tools": TOOLS},
    "flat": {**TOKENS, "tools": [FLAT_TOOL], "functions": json.dumps([FLAT_TOOL]), "datetime": "now"},
    "options": {**TOKENS, "tools": TOOLS, "tools_in_user_message": False, "date_string": "1 Jan 2025",
                "preserve_thinking": True, "add_vision_id": True, "reasoning_effort": "high",
                "builtin_tools": ["brave_search", "code_interpreter"], "custom_tools": TOOLS[:1],
                "documents": [{"title": "D", "text": "doc"}], "xml_tools": TOOLS, "controls": {"a": 1}},
}


def nibble(args, template, files, prompt):
    messages, extra = files
    command = [args.nibble, "template", template, "--messages", messages, "--extra", extra]
    if not prompt:
        command.append("--no-generation-prompt")
    done = subprocess.run(command, capture_output=True)
    if done.returncode not in (0, 1):
        return None, f"exit code {done.returncode}: {done.stderr.decode()}"
    return (done.stdout.decode(), None) if done.returncode == 0 else (None, done.stderr.decode().strip())


def templates(paths):
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            for file in sorted(path.glob("*.jinja")):
                yield file.name, file.read_text()
        elif path.suffix == ".gguf":
            from gguf import GGUFReader
            field = GGUFReader(path).fields["tokenizer.chat_template"]
            yield path.name, bytes(field.parts[field.data[0]]).decode()
        else:
            yield path.name, path.read_text()


def check(args):
    failed = total = 0
    with tempfile.TemporaryDirectory() as tmp, concurrent.futures.ThreadPoolExecutor(2) as pool:
        def written(group):
            names = {}
            for name, value in group.items():
                names[name] = f"{tmp}/{len(list(pathlib.Path(tmp).iterdir()))}.json"
                pathlib.Path(names[name]).write_text(json.dumps(value))
            return names
        conversations, variables = written(CONVERSATIONS), written(VARIABLES)
        cases = list(itertools.product(CONVERSATIONS, VARIABLES, (True, False)))
        for name, text in templates(args.paths):
            file = f"{tmp}/template"
            pathlib.Path(file).write_bytes(text.encode())
            ours = pool.map(lambda c: nibble(args, file, (conversations[c[0]], variables[c[1]]), c[2]), cases)
            wrong, errors, first = 0, 0, collections.Counter()
            for (conversation, extra, prompt), got in zip(cases, ours):
                want = render(text, CONVERSATIONS[conversation], VARIABLES[extra], prompt)
                errors += want[0] is None
                agree = got[0] == want[0] and "exit code" not in (got[1] or "")
                wrong += not agree
                if not agree:
                    first[f"{want[1]} != {got[1]}"] += 1
                    if wrong <= args.show:
                        print(f"--- {name}: {conversation}, {extra}, prompt {prompt}\n"
                              f"jinja2: {want[1] or want[0]!r}\nnibble: {got[1] or got[0]!r}")
            total += len(cases)
            failed += wrong > 0
            rendered = len(cases) - errors
            print(f"{'FAIL' if wrong else 'ok  '} {name}: {rendered} texts, {errors} errors in both"
                  + (f"; {wrong} differ: {first.most_common(3)}" if wrong else ""), flush=True)
    print(f"{total} cases; {failed} templates differ")
    return failed == 0


def outcome(text, error):
    return {"error": error} if text is None else {"text": text}


def write_lines(path, cases):
    path.write_text("".join(json.dumps(c, ensure_ascii=False) + "\n" for c in cases))


def record(folder):
    """snippets.jsonl: one template a line; NAME.jinja: what it gives for some cases, NAME.jsonl."""
    snippets = folder / "snippets.jsonl"
    cases = [json.loads(line) for line in snippets.read_text().rstrip("\n").split("\n")]
    for case in cases:
        case.pop("text", None), case.pop("error", None)
        case.update(outcome(*render(case["template"], CONVERSATIONS["system turns"],
                                    case.get("extra", {}), True)))
    write_lines(snippets, cases)
    for file in sorted(folder.glob("*.jinja")):
        chosen = itertools.product(("one", "odd text", "think", "tool answered", "two tools", "parts all",
                                    "null content", "no role"), ("none", "flat", "no think"), (True, False))
        write_lines(file.with_suffix(".jsonl"), [
            {"messages": CONVERSATIONS[c], "extra": VARIABLES[v], "prompt": p,
             **outcome(*render(file.read_text(), CONVERSATIONS[c], VARIABLES[v], p))}
            for i, (c, v, p) in enumerate(chosen) if i % 2 == 0 or c == "one"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--nibble", default="build/nibble")
    parser.add_argument("--show", type=int, default=0, help="differences to print for each template")
    parser.add_argument("--record", type=pathlib.Path)
    args = parser.parse_args()
    if args.record:
        return record(args.record)
    if not args.paths:
        parser.error("which templates?")
    sys.exit(0 if check(args) else 1)


if __name__ == "__main__":
    main()

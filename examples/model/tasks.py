"""Training examples made from Python source: fill-in-the-middle and chat.

Every example is a list of parts. A part is either text or the name of an
added token such as ``<|im_start|>``, wrapped in `Tok`, so that text which
happens to spell an added token is never taken for one.
"""
import ast
import builtins
import hashlib
import re
import textwrap


class Tok(str):
    """The name of an added token, as opposed to text."""


END = Tok("<|endoftext|>")
IM_START, IM_END = Tok("<|im_start|>"), Tok("<|im_end|>")
THINK, UNTHINK = Tok("<think>"), Tok("</think>")
FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE = Tok("<|fim_prefix|>"), Tok("<|fim_suffix|>"), Tok("<|fim_middle|>")
REPO, FILE = Tok("<|repo_name|>"), Tok("<|file_sep|>")


# ---------------------------------------------------------------- plain code

def code_example(text, package, path, rng):
    """A whole file; some files carry the header that names package and path."""
    if rng.random() < 0.25:
        return [REPO, package + "\n", FILE, path + "\n" + text, END]
    return [text, END]


# ---------------------------------------------------- fill in the middle

def _indent(line):
    return len(line) - len(line.lstrip(" "))


def _span(lines, rng):
    """Choose (line, column) .. (line, column) of a middle, the way an editor would ask for one."""
    kind = rng.random()
    for _ in range(8):
        i = rng.randrange(len(lines))
        line = lines[i]
        body = line.rstrip("\n")
        if len(body.strip()) < 4:
            continue
        if kind < 0.45:                                   # to the end of this line, or a few lines on
            col = rng.randint(_indent(body), len(body) - 1)
            j = i if kind < 0.30 else min(len(lines) - 1, i + rng.randint(1, 6))
            return i, col, j, len(lines[j].rstrip("\n"))
        if kind < 0.60:                                   # whole lines
            j = min(len(lines) - 1, i + rng.randint(0, 7))
            col = _indent(body) if rng.random() < 0.5 else 0
            return i, col, j, len(lines[j].rstrip("\n"))
        if kind < 0.80:                                   # the block that this line opens
            if not body.endswith(":") or i + 1 >= len(lines):
                continue
            j, depth = i, _indent(body)
            while j + 1 < len(lines) and j - i < 24:
                nxt = lines[j + 1]
                if nxt.strip() and _indent(nxt) <= depth:
                    break
                j += 1
            while j > i and not lines[j].strip():
                j -= 1
            if j == i:
                continue
            col = _indent(lines[i + 1]) if rng.random() < 0.5 else 0
            return i + 1, min(col, len(lines[i + 1]) - 1), j, len(lines[j].rstrip("\n"))
        col = rng.randrange(len(line))                    # any characters
        left, j, end = rng.randint(1, 200), i, col
        while left > 0:
            room = len(lines[j]) - end
            if room >= left:
                return i, col, j, end + left
            left -= room
            if j + 1 == len(lines):
                return i, col, j, len(lines[j])
            j, end = j + 1, 0
    return None


def fim_example(lines, package, path, rng):
    """One prefix-suffix-middle example from a file's lines (with their line ends), or None."""
    span = _span(lines, rng)
    if span is None:
        return None
    i, col, j, end = span
    before, after = rng.choice((400, 1500, 3000)), rng.choice((0, 200, 800, 1500))
    prefix, suffix = lines[i][:col], lines[j][end:]
    if i == j:
        middle = lines[i][col:end]
    else:
        middle = lines[i][col:] + "".join(lines[i + 1:j]) + lines[j][:end]
    a = i
    while a > 0 and len(prefix) < before:
        a -= 1
        prefix = lines[a] + prefix
    b = j + 1
    while b < len(lines) and len(suffix) < after:
        suffix += lines[b]
        b += 1
    if after == 0 and rng.random() < 0.5:
        suffix = ""
    if not middle.strip() or len(middle) > 1200:
        return None
    head = [FILE, path + "\n"] if rng.random() < 0.15 else []
    return head + [FIM_PREFIX, prefix, FIM_SUFFIX, suffix, FIM_MIDDLE, middle, END]


# ------------------------------------------------------------------ chat

VERBS = set("""add align allow append apply assert assign attach bind build calculate call cast change check choose
clean clear clip close collect combine compare compile compute concatenate configure construct convert copy count
create decode decompose decorate decrypt define delete derive describe detect determine disable discard display
divide do download draw dump emit enable encode ensure enumerate escape estimate evaluate execute expand export
extend extract fetch fill filter find fit fix flatten flip force format gather generate get give group guess handle
hash identify implement import increment indicate infer initialize insert inspect install interpolate invert invoke
iterate join keep launch list load locate log look lookup make map mark mask match measure merge mock modify move
multiply normalize obtain open order override pack pad parse partition patch perform pick plot pop prepare print
process produce project prompt provide pull push put query quote raise read rebuild recover reduce refresh register
remove rename render reorder repeat replace report request reset reshape resize resolve restore retrieve return
reverse rewrite rotate round run sample save scale scan search select send serialize set setup shift show shuffle
simplify skip slice smooth solve sort split stack start stop store strip subtract sum swap take tell test tokenize
train transform translate transpose traverse trim truncate try turn unescape unpack unwrap update upload use
validate verify wait walk warn wrap write yield""".split())

SYSTEM = ("You are a helpful assistant.", "You are a coding assistant.", "You write short, clear Python.",
          "You are an expert Python programmer.")


def _third(verb):
    if verb.endswith(("s", "x", "z", "ch", "sh", "o")):
        return verb + "es"
    if verb.endswith("y") and verb[-2:-1] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"


_BASE = {_third(v): v for v in VERBS}


def sentence(doc):
    """The first sentence of a docstring as plain text without its full stop, or None if it is no use."""
    para = re.split(r"\n\s*\n", doc.strip(), maxsplit=1)[0]
    para = re.sub(r":[a-z:]+:`~?\.?([^`]*)`", r"`\1`", " ".join(para.split())).replace("``", "`")
    text = re.split(r"(?<=[^.][.])\s", para + " ", maxsplit=1)[0].strip().rstrip(".:")
    if not 12 <= len(text) <= 160 or not text.isascii() or len(text.split()) < 3:
        return None
    if re.search(r">>>|::|\{|deprecated|TODO|FIXME|@|http", text):
        return None
    return text


def _imperative(text):
    """('return', 'the sum of ...') if the sentence starts with a known verb, else None."""
    head, _, rest = text.partition(" ")
    word = head.lower()
    word = _BASE.get(word, word)
    return (word, rest) if word in VERBS and rest else None


def _params(doc):
    """Descriptions of parameters in a docstring of reST, Google or NumPy style."""
    found = {}
    for m in re.finditer(r":param\s+(?:[\w.\[\]]+\s+)?(\w+):\s*([^\n]+)", doc):
        found[m[1]] = m[2]
    for m in re.finditer(r"^\s+\*{0,2}(\w+)(?:\s*\([^)\n]*\))?:\s+([^\n]+)$", doc, re.M):
        found.setdefault(m[1], m[2])
    for m in re.finditer(r"^\s*(\w+)\s*:\s*([^\n]*)\n(\s+)(\S[^\n]*)$", doc, re.M):
        found.setdefault(m[1], m[4])
    return found


class Function:
    """A function, or a method moved to the margin, with what the chat examples need to know of it."""

    def __init__(self, node, source, imports):
        self.node, self.name = node, node.name
        self.doc = ast.get_docstring(node) or ""
        self.summary = sentence(self.doc) if self.doc else None
        lines = source.splitlines()
        first, body = node.lineno - 1, node.body[1:] if self.doc else node.body
        self.head = "\n".join(lines[first:node.body[0].lineno - 1])
        if node.body[0].lineno == node.lineno:            # a one-line definition
            self.head = ""
        if not body or not self.head:
            self.code = ""
            return
        start = (node.body[0].end_lineno if self.doc else body[0].lineno - 1)
        self.body = "\n".join(lines[start:node.end_lineno]).strip("\n")
        self.pad = " " * node.body[0].col_offset
        self.args = [a.arg for a in node.args.posonlyargs + node.args.args + node.args.kwonlyargs]
        self.method = self.args[:1] == ["self"]
        self.free = self._free_names()
        needed = sorted({imports[n] for n in self.free if n in imports})
        self.unknown = [n for n in self.free if n not in imports]
        self.imports = "\n".join(needed) + "\n\n\n" if needed else ""
        self.code = self.render(True)

    def _free_names(self):
        bound, used = set(self.args), []
        for n in ast.walk(self.node):
            if isinstance(n, ast.Name):
                (used.append(n.id) if isinstance(n.ctx, ast.Load) else bound.add(n.id))
            elif isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
                bound.add(n.name)
            elif isinstance(n, ast.arg):
                bound.add(n.arg)
            elif isinstance(n, ast.ExceptHandler) and n.name:
                bound.add(n.name)
            elif isinstance(n, ast.alias):
                bound.add((n.asname or n.name).split(".")[0])
        return sorted(set(used) - bound - set(dir(builtins)))

    def render(self, documented, body=None):
        doc = f'{self.pad}"""{self.summary}."""\n' if documented and self.summary else ""
        return self.imports + self.head + "\n" + doc + (self.body if body is None else body)

    @property
    def signature(self):
        return f"{self.name}({ast.unparse(self.node.args)})"

    def good(self):
        n = self.node
        if not self.code or not self.summary or n.decorator_list or self.name.startswith("test"):
            return False
        if self.args[:1] == ["cls"] or self.name.startswith("__") or self.code.count("\n") > 30 or len(self.code) > 1600:
            return False
        if len(self.unknown) > 3 or not self.code.isascii() or "super()" in self.code or '"""' in self.body:
            return False
        if max(map(len, self.code.split("\n"))) > 110 or len(self.body.strip()) < 12 or "\t" in self.code:
            return False
        return not re.search(r"NotImplementedError|^\s*(pass|\.\.\.)\s*$", self.body)

    def clean(self):
        """Self-contained and short: worth showing more often."""
        return not self.unknown and not self.method and self.code.count("\n") <= 18

    # ---- the thought: what the arguments are, then what the code does in order

    def thought(self):
        told, notes, a = _params(self.doc), [], self.node.args
        args = a.posonlyargs + a.args
        defaults = [None] * (len(args) - len(a.defaults)) + list(a.defaults)
        for arg, default in list(zip(args, defaults)) + list(zip(a.kwonlyargs, a.kw_defaults)):
            if arg.arg == "self":
                continue
            parts = []
            if arg.annotation is not None and len(kind := ast.unparse(arg.annotation)) < 40:
                parts.append(f"is of type {kind}")
            if (desc := told.get(arg.arg)) and desc.isascii() and len(desc) < 90:
                desc = desc.strip().rstrip(".")
                parts.append("is " + desc[:1].lower() + desc[1:])
            if default is not None and len(value := ast.unparse(default)) < 24:
                parts.append(f"defaults to {value}")
            notes.append(f"`{arg.arg}` " + (" and ".join(parts) or "is required"))
        if a.vararg:
            notes.append(f"`*{a.vararg.arg}` takes more positional arguments")
        if a.kwarg:
            notes.append(f"`**{a.kwarg.arg}` takes keyword options")
        first = "; ".join(notes[:6]) if notes else "It takes no arguments"
        steps = [s for s in map(_step, self.node.body) if s]
        steps = list(dict.fromkeys(steps))
        if len(steps) > 5:
            steps = steps[:4] + steps[-1:]
        return first + "." + (f" Steps: {', then '.join(steps)}." if steps else "")


def _short(node, limit=48):
    text = ast.unparse(node)
    return text if len(text) <= limit and "\n" not in text else None


def _step(node):
    if isinstance(node, ast.Return) and node.value is not None:
        return f"return {_short(node.value) or 'the result'}"
    if isinstance(node, ast.If):
        if isinstance(node.body[0], ast.Raise) and node.body[0].exc is not None:
            exc = node.body[0].exc
            exc = exc.func if isinstance(exc, ast.Call) else exc
            return f"raise {_short(exc) or 'an error'} if {_short(node.test) or 'the input is bad'}"
        return f"check {_short(node.test)}" if _short(node.test) else "check the condition"
    if isinstance(node, ast.For):
        return f"loop over {_short(node.iter) or 'the items'}"
    if isinstance(node, ast.While):
        return f"repeat while {_short(node.test) or 'there is more'}"
    if isinstance(node, ast.With):
        return f"use {_short(node.items[0].context_expr) or 'a context'}"
    if isinstance(node, ast.Try):
        return "try it and handle errors"
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return f"make `{node.targets[0].id}`"
    if isinstance(node, ast.FunctionDef):
        return f"define `{node.name}`"
    if isinstance(node, ast.Raise):
        return "raise an error"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return f"call {_short(node.value.func) or 'a helper'}"
    return None


def functions(source):
    """The usable functions of a file."""
    tree = ast.parse(source)
    imports = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for al in node.names:
                imports[(al.asname or al.name).split(".")[0]] = "import " + al.name + (f" as {al.asname}" if al.asname else "")
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for al in node.names:
                imports[al.asname or al.name] = f"from {node.module} import {al.name}" + (f" as {al.asname}" if al.asname else "")
    found, lines = [], source.splitlines()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found.append(Function(node, source, imports))
        elif isinstance(node, ast.ClassDef):              # methods, moved to the margin
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and not inner.decorator_list and ast.get_docstring(inner):
                    text = textwrap.dedent("\n".join(lines[inner.lineno - 1:inner.end_lineno]))
                    try:
                        found.append(Function(ast.parse(text).body[0], text, imports))
                    except SyntaxError:
                        continue
    return [fn for fn in found if fn.good()]


def _request(fn, rng):
    """A user's words for wanting this function."""
    text, stub = fn.summary, f'```python\n{fn.head}\n{fn.pad}"""{fn.summary}."""\n```'
    parsed = _imperative(text)
    lower = text[:1].lower() + text[1:] if not text[:2].isupper() else text
    takes = ", ".join(f"`{a}`" for a in fn.args if a != "self") or "no arguments"
    choices = [f"Implement this Python function:\n\n{stub}", f"Complete the function.\n\n{stub}",
               f"Write the body of this function.\n\n{stub}"]
    if parsed:
        verb, rest = parsed
        does, do = f"{_third(verb)} {rest}", f"{verb} {rest}"
        choices += 2 * [f"Write a Python function `{fn.signature}` that {does}.",
                        f"Write a Python function that {does}.",
                        f"Write a Python function {fn.name} that {does}."]
        choices += [f"Write a Python function called `{fn.name}` that {does}. It takes {takes}.",
                    f"I need a Python function to {do}.", f"Can you write `{fn.signature}` in Python? It should {do}.",
                    f"Write a function to {do}.", f"How do I {do} in Python?",
                    f"{do[:1].upper()}{do[1:]} in Python. Call the function `{fn.name}`."]
    else:
        choices += 2 * [f"Write a Python function `{fn.signature}`: {lower}.",
                        f"Write a Python function called `{fn.name}`. {text}."]
    if fn.method:
        return rng.choice([c for c in choices if "function" in c]).replace("function", "method", 1)
    return rng.choice(choices)


def _fence(code):
    return f"```python\n{code}\n```"


def _rename(code, old, new):
    return re.sub(rf"(?<![\w.]){re.escape(old)}(?!\w)", new, code)


def _turns(fn, other, rng):
    """[(request, thought, answer), ...] of one or two turns."""
    kind = rng.random()
    ask, full = _request(fn, rng), _fence(fn.code)
    if kind < 0.72:
        return [(ask, fn.thought(), full)]
    if kind < 0.80:
        desc = fn.summary[:1].upper() + fn.summary[1:] + "."
        words = rng.choice(("What does this function do?", "Explain this function.", "Describe this code in one sentence."))
        return [(f"{words}\n\n{_fence(fn.render(False))}", fn.thought(), desc)]
    if kind < 0.84:
        words = rng.choice(("Add a docstring.", "Please add a docstring.", "Document it."))
        return [(ask, fn.thought(), _fence(fn.render(False))),
                (words, f"One line that says what `{fn.name}` does.", full)]
    if kind < 0.88:
        words = rng.choice(("Remove the docstring.", "Without the docstring, please."))
        return [(ask, fn.thought(), full), (words, "The same code without its docstring.", _fence(fn.render(False)))]
    if kind < 0.92:
        new = rng.choice(("run", "compute", "process", "helper", "convert", "main", "func", "solve", fn.name + "_2"))
        return [(ask, fn.thought(), full),
                (f"Rename the function to `{new}`.", f"Only the name changes: `{fn.name}` becomes `{new}`.",
                 _fence(_rename(fn.code, fn.name, new)))]
    if kind < 0.95 and fn.args and not fn.node.args.kwonlyargs:
        old, new = rng.choice(fn.args), rng.choice(("value", "data", "item", "x", "arg", "source", "n"))
        if new not in fn.code:
            return [(ask, fn.thought(), full),
                    (f"Rename the argument `{old}` to `{new}`.", f"`{old}` becomes `{new}` everywhere.",
                     _fence(_rename(fn.code, old, new)))]
    if other is not None:
        ask2 = _request(other, rng)
        lead = rng.choice(("", "Thanks. ", "Good. Now another one. ", "Now this: "))
        return [(ask, fn.thought(), full), (lead + ask2, other.thought(), _fence(other.code))]
    return [(ask, fn.thought(), full)]


def chat_example(fn, other, rng):
    """A ChatML conversation as the chat template renders it: thoughts stay only in the last answer."""
    parts = []
    if rng.random() < 0.12:
        parts += [IM_START, f"system\n{rng.choice(SYSTEM)}", IM_END, "\n"]
    turns = _turns(fn, other, rng)
    for k, (ask, thought, answer) in enumerate(turns):
        parts += [IM_START, "user\n" + ask.strip(), IM_END, "\n", IM_START]
        if k + 1 < len(turns):
            parts += ["assistant\n" + answer]
        elif rng.random() < 0.3:
            parts += ["assistant\n", THINK, "\n\n", UNTHINK, "\n\n" + answer]
        else:
            parts += ["assistant\n", THINK, "\n" + thought + "\n", UNTHINK, "\n\n" + answer]
        parts += [IM_END, "\n"]
    parts[-1] = END
    return parts


def chat_examples(source, rng):
    """All chat examples of a file: [(key for duplicates, parts), ...]."""
    fns = functions(source)
    out = []
    for fn in fns:
        for _ in range(4 if fn.clean() else 1 if fn.method else 2):
            other = rng.choice(fns) if len(fns) > 1 else None
            key = hashlib.blake2b(textwrap.dedent(fn.body).encode(), digest_size=8).digest()
            out.append((key, chat_example(fn, None if other is fn else other, rng)))
    return out

"""The vocabulary: byte-level BPE with Qwen3.5's pre-tokenizer and added tokens."""
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import numpy as np

import tasks

SIZE = 8192
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
USER_DEFINED = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
ADDED = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> <tool_call>
</tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> <tool_response>
</tool_response> <think> </think> <|audio_start|> <|audio_end|> <tts_pad> <tts_text_bos> <tts_text_eod>
<tts_text_bos_single> <|audio_pad|>""".split()


def take(items, limit):
    """Items until their sizes (second field) reach the limit."""
    total = 0
    for item in items:
        if total >= limit:
            return
        total += item[1]
        yield item


def train(texts, size, path):
    """Train a vocabulary of `size` entries, added tokens included, and save it."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size - len(ADDED), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=40, show_progress=False))
    while tok.get_vocab_size() < size - len(ADDED):       # only when trained on very little text
        tok.add_tokens([f"[UNUSED{tok.get_vocab_size()}]"])
    tok.add_tokens([AddedToken(t, special=t not in USER_DEFINED, normalized=False) for t in ADDED])
    tok.save(str(path))


class Coder:
    """Encodes examples; text never yields an added token, `tasks.Tok` parts always do."""

    def __init__(self, path):
        self.tokenizer = Tokenizer.from_file(str(path))
        self.added = {t: self.tokenizer.token_to_id(t) for t in ADDED}
        self.plain = Tokenizer.from_file(str(path))
        self.plain.encode_special_tokens = True

    def text(self, text):
        ids = self.plain.encode(text, add_special_tokens=False).ids
        if any(u in text for u in USER_DEFINED):          # those match even then: spell them out around a break
            pieces = [p for part in text.split("<") for p in ("<", part)][1:]
            ids = [i for p in pieces if p for i in self.plain.encode(p, add_special_tokens=False).ids]
        return ids

    def encode(self, parts):
        ids = []
        for part in parts:
            if isinstance(part, tasks.Tok):
                ids.append(self.added[part])
            elif part:
                ids += self.text(part)
        return np.array(ids, np.uint16)

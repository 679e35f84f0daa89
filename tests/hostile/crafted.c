/* Files that lie in one way each: those that broke other programs, and those that would break this one. Every one must be refused
 * with the right code and a message that names the field, or run as what it is.
 *
 *     crafted         runs all
 *     crafted WORD    runs those whose title contains WORD
 */
#include <fcntl.h>
#include <unistd.h>

#include "hostile.h"
#include "tiny_model.h"

enum { EDITS_MAX = 6, RUNS = 1, EITHER = 2 }; /* RUNS: must load and compute; EITHER: may also be refused */

typedef struct crafted {
    const char *title;
    int32_t code; /* QM_ERROR_*, RUNS or EITHER */
    const char *words; /* that the message must contain */
    tiny_edit edits[EDITS_MAX];
} crafted;

#define KEY(name) "qwen35moe." name

static const crafted metadata_cases[] = {
    { "sound", RUNS, "", { { 0 } } },
    { "block_count over 512", QM_ERROR_FORMAT, "block_count is 513", { { TINY_U32, KEY("block_count"), 513, 0, 0 } } },
    { "block_count of 63 bits", QM_ERROR_FORMAT, "block_count", { { TINY_U64, KEY("block_count"), INT64_MAX, 0, 0 } } },
    { "block_count of 64 bits", QM_ERROR_FORMAT, "block_count", { { TINY_U64, KEY("block_count"), UINT64_MAX, 0, 0 } } },
    { "no layers", QM_ERROR_FORMAT, "block_count is 0", { { TINY_U32, KEY("block_count"), 0, 0, 0 } } },
    { "more layers than tensors", QM_ERROR_FORMAT, "blk.2.", { { TINY_U32, KEY("block_count"), 3, 0, 0 } } },
    { "block_count missing", QM_ERROR_FORMAT, "block_count is missing", { { TINY_DROP, KEY("block_count"), 0, 0, 0 } } },
    { "block_count is text", QM_ERROR_FORMAT, "block_count", { { TINY_TEXT, KEY("block_count"), 0, 0, "2" } } },
    { "block_count is an array", QM_ERROR_FORMAT, "block_count", { { TINY_NUMBERS, KEY("block_count"), 2, 0, 0 } } },
    { "only a draft block", QM_ERROR_FORMAT, "block_count",
      { { TINY_U32, KEY("block_count"), 1, 0, 0 }, { TINY_ADD, KEY("nextn_predict_layers"), 1, 0, 0 } } },
    { "draft blocks of a negative number", QM_ERROR_FORMAT, "nextn_predict_layers",
      { { TINY_ADD, KEY("nextn_predict_layers"), 0xFFFFFFFF, 0, 0 } } },
    { "draft block without its tensors, which nobody asked for", RUNS, "",
      { { TINY_ADD, KEY("nextn_predict_layers"), 1, 0, 0 } } },
    { "no heads", QM_ERROR_FORMAT, "head_count is 0", { { TINY_U32, KEY("attention.head_count"), 0, 0, 0 } } },
    { "no key heads", QM_ERROR_FORMAT, "head_count_kv is 0", { { TINY_U32, KEY("attention.head_count_kv"), 0, 0, 0 } } },
    { "heads no multiple", QM_ERROR_FORMAT, "no multiple of attention.head_count_kv",
      { { TINY_U32, KEY("attention.head_count_kv"), 3, 0, 0 } } },
    { "head size huge", QM_ERROR_FORMAT, "key_length", { { TINY_U32, KEY("attention.key_length"), 0x7FFFFFFF, 0, 0 } } },
    { "width huge", QM_ERROR_FORMAT, "embedding_length", { { TINY_U32, KEY("embedding_length"), 0xFFFFFFFF, 0, 0 } } },
    { "width other than the tensors'", QM_ERROR_FORMAT, "token_embd.weight",
      { { TINY_U32, KEY("embedding_length"), 64, 0, 0 } } },
    { "context of nothing", QM_ERROR_FORMAT, "context_length is 0", { { TINY_U32, KEY("context_length"), 0, 0, 0 } } },
    { "context shorter than asked for", QM_ERROR_OPTION, "context 16 is more than the 8",
      { { TINY_U32, KEY("context_length"), 8, 0, 0 } } },
    { "rotary odd", QM_ERROR_FORMAT, "rope.dimension_count 7", { { TINY_U32, KEY("rope.dimension_count"), 7, 0, 0 } } },
    { "rotary over the head", QM_ERROR_FORMAT, "rope.dimension_count 64",
      { { TINY_U32, KEY("rope.dimension_count"), 64, 0, 0 } } },
    { "rotary base 0", QM_ERROR_FORMAT, "rope.freq_base", { { TINY_F32, KEY("rope.freq_base"), 0, 0, 0 } } },
    { "rotary base not a number", QM_ERROR_FORMAT, "rope.freq_base", { { TINY_F32, KEY("rope.freq_base"), 0, NAN, 0 } } },
    { "epsilon infinite", QM_ERROR_FORMAT, "layer_norm_rms_epsilon",
      { { TINY_F32, KEY("attention.layer_norm_rms_epsilon"), 0, INFINITY, 0 } } },
    { "epsilon negative", QM_ERROR_FORMAT, "layer_norm_rms_epsilon",
      { { TINY_F32, KEY("attention.layer_norm_rms_epsilon"), 0, -1, 0 } } },
    { "no experts", QM_ERROR_FORMAT, "expert_count is 0", { { TINY_U32, KEY("expert_count"), 0, 0, 0 } } },
    { "more experts used than there are", QM_ERROR_FORMAT, "expert_used_count 3",
      { { TINY_U32, KEY("expert_used_count"), 3, 0, 0 } } },
    { "no experts used", QM_ERROR_FORMAT, "expert_used_count is 0", { { TINY_U32, KEY("expert_used_count"), 0, 0, 0 } } },
    { "more experts than the tensors'", QM_ERROR_FORMAT, "ffn_", { { TINY_U32, KEY("expert_count"), 4, 0, 0 } } },
    { "no taps", QM_ERROR_FORMAT, "conv_kernel", { { TINY_U32, KEY("ssm.conv_kernel"), 0, 0, 0 } } },
    { "value heads no multiple", QM_ERROR_FORMAT, "ssm.group_count 3", { { TINY_U32, KEY("ssm.group_count"), 3, 0, 0 } } },
    { "inner size no multiple", QM_ERROR_FORMAT, "ssm.inner_size 33", { { TINY_U32, KEY("ssm.inner_size"), 33, 0, 0 } } },
    { "attention interval 0", QM_ERROR_FORMAT, "full_attention_interval is 0",
      { { TINY_U32, KEY("full_attention_interval"), 0, 0, 0 } } },
    { "architecture unknown", QM_ERROR_UNSUPPORTED, "llama", { { TINY_TEXT, "general.architecture", 0, 0, "llama" } } },
    { "architecture missing", QM_ERROR_FORMAT, "general.architecture", { { TINY_DROP, "general.architecture", 0, 0, 0 } } },
    { "architecture a number", QM_ERROR_FORMAT, "general.architecture", { { TINY_U32, "general.architecture", 7, 0, 0 } } },
    { "architecture steers a terminal", QM_ERROR_UNSUPPORTED, "?[2J",
      { { TINY_TEXT, "general.architecture", 0, 0, "\033[2J" } } },
    { "alignment 0", QM_ERROR_FORMAT, "general.alignment is 0", { { TINY_ADD, "general.alignment", 0, 0, 0 } } },
    { "alignment wraps", QM_ERROR_FORMAT, "general.alignment is 2147483648",
      { { TINY_ADD, "general.alignment", 1u << 31, 0, 0 } } },
    { "part of a file", QM_ERROR_FORMAT, "split.count is 3", { { TINY_ADD, "split.count", 3, 0, 0 } } },
    { "key twice", QM_ERROR_FORMAT, "block_count appears twice",
      { { TINY_RENAME, KEY("context_length"), 0, 0, KEY("block_count") } } },
};

static const crafted vocabulary_cases[] = {
    { "tokens missing", QM_ERROR_FORMAT, "tokenizer.ggml.tokens", { { TINY_DROP, "tokenizer.ggml.tokens", 0, 0, 0 } } },
    { "tokens are numbers", QM_ERROR_FORMAT, "tokenizer.ggml.tokens",
      { { TINY_NUMBERS, "tokenizer.ggml.tokens", TINY_TOKENS, 0, 0 } } },
    { "tokens are one text", QM_ERROR_FORMAT, "tokenizer.ggml.tokens", { { TINY_TEXT, "tokenizer.ggml.tokens", 0, 0, "a" } } },
    { "no tokens", QM_ERROR_FORMAT, "tokenizer.ggml.tokens", { { TINY_TEXTS, "tokenizer.ggml.tokens", 0, 0, "a" } } },
    { "more tokens than rows", QM_ERROR_FORMAT, "25",
      { { TINY_TEXTS, "tokenizer.ggml.tokens", 25, 0, "a" }, { TINY_DROP, "tokenizer.ggml.token_type", 0, 0, 0 } } },
    { "all tokens the same", EITHER, "", { { TINY_TEXTS, "tokenizer.ggml.tokens", TINY_TOKENS, 0, "a" } } },
    { "token not UTF-8", QM_ERROR_FORMAT, "UTF-8", { { TINY_TEXTS, "tokenizer.ggml.tokens", TINY_TOKENS, 0, "\xFF" } } },
    /* Of another kind of tokenizer, which read the number into a table of 256. Here it is a text like any other, and the bytes
     * that the chat format needs have no token. */
    { "byte token <0x-1>", EITHER, "", { { TINY_TEXTS, "tokenizer.ggml.tokens", TINY_TOKENS, 0, "<0x-1>" } } },
    { "types too few", QM_ERROR_FORMAT, "tokenizer.ggml.token_type", { { TINY_NUMBERS, "tokenizer.ggml.token_type", 3, 0, 0 } } },
    { "types are texts", QM_ERROR_FORMAT, "tokenizer.ggml.token_type",
      { { TINY_TEXTS, "tokenizer.ggml.token_type", TINY_TOKENS, 0, "1" } } },
    { "types unknown", QM_ERROR_FORMAT, "type 0", { { TINY_NUMBERS, "tokenizer.ggml.token_type", TINY_TOKENS, 0, 0 } } },
    { "merges missing", QM_ERROR_FORMAT, "tokenizer.ggml.merges", { { TINY_DROP, "tokenizer.ggml.merges", 0, 0, 0 } } },
    { "merges are numbers", QM_ERROR_FORMAT, "tokenizer.ggml.merges", { { TINY_NUMBERS, "tokenizer.ggml.merges", 3, 0, 0 } } },
    { "merge without a space", QM_ERROR_FORMAT, "merge 0", { { TINY_TEXTS, "tokenizer.ggml.merges", 3, 0, "ab" } } },
    { "merge empty", QM_ERROR_FORMAT, "merge 0", { { TINY_TEXTS, "tokenizer.ggml.merges", 3, 0, "" } } },
    { "merge of tokens that are not there", RUNS, "", { { TINY_TEXTS, "tokenizer.ggml.merges", 3, 0, "x y" } } },
    { "merge thrice", RUNS, "", { { TINY_TEXTS, "tokenizer.ggml.merges", 3, 0, "a b" } } },
    { "end token out of range", QM_ERROR_FORMAT, "eos_token_id is 24",
      { { TINY_U32, "tokenizer.ggml.eos_token_id", 24, 0, 0 } } },
    { "end token of 32 bits", QM_ERROR_FORMAT, "eos_token_id is 4294967295",
      { { TINY_U32, "tokenizer.ggml.eos_token_id", 0xFFFFFFFF, 0, 0 } } },
    { "end token of 64 bits", QM_ERROR_FORMAT, "eos_token_id",
      { { TINY_U64, "tokenizer.ggml.eos_token_id", UINT64_MAX, 0, 0 } } },
    { "end token is text", QM_ERROR_FORMAT, "eos_token_id", { { TINY_TEXT, "tokenizer.ggml.eos_token_id", 0, 0, "</s>" } } },
    { "padding token out of range", QM_ERROR_FORMAT, "padding_token_id",
      { { TINY_U32, "tokenizer.ggml.padding_token_id", 99, 0, 0 } } },
    { "tokenizer of another kind", QM_ERROR_UNSUPPORTED, "tokenizer.ggml.model",
      { { TINY_TEXT, "tokenizer.ggml.model", 0, 0, "llama" } } },
    { "pre-tokenizer unknown", QM_ERROR_UNSUPPORTED, "tokenizer.ggml.pre",
      { { TINY_TEXT, "tokenizer.ggml.pre", 0, 0, "gpt-2" } } },
    { "chat template is a program", RUNS, "",
      { { TINY_TEXT, "tokenizer.chat_template", 0, 0,
          "{{ ''.__class__.__mro__[1].__subclasses__()[104].__init__.__globals__['os'].popen('id').read() }}" } } },
    { "chat template without end", RUNS, "",
      { { TINY_TEXT, "tokenizer.chat_template", 0, 0, "{% for m in messages %}{{ range(999999999)|list }}" } } },
};

static const crafted tensor_cases[] = {
    { "embedding missing", QM_ERROR_FORMAT, "token_embd.weight is missing", { { TINY_DROP, "token_embd.weight", 0, 0, 0 } } },
    { "output missing: the embedding serves", RUNS, "", { { TINY_DROP, "output.weight", 0, 0, 0 } } },
    { "norm missing", QM_ERROR_FORMAT, "blk.1.attn_k_norm.weight is missing",
      { { TINY_DROP, "blk.1.attn_k_norm.weight", 0, 0, 0 } } },
    { "matrix missing", QM_ERROR_FORMAT, "blk.0.ssm_out.weight is missing", { { TINY_DROP, "blk.0.ssm_out.weight", 0, 0, 0 } } },
    { "experts missing", QM_ERROR_FORMAT, "blk.1.ffn_down_exps.weight is missing",
      { { TINY_DROP, "blk.1.ffn_down_exps.weight", 0, 0, 0 } } },
    { "rows too few", QM_ERROR_FORMAT, "blk.1.attn_q.weight", { { TINY_ROWS, "blk.1.attn_q.weight", 64, 0, 0 } } },
    { "columns too few", QM_ERROR_FORMAT, "blk.0.ffn_up_exps.weight",
      { { TINY_COLUMNS, "blk.0.ffn_up_exps.weight", 16, 0, 0 } } },
    { "vector too short", QM_ERROR_FORMAT, "blk.0.ssm_dt.bias", { { TINY_COLUMNS, "blk.0.ssm_dt.bias", 1, 0, 0 } } },
    { "vocabulary of other size at the end", QM_ERROR_FORMAT, "output.weight", { { TINY_ROWS, "output.weight", 8, 0, 0 } } },
    { "weights are integers", QM_ERROR_UNSUPPORTED, "output_norm.weight has type 26",
      { { TINY_TYPE, "output_norm.weight", 26, 0, 0 } } },
    { "matrix of integers", QM_ERROR_UNSUPPORTED, "blk.1.attn_q.weight has type 26",
      { { TINY_TYPE, "blk.1.attn_q.weight", 26, 0, 0 } } },
    { "weights of an unknown type", QM_ERROR_UNSUPPORTED, "type 77", { { TINY_TYPE, "blk.1.attn_q.weight", 77, 0, 0 } } },
    { "floats taken for halves", RUNS, "", { { TINY_TYPE, "blk.1.attn_q.weight", 1, 0, 0 } } },
    { "floats taken for blocks", RUNS, "", { { TINY_TYPE, "blk.0.attn_qkv.weight", 8, 0, 0 } } },
    { "floats taken for blocks, experts", RUNS, "", { { TINY_TYPE, "blk.0.ffn_down_exps.weight", 39, 0, 0 } } },
    { "floats taken for blocks, embedding", RUNS, "", { { TINY_TYPE, "token_embd.weight", 20, 0, 0 } } },
    { "rows no multiple of the block", QM_ERROR_FORMAT, "Q4_K", { { TINY_TYPE, "blk.1.attn_q.weight", 12, 0, 0 } } },
    { "dimensions whose size wraps", QM_ERROR_FORMAT, "token_embd.weight",
      { { TINY_COLUMNS, "token_embd.weight", UINT64_C(1) << 62, 0, 0 } } },
    { "rows negative", QM_ERROR_FORMAT, "token_embd.weight", { { TINY_ROWS, "token_embd.weight", UINT64_MAX, 0, 0 } } },
    { "rows none", QM_ERROR_FORMAT, "token_embd.weight", { { TINY_ROWS, "token_embd.weight", 0, 0, 0 } } },
    { "rows past the end", QM_ERROR_FORMAT, "end past the file's end",
      { { TINY_ROWS, "blk.1.ffn_down_shexp.weight", 64, 0, 0 } } },
    { "offset past the end", QM_ERROR_FORMAT, "past", { { TINY_OFFSET, "output.weight", 1 << 30, 0, 0 } } },
    { "offset wraps", QM_ERROR_FORMAT, "output.weight", { { TINY_OFFSET, "output.weight", UINT64_MAX - 31, 0, 0 } } },
    { "offset unaligned", QM_ERROR_FORMAT, "alignment", { { TINY_OFFSET, "output.weight", 3, 0, 0 } } },
    { "tensors overlap", QM_ERROR_FORMAT, "overlap", { { TINY_OFFSET, "output.weight", 32, 0, 0 } } },
    { "tensor twice", QM_ERROR_FORMAT, "token_embd.weight appears twice",
      { { TINY_RENAME, "output.weight", 0, 0, "token_embd.weight" } } },
    { "fused experts of other size", QM_ERROR_FORMAT, "ffn_gate_up_exps.weight",
      { { TINY_RENAME, "blk.0.ffn_gate_exps.weight", 0, 0, "blk.0.ffn_gate_up_exps.weight" } } },
    /* Numbers that are not: nothing here promises a sensible answer, only that there is one. */
    { "embedding not a number", EITHER, "", { { TINY_FILL, "token_embd.weight", 0, NAN, 0 } } },
    { "output infinite", EITHER, "", { { TINY_FILL, "output.weight", 0, INFINITY, 0 } } },
    { "router not a number", EITHER, "", { { TINY_FILL, "blk.0.ffn_gate_inp.weight", 0, NAN, 0 } } },
    { "router infinite", EITHER, "", { { TINY_FILL, "blk.1.ffn_gate_inp.weight", 0, -INFINITY, 0 } } },
    { "decay infinite", EITHER, "", { { TINY_FILL, "blk.0.ssm_a", 0, INFINITY, 0 } } },
    { "norm of zeros", EITHER, "", { { TINY_FILL, "output_norm.weight", 0, 0, 0 } } },
    { "weights huge", EITHER, "", { { TINY_FILL, "blk.1.attn_v.weight", 0, 3e38f, 0 } } },
    { "keys huge", EITHER, "", { { TINY_FILL, "blk.1.attn_k_norm.weight", 0, 3e38f, 0 } } },
};

static char path[] = "/tmp/qwenmoe-crafted-XXXXXX";

static int check_case(const crafted *c)
{
    writer w = { 0 };
    tiny_model(&w, c->edits);
    if (writer_save(&w, path) < 0)
        stop("writing", path);
    writer_free(&w);
    const int32_t code = try_file(path);
    const int named = c->code < 0 && code == c->code && strstr(qm_error_message(), c->words);
    const int right = c->code == EITHER || (c->code == RUNS && code >= 0) || named;
    if (!right)
        fprintf(stderr, "FAILED: %s: %s, \"%s\"; expected %s with \"%s\"\n", c->title, code < 0 ? qm_error_name(code) : "ran",
                code < 0 ? qm_error_message() : "", c->code < 0 ? qm_error_name(c->code) : "that it runs", c->words);
    return !right;
}

static int check_cases(const crafted *cases, size_t count, const char *word)
{
    int failed = 0;
    for (size_t i = 0; i < count; i++)
        if (strstr(cases[i].title, word))
            failed += check_case(&cases[i]);
    return failed;
}

/* ---- what is no edit of a sound file ---- */

static int check_path(const char *title, const char *file, int32_t code, const char *words)
{
    const int32_t result = try_file(file);
    if (result == code && strstr(qm_error_message(), words))
        return 0;
    fprintf(stderr, "FAILED: %s: %s, \"%s\"\n", title, qm_error_name(result), qm_error_message());
    return 1;
}

static int check_bytes(const char *title, const void *bytes, size_t size, int32_t code, const char *words)
{
    writer w = { 0 };
    put(&w, bytes, size);
    if (writer_save(&w, path) < 0)
        stop("writing", path);
    writer_free(&w);
    return check_path(title, path, code, words);
}

static int check_whole_files(void)
{
    int failed = check_path("a folder", "/tmp", QM_ERROR_FILE, "directory");
    failed += check_path("no such file", "/nowhere/model.gguf", QM_ERROR_FILE, "/nowhere/model.gguf");
    failed += check_path("a device", "/dev/zero", QM_ERROR_FILE, "/dev/zero");
    failed += check_bytes("an empty file", "", 0, QM_ERROR_FORMAT, "the file ends");
    failed += check_bytes("a text", "version https://git-lfs.github.com/spec/v1\n", 43, QM_ERROR_FORMAT, "not a GGUF file");
    failed += check_bytes("version 1", "GGUF\1\0\0\0\0\0\0\0\0\0\0\0", 16, QM_ERROR_UNSUPPORTED, "version 1");
    failed += check_bytes("big-endian", "GGUF\0\0\0\3\0\0\0\0\0\0\0\0", 16, QM_ERROR_UNSUPPORTED, "big-endian");
    failed += check_bytes("tensors beyond INT_MAX", "GGUF\3\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0", 24, QM_ERROR_FORMAT,
                          "number of tensors");
    failed += check_bytes("values beyond INT_MAX", "GGUF\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\200\0\0\0\0", 24, QM_ERROR_FORMAT,
                          "metadata entries");
    failed += check_bytes("nothing inside", "GGUF\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, QM_ERROR_FORMAT, "is missing");
    return failed;
}

/* The file shrinks under a loaded model: the next piece of work says so, and so does each one after it. */
static int check_cut_while_mapped(void)
{
    const int32_t prompt[2] = { 0, 1 };
    writer w = { 0 };
    counter memory = { 0 };
    qm_model *model = NULL;
    qm_session *session = NULL;
    int failed = 0;
    const size_t header = tiny_model(&w, NULL);
    if (writer_save(&w, path) < 0)
        stop("writing", path);
    writer_free(&w);
    qm_options *options = hostile_options(&memory);
    if (qm_model_load(path, options, &model) < 0 || qm_session_new(model, options, &session) < 0 ||
        qm_prefill(session, prompt, 2) < 0)
        stop("the sound model", qm_error_message());
    if (truncate(path, (off_t)header + 10) < 0)
        stop("truncating", path);
    for (int i = 0; i < 2; i++) {
        const int32_t code = qm_prefill(session, prompt, 2);
        if (code != QM_ERROR_FILE || !strstr(qm_error_message(), "cut")) {
            fprintf(stderr, "FAILED: cut while mapped: %d, \"%s\"\n", code, qm_error_message());
            failed = 1;
        }
    }
    qm_session_free(&session);
    qm_model_free(&model);
    qm_options_free(&options);
    if (memory.live != 0)
        stop("memory is left after", "a file cut while mapped");
    return failed;
}

int main(int count, char **arguments)
{
    const char *word = count > 1 ? arguments[1] : "";
    const int file = mkstemp(path);
    if (file < 0)
        stop("writing", path);
    int failed = check_cases(metadata_cases, sizeof metadata_cases / sizeof *metadata_cases, word);
    failed += check_cases(vocabulary_cases, sizeof vocabulary_cases / sizeof *vocabulary_cases, word);
    failed += check_cases(tensor_cases, sizeof tensor_cases / sizeof *tensor_cases, word);
    if (!word[0])
        failed += check_whole_files() + check_cut_while_mapped();
    close(file);
    unlink(path);
    printf("%d failed\n", failed);
    return failed != 0;
}

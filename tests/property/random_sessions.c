/* Random work on several sessions of a model: whatever was done, a session holds the tokens that the test thinks it holds, and
 * its logits are, bit for bit, those of a new session that got these tokens at once (at the end: one at a time).
 *
 *     random_sessions [STEPS [SEED [EACH]]]     each model's steps (40 if not given), and every how many of them logits are
 *                                               compared; the seed is printed */
#include "../api/api.h"

#include <unistd.h>

#define SLOTS 4
#define CONTEXT 120

typedef struct slot {
    qm_session *session;
    int32_t tokens[CONTEXT];
    int64_t count;
} slot;

static uint64_t seed = 1, state;
static long steps = 40, each = 1;
static const char *last = "";

/* SplitMix64 (Steele, Lea and Flood 2014). */
static uint64_t next(void)
{
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static int64_t below(int64_t limit)
{
    return (int64_t)(next() % (uint64_t)limit);
}

static void random_tokens(int32_t *tokens, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        tokens[i] = (int32_t)below(256);
}

/* Logits after these tokens by the shortest way. To be freed. */
static float *fresh_logits(qm_model *model, const int32_t *tokens, int64_t count)
{
    qm_session *session = new_session(model, "context=120 answer-tokens=0");
    expect_ok(qm_prefill(session, tokens, count));
    float *logits = copy_logits(model, session);
    qm_session_free(&session);
    return logits;
}

static void check(qm_model *model, const slot *s)
{
    int32_t held[CONTEXT];
    assert_int_equal(qm_session_tokens(s->session, held, CONTEXT), s->count);
    assert_memory_equal(held, s->tokens, (size_t)s->count * sizeof *held);
    if (s->count == 0) {
        assert_null(qm_logits(s->session));
        return;
    }
    float *wanted = fresh_logits(model, s->tokens, s->count);
    assert_logits(model, s->session, wanted);
    free(wanted);
}

/* ---- the steps ---- */

static void append(slot *s)
{
    int32_t tokens[CONTEXT];
    int64_t count = 1 + below(40);
    random_tokens(tokens, count);
    if (s->count + count > CONTEXT) { /* nothing changes */
        last = "append too much";
        expect_code(QM_ERROR_CONTEXT, qm_prefill(s->session, tokens, count));
        return;
    }
    last = "append";
    expect_ok(qm_prefill(s->session, tokens, count));
    memcpy(s->tokens + s->count, tokens, (size_t)count * sizeof *tokens);
    s->count += count;
}

static void append_with_rows(qm_model *model, slot *s)
{
    last = "append with rows";
    int64_t count = 1 + below(20), rows[2] = { below(count), count - 1 }, vocabulary = vocabulary_of(model);
    if (s->count + count > CONTEXT)
        return;
    int64_t row_count = rows[0] < rows[1] ? 2 : 1;
    float *logits = malloc(2 * (size_t)vocabulary * sizeof *logits);
    assert_non_null(logits);
    random_tokens(s->tokens + s->count, count);
    expect_ok(qm_prefill_rows(s->session, s->tokens + s->count, count, rows, row_count, logits));
    float *wanted = fresh_logits(model, s->tokens, s->count + rows[0] + 1);
    assert_memory_equal(logits, wanted, (size_t)vocabulary * sizeof *logits);
    s->count += count;
    free(wanted);
    free(logits);
}

static void decode_together(slot *slots)
{
    last = "decode together";
    qm_session *sessions[SLOTS];
    int32_t tokens[SLOTS], count = 0;
    for (int i = 0; i < SLOTS; i++) {
        if (slots[i].count == CONTEXT || below(4) == 0)
            continue;
        random_tokens(&tokens[count], 1);
        slots[i].tokens[slots[i].count++] = tokens[count];
        sessions[count++] = slots[i].session;
    }
    if (count > 0)
        expect_ok(qm_decode(sessions, tokens, count));
}

static void rewind_somewhere(slot *s)
{
    last = "rewind";
    s->count = below(s->count + 1);
    expect_ok(qm_session_rewind(s->session, s->count));
}

static void sync_to_another(slot *s)
{
    last = "sync";
    int64_t kept = below(s->count + 1), more = below(CONTEXT - kept + 1);
    random_tokens(s->tokens + kept, more);
    s->count = kept + more;
    int64_t reused = qm_session_sync(s->session, s->tokens, s->count);
    if (reused < 0 || reused > s->count)
        fail_msg("sync gave %lld: %s", (long long)reused, qm_error_message());
}

static void fork_over(const slot *from, slot *to)
{
    last = "fork";
    qm_session_free(&to->session);
    expect_ok(qm_session_fork(from->session, &to->session));
    memcpy(to->tokens, from->tokens, sizeof to->tokens);
    to->count = from->count;
}

/* The tokens of the job are those that the session then has; a full context ends it. */
static void generate(slot *s)
{
    last = "generate";
    char number[8];
    qm_job *job = NULL;
    int32_t prompt[1];
    int64_t most = 1 + below(12);
    if (s->count == CONTEXT)
        return;
    snprintf(number, sizeof number, "%d", (int)most);
    expect_ok(qm_session_set(s->session, "answer-tokens", number));
    random_tokens(prompt, 1);
    expect_ok(qm_submit_generate(s->session, prompt, 1, &job));
    expect_code(QM_JOB_DONE, read_job(job, NULL, 0));
    s->tokens[s->count++] = prompt[0];
    int64_t made = qm_job_tokens(job, s->tokens + s->count, CONTEXT - s->count);
    assert_true(made >= 0 && made <= most && made <= CONTEXT - s->count);
    s->count += made;
    qm_job_free(&job);
}

/* Two sessions in the same state with the same seed choose the same token, and logits are only read. */
static void sample(const slot *s)
{
    last = "sample";
    qm_session *fork = NULL;
    int32_t one, other;
    if (s->count == 0)
        return;
    expect_ok(qm_session_set(s->session, "temperature", below(2) ? "1" : "0"));
    expect_ok(qm_session_set(s->session, "top-k", below(2) ? "0" : "30"));
    expect_ok(qm_session_set(s->session, "presence-penalty", below(2) ? "0" : "1.5"));
    expect_ok(qm_session_fork(s->session, &fork));
    expect_ok(qm_sample(s->session, &one));
    expect_ok(qm_sample(fork, &other));
    assert_int_equal(one, other);
    qm_session_free(&fork);
}

/* A job that is cancelled at whatever moment comes leaves a start of the tokens that it was to bring. */
static void cancel(slot *s)
{
    last = "cancel";
    int32_t tokens[CONTEXT];
    qm_job *job = NULL;
    int64_t kept = below(s->count + 1), count = kept + below(CONTEXT - kept + 1);
    memcpy(tokens, s->tokens, (size_t)kept * sizeof *tokens);
    random_tokens(tokens + kept, count - kept);
    expect_ok(qm_submit_sync(s->session, tokens, count, &job));
    if (below(2))
        qm_job_wait(job, below(2));
    qm_job_free(&job);
    int32_t held[CONTEXT];
    int64_t length = qm_session_tokens(s->session, held, CONTEXT);
    assert_true(length >= 0);
    bool untouched = length == s->count && !memcmp(held, s->tokens, (size_t)length * sizeof *held);
    assert_true(untouched || (length <= count && !memcmp(held, tokens, (size_t)length * sizeof *held)));
    memcpy(s->tokens, held, (size_t)length * sizeof *held);
    s->count = length;
    expect_ok(qm_prefill(s->session, NULL, 0)); /* for the logits, which a cut may have left without */
}

static char path[64];
static slot saved; /* what the file holds; its session is none */

static void save(const slot *s)
{
    last = "save";
    expect_ok(qm_session_save(s->session, path));
    saved = *s;
    saved.session = NULL;
}

static void restore(slot *s)
{
    last = "restore";
    if (access(path, F_OK) != 0)
        return;
    expect_ok(qm_session_restore(s->session, path));
    memcpy(s->tokens, saved.tokens, sizeof s->tokens);
    s->count = saved.count;
}

static const char *const session_settings = "context=120 answer-tokens=16 seed=3 temperature=1 stop=ab";

static void start_again(qm_model *model, slot *s)
{
    last = "free";
    qm_session_free(&s->session);
    s->session = new_session(model, session_settings);
    s->count = 0;
}

/* The tokens of another session, and then others: pages of its are shared. */
static void follow(const slot *from, slot *to)
{
    last = "follow";
    int64_t kept = below(from->count + 1), more = below(CONTEXT - kept + 1);
    memcpy(to->tokens, from->tokens, (size_t)kept * sizeof *to->tokens);
    random_tokens(to->tokens + kept, more);
    to->count = kept + more;
    int64_t reused = qm_session_sync(to->session, to->tokens, to->count);
    if (reused < 0 || reused > to->count)
        fail_msg("sync gave %lld: %s", (long long)reused, qm_error_message());
}

static void step(qm_model *model, slot *slots)
{
    slot *s = &slots[below(SLOTS)], *other = &slots[below(SLOTS)];
    switch (below(14)) {
    case 0:
    case 1: append(s); break;
    case 2: append_with_rows(model, s); break;
    case 3: decode_together(slots); break;
    case 4: rewind_somewhere(s); break;
    case 5: sync_to_another(s); break;
    case 6: generate(s); break;
    case 7: sample(s); break;
    case 8: cancel(s); break;
    case 9: save(s); break;
    case 10: restore(s); break;
    case 11: start_again(model, s); break;
    case 12: follow(other, s); break;
    default:
        if (s != other)
            fork_over(s, other);
    }
}

typedef struct scene {
    const char *model;
    const char *settings; /* NULL: one of several */
} scene;

/* Pages that are in use, in tokens. */
static int64_t tokens_in_use(const qm_model *model)
{
    int64_t all, unused;
    expect_ok(qm_model_number(model, "kv_tokens", &all));
    expect_ok(qm_model_number(model, "kv_tokens_free", &unused));
    return all - unused;
}

static void random_work(void **test_state)
{
    static const char *const settings[] = { "chunk=0", "chunk=16 kv-type=f32 checkpoint-every=8", "chunk=7 sequences=2",
                                            "chunk=16 kv-type=q4_0", "chunk=24 key-type=q8_0 value-type=q5",
                                            "kv-type=q6 kv-rotation=off", "chunk=16 kv-type=q2 kv-window=9" };
    const scene *scene = *test_state;
    slot slots[SLOTS] = { 0 };
    state = seed;
    for (const char *c = scene->model; *c; c++)
        state = state * 31 + (unsigned char)*c;
    snprintf(path, sizeof path, "/tmp/qwenmoe-random-%ld.session", (long)getpid());
    qm_model *model = load_model(scene->model, scene->settings ? scene->settings : settings[below(7)]);
    for (int i = 0; i < SLOTS; i++)
        slots[i].session = new_session(model, session_settings);
    for (long i = 0; i < steps; i++) {
        step(model, slots);
        for (int k = 0; k < SLOTS; k++) {
            long long held = qm_session_length(slots[k].session), wanted = slots[k].count;
            if (held != wanted)
                fail_msg("step %ld (%s): session %d holds %lld tokens, not %lld", i, last, k, held, wanted);
        }
        if (i % each == 0)
            check(model, &slots[below(SLOTS)]);
    }
    for (int k = 0; k < SLOTS; k++) {
        if (slots[k].count > 0)
            assert_holds(model, slots[k].session, slots[k].tokens, slots[k].count);
        qm_session_free(&slots[k].session);
    }
    int64_t checkpoints;
    expect_ok(qm_model_number(model, "checkpoints", &checkpoints));
    if (checkpoints == 0)
        assert_int_equal(tokens_in_use(model), 0);
    qm_model_free(&model);
    unlink(path);
}

int main(int count, char **arguments)
{
    if (count > 1)
        steps = strtol(arguments[1], NULL, 10);
    if (count > 2)
        seed = strtoull(arguments[2], NULL, 10);
    if (count > 3)
        each = strtol(arguments[3], NULL, 10);
    printf("seed %llu, %ld steps a model\n", (unsigned long long)seed, steps);
    /* The small ones without checkpoints; with hardly room for any; and with keys and values for the sessions alone. */
    static scene scenes[] = {
        { "oracle/qwen35moe.gguf", NULL }, { "oracle/qwen35.gguf", NULL }, { "oracle/qwen3next.gguf", NULL },
        { "oracle/qwen3moe.gguf", NULL }, { "oracle/qwen3.gguf", NULL },
        { "tiny/hybrid.gguf", "mtp=1 checkpoint-memory=0" },
        { "tiny/hybrid.gguf", "mtp=1 context=120 answer-tokens=16 chunk=16 checkpoint-every=8 checkpoint-memory=500000" },
        { "tiny/hybrid.gguf", "context=120 answer-tokens=16 kv-memory=560000 checkpoint-memory=200000 checkpoint-every=8" },
        { "tiny/attention.gguf", "mtp=1 checkpoint-memory=0 chunk=16" },
        { "tiny/attention.gguf", "mtp=1 context=120 answer-tokens=16 kv-memory=1400000" },
    };
    enum { SCENES = sizeof scenes / sizeof *scenes };
    struct CMUnitTest tests[SCENES];
    for (int i = 0; i < SCENES; i++)
        tests[i] = (struct CMUnitTest)cmocka_unit_test_prestate(random_work, &scenes[i]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

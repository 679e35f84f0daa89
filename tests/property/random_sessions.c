/* Random work on several sessions of a model: whatever was done, a session holds the tokens that the test thinks it holds, and
 * its logits are, bit for bit, those of a new session that got these tokens at once (at the end: one at a time).
 *
 *     random_sessions [STEPS [SEED]]     each model's steps (40 if not given); the seed is printed */
#include "../api/api.h"

#define SLOTS 3
#define CONTEXT 120

typedef struct slot {
    qm_session *session;
    int32_t tokens[CONTEXT];
    int64_t count;
} slot;

static uint64_t seed = 1, state;
static long steps = 40;
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

static void step(qm_model *model, slot *slots)
{
    slot *s = &slots[below(SLOTS)], *other = &slots[below(SLOTS)];
    switch (below(9)) {
    case 0:
    case 1: append(s); break;
    case 2: append_with_rows(model, s); break;
    case 3: decode_together(slots); break;
    case 4: rewind_somewhere(s); break;
    case 5: sync_to_another(s); break;
    case 6: generate(s); break;
    case 7: sample(s); break;
    default:
        if (s != other)
            fork_over(s, other);
    }
}

static void random_work(void **test_state)
{
    static const char *const settings[] = { "chunk=0", "chunk=16 kv-type=f32", "chunk=7 sequences=2" };
    const char *name = *test_state;
    slot slots[SLOTS] = { 0 };
    state = seed;
    for (const char *c = name; *c; c++)
        state = state * 31 + (unsigned char)*c;
    qm_model *model = load_model(name, settings[below(3)]);
    for (int i = 0; i < SLOTS; i++)
        slots[i].session = new_session(model, "context=120 answer-tokens=16 seed=3 temperature=1 stop=ab");
    for (long i = 0; i < steps; i++) {
        step(model, slots);
        for (int k = 0; k < SLOTS; k++) {
            long long held = qm_session_length(slots[k].session), wanted = slots[k].count;
            if (held != wanted)
                fail_msg("step %ld (%s): session %d holds %lld tokens, not %lld", i, last, k, held, wanted);
        }
        check(model, &slots[below(SLOTS)]);
    }
    for (int k = 0; k < SLOTS; k++) {
        if (slots[k].count > 0)
            assert_holds(model, slots[k].session, slots[k].tokens, slots[k].count);
        qm_session_free(&slots[k].session);
    }
    qm_model_free(&model);
}

int main(int count, char **arguments)
{
    if (count > 1)
        steps = strtol(arguments[1], NULL, 10);
    if (count > 2)
        seed = strtoull(arguments[2], NULL, 10);
    printf("seed %llu, %ld steps a model\n", (unsigned long long)seed, steps);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(random_work, "oracle/qwen35moe.gguf"),
        cmocka_unit_test_prestate(random_work, "oracle/qwen35.gguf"),
        cmocka_unit_test_prestate(random_work, "oracle/qwen3next.gguf"),
        cmocka_unit_test_prestate(random_work, "oracle/qwen3moe.gguf"),
        cmocka_unit_test_prestate(random_work, "oracle/qwen3.gguf"),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

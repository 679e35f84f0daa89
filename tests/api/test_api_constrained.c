/* Answers that have to fit a grammar, a schema or tools, from models with random weights, which would write anything. */
#include "api.h"

#include <stdbool.h>
#include <unistd.h>

#include <jansson.h>

static const char schema[] =
    "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"maxLength\":40},\"n\":{\"type\":\"integer\"},"
    "\"more\":{\"type\":\"array\",\"items\":{\"enum\":[\"x\",null,2]}}},\"required\":[\"name\",\"n\"],"
    "\"additionalProperties\":false}";
#define SHORTEST 18 /* tokens of {"name":"","n":0}, of a byte each, and the end of the turn */

static const char tools[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"find\",\"strict\":true,\"parameters\":{\"type\":\"object\","
    "\"properties\":{"
    "\"what\":{\"type\":\"string\"},\"count\":{\"type\":\"integer\"},\"kind\":{\"enum\":[\"a\",\"b\"]}},\"required\":[\"what\","
    "\"count\"],"
    "\"additionalProperties\":false}}},{\"name\":\"stop\",\"parameters\":{\"type\":\"object\",\"properties\":{}}}]";

typedef struct answered {
    char text[8192], shown[8192]; /* all of it; the pieces of the answer */
    const char *finish;
    int64_t tokens;
} answered;

static void read_all(qm_job *job, answered *out)
{
    char piece[256];
    int32_t kind, state;
    int64_t length;
    out->shown[0] = 0;
    do {
        state = qm_job_wait(job, -1);
        while ((length = qm_job_read(job, piece, sizeof piece, &kind)) > 0)
            if (kind != QM_PIECE_THOUGHT && strlen(out->shown) + (size_t)length < sizeof out->shown)
                strcat(out->shown, piece);
    } while (state == QM_JOB_RUNNING);
    if (state < 0)
        print_error("%s\n", qm_error_message());
    assert_int_equal(state, QM_JOB_DONE);
    assert_true(qm_job_text(job, out->text, sizeof out->text) < (int64_t)sizeof out->text);
    out->finish = qm_job_finish(job);
    out->tokens = qm_job_tokens(job, NULL, 0);
}

static qm_session *constrained_session(qm_model *model, const char *settings, const char *name, const char *value)
{
    qm_session *session = new_session(model, settings);
    expect_ok(qm_session_set(session, name, value));
    return session;
}

static answered *generate(qm_session *session, const int32_t *prompt, int64_t count)
{
    static answered out;
    qm_job *job = NULL;
    expect_ok(qm_submit_generate(session, prompt, count, &job));
    read_all(job, &out);
    qm_job_free(&job);
    return &out;
}

static void assert_fits(const char *text)
{
    json_error_t error;
    json_t *value = json_loads(text, 0, &error), *name = json_object_get(value, "name"), *more = json_object_get(value, "more");
    if (!json_is_string(name) || !json_is_integer(json_object_get(value, "n")))
        fail_msg("'%s' does not fit: %s", text, error.text);
    assert_int_equal(json_object_size(value), 2 + (more != NULL));
    for (size_t i = 0; i < json_array_size(more); i++) {
        const json_t *item = json_array_get(more, i);
        assert_true(json_is_null(item) || json_integer_value(item) == 2 || strcmp(json_string_value(item), "x") == 0);
    }
    json_decref(value);
}

static const char *const samplings[] = { "temperature=0",
                                         "temperature=1 top-k=20 top-p=0.95 seed=1",
                                         "temperature=2 top-k=0 top-p=1 seed=2",
                                         "temperature=3 top-k=0 top-p=0.9 seed=3",
                                         "temperature=1 top-k=100 min-p=0.01 seed=4",
                                         "temperature=1 top-k=5 top-p=1 presence-penalty=1 logit-bias=34:-inf seed=5" };

/* Whatever the sampling and the budget: valid if the shortest text has room, else cut. */
static void fits_any_budget(void **state)
{
    static const int32_t budgets[] = { 1, SHORTEST - 1, SHORTEST, SHORTEST + 1, 30, 150 };
    qm_model *model = load_model("tiny/attention.gguf", "");
    const int32_t prompt[] = { 'a', 'b' };
    (void)state;
    for (size_t s = 0; s < sizeof samplings / sizeof samplings[0]; s++) {
        for (size_t b = 0; b < sizeof budgets / sizeof budgets[0]; b++) {
            char settings[256];
            snprintf(settings, sizeof settings, "context=600 answer-tokens=%d %s", budgets[b], samplings[s]);
            qm_session *session = constrained_session(model, settings, "json-schema", schema);
            const answered *answer = generate(session, prompt, 2);
            assert_string_equal(answer->finish, budgets[b] < SHORTEST ? "length" : "end");
            assert_true(answer->tokens <= budgets[b]);
            if (budgets[b] >= SHORTEST)
                assert_fits(answer->text);
            assert_string_equal(answer->text, answer->shown);
            qm_session_free(&session);
        }
    }
    qm_model_free(&model);
}

/* The context is a budget, too. */
static void fits_the_context(void **state)
{
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    qm_session *session =
        constrained_session(model, "context=50 answer-tokens=0 temperature=1 top-k=0 top-p=1 seed=7", "json-schema", schema);
    const int32_t prompt[] = { 'a', 'b', 'c' };
    (void)state;
    const answered *answer = generate(session, prompt, 3);
    assert_string_equal(answer->finish, "end");
    assert_fits(answer->text);
    assert_true(qm_session_length(session) <= 50);
    qm_session_free(&session);
    session = constrained_session(model, "context=19 answer-tokens=0", "json-schema", schema);
    assert_string_equal(generate(session, prompt, 3)->finish, "context");
    qm_session_free(&session);
    qm_model_free(&model);
}

/* Thoughts are free, opened by the prompt or by the model, and the answer fits behind them. */
static void thoughts_are_free(void **state)
{
    qm_model *model = load_model("tiny/attention.gguf", "");
    int32_t start = qm_token_find(model, "<|im_start|>", -1), think = qm_token_find(model, "<think>", -1);
    int32_t close = qm_token_find(model, "</think>", -1), end = qm_token_find(model, "<|im_end|>", -1);
    char settings[256];
    (void)state;
    for (int32_t opened = 0; opened < 2; opened++) {
        const int32_t prompt[] = { start, 'a', '\n', think, '\n' };
        /* The model opens and closes its thoughts and ends its turn as soon as it may. */
        snprintf(settings, sizeof settings,
                 "context=400 answer-tokens=200 thinking-tokens=20 temperature=0 logit-bias=%d:%s,%d:%d,%d:50", think,
                 opened ? "-inf" : "40", close, opened ? 0 : 30, end);
        qm_session *session = constrained_session(model, settings, "grammar", "root ::= \"yes\" [!]{1,3}");
        const answered *answer = generate(session, prompt, opened ? 5 : 3);
        assert_string_equal(answer->finish, "end");
        const char *mark = strstr(answer->text, "</think>");
        assert_non_null(mark);
        assert_memory_equal(answer->shown, "yes!", 4);
        assert_true((strstr(answer->text, "<think>") != NULL) == !opened);
        qm_session_free(&session);
    }
    const int32_t raw[] = { 'a', '\n' }; /* no turn was opened: nothing to think in */
    snprintf(settings, sizeof settings, "context=400 answer-tokens=200 temperature=0 logit-bias=%d:100", think);
    qm_session *session = constrained_session(model, settings, "grammar", "root ::= \"yes\"");
    assert_string_equal(generate(session, raw, 2)->text, "yes");
    qm_session_free(&session);
    qm_model_free(&model);
}

/* ---- tools ---- */

static void assert_calls(const qm_model *model, const answered *answer, bool required)
{
    static char json[16384];
    json_error_t error;
    assert_true(qm_chat_parse(model, answer->text, -1, tools, -1, 0, json, sizeof json) > 0);
    json_t *parsed = json_loads(json, 0, &error), *calls = json_object_get(parsed, "tool_calls");
    if (strcmp(json_string_value(json_object_get(parsed, "status")), "complete") != 0 ||
        (required && json_array_size(calls) == 0))
        fail_msg("'%s' is parsed as %s", answer->text, json);
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *call = json_array_get(calls, i), *arguments = json_object_get(call, "arguments");
        const json_t *kind = json_object_get(arguments, "kind");
        if (strcmp(json_string_value(json_object_get(call, "name")), "find") != 0)
            continue;
        if (!json_is_string(json_object_get(arguments, "what")) || !json_is_integer(json_object_get(arguments, "count")) ||
            json_object_size(arguments) != (kind ? 3u : 2u) || (kind && !strchr("ab", json_string_value(kind)[0])))
            fail_msg("'%s' is parsed as %s", answer->text, json);
    }
    json_decref(parsed);
}

static void calls_fit_tools(void **state)
{
    static const char *const formats[] = { "chat-format=qwen3", "chat-format=qwen3.5" }, *const choices[] = { "required",
                                                                                                              "find", "auto",
                                                                                                              "none" };
    const int32_t prompt[] = { 'a', '\n' };
    (void)state;
    for (size_t f = 0; f < 2; f++) {
        qm_model *model = load_model("tiny/attention.gguf", formats[f]);
        int32_t call = qm_token_find(model, "<tool_call>", -1);
        for (size_t c = 0; c < 4; c++) {
            for (int32_t seed = 0; seed < 6; seed++) {
                char settings[256];
                snprintf(settings, sizeof settings,
                         "context=700 answer-tokens=600 temperature=1 top-k=0 top-p=1 logit-bias=%d:8 seed=%d", call, seed);
                qm_session *session = constrained_session(model, settings, "tools", tools);
                expect_ok(qm_session_set(session, "tool-choice", choices[c]));
                expect_ok(qm_session_set(session, "parallel-tool-calls", seed % 2 ? "0" : "1"));
                const answered *answer = generate(session, prompt, 2);
                assert_string_equal(answer->finish, "end");
                if (c == 3)
                    assert_null(strstr(answer->text, "<tool_call>"));
                else
                    assert_calls(model, answer, c < 2);
                qm_session_free(&session);
            }
        }
        qm_model_free(&model);
    }
}

/* ---- sessions ---- */

/* Several together, and forks and restored ones, each keep to their own. */
static void sessions_keep_theirs(void **state)
{
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    static const char *const grammars[] = { "root ::= [ab]{5,9} \"!\"", "root ::= [cd]{5,9} \"?\"", "root ::= [ab]{5,9} \"!\"" };
    qm_session *sessions[6] = { 0 };
    qm_job *jobs[6] = { 0 };
    static answered answers[6];
    char path[64], kept[64];
    const int32_t prompt[] = { 'a', 'b' };
    (void)state;
    for (int32_t i = 0; i < 3; i++) {
        sessions[i] = constrained_session(model, "context=200 answer-tokens=100 temperature=1 top-k=0 top-p=1 seed=3",
                                          "grammar", grammars[i]);
        expect_ok(qm_prefill(sessions[i], prompt, 2));
    }
    for (int32_t i = 0; i < 2; i++)
        expect_ok(qm_session_fork(sessions[i], &sessions[3 + i]));
    snprintf(path, sizeof path, "/tmp/qwenmoe-constrained-%d.session", (int)getpid());
    expect_ok(qm_session_save(sessions[1], path));
    sessions[5] = new_session(model, "context=200 answer-tokens=0");
    int32_t restored = qm_session_restore(sessions[5], path);
    remove(path);
    expect_ok(restored);
    qm_session_get(sessions[5], "grammar", kept, sizeof kept);
    assert_string_equal(kept, grammars[1]);
    for (int32_t i = 0; i < 6; i++)
        expect_ok(qm_submit_generate(sessions[i], NULL, 0, &jobs[i]));
    for (int32_t i = 0; i < 6; i++) {
        read_all(jobs[i], &answers[i]);
        const char *letters = i == 1 || i == 4 || i == 5 ? "cd?" : "ab!";
        assert_string_equal(answers[i].finish, "end");
        assert_int_equal(strspn(answers[i].text, letters), strlen(answers[i].text));
        assert_true(strlen(answers[i].text) >= 6);
        qm_job_free(&jobs[i]);
    }
    assert_string_equal(answers[0].text, answers[3].text);
    assert_string_equal(answers[1].text, answers[5].text);
    for (int32_t i = 0; i < 6; i++)
        qm_session_free(&sessions[i]);
    qm_model_free(&model);
}

static void ends_otherwise(void **state)
{
    qm_model *model = load_model("tiny/attention.gguf", "");
    const int32_t prompt[] = { 'a', 'b' };
    (void)state;
    qm_session *session = constrained_session(model, "context=200 answer-tokens=50 stop=bb", "grammar", "root ::= \"abbcc\"");
    const answered *answer = generate(session, prompt, 2);
    assert_string_equal(answer->finish, "stop");
    assert_string_equal(answer->text, "a");
    qm_session_free(&session);
    session = constrained_session(model, "context=200 answer-tokens=50 ignore-end=1", "grammar", "root ::= \"abc\"");
    answer = generate(session, prompt, 2); /* nothing can follow, and no token may say so */
    assert_string_equal(answer->finish, "end");
    assert_string_equal(answer->text, "abc");
    assert_int_equal(answer->tokens, 3);
    qm_session_free(&session);
    qm_model_free(&model);
}

/* A refused value changes nothing. */
static void refused(void **state)
{
    static const char *const bad[][2] = {
        { "grammar", "root ::= x" }, { "json-schema", "{\"type\":\"text\"}" }, { "json-schema", "[" }, { "tools", "{}" },
        { "tool-choice", "nobody" }, { "json-schema", "{}" } };
    qm_model *model = load_model("tiny/attention.gguf", "");
    const int32_t prompt[] = { 'a', 'b' };
    (void)state;
    qm_session *session = constrained_session(model, "context=200 answer-tokens=50", "tools", tools);
    expect_ok(qm_session_set(session, "grammar", "root ::= \"abc\""));
    expect_ok(qm_session_set(session, "tool-choice", "none"));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        expect_code(QM_ERROR_OPTION, qm_session_set(session, bad[i][0], bad[i][1]));
        assert_true(strlen(qm_error_message()) > 0);
    }
    assert_string_equal(generate(session, prompt, 2)->text, "abc");
    expect_ok(qm_session_set(session, "grammar", NULL));
    expect_ok(qm_session_set(session, "tool-choice", NULL));
    expect_code(QM_ERROR_OPTION, qm_session_set(session, "tools", "[]"));
    expect_ok(qm_session_set(session, "tools", NULL));
    expect_ok(qm_session_set(session, "ignore-end", "1"));
    assert_string_equal(generate(session, prompt, 2)->finish, "length");
    qm_session_free(&session);
    qm_model_free(&model);
}

/* More grammars than a model keeps, again and again: each answer fits the one it was asked with. */
static void many_grammars(void **state)
{
    qm_model *model = load_model("tiny/attention.gguf", "");
    const int32_t prompt[] = { 'a', 'b' };
    char grammar[64], wanted[16];
    (void)state;
    qm_session *session = new_session(model, "context=1000 answer-tokens=50");
    for (int32_t i = 0; i < 60; i++) {
        snprintf(wanted, sizeof wanted, "n%d", i % 25);
        snprintf(grammar, sizeof grammar, "root ::= \"%s\"", wanted);
        expect_ok(qm_session_set(session, "grammar", grammar));
        assert_string_equal(generate(session, prompt, 2)->text, wanted);
    }
    qm_session_free(&session);
    qm_model_free(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fits_any_budget), cmocka_unit_test(fits_the_context), cmocka_unit_test(thoughts_are_free),
        cmocka_unit_test(calls_fit_tools), cmocka_unit_test(sessions_keep_theirs), cmocka_unit_test(ends_otherwise),
        cmocka_unit_test(refused), cmocka_unit_test(many_grammars),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

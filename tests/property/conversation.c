/* A conversation as a chat client holds it: each turn sends the whole history, rendered anew, in which the thoughts of earlier
 * answers are left out. Of each prompt only what differs from what was held before may be computed, and at most 256 tokens more.
 *
 *     conversation MODEL [TOKENS [TURNS [FORM [SETTINGS]]]]
 *
 * TOKENS of history before the first question (2000 if not given); FORM "chat", or "plain" for text without turns that is sent
 * whole each time; SETTINGS as "name=value name=value". Prints what is computed a turn, the seconds to the first token, and what
 * a fork costs. */
#include "../api/api.h"

#include <jansson.h>
#include <time.h>

#define ALLOWED 256

static const char text[] = "def area(width, height):\n    \"\"\"Return the area of a rectangle.\"\"\"\n"
                           "    return width * height\n\n\n";

/* A document of about so many tokens, as the first message. */
static json_t *document(const qm_model *model, int64_t tokens)
{
    int64_t each = qm_tokenize(model, text, -1, QM_SPECIAL_NONE, NULL, 0);
    size_t count = (size_t)(tokens / each) + 1, length = strlen(text);
    char *whole = malloc(count * (length + 16) + 1), *end = whole;
    assert_non_null(whole);
    for (size_t i = 0; i < count; i++)
        end += sprintf(end, "# part %zu\n%s", i, text);
    json_t *message = json_pack("{s:s, s:s#}", "role", "user", "content", whole, (int)(end - whole));
    free(whole);
    return message;
}

static int32_t *render(const qm_model *model, json_t *messages, int64_t *count)
{
    char *json = json_dumps(messages, JSON_COMPACT);
    int64_t length = qm_chat_format(model, json, -1, NULL, 0, 1, 1, NULL, 0);
    char *prompt = length >= 0 ? malloc((size_t)length + 1) : NULL;
    if (!prompt)
        fail_msg("qm_chat_format: %s", qm_error_message());
    qm_chat_format(model, json, -1, NULL, 0, 1, 1, prompt, length + 1);
    *count = qm_tokenize(model, prompt, length, QM_SPECIAL_ALL, NULL, 0);
    int32_t *tokens = malloc((size_t)*count * sizeof *tokens);
    assert_non_null(tokens);
    qm_tokenize(model, prompt, length, QM_SPECIAL_ALL, tokens, *count);
    free(prompt);
    free(json);
    return tokens;
}

/* All messages as one text, answers as they were given. */
static int32_t *render_plain(const qm_model *model, json_t *messages, int64_t *count)
{
    size_t length = 0, i;
    json_t *message;
    json_array_foreach(messages, i, message)
        length += json_string_length(json_object_get(message, "content"));
    char *whole = malloc(length + 1), *end = whole;
    assert_non_null(whole);
    json_array_foreach(messages, i, message)
        end = stpcpy(end, json_string_value(json_object_get(message, "content")));
    *count = qm_tokenize(model, whole, (int64_t)length, QM_SPECIAL_NONE, NULL, 0);
    int32_t *tokens = malloc((size_t)*count * sizeof *tokens);
    assert_non_null(tokens);
    qm_tokenize(model, whole, (int64_t)length, QM_SPECIAL_NONE, tokens, *count);
    free(whole);
    return tokens;
}

/* Generates an answer and appends it to the messages. Returns the seconds to its first token. */
static double answer(qm_model *model, qm_session *session, json_t *messages, bool plain)
{
    char whole[8192], *parsed = malloc(65536);
    qm_job *job = NULL;
    double first = 0;
    assert_non_null(parsed);
    expect_ok(qm_submit_generate(session, NULL, 0, &job));
    expect_code(QM_JOB_DONE, read_job(job, NULL, 0));
    int64_t length = qm_job_text(job, whole, sizeof whole);
    expect_ok(qm_job_number(job, "seconds_first", &first));
    assert_true(length >= 0 && length < (int64_t)sizeof whole);
    if (plain) {
        json_array_append_new(messages, json_pack("{s:s%}", "content", whole, (size_t)length));
        free(parsed);
        qm_job_free(&job);
        return first;
    }
    assert_true(qm_chat_parse(model, whole, length, NULL, 0, 1, parsed, 65536) > 0);
    json_t *answer = json_loads(parsed, 0, NULL), *message = json_object();
    json_object_set_new(message, "role", json_string("assistant"));
    json_object_set(message, "content", json_object_get(answer, "content"));
    json_object_set(message, "reasoning_content", json_object_get(answer, "reasoning_content"));
    json_array_append_new(messages, message);
    json_decref(answer);
    free(parsed);
    qm_job_free(&job);
    return first;
}

static int64_t common_start(const qm_session *session, const int32_t *tokens, int64_t count)
{
    int64_t length = qm_session_length(session), common = 0;
    int32_t *held = malloc((size_t)length * sizeof *held + 1);
    assert_non_null(held);
    qm_session_tokens(session, held, length);
    while (common < length && common < count && held[common] == tokens[common])
        common++;
    free(held);
    return common;
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int ascending(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* Median and ninth tenth of many forks of a session that holds all these tokens. */
static void measure_forks(qm_session *session)
{
    enum { FORKS = 200 };
    double seconds[FORKS];
    for (int i = 0; i < FORKS; i++) {
        qm_session *fork = NULL;
        double start = seconds_now();
        expect_ok(qm_session_fork(session, &fork));
        seconds[i] = seconds_now() - start;
        qm_session_free(&fork);
    }
    qsort(seconds, FORKS, sizeof *seconds, ascending);
    printf("fork of %lld tokens: %.1f us (median), %.1f us (9 of 10)\n", (long long)qm_session_length(session),
           seconds[FORKS / 2] * 1e6, seconds[FORKS * 9 / 10] * 1e6);
}

int main(int argument_count, char **arguments)
{
    int64_t history = argument_count > 2 ? strtoll(arguments[2], NULL, 10) : 2000;
    int turns = argument_count > 3 ? (int)strtol(arguments[3], NULL, 10) : 10, failed = 0;
    bool plain = argument_count > 4 && strcmp(arguments[4], "plain") == 0;
    char settings[400];
    qm_options *options = NULL;
    qm_model *model = NULL;
    snprintf(settings, sizeof settings, "context=%lld answer-tokens=120 thinking-tokens=60 ignore-end=1 seed=1 threads=0 pin=0 %s",
             (long long)(history + history / 4 + turns * 200 + 400), argument_count > 5 ? arguments[5] : "");
    options = make_options(settings);
    expect_ok(qm_model_load(arguments[1], options, &model));
    qm_options_free(&options);
    qm_session *session = new_session(model, settings);
    json_t *messages = json_array();
    json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "system", "content", "You write short functions in Python."));
    json_array_append_new(messages, document(model, history));
    printf("turn   prompt  differs  computed  seconds\n");
    for (int turn = 0; turn < turns; turn++) {
        int64_t count;
        if (turn > 0)
            json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "user", "content", "And one for the circumference?"));
        int32_t *tokens = (plain ? render_plain : render)(model, messages, &count);
        int64_t common = common_start(session, tokens, count);
        double start = seconds_now();
        int64_t reused = qm_session_sync(session, tokens, count);
        if (reused < 0)
            fail_msg("qm_session_sync: %s", qm_error_message());
        double first = seconds_now() - start;
        first += answer(model, session, messages, plain);
        printf("%4d %8lld %8lld %9lld %8.3f\n", turn + 1, (long long)count, (long long)(count - common),
               (long long)(count - reused), first);
        failed += count - reused > count - common + ALLOWED;
        free(tokens);
    }
    measure_forks(session);
    json_decref(messages);
    qm_session_free(&session);
    qm_model_free(&model);
    if (failed)
        printf("%d turns computed more than what differs and %d tokens\n", failed, ALLOWED);
    return failed > 0;
}

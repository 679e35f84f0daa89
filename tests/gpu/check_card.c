/* What the library promises about a card, looked at through the public API.
 *
 *   check_card DEVICE LIBRARY MODEL.gguf       DEVICE: cuda, cuda:1; LIBRARY: of the CUDA backend, "" to look for it
 *
 * A session that moves between card and CPU by its file goes on as if it had stayed. Logits do not depend on how tokens are put
 * into batches (beyond rounding); too little memory, wrong names and cancelled work are errors after which all goes on; loading and
 * freeing leaves no memory behind. Exits with 1 at the first that does not hold. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "qwenmoe.h"

enum { TOKENS = 700, TOGETHER = 20, LOADS = 20 };

static const char *device, *library, *path;
static int64_t vocabulary;
static int32_t tokens[TOKENS];

static void need(int fine, const char *what)
{
    if (fine)
        return;
    printf("failed: %s: %s\n", what, qm_error_message());
    exit(1);
}

static qm_options *options_for(const char *name, const char *value)
{
    qm_options *options = NULL;
    need(qm_options_new(&options) == QM_OK && qm_options_set(options, "device", device) == QM_OK &&
         qm_options_set(options, "cuda-library", library) == QM_OK && qm_options_set(options, "sequences", "32") == QM_OK, "options");
    if (name)
        need(qm_options_set(options, name, value) == QM_OK, name);
    return options;
}

static int32_t load(const char *name, const char *value, qm_model **model)
{
    qm_options *options = options_for(name, value);
    int32_t code = qm_model_load(path, options, model);
    qm_options_free(&options);
    return code;
}

static qm_session *session_of(qm_model *model)
{
    qm_session *session = NULL;
    need(qm_session_new(model, NULL, &session) == QM_OK, "session");
    return session;
}

static double distance(const float *got, const float *want)
{
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < vocabulary; i++) {
        difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        norm += (double)want[i] * want[i];
    }
    return sqrt(difference / (norm > 0 ? norm : 1));
}

static double bound = 5e-3;

static void check_near(qm_session *session, const float *want, const char *what)
{
    const float *got = qm_logits(session);
    need(got != NULL, what);
    double error = distance(got, want);
    if (!(error < bound)) {
        printf("failed: %s: logits differ by %.2e\n", what, error);
        exit(1);
    }
    int32_t best = 0, chosen = -1;
    for (int32_t i = 0; i < vocabulary; i++)
        best = got[i] > got[best] ? i : best;
    need(qm_session_set(session, "temperature", "0") == QM_OK && qm_sample(session, &chosen) == QM_OK, "sample");
    if (chosen != best) {
        printf("failed: %s: sampled %d, but the highest logit is that of %d\n", what, chosen, best);
        exit(1);
    }
}

/* At once; token by token; several sessions of different lengths decoded together. */
static void check_batches(qm_model *model)
{
    float *want[TOGETHER];
    qm_session *sessions[TOGETHER];
    int32_t last[TOGETHER];
    for (int i = 0; i < TOGETHER; i++) {
        int64_t length = 1 + (i * 37) % (TOKENS - 1);
        qm_session *alone = session_of(model);
        want[i] = malloc((size_t)vocabulary * sizeof **want);
        need(want[i] && qm_prefill(alone, tokens, length) == QM_OK && qm_logits(alone), "prefill");
        memcpy(want[i], qm_logits(alone), (size_t)vocabulary * sizeof **want);
        if (i < 3) {
            qm_session *slow = session_of(model);
            for (int64_t t = 0; t < length; t++)
                need(qm_decode(&slow, tokens + t, 1) == QM_OK, "decode");
            check_near(slow, want[i], "token by token");
            qm_session_free(&slow);
        }
        qm_session_free(&alone);
        sessions[i] = session_of(model);
        if (length > 1)
            need(qm_prefill(sessions[i], tokens, length - 1) == QM_OK, "prefill");
        last[i] = tokens[length - 1];
    }
    for (int count = 1, first = 0; first < TOGETHER; first += count, count = count * 2 + 1) {
        int n = first + count > TOGETHER ? TOGETHER - first : count;
        need(qm_decode(sessions + first, last + first, n) == QM_OK, "decode together");
        for (int i = first; i < first + n; i++)
            check_near(sessions[i], want[i], "decoded together");
    }
    for (int i = 0; i < TOGETHER; i++) {
        qm_session_free(&sessions[i]);
        free(want[i]);
    }
}

static void check_cancel(qm_model *model)
{
    qm_session *session = session_of(model);
    qm_job *job = NULL;
    need(qm_submit_prefill(session, tokens, TOKENS, &job) == QM_OK && qm_job_cancel(job) == QM_OK, "cancel");
    int32_t code = qm_job_wait(job, -1);
    need(code == QM_ERROR_CANCELLED || code == QM_JOB_DONE, "a cancelled job");
    qm_job_free(&job);
    int64_t length = qm_session_length(session);
    need(qm_prefill(session, tokens + length, TOKENS - length) == QM_OK, "prefill after a cancelled one");
    qm_session *whole = session_of(model);
    need(qm_prefill(whole, tokens, TOKENS) == QM_OK && qm_logits(whole), "prefill");
    check_near(session, qm_logits(whole), "after a cancelled prefill");
    qm_session_free(&whole);
    qm_session_free(&session);
}

static void check_errors(void)
{
    qm_model *model = NULL;
    int32_t code = load("memory-limit", "3000000", &model);
    need(code == QM_ERROR_FIT || code == QM_ERROR_MEMORY, "a limit that is too small has to be an error");
    printf("        %s\n", qm_error_message());
    code = load("device", "cuda:99", &model);
    need(code == QM_ERROR_DEVICE, "a card that is not there has to be an error");
    printf("        %s\n", qm_error_message());
    code = load("cuda-library", "/nowhere/libqwenmoe-cuda.so", &model);
    need(code == QM_ERROR_DEVICE, "a backend that is not there has to be an error");
    printf("        %s\n", qm_error_message());
}

/* On the CPU and on the card, by turns: each goes on with the file of the other. */
static void check_moves(const char *types)
{
    const char *file = "check_card.session";
    const int64_t parts[] = { 300, 1, 150, 1, 2, TOKENS };
    qm_model *models[2] = { NULL, NULL };
    qm_session *straight = NULL;
    int64_t held = 0;
    for (int i = 0; i < 2; i++) {
        qm_options *options = options_for("kv-type", types);
        need(i == 0 || qm_options_set(options, "device", "cpu") == QM_OK, "options");
        need(qm_model_load(path, options, &models[i]) == QM_OK, "load");
        qm_options_free(&options);
    }
    straight = session_of(models[1]);
    for (int i = 0; i < (int)(sizeof parts / sizeof *parts); i++) {
        qm_session *session = session_of(models[i % 2]);
        int64_t count = held + parts[i] > TOKENS ? TOKENS - held : parts[i];
        need(held == 0 || qm_session_restore(session, file) == QM_OK, "restoring on another device");
        need(qm_session_length(session) == held, "a moved session's length");
        if (held)
            check_near(session, qm_logits(straight), "moved to another device");
        need(qm_prefill(session, tokens + held, count) == QM_OK && qm_prefill(straight, tokens + held, count) == QM_OK,
             "prefill");
        held += count;
        check_near(session, qm_logits(straight), "after moving to another device");
        need(qm_session_save(session, file) == QM_OK, "saving");
        qm_session_free(&session);
    }
    qm_session_free(&straight);
    remove(file);
    for (int i = 0; i < 2; i++)
        qm_model_free(&models[i]);
}

static int64_t free_memory(void)
{
    qm_model *model = NULL;
    int64_t bytes = 0;
    need(load(NULL, NULL, &model) == QM_OK && qm_model_number(model, "memory_free", &bytes) == QM_OK, "memory_free");
    qm_model_free(&model);
    return bytes;
}

static void check_growth(void)
{
    int64_t before = free_memory(), after = 0;
    for (int i = 0; i < LOADS; i++)
        after = free_memory();
    if (before - after > 1 << 22) {
        printf("failed: %d times loading and freeing took %lld bytes of the card\n", LOADS, (long long)(before - after));
        exit(1);
    }
}

int main(int argc, char **argv)
{
    qm_model *model = NULL, *second = NULL;
    if (argc != 4) {
        fprintf(stderr, "usage: check_card DEVICE LIBRARY MODEL.gguf\n");
        return 2;
    }
    device = argv[1];
    library = argv[2];
    path = argv[3];
    need(load(NULL, NULL, &model) == QM_OK && qm_model_number(model, "vocabulary", &vocabulary) == QM_OK, "load");
    for (int i = 0; i < TOKENS; i++)
        tokens[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)vocabulary);
    check_batches(model);
    check_cancel(model);
    need(load("memory-limit", "4000000000", &second) == QM_OK, "a second model on the card");
    check_batches(second);
    check_batches(model);
    qm_model_free(&second);
    qm_model_free(&model);
    check_moves("f16");
    check_moves("q8_0");
    bound = 3e-2; /* of two bits: a key that is rounded otherwise before it is packed may get another code */
    check_moves("q2");
    check_errors();
    check_growth();
    return 0;
}

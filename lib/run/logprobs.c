/* Log probabilities of an answer's tokens: see logprobs.h. */
#include "run/logprobs.h"

#include <math.h>
#include <string.h>
#include "base/error.h"
#include "run/candidates.h"

#define TOP_MOST 64  /* as the option's range has it */
#define WEIGHED 1024 /* logits at once: their weights lie on the stack */

void qmi_logprobs_start(qmi_logprobs *logprobs, int64_t top, int32_t vocabulary)
{
    logprobs->kept = top >= 0;
    logprobs->top = top > vocabulary ? vocabulary : top > 0 ? (int32_t)top : 0;
}

void qmi_logprobs_free(qmi_logprobs *logprobs, const qmi_alloc *alloc)
{
    qmi_delete(alloc, logprobs->own);
    qmi_delete(alloc, logprobs->top_tokens);
    qmi_delete(alloc, logprobs->top_logprobs);
}

/* log of the sum of e^x; -inf where there is no finite logit. */
static double log_sum(const float *x, int32_t count)
{
    float weights[WEIGHED], highest = x[qmi_candidates_highest(x, count)];
    double sum = 0;
    if (!(highest > -HUGE_VALF))
        return -HUGE_VAL;
    for (int32_t start = 0; start < count; start += WEIGHED) {
        int32_t size = count - start < WEIGHED ? count - start : WEIGHED;
        qmi_candidates_weigh(x + start, size, highest, 1, weights);
        for (int32_t i = 0; i < size; i++)
            sum += weights[i];
    }
    return highest + log(sum);
}

static float log_probability(float logit, double whole)
{
    return logit > -HUGE_VALF ? (float)(logit - whole) : -HUGE_VALF;
}

static int32_t make_room(qmi_logprobs *logprobs, const qmi_alloc *alloc)
{
    size_t rows = (size_t)logprobs->count + 1, entries = rows * (size_t)logprobs->top;
    int32_t code = qmi_reserve(alloc, (void **)&logprobs->own, &logprobs->own_capacity, rows, sizeof(float), "log probabilities");
    if (code >= 0)
        code = qmi_reserve(alloc, (void **)&logprobs->top_tokens, &logprobs->tokens_capacity, entries, sizeof(int32_t),
                           "log probabilities");
    if (code >= 0)
        code = qmi_reserve(alloc, (void **)&logprobs->top_logprobs, &logprobs->values_capacity, entries, sizeof(float),
                           "log probabilities");
    return code;
}

int32_t qmi_logprobs_add(qmi_logprobs *logprobs, const float *logits, int32_t vocabulary, int32_t token, const qmi_alloc *alloc)
{
    qmi_candidate first[TOP_MOST];
    int32_t code = make_room(logprobs, alloc);
    if (code < 0)
        return code;
    double whole = log_sum(logits, vocabulary);
    int64_t found = logprobs->top ? qmi_candidates_first(logits, vocabulary, logprobs->top, first) : 0;
    int32_t *ids = logprobs->top_tokens + logprobs->count * logprobs->top;
    float *values = logprobs->top_logprobs + logprobs->count * logprobs->top;
    for (int32_t i = 0; i < logprobs->top; i++) { /* fewer than asked for are above -inf: the rest has no token */
        ids[i] = i < found ? first[i].id : -1;
        values[i] = i < found ? log_probability(first[i].logit, whole) : -HUGE_VALF;
    }
    logprobs->own[logprobs->count++] = log_probability(logits[token], whole);
    return QM_OK;
}

int64_t qmi_logprobs_copy(const qmi_logprobs *logprobs, int64_t first, const qmi_logprobs_out *out, int64_t capacity)
{
    if (!logprobs->kept)
        return qmi_fail(QM_ERROR_STATE, "the job keeps no log probabilities; set option logprobs of its session to 0 or more");
    int64_t count = first < logprobs->count ? logprobs->count - first : 0;
    size_t rows = (size_t)(count < capacity ? count : capacity), entries = rows * (size_t)logprobs->top;
    size_t skipped = (size_t)first * (size_t)logprobs->top;
    if (rows && out->own)
        memcpy(out->own, logprobs->own + first, rows * sizeof *out->own);
    if (entries && out->top_tokens)
        memcpy(out->top_tokens, logprobs->top_tokens + skipped, entries * sizeof *out->top_tokens);
    if (entries && out->top_logprobs)
        memcpy(out->top_logprobs, logprobs->top_logprobs + skipped, entries * sizeof *out->top_logprobs);
    return count;
}

#include "run/sampler_plan.h"

#include <math.h>
#include <string.h>
#include "base/error.h"
#include "base/number.h"

static int32_t refuse_bias(const char *pair, size_t length, const char *why)
{
    char text[QMI_SHOWN_SIZE], shown[QMI_SHOWN_SIZE];
    if (length > sizeof text - 1)
        length = sizeof text - 1;
    memcpy(text, pair, length);
    text[length] = 0;
    return qmi_fail(QM_ERROR_OPTION, "option 'logit-bias': '%s' %s", qmi_option_shown(text, shown), why);
}

static int32_t read_bias(const char *pair, size_t length, int32_t vocabulary, qmi_bias *out)
{
    const char *colon = memchr(pair, ':', length);
    int64_t id = 0;
    double value = 0;
    if (!colon || qmi_number_read_int(pair, (size_t)(colon - pair), &id) != QMI_NUMBER_OK)
        return refuse_bias(pair, length, "is not a pair of token id and number such as 198:-2.5 or 198:-inf");
    if (id < 0 || id >= vocabulary) {
        return qmi_fail(QM_ERROR_OPTION, "option 'logit-bias': token %lld is not one of this model's 0..%d", (long long)id,
                        (int)vocabulary - 1);
    }
    size_t rest = length - (size_t)(colon + 1 - pair);
    if (rest == 4 && memcmp(colon + 1, "-inf", 4) == 0)
        value = -HUGE_VAL;
    else if (qmi_number_read_float(colon + 1, rest, &value) != QMI_NUMBER_OK || fabs(value) > 1e30)
        return refuse_bias(pair, length, "has no number after the colon that is -inf or in the range -1e30..1e30");
    *out = (qmi_bias){ (int32_t)id, (float)value };
    return QM_OK;
}

static int32_t reserve_biases(qmi_sampler_plan *plan, size_t count, const qmi_alloc *alloc)
{
    return qmi_reserve(alloc, (void **)&plan->biases, &plan->bias_capacity, count, sizeof *plan->biases, "logit-bias");
}

/* "id:value,id:value"; spaces around a pair do no harm. */
static int32_t read_biases(const char *text, int32_t vocabulary, const qmi_alloc *alloc, qmi_sampler_plan *plan)
{
    if (!text[strspn(text, " ")])
        return QM_OK;
    for (;;) {
        text += strspn(text, " ");
        size_t whole = strcspn(text, ","), length = whole;
        while (length > 0 && text[length - 1] == ' ')
            length--;
        int32_t status = reserve_biases(plan, plan->bias_count + 1, alloc);
        if (status == QM_OK)
            status = read_bias(text, length, vocabulary, &plan->biases[plan->bias_count]);
        if (status < 0)
            return status;
        plan->bias_count++;
        if (!text[whole])
            return QM_OK;
        text += whole + 1;
    }
}

void qmi_sampler_plan_end(qmi_sampler_plan *plan, const qmi_alloc *alloc)
{
    qmi_delete(alloc, plan->biases);
    qmi_delete(alloc, plan->adjusted);
    qmi_delete(alloc, plan->seen);
    qmi_delete(alloc, plan->candidates);
    qmi_delete(alloc, plan->weights);
    qmi_delete(alloc, plan->block_sums);
    memset(plan, 0, sizeof *plan);
}

static bool has_penalties(const qmi_sampler_plan *plan)
{
    return plan->window > 0 && (plan->repetition != 1 || plan->presence != 0 || plan->frequency != 0);
}

static bool wants_memory(const void *pointer, bool needed)
{
    return needed && !pointer;
}

/* Memory for what the options ask; plan_end frees it also after a failure. */
static int32_t plan_memory(qmi_sampler_plan *plan, int32_t vocabulary, const qmi_alloc *alloc)
{
    size_t count = (size_t)vocabulary;
    bool draws = plan->temperature > 0, all = draws && plan->top_k == 0;
    bool penalties = has_penalties(plan);
    if (penalties)
        plan->seen = qmi_new(alloc, count, sizeof *plan->seen, "counts of tokens for penalties");
    if (penalties || plan->bias_count)
        plan->adjusted = qmi_new(alloc, count, sizeof *plan->adjusted, "adjusted logits");
    if (draws) {
        size_t room = all || plan->top_k > QMI_SAMPLER_HEAP_MOST ? count : (size_t)plan->top_k;
        plan->candidates = qmi_new(alloc, room, sizeof *plan->candidates, "candidates");
    }
    if (all) {
        plan->weights = qmi_new(alloc, count, sizeof *plan->weights, "weights of tokens");
        plan->block_sums = qmi_new(alloc, count / QMI_SAMPLER_BLOCK + 1, sizeof *plan->block_sums, "sums of weights");
    }
    if (wants_memory(plan->seen, penalties) || wants_memory(plan->adjusted, penalties || plan->bias_count > 0)
        || wants_memory(plan->candidates, draws) || wants_memory(plan->weights, all) || wants_memory(plan->block_sums, all))
        return QM_ERROR_MEMORY;
    return QM_OK;
}

int32_t qmi_sampler_plan_start(qmi_sampler_plan *plan, const qmi_settings *settings, int32_t vocabulary, const qmi_alloc *alloc)
{
    memset(plan, 0, sizeof *plan);
    plan->temperature = (float)qmi_settings_float(settings, QMI_OPT_TEMPERATURE);
    plan->top_p = qmi_settings_float(settings, QMI_OPT_TOP_P);
    plan->min_p = qmi_settings_float(settings, QMI_OPT_MIN_P);
    plan->repetition = (float)qmi_settings_float(settings, QMI_OPT_REPETITION_PENALTY);
    plan->presence = (float)qmi_settings_float(settings, QMI_OPT_PRESENCE_PENALTY);
    plan->frequency = (float)qmi_settings_float(settings, QMI_OPT_FREQUENCY_PENALTY);
    plan->window = qmi_settings_int(settings, QMI_OPT_PENALTY_WINDOW);
    plan->top_k = qmi_settings_int(settings, QMI_OPT_TOP_K);
    if (plan->top_k >= vocabulary)
        plan->top_k = 0;
    int32_t status = read_biases(qmi_settings_text(settings, QMI_OPT_LOGIT_BIAS), vocabulary, alloc, plan);
    if (status == QM_OK)
        status = plan_memory(plan, vocabulary, alloc);
    if (status < 0)
        qmi_sampler_plan_end(plan, alloc);
    return status;
}

int32_t qmi_sampler_plan_copy(const qmi_sampler_plan *from, int32_t vocabulary, const qmi_alloc *alloc, qmi_sampler_plan *out)
{
    *out = *from;
    out->adjusted = NULL;
    out->seen = NULL;
    out->candidates = NULL;
    out->weights = NULL;
    out->block_sums = NULL;
    out->biases = NULL;
    out->bias_capacity = 0;
    int32_t status = reserve_biases(out, from->bias_count, alloc);
    if (status == QM_OK && from->bias_count)
        memcpy(out->biases, from->biases, from->bias_count * sizeof *from->biases);
    if (status == QM_OK)
        status = plan_memory(out, vocabulary, alloc);
    if (status < 0)
        qmi_sampler_plan_end(out, alloc);
    return status;
}

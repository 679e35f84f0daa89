/* Facts about a model: see facts.h. */
#include "run/facts.h"

#include <stdio.h>
#include <string.h>
#include "backend/traffic.h"
#include "base/number.h"
#include "run/group_load.h"

static int64_t parameter_count(const qmi_gguf *gguf)
{
    int64_t total = 0;
    for (int64_t i = 0; i < gguf->tensor_count; i++) {
        int64_t product = 1;
        for (int32_t d = 0; d < gguf->tensors[i].dimension_count; d++)
            product *= gguf->tensors[i].dimensions[d]; /* checked when it was read */
        total += product;
    }
    return total;
}

/* Facts that only a model that computes has; false when `name` is none of them. */
static bool dimension(const qm_model *model, const char *name, int64_t *value)
{
    const qmi_hparams *h = &model->plan.hparams;
    const qmi_traffic traffic = qmi_traffic_of(&model->program);
    const struct {
        const char *name;
        int64_t value;
    } facts[] = {
        { "layers", h->layers },
        { "attention_layers", h->attention_layers },
        { "delta_layers", h->delta_layers },
        { "hidden", h->hidden },
        { "vocabulary", h->vocabulary },
        { "context", h->context },
        { "experts", h->experts },
        { "experts_used", h->experts_used },
        { "mtp", h->mtp_layers > 0 },
        { "step_bytes", traffic.step },
        { "expert_bytes", traffic.experts },
        { "state_bytes", traffic.sequence },
        { "held_bytes", traffic.held },
    };
    for (size_t i = 0; model->computes && i < sizeof facts / sizeof *facts; i++)
        if (strcmp(name, facts[i].name) == 0) {
            *value = facts[i].value;
            return true;
        }
    return false;
}

static int32_t fail_unknown(const char *name, const char *kind)
{
    return qmi_fail(QM_ERROR_ARGUMENT, "the model has no %s called \"%s\": it is neither a fact nor a key of its file", kind, name);
}

typedef struct memory_question { /* for the engine's thread */
    const qm_model *model;
    const char *name;
    int64_t value;
    bool known;
} memory_question;

static int32_t ask_memory(void *argument)
{
    memory_question *question = argument;
    const qm_model *model = question->model;
    const qmi_page_pool *pages = &model->pages;
    qmi_device_info info;
    model->backend->info(model->device, &info);
    const struct {
        const char *name;
        int64_t value;
    } facts[] = {
        { "memory_total", info.memory_total },
        { "memory_free", info.memory_free },
        { "kv_tokens", pages->count * pages->layout->page_tokens },
        { "kv_tokens_free", pages->free_count * pages->layout->page_tokens },
        { "checkpoints", model->checkpoints.count },
    };
    for (size_t i = 0; i < sizeof facts / sizeof *facts && !question->known; i++)
        if (strcmp(question->name, facts[i].name) == 0) {
            question->value = facts[i].value;
            question->known = true;
        }
    return QM_OK;
}

/* Of the device and what sessions and checkpoints have of it now. */
static bool memory(const qm_model *model, const char *name, int64_t *value)
{
    memory_question question = { .model = model, .name = name };
    if (model->computes)
        qmi_engine_call((qm_model *)model, ask_memory, &question);
    *value = question.known ? question.value : *value;
    return question.known;
}

static int32_t measure_read_rate(void *argument)
{
    memory_question *question = argument;
    const qmi_backend *backend = question->model->backend;
    if (!backend->read_rate)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "the backend %s does not measure how fast its devices read memory", backend->name);
    question->value = backend->read_rate(question->model->device);
    return question->value < 0 ? (int32_t)question->value : QM_OK;
}

/* As a step of the engine's, so that nothing else computes meanwhile. */
static int32_t read_rate(const qm_model *model, int64_t *value)
{
    memory_question question = { .model = model };
    int32_t code = qmi_engine_call((qm_model *)model, measure_read_rate, &question);
    *value = code < 0 ? *value : question.value;
    return code;
}

static int32_t predict(void *argument)
{
    memory_question *question = argument;
    question->value = qmi_group_load_predict((qm_model *)question->model);
    return question->value < 0 ? (int32_t)question->value : QM_OK;
}

static int32_t predicted(const qm_model *model, int64_t *value)
{
    memory_question question = { .model = model };
    int32_t code = qmi_engine_call((qm_model *)model, predict, &question);
    *value = code < 0 ? *value : question.value;
    return code;
}

int32_t qmi_facts_number(const qm_model *model, const char *name, int64_t *value)
{
    if (model->computes && strcmp(name, "read_rate") == 0)
        return read_rate(model, value);
    if (model->computes && model->group && strcmp(name, "predicted_token_ns") == 0)
        return predicted(model, value);
    int64_t found = 0;
    bool known = true;
    if (dimension(model, name, &found))
        known = true;
    else if (strcmp(name, "vocabulary") == 0)
        found = qmi_vocab_size(model->vocab);
    else if (strcmp(name, "parameters") == 0)
        found = parameter_count(&model->parts.gguf);
    else if (strcmp(name, "file_bytes") == 0)
        found = model->parts.bytes;
    else if (strcmp(name, "token_eos") == 0)
        known = (found = qmi_vocab_eos(model->vocab)) >= 0;
    else if (strcmp(name, "token_pad") == 0)
        known = (found = qmi_vocab_pad(model->vocab)) >= 0;
    else if (!qmi_gguf_find(&model->parts.gguf, name))
        known = memory(model, name, &found);
    else
        known = qmi_gguf_int(&model->parts.gguf, name, &found) > 0;
    if (!known)
        return fail_unknown(name, "number");
    *value = found;
    return QM_OK;
}

static int64_t give_text(const char *from, int64_t length, char *text, int64_t size)
{
    if (size > 0) {
        size_t fits = (size_t)(length < size ? length : size - 1);
        if (fits)
            memcpy(text, from, fits);
        text[fits] = 0;
    }
    return length;
}

/* A number of the file's header as text; arrays of numbers with commas. Strings inside arrays have no text of their own. */
static int64_t give_value(const qmi_gguf_value *value, char *text, int64_t size)
{
    qmi_gguf_value numbers = *value; /* a single one is an array of one */
    int64_t length = 0;
    char one[1 + QMI_NUMBER_SIZE];
    if (value->type != QMI_GGUF_ARRAY)
        numbers.element_type = value->type;
    bool floats = numbers.element_type == QMI_GGUF_F32 || numbers.element_type == QMI_GGUF_F64;
    if (size > 0)
        text[0] = 0;
    for (int64_t i = 0; i < numbers.count; i++) {
        int comma = i > 0, digits;
        one[0] = ',';
        if (floats)
            digits = qmi_number_write_float(qmi_gguf_array_float(&numbers, i), one + comma);
        else
            digits = snprintf(one + comma, QMI_NUMBER_SIZE, "%lld", (long long)qmi_gguf_array_int(&numbers, i));
        int64_t room = size > length ? size - length : 0;
        length += give_text(one, comma + digits, room ? text + length : NULL, room);
    }
    return length;
}

int64_t qmi_facts_text(const qm_model *model, const char *name, char *text, int64_t size)
{
    const qmi_gguf *gguf = &model->parts.gguf;
    const char *fact = NULL;
    const char *key = strcmp(name, "architecture") == 0 ? "general.architecture"
                      : strcmp(name, "name") == 0       ? "general.name"
                      : strcmp(name, "tokenizer") == 0  ? "tokenizer.ggml.pre"
                                                        : name;
    if (strcmp(name, "chat_format") == 0)
        fact = qmi_chat_name(model->chat);
    else if (strcmp(name, "file") == 0)
        fact = model->path;
    else if (model->computes && strcmp(name, "device") == 0)
        fact = model->info.name;
    else if (model->computes && strcmp(name, "isa") == 0)
        fact = model->info.isa;
    else if (model->computes && model->group && strcmp(name, "predicted_by") == 0)
        fact = model->group->rates;
    if (fact)
        return give_text(fact, (int64_t)strlen(fact), text, size);
    const qmi_gguf_value *value = qmi_gguf_find(gguf, key);
    if (!value || (value->type == QMI_GGUF_ARRAY && value->element_type == QMI_GGUF_STRING))
        return fail_unknown(name, "text");
    qmi_text found = { 0 };
    if (value->type == QMI_GGUF_STRING && qmi_gguf_text(gguf, key, &found) > 0)
        return give_text(found.data, found.length, text, size);
    return give_value(value, text, size);
}

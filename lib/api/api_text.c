/* Tokens and the chat format. */
#include "api/handles.h"
#include "run/engine.h"
#include "run/submit.h"
#include "text/answer.h"
#include "text/detokenize.h"

static int32_t check_special(int32_t special)
{
    if (special < QM_SPECIAL_NONE || special > QM_SPECIAL_ALL)
        return qmi_fail(QM_ERROR_ARGUMENT, "special is %d; QM_SPECIAL_NONE, _USER and _ALL are 0, 1 and 2", special);
    return QM_OK;
}

static int64_t give_ids(const qm_model *model, int32_t code, qmi_ids *ids, int32_t *tokens, int64_t capacity)
{
    int64_t fits = code < 0 ? 0 : (int64_t)ids->count < capacity ? (int64_t)ids->count : capacity;
    if (fits > 0)
        memcpy(tokens, ids->data, (size_t)fits * sizeof *tokens);
    qmi_delete(&model->settings.alloc, ids->data);
    return code < 0 ? code : (int64_t)ids->count;
}

int64_t qm_tokenize(const qm_model *model, const char *text, int64_t length, int32_t special, int32_t *tokens, int64_t capacity)
{
    qmi_ids ids = { 0 };
    if (!model)
        return qmi_handles_null("model");
    int32_t code = qmi_handles_text(text, &length, "text");
    if (code >= 0)
        code = check_special(special);
    if (code >= 0)
        code = qmi_handles_buffer(tokens, capacity, "tokens");
    if (code >= 0)
        code = qmi_tokenize(model->vocab, length ? text : "", length, special, &model->settings.alloc, &ids);
    return give_ids(model, code, &ids, tokens, capacity);
}

int64_t qm_detokenize(const qm_model *model, const int32_t *tokens, int64_t count, int32_t skip_special, char *text, int64_t size)
{
    if (!model)
        return qmi_handles_null("model");
    int32_t code = qmi_handles_buffer(tokens, count, "tokens");
    if (code >= 0)
        code = qmi_handles_buffer(text, size, "text");
    return code < 0 ? code : qmi_detokenize(model->vocab, tokens, count, skip_special != 0, text, size);
}

int32_t qm_token_find(const qm_model *model, const char *text, int64_t length)
{
    if (!model)
        return qmi_handles_null("model");
    int32_t code = qmi_handles_text(text, &length, "text");
    if (code < 0)
        return code;
    int32_t token = qmi_vocab_find(model->vocab, length ? text : "", length);
    if (token < 0)
        return qmi_fail(QM_ERROR_ARGUMENT, "no token has the text \"%.*s\"", (int)(length < 100 ? length : 100),
                        length ? text : "");
    return token;
}

static int64_t give_string(const qm_model *model, int32_t code, qmi_string *string, char *text, int64_t size)
{
    int64_t length = code < 0 ? code : qmi_handles_give(string->data, (int64_t)string->length, text, size);
    qmi_delete(&model->settings.alloc, string->data);
    return length;
}

/* Checks and completes a request, whose texts and switches are as the caller gave them. */
static int32_t check_request(const qm_model *model, qmi_chat_request *request)
{
    if (!model)
        return qmi_handles_null("model");
    if (!request->tools)
        request->tools_length = 0;
    int32_t code = qmi_handles_text(request->messages, &request->messages_length, "messages");
    if (code >= 0)
        code = qmi_handles_text(request->tools, &request->tools_length, "tools");
    if (code >= 0 && (request->thinking < -1 || request->thinking > 1))
        code = qmi_fail(QM_ERROR_ARGUMENT, "thinking is %d; 1 and 0 answer the template's switch, -1 leaves it",
                        request->thinking);
    if (request->messages_length == 0)
        request->messages = "";
    request->preserve_thinking = qmi_settings_bool(&model->settings, QMI_OPT_PRESERVE_THINKING);
    return code;
}

int64_t qm_chat_format(const qm_model *model, const char *messages, int64_t messages_length, const char *tools,
                       int64_t tools_length, int32_t thinking, int32_t opening, char *text, int64_t size)
{
    qmi_string string = { 0 };
    qmi_chat_request request = { .messages = messages, .messages_length = messages_length, .tools = tools,
                                 .tools_length = tools_length, .thinking = thinking, .opening = opening != 0 };
    int32_t code = check_request(model, &request);
    if (code >= 0)
        code = qmi_handles_buffer(text, size, "text");
    if (code < 0)
        return code;
    code = qmi_chat_render(model->chat, &request, &model->settings.alloc, &string);
    return give_string(model, code, &string, text, size);
}

int64_t qm_chat_tokens(const qm_model *model, const char *messages, int64_t messages_length, const char *tools,
                       int64_t tools_length, int32_t thinking, int32_t opening, int32_t *tokens, int64_t capacity)
{
    qmi_string text = { 0 };
    qmi_stretches literal = { 0 };
    qmi_ids ids = { 0 };
    qmi_chat_request request = { .messages = messages, .messages_length = messages_length, .tools = tools,
                                 .tools_length = tools_length, .thinking = thinking, .opening = opening != 0,
                                 .literal = &literal };
    int32_t code = check_request(model, &request);
    if (code >= 0)
        code = qmi_handles_buffer(tokens, capacity, "tokens");
    if (code < 0)
        return code;
    const qmi_alloc *alloc = &model->settings.alloc;
    code = qmi_chat_render(model->chat, &request, alloc, &text);
    if (code >= 0)
        code = qmi_tokenize_around(model->vocab, text.data, (int64_t)text.length, QM_SPECIAL_ALL, &literal, alloc, &ids);
    qmi_delete(alloc, literal.data);
    qmi_string_free(&text, alloc);
    return give_ids(model, code, &ids, tokens, capacity);
}

int32_t qm_submit_chat_tokens(const qm_model *model, const char *messages, int64_t messages_length, const char *tools,
                              int64_t tools_length, int32_t thinking, int32_t opening, qm_job **out)
{
    if (!out)
        return qmi_handles_null("out");
    *out = NULL;
    qmi_chat_request request = { .messages = messages, .messages_length = messages_length, .tools = tools,
                                 .tools_length = tools_length, .thinking = thinking, .opening = opening != 0 };
    int32_t code = check_request(model, &request);
    return code < 0 ? code : qmi_submit_chat_tokens((qm_model *)(uintptr_t)model, &request, out); /* it takes a reference */
}

int64_t qm_chat_parse(const qm_model *model, const char *answer, int64_t answer_length, const char *tools, int64_t tools_length,
                      int32_t thinking, char *json, int64_t size)
{
    qmi_string string = { 0 };
    if (!model)
        return qmi_handles_null("model");
    if (!tools)
        tools_length = 0;
    int32_t code = qmi_handles_text(answer, &answer_length, "answer");
    if (code >= 0)
        code = qmi_handles_text(tools, &tools_length, "tools");
    if (code >= 0)
        code = qmi_handles_buffer(json, size, "json");
    if (code < 0)
        return code;
    code = qmi_answer_parse(answer_length ? answer : "", answer_length, tools, tools_length, thinking == 1,
                            &model->settings.alloc, &string);
    return give_string(model, code, &string, json, size);
}

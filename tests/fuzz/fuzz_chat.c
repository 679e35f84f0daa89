/* Fuzz target: any bytes as a chat template, as messages and tools, and as an answer.
 *
 * Input: a byte of settings (bits 0-3: an allocation that fails; 4: starts inside thoughts; 5-7: where the stream is cut), then
 * the text, then after a byte FF the tools. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../unit/failing_alloc.h"
#include "base/error.h"
#include "text/answer.h"
#include "text/chat_json.h"

static void require(bool condition)
{
    if (!condition)
        abort();
}

static void check_recognition(const char *text, int64_t length)
{
    const qmi_log silent = { 0 };
    qmi_chat_format_id id = qmi_chat_recognise(text, length, &silent);
    require(id >= 0 && id < QMI_CHAT_COUNT && qmi_chat_find(qmi_chat_name(id)) == (int32_t)id);
}

static void check_render(const qmi_chat_request *request, const qmi_alloc *alloc, bool may_fail)
{
    for (int id = 0; id < QMI_CHAT_COUNT; id++) {
        qmi_string text = { 0 };
        int32_t code = qmi_chat_render((qmi_chat_format_id)id, request, alloc, &text);
        require(code == QM_OK || code == QM_ERROR_TEXT || (code == QM_ERROR_MEMORY && may_fail));
        if (code == QM_OK)
            require(text.data && text.data[text.length] == 0);
        else
            require(text.length == 0 && qmi_error_text()[0] != 0);
        for (size_t i = 0; code == QM_OK && i < request->literal->count; i++) {
            const struct qmi_stretch *said = &request->literal->data[i];
            require(said->start >= (i ? said[-1].end : 0) && said->start < said->end && said->end <= (int64_t)text.length);
        }
        qmi_string_free(&text, alloc);
    }
}

/* The result is JSON of the promised form. */
static void check_result(const qmi_string *json)
{
    json_t *result;
    require(qmi_json_parse(qmi_string_view(json), "result", &result) == QM_OK);
    json_t *thoughts = json_object_get(result, "reasoning_content"), *calls = json_object_get(result, "tool_calls");
    require(json_is_null(thoughts) || json_is_string(thoughts));
    require(json_is_string(json_object_get(result, "content")) && json_is_array(calls) && json_object_size(result) == 4);
    for (size_t i = 0; i < json_array_size(calls); i++) {
        require(json_string_length(json_object_get(json_array_get(calls, i), "name")) > 0);
        require(json_is_object(json_object_get(json_array_get(calls, i), "arguments")));
    }
    json_t *status = json_object_get(result, "status");
    require(qmi_json_equals(status, "complete") || qmi_json_equals(status, "partial") || qmi_json_equals(status, "malformed"));
    json_decref(result);
}

static void check_parse(const char *text, int64_t length, const char *tools, int64_t tools_length, bool inside,
                        const qmi_alloc *alloc, bool may_fail)
{
    qmi_string json = { 0 };
    int32_t code = qmi_answer_parse(text, length, tools, tools_length, inside, alloc, &json);
    require(code == QM_OK || (code == QM_ERROR_TEXT && tools) || (code == QM_ERROR_MEMORY && may_fail));
    if (code == QM_OK)
        check_result(&json);
    qmi_string_free(&json, alloc);
}

/* ---- stream ---- */

typedef struct gathered {
    char *text;      /* of all pieces */
    uint8_t *parts;  /* of each byte */
    int64_t length;
} gathered;

static void gather(qmi_answer_part part, const char *text, int64_t length, void *user)
{
    gathered *all = user;
    require(length > 0);
    memcpy(all->text + all->length, text, (size_t)length);
    memset(all->parts + all->length, (int)part, (size_t)length);
    all->length += length;
}

static gathered stream(const char *text, int64_t length, int64_t cut, bool inside)
{
    gathered all = { malloc((size_t)length + 1), malloc((size_t)length + 1), 0 };
    qmi_answer_stream state;
    require(all.text && all.parts);
    qmi_answer_stream_start(&state, inside);
    qmi_answer_stream_push(&state, text, cut, gather, &all);
    require(state.held_length >= 0 && state.held_length < (int32_t)sizeof state.held);
    qmi_answer_stream_push(&state, text + cut, length - cut, gather, &all);
    qmi_answer_stream_end(&state, gather, &all);
    require(all.length <= length);
    return all;
}

/* The next byte at or after `at` that no dropped mark has. */
static int64_t next_kept(const char *text, int64_t length, int64_t at)
{
    while (at < length && memchr("</think>\n", text[at], 9))
        at++;
    return at;
}

/* Only marks and newlines are dropped: all other bytes come through in order. */
static void check_nothing_lost(const char *text, int64_t length, const gathered *all)
{
    int64_t at = next_kept(text, length, 0), kept = next_kept(all->text, all->length, 0);
    for (; at < length; at = next_kept(text, length, at + 1), kept = next_kept(all->text, all->length, kept + 1))
        require(kept < all->length && all->text[kept] == text[at]);
    require(kept == all->length);
}

static void check_stream(const char *text, int64_t length, int64_t cut, bool inside)
{
    gathered whole = stream(text, length, length, inside), parts = stream(text, length, cut, inside);
    require(whole.length == parts.length && memcmp(whole.text, parts.text, (size_t)whole.length) == 0);
    require(memcmp(whole.parts, parts.parts, (size_t)whole.length) == 0);
    check_nothing_lost(text, length, &whole);
    free(whole.text);
    free(whole.parts);
    free(parts.text);
    free(parts.parts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    int64_t until_failure = (data[0] & 15) - 1;
    bool inside = data[0] & 16;
    const char *text = (const char *)data + 1, *tools = memchr(text, 0xFF, size - 1);
    int64_t length = tools ? tools - text : (int64_t)size - 1, tools_length = tools ? (int64_t)size - 2 - length : 0;
    tools = tools ? tools + 1 : NULL;
    failing_alloc failing = { .until_failure = until_failure };
    const qmi_alloc alloc = failing_hook(&failing);
    qmi_stretches literal = { 0 };
    const qmi_chat_request request = { text, length, tools, tools_length, inside - 1, inside, 1, &literal };
    check_recognition(text, length);
    check_render(&request, &alloc, until_failure >= 0);
    qmi_delete(&alloc, literal.data);
    check_parse(text, length, tools, tools_length, inside, &alloc, until_failure >= 0);
    require(failing.live == 0);
    check_stream(text, length, length * (data[0] >> 5) / 8, inside);
    return 0;
}

/* Stop strings: see stop.h. */
#include "run/stop.h"

#include <jansson.h>
#include <string.h>
#include "base/error.h"
#include "text/unicode.h"

static int32_t add(qmi_stops *stops, const char *text, size_t length, const qmi_alloc *alloc)
{
    int32_t status = qmi_reserve(alloc, (void **)&stops->items, &stops->capacity, stops->count + 1, sizeof *stops->items,
                                 "stop strings");
    if (status < 0)
        return status;
    char *copy = qmi_new_text(alloc, text, length);
    if (!copy)
        return QM_ERROR_MEMORY;
    stops->items[stops->count++] = (qmi_string){ copy, length, length + 1 };
    return QM_OK;
}

static int32_t add_array(qmi_stops *stops, const json_t *array, const qmi_alloc *alloc)
{
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *item = json_array_get(array, i);
        if (!json_is_string(item) || json_string_length(item) == 0)
            return qmi_fail(QM_ERROR_OPTION, "option 'stop': item %zu of the array is not a string with text in it", i);
        int32_t status = add(stops, json_string_value(item), json_string_length(item), alloc);
        if (status < 0)
            return status;
    }
    return QM_OK;
}

static bool looks_like_json(const char *option)
{
    if (option[0] != '[')
        return false;
    char next = option[1 + strspn(option + 1, " \t\r\n")];
    return next == '"' || next == ']';
}

int32_t qmi_stops_read(const char *option, const qmi_alloc *alloc, qmi_stops *stops)
{
    size_t length = strlen(option);
    if (length == 0)
        return QM_OK;
    int64_t invalid = qmi_unicode_find_invalid(option, (int64_t)length);
    if (invalid >= 0)
        return qmi_fail(QM_ERROR_OPTION, "option 'stop': byte %lld is not UTF-8", (long long)invalid);
    if (!looks_like_json(option))
        return add(stops, option, length, alloc);
    json_error_t error;
    json_t *array = json_loadb(option, length, 0, &error);
    if (!array)
        return qmi_fail(QM_ERROR_OPTION, "option 'stop': not a JSON array of strings: %s (column %d)", error.text, error.column);
    int32_t status = add_array(stops, array, alloc);
    json_decref(array);
    return status;
}

void qmi_stops_free(qmi_stops *stops, const qmi_alloc *alloc)
{
    for (size_t i = 0; i < stops->count; i++)
        qmi_delete(alloc, stops->items[i].data);
    qmi_delete(alloc, stops->items);
    *stops = (qmi_stops){ 0 };
}

size_t qmi_stops_match(const qmi_stops *stops, const char *text, size_t length)
{
    size_t longest = 0;
    for (size_t i = 0; i < stops->count; i++) {
        const qmi_string *item = &stops->items[i];
        if (item->length > longest && item->length <= length && text[length - 1] == item->data[item->length - 1]
            && memcmp(text + length - item->length, item->data, item->length) == 0)
            longest = item->length;
    }
    return longest;
}

size_t qmi_stops_hold(const qmi_stops *stops, const char *text, size_t length)
{
    size_t longest = 0;
    for (size_t i = 0; i < stops->count; i++) {
        const qmi_string *item = &stops->items[i];
        size_t most = item->length - 1 < length ? item->length - 1 : length;
        while (most > longest && memcmp(text + length - most, item->data, most) != 0)
            most--;
        if (most > longest)
            longest = most;
    }
    return longest;
}

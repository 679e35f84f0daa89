/* Growing texts and JSON texts; see text_buffer.h. */
#include "text_buffer.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void *server_grow(void *pointer, size_t count, size_t size)
{
    if (count == 0)
        count = 1;
    void *grown = count > SIZE_MAX / size ? NULL : realloc(pointer, count * size);
    if (!grown) {
        fprintf(stderr, "qwenmoe-server: no memory for %zu x %zu bytes\n", count, size);
        exit(1);
    }
    return grown;
}

void *server_allocate(size_t count, size_t size)
{
    void *fresh = server_grow(NULL, count, size);
    memset(fresh, 0, (count ? count : 1) * size);
    return fresh;
}

char *server_copy(const char *text, size_t length)
{
    char *copy = server_allocate(length + 1, 1);
    memcpy(copy, text, length);
    return copy;
}

static void make_room(text_buffer *buffer, size_t more)
{
    size_t needed = buffer->length + more + 1;
    if (needed > buffer->capacity) {
        buffer->capacity = needed * 2 + 64;
        buffer->data = server_grow(buffer->data, buffer->capacity, 1);
    }
}

void buffer_add(text_buffer *buffer, const char *data, size_t length)
{
    make_room(buffer, length);
    if (length)
        memcpy(buffer->data + buffer->length, data, length);
    buffer->length += length;
    buffer->data[buffer->length] = 0;
}

void buffer_add_text(text_buffer *buffer, const char *text)
{
    buffer_add(buffer, text, strlen(text));
}

void buffer_print(text_buffer *buffer, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    int length = vsnprintf(NULL, 0, format, list);
    va_end(list);
    if (length <= 0)
        return;
    make_room(buffer, (size_t)length);
    va_start(list, format);
    vsnprintf(buffer->data + buffer->length, (size_t)length + 1, format, list);
    va_end(list);
    buffer->length += (size_t)length;
}

static int add_dumped(const char *data, size_t length, void *user)
{
    buffer_add(user, data, length);
    return 0;
}

void buffer_add_json(text_buffer *buffer, const json_t *value)
{
    json_dump_callback(value, add_dumped, buffer, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
}

const char *buffer_text(const text_buffer *buffer)
{
    return buffer->data ? buffer->data : "";
}

void buffer_free(text_buffer *buffer)
{
    free(buffer->data);
    *buffer = (text_buffer){ 0 };
}

/* Bytes of the well-formed UTF-8 sequence at the start, 0 if there is none (Unicode 15, table 3-7). */
static size_t sequence_length(const unsigned char *s, size_t left)
{
    static const struct {
        unsigned char first, last, low, high, length;
    } rows[] = { { 0x00, 0x7F, 0, 0, 1 },       { 0xC2, 0xDF, 0x80, 0xBF, 2 }, { 0xE0, 0xE0, 0xA0, 0xBF, 3 },
                 { 0xE1, 0xEC, 0x80, 0xBF, 3 }, { 0xED, 0xED, 0x80, 0x9F, 3 }, { 0xEE, 0xEF, 0x80, 0xBF, 3 },
                 { 0xF0, 0xF0, 0x90, 0xBF, 4 }, { 0xF1, 0xF3, 0x80, 0xBF, 4 }, { 0xF4, 0xF4, 0x80, 0x8F, 4 } };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (s[0] < rows[i].first || s[0] > rows[i].last)
            continue;
        if (rows[i].length > left || (rows[i].length > 1 && (s[1] < rows[i].low || s[1] > rows[i].high)))
            return 0;
        for (size_t j = 2; j < rows[i].length; j++)
            if ((s[j] & 0xC0) != 0x80)
                return 0;
        return rows[i].length;
    }
    return 0;
}

json_t *json_text(const char *data, size_t length)
{
    json_t *text = json_stringn(data ? data : "", length);
    if (text)
        return text;
    text_buffer clean = { 0 };
    for (size_t at = 0; at < length;) {
        size_t size = sequence_length((const unsigned char *)data + at, length - at);
        buffer_add(&clean, size ? data + at : "\xef\xbf\xbd", size ? size : 3);
        at += size ? size : 1;
    }
    text = json_stringn(buffer_text(&clean), clean.length);
    buffer_free(&clean);
    return text;
}

const char *json_get_text(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

int64_t json_get_int(const json_t *object, const char *key, int64_t fallback)
{
    const json_t *value = json_object_get(object, key);
    return json_is_integer(value) ? json_integer_value(value) : fallback;
}

int json_get_bool(const json_t *object, const char *key, int fallback)
{
    const json_t *value = json_object_get(object, key);
    return json_is_boolean(value) ? json_is_true(value) : fallback;
}

void make_id(char *id, size_t size, const char *prefix)
{
    static atomic_ullong counter;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    unsigned long long count = atomic_fetch_add(&counter, 1);
    unsigned long long time = (unsigned long long)now.tv_sec * 1000000 + (unsigned long long)now.tv_nsec / 1000;
    snprintf(id, size, "%s%012llx%06llx", prefix, time, count & 0xFFFFFF);
}

/* Reads the tensors of a file of expected values: a GGUF with F32, F16 and I32 tensors. For test programs that have only the
 * public header; a file that is not so shaped gives a message on stderr and false. */
#ifndef TEST_EXPECT_H
#define TEST_EXPECT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct expect {
    uint8_t *bytes;
    size_t size, at;    /* at: while the header is read */
    size_t first_info;  /* where the list of tensors starts */
    uint64_t tensors;
    size_t data;        /* where their values start */
    bool failed;
} expect;

static inline uint64_t expect_number(expect *e, int32_t bytes)
{
    uint64_t value = 0;
    if (e->failed || e->size - e->at < (size_t)bytes) {
        e->failed = true;
        return 0;
    }
    for (int32_t i = 0; i < bytes; i++)
        value |= (uint64_t)e->bytes[e->at + (size_t)i] << 8 * i;
    e->at += (size_t)bytes;
    return value;
}

static inline const char *expect_text(expect *e, uint64_t *length)
{
    *length = expect_number(e, 8);
    if (e->failed || *length > e->size - e->at) {
        e->failed = true;
        *length = 0;
        return "";
    }
    const char *text = (const char *)e->bytes + e->at;
    e->at += (size_t)*length;
    return text;
}

static inline void expect_skip_value(expect *e, uint32_t type)
{
    static const int32_t sizes[] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
    uint64_t length;
    if (type == 8) {
        expect_text(e, &length);
    } else if (type == 9) {
        uint32_t element = (uint32_t)expect_number(e, 4);
        for (uint64_t count = expect_number(e, 8); count > 0 && !e->failed; count--)
            expect_skip_value(e, element);
    } else if (type < 13) {
        expect_number(e, sizes[type]);
    } else {
        e->failed = true;
    }
}

/* Steps over one tensor's entry: name, dimensions, type, offset. */
static inline const char *expect_info(expect *e, uint64_t *length, uint64_t *count, uint32_t *type, uint64_t *offset)
{
    const char *name = expect_text(e, length);
    *count = 1;
    for (uint64_t d = expect_number(e, 4); d > 0 && !e->failed; d--)
        *count *= expect_number(e, 8);
    *type = (uint32_t)expect_number(e, 4);
    *offset = expect_number(e, 8);
    return name;
}

static inline bool expect_open(const char *path, expect *e)
{
    *e = (expect){ 0 };
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) {
        fprintf(stderr, "%s: cannot be opened\n", path);
        if (file)
            fclose(file);
        return false;
    }
    long size = ftell(file);
    rewind(file);
    e->size = size > 0 ? (size_t)size : 0;
    e->bytes = malloc(e->size + 1);
    e->failed = !e->bytes || fread(e->bytes, 1, e->size, file) != e->size;
    fclose(file);
    uint64_t length, count, offset;
    uint32_t type;
    e->failed |= expect_number(e, 4) != 0x46554747; /* "GGUF" */
    expect_number(e, 4);
    e->tensors = expect_number(e, 8);
    for (uint64_t values = expect_number(e, 8); values > 0 && !e->failed; values--) {
        expect_text(e, &length);
        expect_skip_value(e, (uint32_t)expect_number(e, 4));
    }
    e->first_info = e->at;
    for (uint64_t i = 0; i < e->tensors && !e->failed; i++)
        expect_info(e, &length, &count, &type, &offset);
    e->data = (e->at + 31) / 32 * 32;
    if (e->failed)
        fprintf(stderr, "%s: is no GGUF file that can be read\n", path);
    return !e->failed;
}

static inline void expect_close(expect *e)
{
    free(e->bytes);
    *e = (expect){ 0 };
}

static inline float expect_half(uint16_t half) /* IEEE 754 binary16 */
{
    uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
    double value = exponent == 0 ? fraction / 16777216.0 : (1024 + fraction) / 1024.0;
    for (int32_t e = (int32_t)exponent; exponent && e > 15; e--)
        value *= 2;
    for (int32_t e = (int32_t)exponent; exponent && e < 15; e++)
        value /= 2;
    return (float)(half & 0x8000 ? -value : value);
}

/* The tensor's values, to be freed, and how many; NULL when there is no such tensor of these types. */
static inline const uint8_t *expect_find(expect *e, const char *name, uint32_t *type, int64_t *count)
{
    e->at = e->first_info;
    for (uint64_t i = 0; i < e->tensors; i++) {
        uint64_t length, values, offset;
        const char *found = expect_info(e, &length, &values, type, &offset);
        if (length != strlen(name) || memcmp(found, name, length) != 0)
            continue;
        size_t bytes = *type == 1 ? 2 : 4;
        if (offset > e->size - e->data || values > (e->size - e->data - offset) / bytes)
            return NULL;
        *count = (int64_t)values;
        return e->bytes + e->data + offset;
    }
    return NULL;
}

static inline float *expect_floats(expect *e, const char *name, int64_t *count)
{
    uint32_t type;
    const uint8_t *raw = expect_find(e, name, &type, count);
    float *values = raw && type < 2 ? malloc((size_t)*count * sizeof *values + 1) : NULL;
    for (int64_t i = 0; values && i < *count; i++) {
        if (type == 0)
            memcpy(&values[i], raw + 4 * i, 4);
        else
            values[i] = expect_half((uint16_t)(raw[2 * i] | raw[2 * i + 1] << 8));
    }
    return values;
}

static inline int32_t *expect_ints(expect *e, const char *name, int64_t *count)
{
    uint32_t type;
    const uint8_t *raw = expect_find(e, name, &type, count);
    int32_t *values = raw && type == 26 ? malloc((size_t)*count * sizeof *values + 1) : NULL;
    if (values)
        memcpy(values, raw, (size_t)*count * sizeof *values);
    return values;
}

#endif

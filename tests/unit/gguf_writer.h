/* Writes GGUF files in memory piece by piece, sound ones and damaged ones, for tests. */
#ifndef TEST_GGUF_WRITER_H
#define TEST_GGUF_WRITER_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct writer {
    uint8_t *bytes;
    size_t size, capacity;
} writer;

static inline void put(writer *w, const void *from, size_t size)
{
    if (w->size + size > w->capacity) {
        w->capacity = 2 * (w->size + size);
        w->bytes = realloc(w->bytes, w->capacity);
        if (!w->bytes)
            abort(); /* a test machine without a few KB */
    }
    if (size)
        memcpy(w->bytes + w->size, from, size);
    w->size += size;
}

static inline void put_u8(writer *w, uint8_t value) { put(w, &value, 1); }
static inline void put_u16(writer *w, uint16_t value) { put(w, &value, 2); }
static inline void put_u32(writer *w, uint32_t value) { put(w, &value, 4); }
static inline void put_u64(writer *w, uint64_t value) { put(w, &value, 8); }
static inline void put_f32(writer *w, float value) { put(w, &value, 4); }
static inline void put_f64(writer *w, double value) { put(w, &value, 8); }

static inline void put_text(writer *w, const char *text)
{
    put_u64(w, strlen(text));
    put(w, text, strlen(text));
}

static inline void put_start(writer *w, uint32_t version, uint64_t tensors, uint64_t values)
{
    w->size = 0;
    put(w, "GGUF", 4);
    put_u32(w, version);
    put_u64(w, tensors);
    put_u64(w, values);
}

static inline void put_key(writer *w, const char *key, uint32_t type)
{
    put_text(w, key);
    put_u32(w, type);
}

static inline void put_u32_value(writer *w, const char *key, uint32_t value)
{
    put_key(w, key, 4);
    put_u32(w, value);
}

static inline void put_text_value(writer *w, const char *key, const char *value)
{
    put_key(w, key, 8);
    put_text(w, value);
}

static inline void put_array(writer *w, const char *key, uint32_t element_type, uint64_t count)
{
    put_key(w, key, 9);
    put_u32(w, element_type);
    put_u64(w, count);
}

static inline void put_tensor(writer *w, const char *name, uint32_t type, int dimensions, const uint64_t *sizes, uint64_t offset)
{
    put_text(w, name);
    put_u32(w, (uint32_t)dimensions);
    for (int i = 0; i < dimensions; i++)
        put_u64(w, sizes[i]);
    put_u32(w, type);
    put_u64(w, offset);
}

/* Pads to the alignment, then appends data whose bytes count up. */
static inline void put_data(writer *w, size_t alignment, size_t size)
{
    while (w->size % alignment)
        put_u8(w, 0);
    for (size_t i = 0; i < size; i++)
        put_u8(w, (uint8_t)i);
}

static inline void writer_free(writer *w)
{
    free(w->bytes);
    *w = (writer){ 0 };
}

static inline int writer_save(const writer *w, const char *path)
{
    FILE *file = fopen(path, "wb");
    if (!file)
        return -1;
    const int written = w->size == 0 || fwrite(w->bytes, 1, w->size, file) == w->size;
    return fclose(file) == 0 && written ? 0 : -1;
}

#endif

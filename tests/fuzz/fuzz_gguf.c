/* Fuzz target: any bytes as a GGUF header, once with all memory and once with an allocation that fails. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "file/gguf.h"

typedef struct budget {
    int64_t until_failure, live;
} budget;

static void *allocate(int64_t size, int64_t alignment, void *user)
{
    budget *b = user;
    if (b->until_failure-- == 0)
        return NULL;
    b->live++;
    return aligned_alloc((size_t)alignment, (size_t)(size + alignment - 1) / (size_t)alignment * (size_t)alignment);
}

static void release(void *pointer, void *user)
{
    budget *b = user;
    b->live--;
    free(pointer);
}

static void require(int condition)
{
    if (!condition)
        abort();
}

static uint64_t sum_bytes(const void *bytes, int64_t count)
{
    uint64_t sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += ((const uint8_t *)bytes)[i];
    return sum;
}

/* All that was accepted can be read, found by its name, and asked for as any type. */
static uint64_t use(const qmi_gguf *g)
{
    uint64_t sum = 0;
    char name[256];
    for (int64_t i = 0; i < g->value_count; i++) {
        const qmi_gguf_value *value = &g->values[i], *array;
        int64_t number;
        double real;
        qmi_text text;
        sum += sum_bytes(value->key.data, value->key.length);
        if (value->type == QMI_GGUF_ARRAY) {
            const uint8_t *cursor = value->data;
            for (int64_t j = 0; j < value->count; j++) {
                if (value->element_type == QMI_GGUF_STRING) {
                    text = qmi_gguf_array_next_text(&cursor);
                    sum += sum_bytes(text.data, text.length);
                } else {
                    sum += (uint64_t)qmi_gguf_array_int(value, j) + (qmi_gguf_array_float(value, j) > 0);
                }
            }
        }
        if (value->key.length >= (int64_t)sizeof name || memchr(value->key.data, 0, (size_t)value->key.length))
            continue;
        memcpy(name, value->key.data, (size_t)value->key.length);
        name[value->key.length] = 0;
        require(qmi_gguf_find(g, name) == value);
        int answers = (qmi_gguf_int(g, name, &number) == 1) + (qmi_gguf_int_array(g, name, &array) == 1) +
                      (qmi_gguf_float_array(g, name, &array) == 1) + (qmi_gguf_text_array(g, name, &array) == 1);
        answers += qmi_gguf_float(g, name, &real) == 1;
        if (qmi_gguf_text(g, name, &text) == 1) {
            answers++;
            sum += sum_bytes(text.data, text.length);
        }
        require(answers <= 1);
    }
    for (int64_t i = 0; i < g->tensor_count; i++)
        sum += sum_bytes(g->tensors[i].name.data, g->tensors[i].name.length) + sum_bytes(g->tensors[i].data, g->tensors[i].bytes);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    for (int round = 0; round < 2; round++) {
        budget b = { .until_failure = round == 0 ? -1 : (int64_t)(sum_bytes(data, (int64_t)size) % 12) };
        const qmi_alloc alloc = { allocate, release, &b };
        qmi_gguf g;
        const int32_t status = qmi_gguf_read(data, (int64_t)size, &alloc, &g);
        require(status == QM_OK || status == QM_ERROR_FORMAT || status == QM_ERROR_UNSUPPORTED ||
                (round == 1 && status == QM_ERROR_MEMORY));
        if (status == QM_OK) {
            volatile uint64_t sum = use(&g); /* volatile, so that the reading is not optimised away */
            (void)sum;
        } else {
            require(qmi_error_text()[0] != 0 && b.live == 0);
        }
        qmi_gguf_free(&g, &alloc);
        require(b.live == 0);
    }
    return 0;
}

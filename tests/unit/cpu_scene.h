/* For tests of the CPU's ops: a small program with inputs for some tokens, played with every instruction set, on 1 to 3 threads
 * and cut into batches in several ways. All must give the same bits, and be as near to the test's own result as it demands. */
#ifndef CPU_SCENE_H
#define CPU_SCENE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "backend/backend.h"
#include "base/error.h"
#include "quant/quant.h"

typedef struct scene {
    qmi_program program;
    int32_t tokens;
    const int32_t *ids;           /* [tokens], or NULL: all 0 */
    float *in[QMI_SLOTS_MAX];     /* [tokens][width], put into the slot before each batch; NULL: nothing is */
    qmi_slot out;                 /* what is looked at */
    int32_t page_tokens, pages;
    int64_t page_bytes, state_bytes;
    bool keep_state;              /* each batch's new state goes where the old one is not */
    float *made[64];              /* to be freed */
    int32_t made_count;
} scene;

static const qmi_alloc plain_alloc;
static uint32_t random_state = 12345;

static inline float random_float(void) /* -1 .. 1; xorshift32 (Marsaglia 2003) */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return (float)(random_state >> 8) / 8388608.0f - 1;
}

static inline float *make_floats(scene *s, int64_t count, float scale)
{
    float *x = calloc((size_t)count, sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < count; i++)
        x[i] = scale * random_float();
    assert_true(s->made_count < 64);
    return s->made[s->made_count++] = x;
}

/* A slot filled with random numbers before each batch. */
static inline qmi_slot make_input(scene *s, const char *name, int64_t width)
{
    qmi_slot slot = qmi_program_slot(&s->program, name, width, false);
    assert_true(slot >= 0);
    s->in[slot] = make_floats(s, s->tokens * width, 1);
    return slot;
}

static inline qmi_slot make_slot(scene *s, const char *name, int64_t width)
{
    qmi_slot slot = qmi_program_slot(&s->program, name, width, false);
    assert_true(slot >= 0);
    return slot;
}

static inline qmi_vector make_vector(scene *s, int64_t size)
{
    return (qmi_vector){ size, (uintptr_t)make_floats(s, size, 1) };
}

/* Random blocks of a type with moderate values: bytes at random, but the block's scales (half floats) where they lie. */
static inline qmi_matrix make_matrix(scene *s, uint32_t type, int64_t columns, int64_t rows, int64_t count)
{
    const qmi_quant_format *format = qmi_quant_format_of(type);
    int64_t bytes = qmi_quant_row_bytes(type, columns) * rows * count;
    uint8_t *data = (uint8_t *)make_floats(s, bytes / 4 + 1, 1);
    for (int64_t i = 0; i < columns * rows * count && format->block == 1; i++) {
        float value = random_float();
        uint16_t half = qmi_float_to_half(value);
        if (type == QMI_TYPE_F32)
            memcpy(data + 4 * i, &value, 4);
        else if (type == QMI_TYPE_F16)
            memcpy(data + 2 * i, &half, 2);
        else
            memcpy(data + 2 * i, (char *)&value + 2, 2); /* BF16 is the upper half of a float */
    }
    for (int64_t b = 0; b < bytes / format->bytes && format->block > 1; b++) {
        uint16_t d = qmi_float_to_half(0.004f * (1.5f + random_float()));
        uint8_t *block = data + b * format->bytes;
        for (int i = 0; i < format->bytes; i++)
            block[i] = (uint8_t)(127 * random_float() + 128);
        uint8_t *scale = block + (type == QMI_TYPE_Q6_K ? 208 : type == QMI_TYPE_Q2_K ? 80 : 0);
        memcpy(scale, &d, 2);
        if (type == QMI_TYPE_Q4_K || type == QMI_TYPE_Q5_K || type == QMI_TYPE_Q5_1 || type == QMI_TYPE_Q2_K)
            memcpy(scale + 2, &d, 2); /* that of the minima */
    }
    return (qmi_matrix){ .type = type, .columns = columns, .rows = rows, .count = count, .data = (uintptr_t)data };
}

static inline void append(scene *s, qmi_op op)
{
    assert_int_equal(qmi_program_append(&s->program, &plain_alloc, &op), QM_OK);
}

static inline void end_scene(scene *s)
{
    for (int32_t i = 0; i < s->made_count; i++)
        free(s->made[i]);
    qmi_program_free(&s->program, &plain_alloc);
}

/* ---- References, in double ---- */

static inline double silu(double x)
{
    return x / (1 + exp(-x));
}

static inline double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static inline const float *vector_of(const qmi_vector *vector)
{
    return (const float *)(uintptr_t)vector->data;
}

static inline void ref_rms(const double *x, const qmi_norm *norm, double *out, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += x[i] * x[i];
    for (int64_t i = 0; i < count; i++)
        out[i] = norm->weight.data ? x[i] / sqrt(sum / (double)count + norm->epsilon) * vector_of(&norm->weight)[i] : x[i];
}

/* out[r] = row first + r of the matrix times x */
static inline void ref_multiply(const qmi_matrix *m, int64_t first, int64_t rows, const double *x, double *out)
{
    const qmi_quant_format *format = qmi_quant_format_of(m->type);
    float *row = malloc((size_t)m->columns * sizeof *row);
    assert_non_null(row);
    for (int64_t r = 0; r < rows; r++) {
        format->unpack((const char *)(uintptr_t)m->data + (first + r) * qmi_quant_row_bytes(m->type, m->columns), row,
                       m->columns / format->block);
        out[r] = 0;
        for (int64_t c = 0; c < m->columns; c++)
            out[r] += row[c] * x[c];
    }
    free(row);
}

static inline double *to_double(const float *x, int64_t count)
{
    double *y = calloc((size_t)count, sizeof *y);
    assert_non_null(y);
    for (int64_t i = 0; i < count; i++)
        y[i] = x[i];
    return y;
}

/* ---- Playing ---- */

typedef struct rig {
    qmi_device *device;
    qmi_workspace workspace;
    qmi_address pages[256], state[2];
} rig;

static inline qmi_address rig_memory(rig *r, int64_t bytes)
{
    qmi_address at;
    assert_int_equal(qmi_cpu_backend.allocate(r->device, bytes, "test", &at), QM_OK);
    return at;
}

static inline rig open_rig(const scene *s, const char *isa, int32_t threads, int32_t rows)
{
    rig r = { .workspace = { .rows = rows, .outputs = rows } };
    assert_int_equal(qmi_cpu_backend.open(&(qmi_device_settings){ .threads = threads, .isa = isa }, &r.device), QM_OK);
    for (int32_t i = 0; i < s->program.slot_count; i++)
        r.workspace.slots[i] = rig_memory(&r, rows * s->program.slots[i].width * 4);
    for (int32_t i = 0; i < s->pages; i++)
        r.pages[i] = rig_memory(&r, s->page_bytes);
    for (int32_t i = 0; i < 2; i++)
        r.state[i] = rig_memory(&r, s->state_bytes);
    assert_int_equal(qmi_cpu_backend.prepare(r.device, &s->program, rows), QM_OK);
    return r;
}

static inline void close_rig(const scene *s, rig *r)
{
    for (int32_t i = 0; i < s->program.slot_count; i++)
        qmi_cpu_backend.release(r->device, r->workspace.slots[i]);
    for (int32_t i = 0; i < s->pages; i++)
        qmi_cpu_backend.release(r->device, r->pages[i]);
    for (int32_t i = 0; i < 2; i++)
        qmi_cpu_backend.release(r->device, r->state[i]);
    qmi_cpu_backend.close(&r->device);
    assert_null(r->device);
}

/* All tokens as one sequence, `chunk` at a time. */
static inline void play(const scene *s, const char *isa, int32_t threads, int32_t chunk, float *result)
{
    static const int32_t zeros[1024];
    int32_t outputs[1024], turn = 0;
    rig r = open_rig(s, isa, threads, chunk);
    for (int32_t first = 0; first < s->tokens; first += chunk) {
        int32_t count = s->tokens - first < chunk ? s->tokens - first : chunk;
        for (int32_t i = 0; i < s->program.slot_count; i++)
            if (s->in[i])
                memcpy((void *)(uintptr_t)r.workspace.slots[i], s->in[i] + first * s->program.slots[i].width,
                       (size_t)(count * s->program.slots[i].width) * 4);
        for (int32_t i = 0; i < count; i++)
            outputs[i] = i;
        qmi_address next = r.state[s->keep_state ? 1 - turn : turn];
        qmi_sequence sequence = { .count = count, .start = first, .pages = r.pages, .state = r.state[turn], .next_state = next };
        qmi_batch batch = { .count = count, .tokens = s->ids ? s->ids + first : zeros, .sequence_count = 1,
                            .sequences = &sequence, .output_count = count, .outputs = outputs };
        assert_int_equal(qmi_cpu_backend.run(r.device, &s->program, &r.workspace, &batch), QM_OK);
        int64_t width = s->program.slots[s->out].width;
        memcpy(result + first * width, (void *)(uintptr_t)r.workspace.slots[s->out], (size_t)(count * width) * 4);
        turn = s->keep_state ? 1 - turn : turn;
    }
    close_rig(s, &r);
}

static inline double relative_error(const float *got, const double *expected, int64_t count)
{
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        difference += (got[i] - expected[i]) * (got[i] - expected[i]);
        norm += expected[i] * expected[i];
    }
    return sqrt(difference / (norm > 0 ? norm : 1)); /* NaN when a result is */
}

/* Every way of playing against `expected` [tokens][width]. */
static inline void check_scene(const scene *s, const double *expected, double tolerance)
{
    static const char *const isas[] = { "scalar", "avx2", "avx512" };
    const int32_t chunks[] = { s->tokens, 1, 2, 7 };
    int64_t count = s->tokens * s->program.slots[s->out].width;
    float *first = calloc((size_t)count, 4), *other = calloc((size_t)count, 4);
    assert_non_null(first);
    assert_non_null(other);
    if (qmi_program_validate(&s->program) < 0)
        fail_msg("%s", qmi_error_text());
    for (int32_t i = 0; i < 3; i++) {
        play(s, isas[i], 1, s->tokens, first);
        double error = relative_error(first, expected, count);
        if (!(error <= tolerance))
            fail_msg("%s: relative error %g, allowed are %g", isas[i], error, tolerance);
        for (int32_t threads = 1; threads <= 3; threads++)
            for (int32_t c = 0; c < 4; c++) {
                play(s, isas[i], threads, chunks[c], other);
                if (memcmp(first, other, (size_t)count * 4) != 0)
                    fail_msg("%s: %d threads, %d tokens at a time give other bits", isas[i], threads, chunks[c]);
            }
    }
    free(first);
    free(other);
}

#endif

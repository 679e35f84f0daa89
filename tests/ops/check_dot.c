/* The op check of products of weights and activations, and of preparing activations. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "opcheck.h"
#include "quant/quant_blocks.h"

/* ---- operands ---- */

/* Where a format keeps its half-float scales, which random bytes would make infinite. */
static void tame(uint32_t type, uint8_t *block, check_context *c)
{
    uint16_t d = qmi_float_to_half(0.01f * (0.5f + 0.1f * (float)check_between(c, 0, 10)));
    int64_t at[2] = { -1, -1 };
    switch (type) {
    case QMI_TYPE_Q6_K: at[0] = offsetof(qmi_block_q6_k, d); break;
    case QMI_TYPE_Q4_K: case QMI_TYPE_Q5_K: at[0] = 0; at[1] = 2; break;
    default: at[0] = 0;
    }
    for (int i = 0; i < 2; i++)
        if (at[i] >= 0)
            memcpy(block + at[i], &d, sizeof d);
}

static void random_weights(check_context *c, uint32_t type, uint8_t *to, int64_t values)
{
    const qmi_quant_format *format = qmi_quant_format_of(type);
    for (int64_t b = 0; b < values / format->block; b++, to += format->bytes) {
        float x = check_float(c);
        uint32_t bits;
        memcpy(&bits, &x, 4);
        if (type == QMI_TYPE_F32)
            memcpy(to, &x, 4);
        else if (type == QMI_TYPE_F16)
            memcpy(to, &(uint16_t){ qmi_float_to_half(x) }, 2);
        else if (type == QMI_TYPE_BF16)
            memcpy(to, &(uint16_t){ (uint16_t)(bits >> 16) }, 2);
        else {
            for (int i = 0; i < format->bytes; i++)
                to[i] = (uint8_t)check_random(c);
            tame(type, to, c);
        }
    }
}

typedef struct operands {
    qmi_cpu_tile tile;
    size_t weight_bytes, input_bytes, out_bytes;
    float *plain;             /* the inputs as floats */
    int32_t *order;
} operands;

/* Inputs go through the scalar quantize for both, so that only the products differ. */
static operands make(check_context *c, uint32_t type, int64_t columns, int32_t rows, int32_t tokens)
{
    operands o = { .tile = { .columns = columns, .rows = rows, .tokens = tokens, .out_stride = rows + 3 } };
    bool q8 = c->tested->format[type] == QMI_FORMAT_Q8;
    o.tile.row_bytes = qmi_quant_row_bytes(type, columns);
    o.weight_bytes = (size_t)(rows * o.tile.row_bytes);
    uint8_t *weights = check_fenced(o.weight_bytes);
    random_weights(c, type, weights, rows * columns);
    o.tile.weights = weights;

    o.tile.input_bytes = ((q8 ? qmi_q8_bytes(columns) : 4 * columns) + 63) / 64 * 64;
    o.input_bytes = (size_t)(tokens * o.tile.input_bytes);
    char *inputs = check_watched(o.input_bytes);
    o.plain = malloc((size_t)(tokens * columns) * sizeof *o.plain);
    o.order = malloc((size_t)tokens * sizeof *o.order);
    for (int32_t t = 0; t < tokens; t++) {
        check_fill(c, o.plain + t * columns, columns);
        o.order[t] = tokens - 1 - t;
        if (q8)
            c->scalar->quantize(o.plain + t * columns, inputs + t * o.tile.input_bytes, columns, 0, columns);
        else
            memcpy(inputs + t * o.tile.input_bytes, o.plain + t * columns, (size_t)columns * 4);
    }
    o.tile.inputs = inputs;
    o.out_bytes = (size_t)(tokens * o.tile.out_stride) * sizeof(float);
    o.tile.out = check_watched(o.out_bytes);
    return o;
}

static void end(operands *o)
{
    check_fenced_free((void *)o->tile.weights, o->weight_bytes);
    check_watched_free((void *)o->tile.inputs);
    check_watched_free(o->tile.out);
    free(o->plain);
    free(o->order);
}

/* sum of |weight| |input|: what rounding errors are relative to */
static double magnitude(const operands *o, uint32_t type, int32_t row, int64_t input)
{
    const qmi_quant_format *format = qmi_quant_format_of(type);
    float *weights = malloc((size_t)o->tile.columns * sizeof *weights);
    double sum = 0;
    format->unpack((const char *)o->tile.weights + row * o->tile.row_bytes, weights, o->tile.columns / format->block);
    for (int64_t i = 0; i < o->tile.columns; i++)
        sum += fabs((double)weights[i] * o->plain[input * o->tile.columns + i]);
    free(weights);
    return sum;
}

/* ---- checks ---- */

/* Formats that scalar code has no product for: unpacked, with the quantized inputs as floats. */
static void dot_by_unpacking(const qmi_cpu_tile *tile, uint32_t type)
{
    const qmi_quant_format *format = qmi_quant_format_of(type);
    float *weights = malloc((size_t)tile->columns * sizeof *weights);
    for (int32_t r = 0; r < tile->rows; r++) {
        format->unpack((const char *)tile->weights + r * tile->row_bytes, weights, tile->columns / format->block);
        for (int32_t t = 0; t < tile->tokens; t++) {
            char *row = (char *)tile->inputs + (tile->order ? tile->order[t] : t) * tile->input_bytes;
            double sum = 0;
            for (int64_t i = 0; i < tile->columns; i++)
                sum += (double)weights[i] * ((int8_t *)row)[i] * qmi_q8_scales(row, tile->columns)[i / 32];
            float *out = tile->out + t * tile->out_stride + r;
            *out = (tile->add ? *out : 0) + (float)sum;
        }
    }
    free(weights);
}

static void reference(check_context *c, uint32_t type, const qmi_cpu_tile *tile)
{
    if (c->scalar->dot[type] && c->scalar->format[type] == c->tested->format[type])
        c->scalar->dot[type](tile);
    else
        dot_by_unpacking(tile, type);
}

/* The same tile cut into single rows and tokens, in another order, gives the same bits. */
static void check_cuts(check_context *c, uint32_t type, const operands *o)
{
    float *whole = malloc(o->out_bytes);
    memcpy(whole, o->tile.out, o->out_bytes);
    qmi_cpu_tile cut = o->tile;
    cut.rows = cut.tokens = 1;
    cut.add = false;
    for (int32_t t = o->tile.tokens - 1; t >= 0; t--) {
        for (int32_t r = 0; r < o->tile.rows; r++) {
            float out;
            cut.weights = (const char *)o->tile.weights + r * o->tile.row_bytes;
            cut.inputs = (const char *)o->tile.inputs + (o->tile.order ? o->tile.order[t] : t) * o->tile.input_bytes;
            cut.order = NULL;
            cut.out = &out;
            c->tested->dot[type](&cut);
            if (!check_same_bits(c, &out, &whole[t * o->tile.out_stride + r], 1, "when the tile is cut"))
                goto done;
        }
    }
done:
    free(whole);
}

static void check_shape(check_context *c, uint32_t type, int64_t columns, int32_t rows, int32_t tokens)
{
    operands o = make(c, type, columns, rows, tokens);
    int64_t count = tokens * o.tile.out_stride;
    float *want = malloc(o.out_bytes);
    for (int round = 0; round < 3; round++) { /* as it is; with an order; adding to what is there */
        o.tile.order = round ? o.order : NULL;
        o.tile.add = round == 2;
        for (int64_t i = 0; i < count; i++)
            o.tile.out[i] = (float)i;
        memcpy(want, o.tile.out, o.out_bytes);
        c->tested->dot[type](&o.tile);
        qmi_cpu_tile scalar = o.tile;
        scalar.out = want;
        reference(c, type, &scalar);
        for (int32_t t = 0; t < tokens; t++) {
            for (int32_t r = 0; r < o.tile.out_stride; r++) {
                int64_t at = t * o.tile.out_stride + r;
                double size = r < rows ? magnitude(&o, type, r, o.tile.order ? o.order[t] : t) + fabs(want[at]) : 0;
                /* 1e-6: about 8 eps. The columns beyond rows: untouched. */
                if (!check_near(c, o.tile.out[at], want[at], 1e-6 * size, at))
                    goto done;
            }
        }
        check_unharmed(c, o.tile.out, o.out_bytes);
        if (round < 2)
            check_cuts(c, type, &o);
    }
done:
    free(want);
    end(&o);
}

/* A NaN or infinity in weights or inputs shows in exactly the rows and tokens it belongs to. */
static void check_not_finite(check_context *c, uint32_t type, int64_t columns)
{
    operands o = make(c, type, columns, 3, 3);
    uint16_t nan = 0x7e00;
    uint32_t whole_nan = 0x7fc00000;
    char *row = (char *)o.tile.weights + o.tile.row_bytes; /* the second */
    if (type == QMI_TYPE_F32)
        memcpy(row, &whole_nan, 4);
    else if (type == QMI_TYPE_BF16)
        memcpy(row, (char *)&whole_nan + 2, 2);
    else
        memcpy(row + (type == QMI_TYPE_Q6_K ? offsetof(qmi_block_q6_k, d) : 0), &nan, 2);
    if (c->tested->format[type] == QMI_FORMAT_Q8) {
        o.plain[0] = INFINITY;
        c->tested->quantize(o.plain, (void *)o.tile.inputs, columns, 0, columns);
    } else {
        *(float *)o.tile.inputs = NAN;
    }
    c->tested->dot[type](&o.tile);
    for (int32_t t = 0; t < 3; t++)
        for (int32_t r = 0; r < 3; r++)
            if (!isfinite(o.tile.out[t * o.tile.out_stride + r]) != (t == 0 || r == 1))
                check_fail(c, "token %d, row %d is %g with a NaN in row 1 and in token 0", t, r,
                           o.tile.out[t * o.tile.out_stride + r]);
    end(&o);
}

static void check_type(check_context *c, uint32_t type)
{
    int64_t block = qmi_quant_format_of(type)->block;
    const struct { int32_t rows, tokens; } shapes[] = { { 1, 1 }, { 2, 3 }, { 7, 4 }, { 5, 9 }, { 16, 1 }, { 1, 13 }, { 19, 2 } };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int round = 0; round < 4; round++)
            check_shape(c, type, block == 1 ? check_between(c, 1, round ? 300 : 9) : block * check_between(c, 1, 5),
                        shapes[i].rows, shapes[i].tokens);
    /* more than what a kernel keeps at a time: of rows, of tokens, of columns */
    check_shape(c, type, 3 * block, 67, 5);
    check_shape(c, type, block == 1 ? 40 : block, 3, 75);
    check_shape(c, type, block == 1 ? 40 : block == 32 ? 9 * block : block, 3, 33);
    check_shape(c, type, block == 1 ? 40 : block, 3, 17);
    check_shape(c, type, 8448 + block, 3, 2);
    check_not_finite(c, type, block == 1 ? 37 : 2 * block);
}

/* ---- bench ---- */

typedef struct timed {
    check_context *c;
    uint32_t type;
    operands o;
} timed;

static void run_timed(void *argument)
{
    timed *t = argument;
    t->c->tested->dot[t->type](&t->o.tile);
}

static void bench_type(check_context *c, uint32_t type)
{
    if (!c->tested->dot[type])
        return;
    const int32_t tokens[] = { 1, 8, 64 };
    for (int i = 0; i < 3; i++) {
        timed t = { c, type, make(c, type, 2048, 512, tokens[i]) };
        char shape[64];
        snprintf(shape, sizeof shape, "512 x 2048, %d tokens", tokens[i]);
        check_bench(c, shape, (double)t.o.weight_bytes, run_timed, &t);
        end(&t.o);
    }
}

/* One part a type. */
#define PART(stem, TYPE) \
    static void run_##stem(check_context *c) { check_type(c, TYPE); } \
    static void bench_##stem(check_context *c) { bench_type(c, TYPE); } \
    static bool differs_##stem(const qmi_cpu_kernels *a, const qmi_cpu_kernels *b) { return a->dot[TYPE] != b->dot[TYPE]; }
#define ROW(stem) { "dot " #stem, run_##stem, bench_##stem, differs_##stem }

PART(f32, QMI_TYPE_F32)
PART(f16, QMI_TYPE_F16)
PART(bf16, QMI_TYPE_BF16)
PART(q8_0, QMI_TYPE_Q8_0)
PART(q4_0, QMI_TYPE_Q4_0)
PART(q5_0, QMI_TYPE_Q5_0)
PART(iq4_nl, QMI_TYPE_IQ4_NL)
PART(iq4_xs, QMI_TYPE_IQ4_XS)
PART(q4_k, QMI_TYPE_Q4_K)
PART(q5_k, QMI_TYPE_Q5_K)
PART(q6_k, QMI_TYPE_Q6_K)

/* ---- quantize ---- */

static void run_quantize(check_context *c)
{
    for (int round = 0; round < 50; round++) {
        int64_t columns = 32 * check_between(c, 1, 9), first = 32 * check_between(c, 0, columns / 32 - 1);
        int64_t count = columns - first;
        size_t bytes = (size_t)qmi_q8_bytes(columns);
        float *x = check_fenced((size_t)count * sizeof *x);
        char *got = check_watched(bytes), *want = check_watched(bytes);
        float scale = powf(10, (float)check_between(c, -44, 30));
        for (int64_t i = 0; i < count; i++)
            x[i] = check_float(c) * scale;
        if (round % 5 == 1)
            memset(x, 0, 32 * sizeof *x);
        if (round % 5 == 2)
            x[check_between(c, 0, count - 1)] = round % 2 ? NAN : -INFINITY;
        c->tested->quantize(x, got, columns, first, count);
        c->scalar->quantize(x, want, columns, first, count);
        for (int64_t i = first; i < columns; i++)
            if (abs(got[i] - want[i]) > 1) /* a quotient rounded to float first may meet a tie */
                check_fail(c, "value %lld is %d, scalar %d", (long long)i, got[i], want[i]);
        for (int64_t b = first / 32; b < columns / 32; b++)
            check_near(c, qmi_q8_scales(got, columns)[b], qmi_q8_scales(want, columns)[b], 0, b);
        for (int64_t s = first / 16; s < columns / 16; s++) {
            int sum = 0;
            for (int i = 0; i < 16; i++)
                sum += got[16 * s + i];
            if (qmi_q8_sums(got, columns)[s] != sum)
                check_fail(c, "sum %lld is %d, its values give %d", (long long)s, qmi_q8_sums(got, columns)[s], sum);
        }
        check_unharmed(c, got, bytes);
        check_fenced_free(x, (size_t)count * sizeof *x);
        check_watched_free(got);
        check_watched_free(want);
    }
}

static bool differs_quantize(const qmi_cpu_kernels *a, const qmi_cpu_kernels *b)
{
    return a->quantize != b->quantize;
}

const check_part check_dot_parts[] = {
    ROW(f32), ROW(f16), ROW(bf16), ROW(q8_0), ROW(q4_0), ROW(q5_0), ROW(iq4_nl), ROW(iq4_xs), ROW(q4_k), ROW(q5_k), ROW(q6_k),
    { "quantize", run_quantize, NULL, differs_quantize }, { 0 }
};

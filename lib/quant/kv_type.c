/* The types of stored keys and values: see kv_type.h. */
#include "quant/kv_type.h"

#include <math.h>
#include <string.h>

#include "quant/quant.h"

const qmi_kv_format qmi_kv_formats[QMI_KV_TYPES] = {
    [QMI_KV_F32] = { "f32", 32, 0, false }, [QMI_KV_F16] = { "f16", 16, 0, false }, [QMI_KV_BF16] = { "bf16", 16, 0, false },
    [QMI_KV_Q8_0] = { "q8_0", 8, 0, true }, [QMI_KV_Q6] = { "q6", 4, 2, true }, [QMI_KV_Q5] = { "q5", 4, 1, true },
    [QMI_KV_Q4_0] = { "q4_0", 4, 0, true }, [QMI_KV_Q2] = { "q2", 2, 0, true },
};

int32_t qmi_kv_type_find(const char *name)
{
    int32_t type = 0;
    while (type < QMI_KV_TYPES && strcmp(qmi_kv_formats[type].name, name) != 0)
        type++;
    return type;
}

int64_t qmi_kv_head_bytes(qmi_kv_type type, int64_t count)
{
    const qmi_kv_format *format = &qmi_kv_formats[type];
    if (!format->quantized)
        return count * format->low / 8;
    return qmi_kv_scales_at(type, count) + (count + QMI_KV_BLOCK - 1) / QMI_KV_BLOCK * 2;
}

/* A block's part of each plane. */
typedef struct block {
    uint8_t *low, *high, *scale;
} block;

static block block_of(qmi_kv_type type, void *record, int64_t count, int64_t index)
{
    const qmi_kv_format *format = &qmi_kv_formats[type];
    int64_t blocks = (count + QMI_KV_BLOCK - 1) / QMI_KV_BLOCK;
    uint8_t *bytes = record;
    return (block){ bytes + index * format->low * QMI_KV_BLOCK / 8,
                    bytes + (blocks * format->low + index * format->high) * QMI_KV_BLOCK / 8,
                    bytes + qmi_kv_scales_at(type, count) + 2 * index };
}

static void put_code(const qmi_kv_format *format, block to, int i, int code)
{
    if (format->low == 8) {
        to.low[i] = (uint8_t)code;
        return;
    }
    if (format->low == 2) {
        to.low[i % 8] |= (uint8_t)(code << 2 * (i / 8));
        return;
    }
    to.low[i % 16] |= (uint8_t)((code & 15) << 4 * (i / 16));
    if (format->high == 2)
        to.high[i % 8] |= (uint8_t)(code >> 4 << 2 * (i / 8));
    else if (format->high == 1)
        to.high[i / 8] |= (uint8_t)(code >> 4 << i % 8);
}

static int code_of(const qmi_kv_format *format, block from, int i)
{
    if (format->low == 8)
        return (int8_t)from.low[i];
    if (format->low == 2)
        return from.low[i % 8] >> 2 * (i / 8) & 3;
    int code = from.low[i % 16] >> 4 * (i / 16) & 15;
    if (format->high == 2)
        code |= (from.high[i % 8] >> 2 * (i / 8) & 3) << 4;
    else if (format->high == 1)
        code |= (from.high[i / 8] >> i % 8 & 1) << 4;
    return code;
}

/* The number of largest magnitude (the first of several); NaN when one is not finite. */
static float extreme_of(const float *x, int count)
{
    float extreme = 0;
    for (int i = 0; i < count; i++) {
        if (!isfinite(x[i]))
            return NAN;
        if (fabsf(x[i]) > fabsf(extreme))
            extreme = x[i];
    }
    return extreme;
}

/* ---- two bits ---- */

static int nearest_of_four(float x) /* code whose code - 3 / 2 is nearest */
{
    return x < 0 ? (x < -1 ? 0 : 1) : x < 1 ? 2 : 3;
}

#define ROUNDS 5 /* after which scales hardly change */

/* From the mean magnitude on, which normally distributed numbers have at 1.25 times their best scale. */
static float scale_of_four(const float *x, int count)
{
    float scale = 0;
    for (int i = 0; i < count; i++)
        scale += fabsf(x[i]);
    scale *= 1.25f / (float)count;
    for (int round = 0; round < ROUNDS && scale > 0; round++) {
        float product = 0, square = 0;
        for (int i = 0; i < count; i++) {
            float level = (float)nearest_of_four(x[i] / scale) - 1.5f;
            product += level * x[i];
            square += level * level;
        }
        scale = product / square;
    }
    return scale;
}

static void pack_block_of_two_bits(const qmi_kv_format *format, const float *x, int count, block to)
{
    float extreme = extreme_of(x, count);
    uint16_t scale = qmi_float_to_half(isfinite(extreme) ? scale_of_four(x, count) : extreme);
    float d = qmi_half_to_float(scale);
    if (!isfinite(d))
        scale = 0x7E00; /* NaN */
    memcpy(to.scale, &scale, 2);
    memset(to.low, 0, QMI_KV_BLOCK / 4);
    for (int i = 0; i < count && isfinite(d) && d > 0; i++)
        put_code(format, to, i, nearest_of_four(x[i] / d));
}

/* ---- four bits and more ---- */

static void pack_block(const qmi_kv_format *format, const float *x, int count, block to)
{
    if (format->low == 2) {
        pack_block_of_two_bits(format, x, count, to);
        return;
    }
    int half = 1 << (format->low + format->high - 1), zero = format->low == 8 ? 0 : half;
    float extreme = extreme_of(x, count);
    uint16_t scale = qmi_float_to_half(format->low == 8 ? fabsf(extreme) / 127 : extreme / (float)-half);
    float d = qmi_half_to_float(scale), by = d != 0 ? 1 / d : 0;
    if (!isfinite(d))
        scale = 0x7E00; /* NaN */
    memcpy(to.scale, &scale, 2);
    memset(to.low, 0, (size_t)(format->low * QMI_KV_BLOCK / 8));
    memset(to.high, 0, (size_t)(format->high * QMI_KV_BLOCK / 8));
    for (int i = 0; i < QMI_KV_BLOCK; i++) {
        float q = isfinite(d) && i < count ? fminf(rintf(x[i] * by), (float)(half - 1)) : 0;
        put_code(format, to, i, (int)fmaxf(q, (float)-half) + zero);
    }
}

static void pack_floats(qmi_kv_type type, const float *from, void *to, int64_t count)
{
    uint16_t *halves = to;
    if (type == QMI_KV_F32)
        memcpy(to, from, (size_t)count * sizeof *from);
    else
        for (int64_t i = 0; i < count; i++)
            halves[i] = type == QMI_KV_F16 ? qmi_float_to_half(from[i]) : qmi_float_to_bfloat(from[i]);
}

static void unpack_floats(qmi_kv_type type, const void *from, float *to, int64_t count)
{
    const uint16_t *halves = from;
    if (type == QMI_KV_F32)
        memcpy(to, from, (size_t)count * sizeof *to);
    else
        for (int64_t i = 0; i < count; i++)
            to[i] = type == QMI_KV_F16 ? qmi_half_to_float(halves[i]) : qmi_bfloat_to_float(halves[i]);
}

void qmi_kv_pack(qmi_kv_type type, const float *from, void *to, int64_t count)
{
    if (!qmi_kv_formats[type].quantized)
        pack_floats(type, from, to, count);
    else
        for (int64_t i = 0; i < count; i += QMI_KV_BLOCK)
            pack_block(&qmi_kv_formats[type], from + i, (int)(count - i < QMI_KV_BLOCK ? count - i : QMI_KV_BLOCK),
                       block_of(type, to, count, i / QMI_KV_BLOCK));
}

void qmi_kv_unpack(qmi_kv_type type, const void *from, float *to, int64_t count)
{
    const qmi_kv_format *format = &qmi_kv_formats[type];
    if (!format->quantized) {
        unpack_floats(type, from, to, count);
        return;
    }
    float zero = format->low == 8 ? 0 : format->low == 2 ? 1.5f : (float)(1 << (format->low + format->high - 1));
    for (int64_t i = 0; i < count; i++) {
        block b = block_of(type, (void *)(uintptr_t)from, count, i / QMI_KV_BLOCK);
        uint16_t scale;
        memcpy(&scale, b.scale, 2);
        to[i] = qmi_half_to_float(scale) * ((float)code_of(format, b, (int)(i % QMI_KV_BLOCK)) - zero);
    }
}

/* ---- groups of keys ---- */

#define CHANNELS 32 /* packed together, side by side in vectors */
#define CUTS 5      /* ways to leave out something at either end */
#define CUT 0.07f   /* of the range */

typedef struct range { /* of a channel's numbers: centre + scale * (-3/2, -1/2, 1/2, 3/2), as the halves have them */
    float centre[CHANNELS], scale[CHANNELS];
} range;

/* As near as possible as half floats. */
static void round_range(range *r)
{
    for (int c = 0; c < CHANNELS; c++) {
        r->centre[c] = qmi_half_to_float(qmi_float_to_half(r->centre[c]));
        r->scale[c] = qmi_half_to_float(qmi_float_to_half(r->scale[c]));
    }
}

static void cubes_of(const range *r, const float x[QMI_KV_GROUP][CHANNELS], float cubes[CHANNELS])
{
    float by[CHANNELS];
    for (int c = 0; c < CHANNELS; c++) {
        cubes[c] = 0;
        by[c] = r->scale[c] > 0 ? 1 / r->scale[c] : 0;
    }
    for (int t = 0; t < QMI_KV_GROUP; t++)
        for (int c = 0; c < CHANNELS; c++) {
            float above = x[t][c] - r->centre[c], steps = above * by[c];
            float level = (steps < 0 ? -0.5f : 0.5f) + (steps < -1 ? -1.0f : 0.0f) + (steps < 1 ? 0.0f : 1.0f);
            float error = fabsf(above - level * r->scale[c]);
            cubes[c] += error * error * error;
        }
}

static range best_range(const float x[QMI_KV_GROUP][CHANNELS])
{
    float low[CHANNELS], high[CHANNELS], least[CHANNELS], cubes[CHANNELS];
    range best, r;
    for (int c = 0; c < CHANNELS; c++) {
        low[c] = high[c] = x[0][c];
        least[c] = INFINITY;
        best.centre[c] = best.scale[c] = NAN; /* where no sum is finite */
    }
    for (int t = 1; t < QMI_KV_GROUP; t++)
        for (int c = 0; c < CHANNELS; c++) {
            low[c] = x[t][c] < low[c] ? x[t][c] : low[c];
            high[c] = x[t][c] > high[c] ? x[t][c] : high[c];
        }
    for (int cut = 0; cut < CUTS * CUTS; cut++) {
        float below = CUT * (float)(cut / CUTS), above = CUT * (float)(cut % CUTS);
        for (int c = 0; c < CHANNELS; c++) {
            float size = high[c] - low[c], from = low[c] + below * size, to = high[c] - above * size;
            r.centre[c] = 0.5f * (from + to);
            r.scale[c] = (to - from) / 3;
        }
        round_range(&r);
        cubes_of(&r, x, cubes);
        for (int c = 0; c < CHANNELS; c++)
            if (cubes[c] < least[c]) {
                least[c] = cubes[c];
                best.centre[c] = r.centre[c];
                best.scale[c] = r.scale[c];
            }
    }
    return best;
}

static void pack_channel(const float x[QMI_KV_GROUP][CHANNELS], int channel, float centre, float scale, uint8_t *codes)
{
    memset(codes, 0, QMI_KV_GROUP / 4);
    for (int t = 0; t < QMI_KV_GROUP && scale > 0; t++)
        codes[t % 16] |= (uint8_t)(nearest_of_four((x[t][channel] - centre) * (1 / scale)) << 2 * (t / 16));
}

static bool is_finite(const float x[QMI_KV_GROUP][CHANNELS], int channel)
{
    bool finite = true;
    for (int t = 0; t < QMI_KV_GROUP; t++)
        finite = finite && isfinite(x[t][channel]);
    return finite;
}

void qmi_kv_pack_group(const float *from, void *to, int64_t count)
{
    int64_t channels = (count + QMI_KV_BLOCK - 1) / QMI_KV_BLOCK * QMI_KV_BLOCK;
    uint8_t *codes = to;
    uint16_t *scales = (uint16_t *)(void *)(codes + channels * (QMI_KV_GROUP / 4)), *centres = scales + channels;
    float x[QMI_KV_GROUP][CHANNELS];
    for (int64_t first = 0; first < channels; first += CHANNELS) {
        for (int t = 0; t < QMI_KV_GROUP; t++)
            for (int64_t c = first; c < first + CHANNELS; c++)
                x[t][c - first] = c < count ? from[t * count + c] : 0;
        range r = best_range((const float(*)[CHANNELS])x);
        for (int c = 0; c < CHANNELS; c++, codes += QMI_KV_GROUP / 4) {
            bool finite = is_finite((const float(*)[CHANNELS])x, c) && isfinite(r.centre[c]) && isfinite(r.scale[c]);
            pack_channel((const float(*)[CHANNELS])x, c, r.centre[c], finite ? r.scale[c] : 0, codes);
            scales[first + c] = finite ? qmi_float_to_half(r.scale[c]) : 0x7E00; /* NaN */
            centres[first + c] = finite ? qmi_float_to_half(r.centre[c]) : 0;
        }
    }
}

void qmi_kv_unpack_group(const void *from, float *to, int64_t count)
{
    int64_t channels = (count + QMI_KV_BLOCK - 1) / QMI_KV_BLOCK * QMI_KV_BLOCK;
    const uint8_t *codes = from;
    const uint16_t *scales = (const uint16_t *)(const void *)(codes + channels * (QMI_KV_GROUP / 4)), *centres = scales + channels;
    for (int t = 0; t < QMI_KV_GROUP; t++)
        for (int64_t c = 0; c < count; c++) {
            int code = codes[c * (QMI_KV_GROUP / 4) + t % 16] >> 2 * (t / 16) & 3;
            to[t * count + c] = qmi_half_to_float(centres[c]) + qmi_half_to_float(scales[c]) * ((float)code - 1.5f);
        }
}

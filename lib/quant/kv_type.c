/* The types of stored keys and values: see kv_type.h. */
#include "quant/kv_type.h"

#include <math.h>
#include <string.h>

#include "quant/quant.h"

const qmi_kv_format qmi_kv_formats[QMI_KV_TYPES] = {
    [QMI_KV_F32] = { "f32", 32, 0, false }, [QMI_KV_F16] = { "f16", 16, 0, false }, [QMI_KV_BF16] = { "bf16", 16, 0, false },
    [QMI_KV_Q8_0] = { "q8_0", 8, 0, true }, [QMI_KV_Q6] = { "q6", 4, 2, true }, [QMI_KV_Q5] = { "q5", 4, 1, true },
    [QMI_KV_Q4_0] = { "q4_0", 4, 0, true },
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

static void pack_block(const qmi_kv_format *format, const float *x, int count, block to)
{
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
    int zero = format->low == 8 ? 0 : 1 << (format->low + format->high - 1);
    for (int64_t i = 0; i < count; i++) {
        block b = block_of(type, (void *)(uintptr_t)from, count, i / QMI_KV_BLOCK);
        uint16_t scale;
        memcpy(&scale, b.scale, 2);
        to[i] = qmi_half_to_float(scale) * (float)(code_of(format, b, (int)(i % QMI_KV_BLOCK)) - zero);
    }
}

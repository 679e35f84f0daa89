/* The table of number formats, and conversion to half precision: see quant.h. */
#include "quant/quant.h"

#include "quant/dequant.h"
#include "quant/quant_blocks.h"

#define QUANTIZED(text, block, name) { text, block, sizeof(qmi_block_##name), qmi_dequant_##name }

static const qmi_quant_format formats[QMI_TYPE_COUNT] = {
    [QMI_TYPE_F32] = { "F32", 1, 4, qmi_dequant_f32 },
    [QMI_TYPE_F16] = { "F16", 1, 2, qmi_dequant_f16 },
    [QMI_TYPE_BF16] = { "BF16", 1, 2, qmi_dequant_bf16 },
    [QMI_TYPE_Q4_0] = QUANTIZED("Q4_0", 32, q4_0),
    [QMI_TYPE_Q4_1] = QUANTIZED("Q4_1", 32, q4_1),
    [QMI_TYPE_Q5_0] = QUANTIZED("Q5_0", 32, q5_0),
    [QMI_TYPE_Q5_1] = QUANTIZED("Q5_1", 32, q5_1),
    [QMI_TYPE_Q8_0] = QUANTIZED("Q8_0", 32, q8_0),
    [QMI_TYPE_Q2_K] = QUANTIZED("Q2_K", 256, q2_k),
    [QMI_TYPE_Q3_K] = QUANTIZED("Q3_K", 256, q3_k),
    [QMI_TYPE_Q4_K] = QUANTIZED("Q4_K", 256, q4_k),
    [QMI_TYPE_Q5_K] = QUANTIZED("Q5_K", 256, q5_k),
    [QMI_TYPE_Q6_K] = QUANTIZED("Q6_K", 256, q6_k),
    [QMI_TYPE_IQ2_XXS] = QUANTIZED("IQ2_XXS", 256, iq2_xxs),
    [QMI_TYPE_IQ2_XS] = QUANTIZED("IQ2_XS", 256, iq2_xs),
    [QMI_TYPE_IQ2_S] = QUANTIZED("IQ2_S", 256, iq2_s),
    [QMI_TYPE_IQ3_XXS] = QUANTIZED("IQ3_XXS", 256, iq3_xxs),
    [QMI_TYPE_IQ3_S] = QUANTIZED("IQ3_S", 256, iq3_s),
    [QMI_TYPE_IQ1_S] = QUANTIZED("IQ1_S", 256, iq1_s),
    [QMI_TYPE_IQ1_M] = QUANTIZED("IQ1_M", 256, iq1_m),
    [QMI_TYPE_IQ4_NL] = QUANTIZED("IQ4_NL", 32, iq4_nl),
    [QMI_TYPE_IQ4_XS] = QUANTIZED("IQ4_XS", 256, iq4_xs),
    [QMI_TYPE_TQ1_0] = QUANTIZED("TQ1_0", 256, tq1_0),
    [QMI_TYPE_TQ2_0] = QUANTIZED("TQ2_0", 256, tq2_0),
    [QMI_TYPE_MXFP4] = QUANTIZED("MXFP4", 32, mxfp4),
    [QMI_TYPE_I8] = { "I8", 1, 1, NULL },
    [QMI_TYPE_I16] = { "I16", 1, 2, NULL },
    [QMI_TYPE_I32] = { "I32", 1, 4, NULL },
    [QMI_TYPE_I64] = { "I64", 1, 8, NULL },
    [QMI_TYPE_F64] = { "F64", 1, 8, NULL },
};

const qmi_quant_format *qmi_quant_format_of(uint32_t type)
{
    return type < QMI_TYPE_COUNT && formats[type].name ? &formats[type] : NULL;
}

int64_t qmi_quant_row_bytes(uint32_t type, int64_t columns)
{
    const qmi_quant_format *format = qmi_quant_format_of(type);
    if (!format || columns < 0 || columns % format->block)
        return -1;
    const int64_t blocks = columns / format->block;
    return blocks > INT64_MAX / format->bytes ? -1 : blocks * format->bytes;
}

uint16_t qmi_float_to_half(float value)
{
    union { float value; uint32_t bits; } u = { value };
    const uint16_t sign = (uint16_t)(u.bits >> 16 & 0x8000);
    u.bits &= 0x7FFFFFFF;
    if (u.bits > 0x7F800000) /* not a number: keep the top of its payload, and make it quiet */
        return (uint16_t)(sign | 0x7E00 | (u.bits >> 13 & 0x1FF));
    if (u.bits >= 0x47800000) /* 2^16 and more */
        return sign | 0x7C00;
    if (u.bits < 0x38800000) { /* below 2^-14: in [0.5, 1) a float counts in steps of 2^-24, as subnormal halves do */
        u.value += 0.5f;
        return (uint16_t)(sign | (u.bits - 0x3F000000));
    }
    /* Half to even: add just under half of the last kept bit, and that bit. A carry goes into the exponent, as it should. */
    u.bits += 0x0FFF + (u.bits >> 13 & 1);
    return (uint16_t)(sign | (u.bits - 0x38000000) >> 13);
}

uint16_t qmi_float_to_bfloat(float value)
{
    union { float value; uint32_t bits; } u = { value };
    if ((u.bits & 0x7FFFFFFF) > 0x7F800000)
        return (uint16_t)(u.bits >> 16 | 0x40);
    return (uint16_t)((u.bits + 0x7FFF + (u.bits >> 16 & 1)) >> 16);
}

/* The number formats of weight tensors, as a table: what a block is, and how it unpacks.
 *
 * Ids, block sizes and byte layouts are those of the GGUF specification (docs/gguf.md of ggml). The scalar unpacking in
 * dequant.c is the specification of each format in this library; faster kernels are tested against it. */
#ifndef QMI_QUANT_QUANT_H
#define QMI_QUANT_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { /* GGUF's tensor type ids */
    QMI_TYPE_F32 = 0, QMI_TYPE_F16 = 1, QMI_TYPE_Q4_0 = 2, QMI_TYPE_Q4_1 = 3, QMI_TYPE_Q5_0 = 6, QMI_TYPE_Q5_1 = 7,
    QMI_TYPE_Q8_0 = 8, QMI_TYPE_Q2_K = 10, QMI_TYPE_Q3_K = 11, QMI_TYPE_Q4_K = 12, QMI_TYPE_Q5_K = 13, QMI_TYPE_Q6_K = 14,
    QMI_TYPE_IQ2_XXS = 16, QMI_TYPE_IQ2_XS = 17, QMI_TYPE_IQ3_XXS = 18, QMI_TYPE_IQ1_S = 19, QMI_TYPE_IQ4_NL = 20,
    QMI_TYPE_IQ3_S = 21, QMI_TYPE_IQ2_S = 22, QMI_TYPE_IQ4_XS = 23, QMI_TYPE_I8 = 24, QMI_TYPE_I16 = 25, QMI_TYPE_I32 = 26,
    QMI_TYPE_I64 = 27, QMI_TYPE_F64 = 28, QMI_TYPE_IQ1_M = 29, QMI_TYPE_BF16 = 30, QMI_TYPE_TQ1_0 = 34, QMI_TYPE_TQ2_0 = 35,
    QMI_TYPE_MXFP4 = 39,
    QMI_TYPE_COUNT = 40
};

typedef struct qmi_quant_format {
    const char *name;    /* as users write it: "Q4_K" */
    int32_t block;       /* values a block */
    int32_t bytes;       /* bytes a block */
    /* Unpacks `blocks` whole blocks into blocks * block floats. NULL: sizes are known, but it is no weight (integers, F64). */
    void (*unpack)(const void *from, float *to, int64_t blocks);
} qmi_quant_format;

/* NULL when this build does not know the id. */
const qmi_quant_format *qmi_quant_format_of(uint32_t type);

/* Bytes of a row of `columns` values; -1 when the type is unknown or columns is no multiple of its block. */
int64_t qmi_quant_row_bytes(uint32_t type, int64_t columns);

/* Half precision and bfloat16, exactly (round to nearest even on the way down). */
uint16_t qmi_float_to_half(float value);
uint16_t qmi_float_to_bfloat(float value);
/* IEEE 754 binary16: 1 sign, 5 exponent, 10 fraction bits. No subnormal float is touched on the way, so the result does not
 * depend on whether the host lets its processor flush those to zero. */
static inline float qmi_half_to_float(uint16_t half)
{
    union { uint32_t bits; float value; } u;
    const uint32_t sign = (half & UINT32_C(0x8000)) << 16, rest = half & UINT32_C(0x7FFF);
    if (rest < 0x0400)
        u.value = (float)rest * 0x1p-24f; /* zero, subnormal */
    else
        u.bits = (rest << 13) + (rest < 0x7C00 ? 112u << 23 : 224u << 23); /* bias 127 - 15; all ones stay all ones */
    u.bits |= sign;
    return u.value;
}
static inline float qmi_bfloat_to_float(uint16_t bfloat)
{
    union { uint32_t bits; float value; } u = { (uint32_t)bfloat << 16 };
    return u.value;
}

#endif

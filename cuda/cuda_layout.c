/* Matrices from the file's form to planes, on the host: see layout.h. */
#include "layout.h"

#include <string.h>
#include "quant/quant_tables.h"
#include "reorder.h"

/* ---- conversion of one block of the file into blocks of a type that the card has ---- */

static void merge_word(uint8_t *to, uint32_t bits)
{
    uint32_t word;
    memcpy(&word, to, sizeof word);
    word |= bits;
    memcpy(to, &word, sizeof word);
}

/* Codes of values 32 j + 4 k ... as four bytes. */
static void put_q6_k(qmi_block_q6_k *block, int j, int k, uint32_t codes)
{
    merge_word(block->low + j / 4 * 64 + j % 2 * 32 + 4 * k, (codes & 0x0f0f0f0f) << 4 * (j / 2 % 2));
    merge_word(block->high + j / 4 * 32 + 4 * k, (codes >> 4 & 0x03030303) << 2 * (j % 4));
}

static void convert_q3_k(const void *from, void *to)
{
    const qmi_block_q3_k *block = from;
    qmi_block_q6_k *out = to;
    *out = (qmi_block_q6_k){ .d = { block->d[0], block->d[1] } };
    for (int j = 0; j < 16; j++)
        out->scales[j] = (int8_t)(qmi_q3_k_scale(block->scales, j) - 32);
    for (int j = 0; j < 8; j++)
        for (int k = 0; k < 8; k++) {
            const uint32_t two = qmi_load_u32(block->q + j / 4 * 32 + 4 * k) >> 2 * (j % 4) & 0x03030303;
            const uint32_t third = qmi_load_u32(block->high + 4 * k) >> j & 0x01010101;
            put_q6_k(out, j, k, (two | third << 2) + 0x1c1c1c1c); /* q - 4 + 32 */
        }
}

static void convert_iq3_s(const void *from, void *to)
{
    const qmi_block_iq3_s *block = from;
    qmi_block_q6_k *out = to;
    *out = (qmi_block_q6_k){ .d = { block->d[0], block->d[1] } };
    for (int j = 0; j < 16; j++)
        out->scales[j] = (int8_t)(1 + 2 * (block->scales[j / 4] >> 4 * (j / 2 % 2) & 15));
    for (int n = 0; n < 64; n++) { /* four values */
        const uint32_t digits = qmi_quant_grid_iq3_s[block->q[n] | (block->high[n / 8] >> n % 8 & 1) << 8];
        const uint32_t signs = block->signs[n / 2] >> 4 * (n % 2);
        uint32_t codes = 0;
        for (int i = 0; i < 4; i++) {
            const int level = 2 * (int)(digits >> 4 * i & 7) + 1, sign = -(int)(signs >> i & 1); /* 0 or -1: no branch to guess */
            codes |= (uint32_t)(32 + (level ^ sign) - sign) << 8 * i;
        }
        put_q6_k(out, n / 8, n % 8, codes);
    }
}

/* digits: 0, 1, ... of 256 values; value = d * (digit - 1). */
static void put_q4_0(const uint8_t digits[256], const qmi_f16 d, qmi_block_q4_0 *out)
{
    for (int b = 0; b < 8; b++, digits += 32, out++) {
        memcpy(out->d, d, sizeof out->d);
        for (int l = 0; l < 16; l++)
            out->q[l] = (uint8_t)((digits[l] + 7) | (digits[16 + l] + 7) << 4);
    }
}

static void put_digits(const uint8_t *bytes, int count, int digits, uint8_t *to) /* as put_ternary of dequant.c */
{
    static const uint8_t powers[5] = { 1, 3, 9, 27, 81 };
    for (int n = 0; n < digits; n++)
        for (int l = 0; l < count; l++)
            to[n * count + l] = (uint8_t)((uint8_t)(bytes[l] * powers[n]) * 3 >> 8);
}

static void convert_tq1_0(const void *from, void *to)
{
    const qmi_block_tq1_0 *block = from;
    uint8_t digits[256];
    put_digits(block->q, 32, 5, digits);
    put_digits(block->q + 32, 16, 5, digits + 160);
    put_digits(block->last, 4, 4, digits + 240);
    put_q4_0(digits, block->d, to);
}

static void convert_tq2_0(const void *from, void *to)
{
    const qmi_block_tq2_0 *block = from;
    uint8_t digits[256];
    for (int i = 0; i < 256; i++)
        digits[i] = block->q[i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3;
    put_q4_0(digits, block->d, to);
}

static void convert_mxfp4(const void *from, void *to)
{
    const qmi_block_mxfp4 *block = from;
    uint16_t *out = to;
    const float d = qmi_mxfp4_scale(block->exponent);
    for (int i = 0; i < 32; i++) {
        union { float value; uint32_t bits; } u = { d * (float)qmi_quant_levels_mxfp4[block->q[i % 16] >> 4 * (i / 16) & 15] };
        out[i] = (uint16_t)(u.bits >> 16);
    }
}

/* ---- types on the card ---- */

static const struct {
    uint16_t plane[QMI_CUDA_PLANES]; /* bytes of 8 blocks of 32 values */
} shapes[QMI_TYPE_COUNT] = {
    [QMI_TYPE_F32] = { { 1024 } },
    [QMI_TYPE_F16] = { { 512 } },
    [QMI_TYPE_BF16] = { { 512 } },
    [QMI_TYPE_Q8_0] = { { 256, 0, 16 } },
    [QMI_TYPE_Q4_0] = { { 128, 0, 16 } },
    [QMI_TYPE_IQ4_NL] = { { 128, 0, 16 } },
    [QMI_TYPE_Q5_0] = { { 128, 32, 16 } },
    [QMI_TYPE_Q4_K] = { { 128, 0, 16, 4 } },
    [QMI_TYPE_Q5_K] = { { 128, 32, 16, 4 } },
    [QMI_TYPE_Q6_K] = { { 128, 64, 16, 2 } },
    [QMI_TYPE_IQ4_XS] = { { 128, 0, 8 } },
};

static const struct {
    uint32_t type;                                /* on the card */
    void (*convert)(const void *from, void *to);  /* one block of the file */
} conversions[QMI_TYPE_COUNT] = {
    [QMI_TYPE_Q3_K] = { QMI_TYPE_Q6_K, convert_q3_k },
    [QMI_TYPE_IQ3_S] = { QMI_TYPE_Q6_K, convert_iq3_s },
    [QMI_TYPE_TQ1_0] = { QMI_TYPE_Q4_0, convert_tq1_0 },
    [QMI_TYPE_TQ2_0] = { QMI_TYPE_Q4_0, convert_tq2_0 },
    [QMI_TYPE_MXFP4] = { QMI_TYPE_BF16, convert_mxfp4 },
};

uint32_t qmi_cuda_type(uint32_t type)
{
    const qmi_quant_format *format = qmi_quant_format_of(type);
    if (!format || !format->unpack)
        return QMI_TYPE_COUNT;
    if (shapes[type].plane[0])
        return type;
    return conversions[type].convert ? conversions[type].type : QMI_TYPE_F32;
}

static int64_t blocks_of(int64_t columns)
{
    return (columns + QMI_CUDA_BLOCK - 1) / QMI_CUDA_BLOCK;
}

int64_t qmi_cuda_plane_bytes(uint32_t card_type, int32_t plane, int64_t columns, int64_t rows)
{
    return blocks_of(columns) * rows * shapes[card_type].plane[plane] / 8;
}

void qmi_cuda_planes_of(uint32_t card_type, int64_t columns, int64_t rows, qmi_cuda_planes *out)
{
    *out = (qmi_cuda_planes){ 0 };
    for (int32_t i = 0; i < QMI_CUDA_PLANES; i++) {
        out->offset[i] = out->bytes;
        out->bytes += qmi_cuda_plane_bytes(card_type, i, columns, rows);
        out->bytes = (out->bytes + QMI_CUDA_PLANE_ALIGN - 1) / QMI_CUDA_PLANE_ALIGN * QMI_CUDA_PLANE_ALIGN;
    }
}

/* ---- rows ---- */

static bool plain(uint32_t card_type)
{
    return card_type == QMI_TYPE_F32 || card_type == QMI_TYPE_F16 || card_type == QMI_TYPE_BF16;
}

/* `values` values, whole blocks of the card's type: blocks i ... of the matrix. */
static void put_blocks(uint32_t card_type, const uint8_t *from, int32_t values, int64_t i, uint8_t *const plane[])
{
    const qmi_quant_format *format = qmi_quant_format_of(card_type);
    if (plain(card_type)) {
        memcpy(plane[0] + i * QMI_CUDA_BLOCK * format->bytes, from, (size_t)values * (size_t)format->bytes);
        return;
    }
    for (int32_t b = 0; b < values / QMI_CUDA_BLOCK; b++)
        reorder_block(card_type, from + b * QMI_CUDA_BLOCK / format->block * format->bytes, i + b, plane);
}

/* A row of single numbers, which needs no whole blocks. */
static void put_plain_row(const uint8_t *from, int64_t bytes, int64_t room, uint8_t *to)
{
    memcpy(to, from, (size_t)bytes);
    memset(to + bytes, 0, (size_t)(room - bytes));
}

void qmi_cuda_reorder(uint32_t type, int64_t columns, const void *from, int64_t first, int64_t rows,
                      const qmi_cuda_planes *planes, uint8_t *to)
{
    const uint32_t card_type = qmi_cuda_type(type);
    const qmi_quant_format *format = qmi_quant_format_of(type);
    const int64_t row_bytes = qmi_quant_row_bytes(type, columns), blocks = blocks_of(columns);
    const uint8_t *raw = from;
    uint8_t *plane[QMI_CUDA_PLANES];
    _Alignas(16) uint8_t converted[256 * sizeof(float)]; /* the largest block */
    for (int i = 0; i < QMI_CUDA_PLANES; i++)
        plane[i] = to + planes->offset[i];
    for (int64_t row = first; row < first + rows; row++, raw += row_bytes) {
        if (plain(type)) {
            const int64_t room = qmi_cuda_plane_bytes(type, 0, columns, 1);
            put_plain_row(raw, row_bytes, room, plane[0] + row * room);
            continue;
        }
        for (int64_t b = 0; b < columns / format->block; b++) {
            const uint8_t *block = raw + b * format->bytes;
            if (card_type == QMI_TYPE_F32)
                format->unpack(block, (float *)(void *)converted, 1);
            else if (card_type != type)
                conversions[type].convert(block, converted);
            put_blocks(card_type, card_type == type ? block : converted, format->block,
                       row * blocks + b * format->block / QMI_CUDA_BLOCK, plane);
        }
    }
}

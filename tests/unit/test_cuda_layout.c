/* Matrices as the card has them: what is read from the planes, by the rules of cuda/layout.h and nothing else, is value for value
 * what the file's blocks unpack to. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "layout.h"
#include "quant/quant.h"

#define UNTOUCHED 0xA5

static uint64_t seed = 0x9E3779B97F4A7C15u;

static uint32_t random_bits(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 32);
}

static void fill_random(uint8_t *bytes, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        bytes[i] = (uint8_t)random_bits();
}

static bool same(float a, float b) /* the formats do not define a NaN's sign and payload */
{
    return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b));
}

/* ---- the reader: one value of the planes ---- */

/* bytes[plane][0] bytes for bytes[plane][1] blocks: the table of layout.h. */
typedef struct card_type {
    uint32_t type;
    int bytes[4][2];
} card_type;

static const card_type card_types[] = {
    { QMI_TYPE_F32, { { 128, 1 } } },
    { QMI_TYPE_F16, { { 64, 1 } } },
    { QMI_TYPE_BF16, { { 64, 1 } } },
    { QMI_TYPE_Q8_0, { { 32, 1 }, { 0, 1 }, { 2, 1 } } },
    { QMI_TYPE_Q4_0, { { 16, 1 }, { 0, 1 }, { 2, 1 } } },
    { QMI_TYPE_IQ4_NL, { { 16, 1 }, { 0, 1 }, { 2, 1 } } },
    { QMI_TYPE_Q5_0, { { 16, 1 }, { 4, 1 }, { 2, 1 } } },
    { QMI_TYPE_Q4_K, { { 16, 1 }, { 0, 1 }, { 2, 1 }, { 4, 8 } } },
    { QMI_TYPE_Q5_K, { { 16, 1 }, { 4, 1 }, { 2, 1 }, { 4, 8 } } },
    { QMI_TYPE_Q6_K, { { 16, 1 }, { 8, 1 }, { 16, 8 }, { 2, 8 } } },
    { QMI_TYPE_IQ4_XS, { { 16, 1 }, { 0, 1 }, { 8, 8 } } },
};

static const card_type *card_type_of(uint32_t type)
{
    for (size_t i = 0; i < sizeof card_types / sizeof *card_types; i++)
        if (card_types[i].type == type)
            return &card_types[i];
    return NULL;
}

static uint32_t bit_field(const uint8_t *bytes, int first, int count) /* numbered as in a little-endian word */
{
    uint32_t value = 0;
    for (int i = 0; i < count; i++)
        value |= (uint32_t)(bytes[(first + i) / 8] >> (first + i) % 8 & 1) << i;
    return value;
}

static float half_at(const uint8_t *bytes)
{
    return qmi_half_to_float((uint16_t)bit_field(bytes, 0, 16));
}

/* The code of value v of a block, from planes 0 and 1. */
static int code_of(uint32_t type, const uint8_t *low, const uint8_t *high, int v)
{
    int code = (int)bit_field(low + v % 16, v < 16 ? 0 : 4, 4);
    if (type == QMI_TYPE_Q5_0 || type == QMI_TYPE_Q5_K)
        code += 16 * (int)bit_field(high, 8 * (v % 4) + v / 4, 1);
    if (type == QMI_TYPE_Q6_K)
        code += 16 * (int)bit_field(high + v / 16 * 4, 8 * (v % 4) + 2 * (v % 16 / 4), 2);
    return code;
}

static float read_value(const card_type *card, const uint8_t *planes, const int64_t offset[4], int64_t block, int v)
{
    static const int levels[16] = { -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 }; /* IQ4 */
    const uint8_t *at[4];
    const int b = (int)(block % 8);
    for (int p = 0; p < 4; p++)
        at[p] = planes + offset[p] + (card->bytes[p][1] ? block / card->bytes[p][1] * card->bytes[p][0] : 0);
    switch (card->type) {
    case QMI_TYPE_F32: {
        float value;
        memcpy(&value, at[0] + 4 * v, 4);
        return value;
    }
    case QMI_TYPE_F16:
        return half_at(at[0] + 2 * v);
    case QMI_TYPE_BF16:
        return qmi_bfloat_to_float((uint16_t)bit_field(at[0] + 2 * v, 0, 16));
    case QMI_TYPE_Q8_0:
        return half_at(at[2]) * (float)(int8_t)at[0][v];
    }
    const int code = code_of(card->type, at[0], at[1], v);
    switch (card->type) {
    case QMI_TYPE_Q4_0:
        return half_at(at[2]) * (float)(code - 8);
    case QMI_TYPE_IQ4_NL:
        return half_at(at[2]) * (float)levels[code];
    case QMI_TYPE_Q5_0:
        return half_at(at[2]) * (float)(code - 16);
    case QMI_TYPE_Q6_K:
        return half_at(at[3]) * (float)(int8_t)at[2][2 * b + v / 16] * (float)(code - 32);
    case QMI_TYPE_IQ4_XS: {
        const int scale = (int)(bit_field(at[2] + 4, 4 * b, 4) + 16 * bit_field(at[2] + 2, 2 * b, 2));
        return half_at(at[2]) * (float)(scale - 32) * (float)levels[code];
    }
    default: /* Q4_K, Q5_K */
        return half_at(at[3]) * (float)at[2][0] * (float)code - half_at(at[3] + 2) * (float)at[2][1];
    }
}

/* ---- a matrix there and back ---- */

typedef struct scene {
    uint32_t type;
    int64_t columns, rows, row_bytes;
    uint8_t *raw;
    const card_type *card;
    qmi_cuda_planes planes;
    uint8_t *to;
} scene;

static scene scene_new(uint32_t type, int64_t columns, int64_t rows)
{
    scene s = { .type = type, .columns = columns, .rows = rows, .row_bytes = qmi_quant_row_bytes(type, columns),
                .card = card_type_of(qmi_cuda_type(type)) };
    assert_true(s.row_bytes > 0);
    assert_non_null(s.card);
    s.raw = malloc((size_t)(s.row_bytes * rows));
    fill_random(s.raw, s.row_bytes * rows);
    qmi_cuda_planes_of(s.card->type, columns, rows, &s.planes);
    s.to = aligned_alloc(QMI_CUDA_PLANE_ALIGN, (size_t)s.planes.bytes);
    memset(s.to, UNTOUCHED, (size_t)s.planes.bytes);
    return s;
}

static void scene_free(scene *s)
{
    free(s->raw);
    free(s->to);
}

static void reorder(const scene *s, int64_t first, int64_t rows)
{
    uint8_t *from = malloc((size_t)(s->row_bytes * rows) + 1); /* of just these rows, at an odd address */
    memcpy(from + 1, s->raw + first * s->row_bytes, (size_t)(s->row_bytes * rows));
    qmi_cuda_reorder(s->type, s->columns, from + 1, first, rows, &s->planes, s->to);
    free(from);
}

static void check_row(const scene *s, int64_t row)
{
    const qmi_quant_format *format = qmi_quant_format_of(s->type);
    const int64_t blocks = (s->columns + 31) / 32;
    float *expected = calloc((size_t)blocks * 32, sizeof *expected); /* zeros behind the last column */
    format->unpack(s->raw + row * s->row_bytes, expected, s->columns / format->block);
    for (int64_t i = 0; i < blocks * 32; i++) {
        const float value = read_value(s->card, s->to, s->planes.offset, row * blocks + i / 32, (int)(i % 32));
        if (!same(value, expected[i]))
            fail_msg("%s as type %u, %lld columns, row %lld, value %lld: %.9g, expected %.9g", format->name, s->card->type,
                     (long long)s->columns, (long long)row, (long long)i, value, expected[i]);
    }
    free(expected);
}

/* Bytes of the planes that belong to rows outside first .. first + rows - 1, or to no row, are as they were. */
static void check_untouched(const scene *s, int64_t first, int64_t rows)
{
    const int64_t blocks = (s->columns + 31) / 32;
    int64_t at = 0;
    for (int p = 0; p < 4; p++) {
        const int *bytes = s->card->bytes[p];
        const int64_t row_bytes = bytes[1] ? blocks * bytes[0] / bytes[1] : 0;
        for (; at < s->planes.offset[p] + first * row_bytes; at++)
            assert_int_equal(s->to[at], UNTOUCHED);
        at += rows * row_bytes;
    }
    for (; at < s->planes.bytes; at++)
        assert_int_equal(s->to[at], UNTOUCHED);
}

static void check_matrix(uint32_t type, int64_t columns, int64_t rows)
{
    scene s = scene_new(type, columns, rows);
    reorder(&s, 0, rows);
    for (int64_t row = 0; row < rows; row++)
        check_row(&s, row);
    check_untouched(&s, 0, rows);
    scene_free(&s);
}

static bool is_weight(uint32_t type)
{
    const qmi_quant_format *format = qmi_quant_format_of(type);
    return format && format->unpack;
}

static void test_every_type_keeps_every_value(void **state)
{
    (void)state;
    int seen = 0;
    for (uint32_t type = 0; type < QMI_TYPE_COUNT; type++) {
        if (!is_weight(type))
            continue;
        seen++;
        check_matrix(type, 256, 1);
        check_matrix(type, 768, 5);
        check_matrix(type, 2048, 300); /* all bits random: each half as d, infinities and NaN too, many times */
    }
    assert_int_equal(seen, 25);
}

static void test_rows_of_few_blocks(void **state)
{
    (void)state;
    for (uint32_t type = 0; type < QMI_TYPE_COUNT; type++)
        if (is_weight(type) && qmi_quant_format_of(type)->block <= 32) {
            check_matrix(type, 32, 7);
            check_matrix(type, 96, 11);
        }
}

static void test_odd_columns_are_filled_with_zeros(void **state)
{
    (void)state;
    const uint32_t types[] = { QMI_TYPE_F32, QMI_TYPE_F16, QMI_TYPE_BF16 };
    const int64_t columns[] = { 1, 31, 33, 100, 257 };
    for (int t = 0; t < 3; t++)
        for (int c = 0; c < 5; c++)
            check_matrix(types[t], columns[c], 3);
}

/* Pieces in any order and of any length, as the rows of several experts arrive. */
static void test_pieces_begin_at_any_row(void **state)
{
    (void)state;
    for (uint32_t type = 0; type < QMI_TYPE_COUNT; type++) {
        if (!is_weight(type))
            continue;
        scene s = scene_new(type, qmi_quant_format_of(type)->block == 1 ? 77 : 512, 3 * 5);
        reorder(&s, 6, 4);
        check_untouched(&s, 6, 4);
        reorder(&s, 10, 5);
        reorder(&s, 0, 1);
        reorder(&s, 1, 5);
        for (int64_t row = 0; row < s.rows; row++)
            check_row(&s, row);
        check_untouched(&s, 0, s.rows);
        scene_free(&s);
    }
}

/* Each exponent with each code; the largest overflow, the smallest are subnormal. */
static void test_mxfp4_whole_range(void **state)
{
    (void)state;
    scene s = scene_new(QMI_TYPE_MXFP4, 32, 256);
    for (int e = 0; e < 256; e++) {
        s.raw[17 * e] = (uint8_t)e;
        for (int i = 0; i < 16; i++)
            s.raw[17 * e + 1 + i] = (uint8_t)(i | (15 - i) << 4);
    }
    reorder(&s, 0, 256);
    for (int64_t row = 0; row < 256; row++)
        check_row(&s, row);
    scene_free(&s);
}

/* Each d, against random codes and scales, of formats whose d is moved to another format. */
static void test_every_scale_survives_conversion(void **state)
{
    (void)state;
    const struct { uint32_t type; int at; } converted[] = { { QMI_TYPE_Q3_K, 108 }, { QMI_TYPE_IQ3_S, 0 }, { QMI_TYPE_TQ1_0, 52 },
                                                            { QMI_TYPE_TQ2_0, 64 } };
    for (int t = 0; t < 4; t++) {
        scene s = scene_new(converted[t].type, 256, 0x10000);
        for (int64_t row = 0; row < s.rows; row++) {
            s.raw[row * s.row_bytes + converted[t].at] = (uint8_t)row;
            s.raw[row * s.row_bytes + converted[t].at + 1] = (uint8_t)(row >> 8);
        }
        reorder(&s, 0, s.rows);
        for (int64_t row = 0; row < s.rows; row++)
            check_row(&s, row);
        scene_free(&s);
    }
}

static void test_types_on_the_card(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof card_types / sizeof *card_types; i++)
        assert_int_equal(qmi_cuda_type(card_types[i].type), card_types[i].type);
    assert_int_equal(qmi_cuda_type(QMI_TYPE_Q3_K), QMI_TYPE_Q6_K);
    assert_int_equal(qmi_cuda_type(QMI_TYPE_IQ3_S), QMI_TYPE_Q6_K);
    assert_int_equal(qmi_cuda_type(QMI_TYPE_TQ1_0), QMI_TYPE_Q4_0);
    assert_int_equal(qmi_cuda_type(QMI_TYPE_TQ2_0), QMI_TYPE_Q4_0);
    assert_int_equal(qmi_cuda_type(QMI_TYPE_MXFP4), QMI_TYPE_BF16);
    assert_int_equal(qmi_cuda_type(QMI_TYPE_Q2_K), QMI_TYPE_F32);
    assert_int_equal(qmi_cuda_type(QMI_TYPE_I32), QMI_TYPE_COUNT);
    assert_int_equal(qmi_cuda_type(QMI_TYPE_COUNT), QMI_TYPE_COUNT);
    assert_int_equal(qmi_cuda_type(4), QMI_TYPE_COUNT); /* an id without a format */
}

static void test_planes_are_aligned_and_do_not_overlap(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof card_types / sizeof *card_types; i++) {
        const card_type *card = &card_types[i];
        const int64_t columns = 5 * 256, rows = 3;
        qmi_cuda_planes planes;
        int64_t end = 0;
        qmi_cuda_planes_of(card->type, columns, rows, &planes);
        for (int p = 0; p < 4; p++) {
            const int64_t bytes = card->bytes[p][1] ? 40 * rows * card->bytes[p][0] / card->bytes[p][1] : 0;
            assert_int_equal(planes.offset[p] % QMI_CUDA_PLANE_ALIGN, 0);
            assert_true(planes.offset[p] >= end);
            assert_true(planes.offset[p] < end + QMI_CUDA_PLANE_ALIGN);
            assert_int_equal(qmi_cuda_plane_bytes(card->type, p, columns, rows), bytes);
            end = planes.offset[p] + bytes;
        }
        assert_true(planes.bytes >= end && planes.bytes < end + QMI_CUDA_PLANE_ALIGN);
        assert_int_equal(planes.bytes % QMI_CUDA_PLANE_ALIGN, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type_keeps_every_value),
        cmocka_unit_test(test_rows_of_few_blocks),
        cmocka_unit_test(test_odd_columns_are_filled_with_zeros),
        cmocka_unit_test(test_pieces_begin_at_any_row),
        cmocka_unit_test(test_mxfp4_whole_range),
        cmocka_unit_test(test_every_scale_survives_conversion),
        cmocka_unit_test(test_types_on_the_card),
        cmocka_unit_test(test_planes_are_aligned_and_do_not_overlap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

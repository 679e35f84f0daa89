/* Number formats: raw blocks unpack bit for bit to what the formats' reference package gives, and half precision is exact. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "base/os.h"
#include "file/gguf.h"
#include "quant/quant.h"

static const qmi_alloc alloc = { 0 };

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Equal bits, or both not a number: the reference does not define a NaN's payload. */
static bool same(float a, float b)
{
    return bits_of(a) == bits_of(b) || (isnan(a) && isnan(b));
}

/* Unpacks one tensor row by row and compares with NAME.float. */
static void check_tensor(const qmi_gguf *g, const qmi_gguf_tensor *raw)
{
    char name[80], upper[80];
    const qmi_quant_format *format = qmi_quant_format_of(raw->type);
    snprintf(name, sizeof name, "%.*s.float", (int)raw->name.length, raw->name.data);
    const qmi_gguf_tensor *floats = qmi_gguf_find_tensor(g, name);
    assert_non_null(floats);
    for (int64_t i = 0; i <= raw->name.length; i++)
        upper[i] = i < raw->name.length ? (char)toupper((unsigned char)raw->name.data[i]) : 0;
    assert_string_equal(format->name, upper); /* the files call each tensor as its format */
    const int64_t columns = raw->dimensions[0], rows = raw->dimensions[1], row_bytes = qmi_quant_row_bytes(raw->type, columns);
    assert_int_equal(row_bytes * rows, raw->bytes);
    float *to = malloc((size_t)columns * sizeof *to), expected;
    for (int64_t row = 0; row < rows; row++) {
        format->unpack(raw->data + row * row_bytes, to, columns / format->block);
        for (int64_t i = 0; i < columns; i++) {
            memcpy(&expected, floats->data + (row * columns + i) * 4, 4);
            if (!same(to[i], expected))
                fail_msg("%s row %lld value %lld: %.9g, expected %.9g", upper, (long long)row, (long long)i, to[i], expected);
        }
    }
    free(to);
}

static void check_file(const char *file, int formats)
{
    char path[1024];
    qmi_os_map map;
    qmi_gguf g;
    int seen = 0;
    snprintf(path, sizeof path, "%s/%s", getenv("TEST_DATA"), file);
    assert_int_equal(qmi_os_map_open(path, &map), QM_OK);
    assert_int_equal(qmi_gguf_read(map.data, map.size, &alloc, &g), QM_OK);
    for (int64_t i = 0; i < g.tensor_count; i++) {
        const qmi_gguf_tensor *tensor = &g.tensors[i];
        if (tensor->name.length > 6 && memcmp(tensor->name.data + tensor->name.length - 6, ".float", 6) == 0)
            continue;
        check_tensor(&g, tensor);
        seen++;
    }
    assert_int_equal(seen, formats);
    qmi_gguf_free(&g, &alloc);
    qmi_os_map_close(&map);
}

static void test_unpacks_as_recorded(void **state)
{
    (void)state;
    check_file("oracle/quants.expect.gguf", 22);
}

/* Every bit of every block random, scales that are not numbers included; two more formats. */
static void test_unpacks_random_bytes(void **state)
{
    (void)state;
    check_file("quants.random.gguf", 24);
}

static void test_f32_is_copied(void **state)
{
    (void)state;
    const float from[3] = { 1.5f, -0.0f, NAN };
    float to[3];
    qmi_quant_format_of(QMI_TYPE_F32)->unpack(from, to, 3);
    assert_memory_equal(from, to, sizeof to);
}

/* By the definition of IEEE 754 binary16, in double arithmetic. */
static double half_value(uint32_t half)
{
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const double size = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return half & 0x8000 ? -size : size;
}

static void test_every_half_to_float(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 0x10000; half++) {
        const float value = qmi_half_to_float((uint16_t)half);
        assert_int_equal(signbit(value) != 0, half >> 15);
        if ((half & 0x7C00) != 0x7C00)
            assert_true(value == half_value(half));
        else if (half & 1023)
            assert_true(isnan(value));
        else
            assert_true(isinf(value));
    }
}

static void test_float_to_half_round_trip(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 0x10000; half++) {
        const float value = qmi_half_to_float((uint16_t)half);
        const uint16_t back = qmi_float_to_half(value);
        if (isnan(value))
            assert_true((back & 0x7C00) == 0x7C00 && (back & 1023) && (back ^ half) >> 15 == 0);
        else
            assert_int_equal(back, half);
    }
}

/* Between each two neighbours: the midpoint goes to the even one, and floats just beside it to the nearer one. */
static void test_float_to_half_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 0x7BFF; half++) {
        const float middle = (float)((half_value(half) + half_value(half + 1)) / 2); /* 12 significant bits: exact */
        const uint32_t even = half & 1 ? half + 1 : half;
        assert_int_equal(qmi_float_to_half(middle), even);
        assert_int_equal(qmi_float_to_half(-middle), even | 0x8000);
        assert_int_equal(qmi_float_to_half(nextafterf(middle, -1)), half);
        assert_int_equal(qmi_float_to_half(nextafterf(middle, 1e9f)), half + 1);
    }
}

static void test_float_to_half_at_the_ends(void **state)
{
    (void)state;
    assert_int_equal(qmi_float_to_half(65504), 0x7BFF);
    assert_int_equal(qmi_float_to_half(nextafterf(65520, 0)), 0x7BFF);
    assert_int_equal(qmi_float_to_half(65520), 0x7C00); /* the midpoint to 2^16, and the largest half is odd */
    assert_int_equal(qmi_float_to_half(-1e30f), 0xFC00);
    assert_int_equal(qmi_float_to_half(-INFINITY), 0xFC00);
    assert_int_equal(qmi_float_to_half(1e-30f), 0);
    assert_int_equal(qmi_float_to_half(-1e-45f), 0x8000);
    const uint16_t nan = qmi_float_to_half(NAN);
    assert_true((nan & 0x7C00) == 0x7C00 && (nan & 0x3FF));
}

static void test_bfloat(void **state)
{
    (void)state;
    assert_true(qmi_bfloat_to_float(0x3FC0) == 1.5f);
    assert_true(qmi_bfloat_to_float(0xC2F7) == -123.5f);
    assert_true(isinf(qmi_bfloat_to_float(0x7F80)));
}

static void test_row_bytes(void **state)
{
    (void)state;
    assert_int_equal(qmi_quant_row_bytes(QMI_TYPE_Q4_K, 512), 288);
    assert_int_equal(qmi_quant_row_bytes(QMI_TYPE_Q8_0, 96), 102);
    assert_int_equal(qmi_quant_row_bytes(QMI_TYPE_F32, 3), 12);
    assert_int_equal(qmi_quant_row_bytes(QMI_TYPE_Q4_K, 0), 0);
    assert_int_equal(qmi_quant_row_bytes(QMI_TYPE_Q4_K, 128), -1);
    assert_int_equal(qmi_quant_row_bytes(QMI_TYPE_Q4_K, -256), -1);
    assert_int_equal(qmi_quant_row_bytes(QMI_TYPE_F64, INT64_MAX / 4), -1);
    assert_int_equal(qmi_quant_row_bytes(4, 32), -1); /* retired */
    assert_int_equal(qmi_quant_row_bytes(UINT32_MAX, 32), -1);
    assert_null(qmi_quant_format_of(QMI_TYPE_COUNT));
    assert_null(qmi_quant_format_of(5));
    assert_null(qmi_quant_format_of(QMI_TYPE_I32)->unpack);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unpacks_as_recorded),
        cmocka_unit_test(test_unpacks_random_bytes),
        cmocka_unit_test(test_f32_is_copied),
        cmocka_unit_test(test_every_half_to_float),
        cmocka_unit_test(test_float_to_half_round_trip),
        cmocka_unit_test(test_float_to_half_rounds_to_nearest_even),
        cmocka_unit_test(test_float_to_half_at_the_ends),
        cmocka_unit_test(test_bfloat),
        cmocka_unit_test(test_row_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

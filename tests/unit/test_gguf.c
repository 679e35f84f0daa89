/* GGUF headers: what is read is what was written, and whatever is damaged is refused and named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <float.h>
#include <math.h>
#include "base/error.h"
#include "base/os.h"
#include "file/gguf.h"
#include "gguf_writer.h"
#include "quant/quant.h"

static const qmi_alloc alloc = { 0 };

/* Reads from a copy of just this size, so that reading past the end is seen by the sanitizers. */
static int32_t read_copy(const uint8_t *bytes, size_t size, uint8_t **copy, qmi_gguf *out)
{
    *copy = malloc(size ? size : 1);
    if (size)
        memcpy(*copy, bytes, size);
    return qmi_gguf_read(*copy, (int64_t)size, &alloc, out);
}

/* One value of each type, an array of each kind, two tensors. */
static void put_sample(writer *w, uint32_t version)
{
    put_start(w, version, 2, 16);
    put_key(w, "a.u8", 0), put_u8(w, 200);
    put_key(w, "a.i8", 1), put_u8(w, 0xFE);
    put_key(w, "a.u16", 2), put_u16(w, 60000);
    put_key(w, "a.i16", 3), put_u16(w, 0xFFF0);
    put_u32_value(w, "a.u32", 4000000000u);
    put_key(w, "a.i32", 5), put_u32(w, (uint32_t)-7);
    put_key(w, "a.f32", 6), put_f32(w, 1.5f);
    put_key(w, "a.bool", 7), put_u8(w, 1);
    put_text_value(w, "a.text", "hello");
    put_key(w, "a.u64", 10), put_u64(w, UINT64_C(1) << 40);
    put_key(w, "a.i64", 11), put_u64(w, (uint64_t)-(INT64_C(1) << 40));
    put_key(w, "a.f64", 12), put_f64(w, -0.1);
    put_array(w, "b.ints", 3, 3), put_u16(w, 1), put_u16(w, 0xFFFF), put_u16(w, 300);
    put_array(w, "b.floats", 6, 2), put_f32(w, 0.25f), put_f32(w, -3);
    put_array(w, "b.texts", 8, 3), put_text(w, "x"), put_text(w, ""), put_text(w, "yz");
    put_u32_value(w, "general.alignment", 64);
    put_tensor(w, "second", QMI_TYPE_F32, 1, (uint64_t[]){ 3 }, 64);
    put_tensor(w, "first", QMI_TYPE_Q8_0, 2, (uint64_t[]){ 32, 1 }, 0);
    put_data(w, 64, 64 + 12);
}

static void test_reads_values(void **state)
{
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) {
        writer w = { 0 };
        uint8_t *copy;
        qmi_gguf g;
        put_sample(&w, version);
        assert_int_equal(read_copy(w.bytes, w.size, &copy, &g), QM_OK);
        assert_int_equal(g.version, version);
        assert_int_equal(g.value_count, 16);
        const struct { const char *key; int64_t value; } ints[] = {
            { "a.u8", 200 }, { "a.i8", -2 }, { "a.u16", 60000 }, { "a.i16", -16 }, { "a.u32", 4000000000 }, { "a.i32", -7 },
            { "a.bool", 1 }, { "a.u64", INT64_C(1) << 40 }, { "a.i64", -(INT64_C(1) << 40) } };
        for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
            int64_t value = 0;
            assert_int_equal(qmi_gguf_int(&g, ints[i].key, &value), 1);
            assert_int_equal(value, ints[i].value);
        }
        double number = 0;
        assert_int_equal(qmi_gguf_float(&g, "a.f32", &number), 1);
        assert_true(number == 1.5);
        assert_int_equal(qmi_gguf_float(&g, "a.f64", &number), 1);
        assert_true(number == -0.1);
        qmi_text text;
        assert_int_equal(qmi_gguf_text(&g, "a.text", &text), 1);
        assert_int_equal(text.length, 5);
        assert_memory_equal(text.data, "hello", 5);
        qmi_gguf_free(&g, &alloc);
        free(copy);
        writer_free(&w);
    }
}

static void test_reads_arrays_and_tensors(void **state)
{
    (void)state;
    writer w = { 0 };
    uint8_t *copy;
    qmi_gguf g;
    const qmi_gguf_value *array;
    put_sample(&w, 3);
    assert_int_equal(read_copy(w.bytes, w.size, &copy, &g), QM_OK);
    assert_int_equal(qmi_gguf_int_array(&g, "b.ints", &array), 1);
    assert_int_equal(array->count, 3);
    assert_int_equal(qmi_gguf_array_int(array, 1), -1);
    assert_int_equal(qmi_gguf_array_int(array, 2), 300);
    assert_true(qmi_gguf_array_float(array, 2) == 0);
    assert_int_equal(qmi_gguf_float_array(&g, "b.floats", &array), 1);
    assert_true(qmi_gguf_array_float(array, 0) == 0.25 && qmi_gguf_array_float(array, 1) == -3);
    assert_int_equal(qmi_gguf_array_int(array, 1), 0);
    assert_int_equal(qmi_gguf_text_array(&g, "b.texts", &array), 1);
    const uint8_t *cursor = array->data;
    const char *expected[] = { "x", "", "yz" };
    for (int i = 0; i < 3; i++) {
        const qmi_text text = qmi_gguf_array_next_text(&cursor);
        assert_int_equal(text.length, strlen(expected[i]));
        assert_memory_equal(text.data, expected[i], strlen(expected[i]));
    }
    const qmi_gguf_tensor *first = qmi_gguf_find_tensor(&g, "first"), *second = qmi_gguf_find_tensor(&g, "second");
    assert_non_null(first);
    assert_non_null(second);
    assert_null(qmi_gguf_find_tensor(&g, "firs"));
    assert_null(qmi_gguf_find_tensor(&g, "first1"));
    assert_ptr_equal(first->data, copy + g.header_bytes);
    assert_ptr_equal(second->data, first->data + 64);
    assert_int_equal(g.header_bytes % 64, 0);
    assert_int_equal(first->bytes, 34);
    assert_int_equal(second->bytes, 12);
    assert_int_equal(second->data[3], 67);
    assert_int_equal(first->dimension_count, 2);
    assert_int_equal(second->dimensions[0], 3);
    assert_int_equal(second->dimensions[3], 1);
    qmi_gguf_free(&g, &alloc);
    free(copy);
    writer_free(&w);
}

static void test_access_checks_types(void **state)
{
    (void)state;
    writer w = { 0 };
    qmi_gguf g;
    int64_t number = 77;
    double real = 7;
    qmi_text text;
    const qmi_gguf_value *array = NULL;
    put_start(&w, 3, 0, 5);
    put_key(&w, "big", 10), put_u64(&w, UINT64_MAX);
    put_key(&w, "nan", 6), put_f32(&w, NAN);
    put_key(&w, "inf", 12), put_f64(&w, INFINITY);
    put_text_value(&w, "text", "t");
    put_array(&w, "array", 8, 0);
    assert_int_equal(qmi_gguf_read(w.bytes, (int64_t)w.size, &alloc, &g), QM_OK);
    assert_int_equal(qmi_gguf_int(&g, "big", &number), QM_ERROR_FORMAT);
    assert_non_null(strstr(qmi_error_text(), "18446744073709551615"));
    assert_int_equal(qmi_gguf_int(&g, "nan", &number), QM_ERROR_FORMAT);
    assert_int_equal(qmi_gguf_int(&g, "text", &number), QM_ERROR_FORMAT);
    assert_int_equal(qmi_gguf_int(&g, "absent", &number), 0);
    assert_int_equal(number, 77);
    assert_int_equal(qmi_gguf_float(&g, "nan", &real), QM_ERROR_FORMAT);
    assert_non_null(strstr(qmi_error_text(), "finite"));
    assert_int_equal(qmi_gguf_float(&g, "inf", &real), QM_ERROR_FORMAT);
    assert_int_equal(qmi_gguf_float(&g, "big", &real), QM_ERROR_FORMAT);
    assert_int_equal(qmi_gguf_text(&g, "array", &text), QM_ERROR_FORMAT);
    assert_int_equal(qmi_gguf_text(&g, "big", &text), QM_ERROR_FORMAT);
    assert_int_equal(qmi_gguf_int_array(&g, "array", &array), QM_ERROR_FORMAT);
    assert_non_null(strstr(qmi_error_text(), "array of integers"));
    assert_int_equal(qmi_gguf_text_array(&g, "text", &array), QM_ERROR_FORMAT);
    assert_int_equal(qmi_gguf_float_array(&g, "absent", &array), 0);
    assert_null(array);
    qmi_gguf_free(&g, &alloc);
    writer_free(&w);
}

/* Whatever was accepted must be consistent: every value and byte it points to can be read. Returns a sum of them. */
static uint64_t walk(const qmi_gguf *g)
{
    uint64_t sum = 0;
    for (int64_t i = 0; i < g->value_count; i++) {
        const qmi_gguf_value *value = &g->values[i];
        const uint32_t type = value->type == QMI_GGUF_ARRAY ? value->element_type : value->type;
        const uint8_t *cursor = value->data;
        for (int64_t j = 0; j < value->count; j++)
            if (type == QMI_GGUF_STRING) {
                const qmi_text text = qmi_gguf_array_next_text(&cursor);
                for (int64_t k = 0; k < text.length; k++)
                    sum += (uint8_t)text.data[k];
            } else {
                qmi_gguf_value one = *value;
                one.element_type = type;
                sum += (uint64_t)qmi_gguf_array_int(&one, j) + (qmi_gguf_array_float(&one, j) > 0);
            }
        for (int64_t k = 0; k < value->key.length; k++)
            sum += (uint8_t)value->key.data[k];
    }
    for (int64_t i = 0; i < g->tensor_count; i++) {
        assert_int_equal((uintptr_t)g->tensors[i].data % 8, 0);
        assert_non_null(qmi_quant_format_of(g->tensors[i].type));
        for (int64_t k = 0; k < g->tensors[i].bytes; k++)
            sum += g->tensors[i].data[k];
    }
    return sum;
}

static void test_truncation_at_each_length(void **state)
{
    (void)state;
    writer w = { 0 };
    put_sample(&w, 3);
    for (size_t length = 0; length < w.size; length++) {
        uint8_t *copy;
        qmi_gguf g;
        qmi_fail(0, "%s", "");
        assert_int_equal(read_copy(w.bytes, length, &copy, &g), QM_ERROR_FORMAT);
        assert_true(strlen(qmi_error_text()) > 20);
        assert_null(g.values);
        assert_null(g.tensors);
        free(copy);
    }
    writer_free(&w);
}

static void test_flip_of_each_header_bit(void **state)
{
    (void)state;
    writer w = { 0 };
    int accepted = 0, refused = 0;
    put_sample(&w, 3);
    for (size_t bit = 0; bit < 8 * (w.size - 76); bit++) {
        uint8_t *copy;
        qmi_gguf g;
        qmi_fail(0, "%s", "");
        w.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        const int32_t status = read_copy(w.bytes, w.size, &copy, &g);
        w.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (status == QM_OK) {
            walk(&g);
            accepted++;
        } else {
            assert_true(status == QM_ERROR_FORMAT || status == QM_ERROR_UNSUPPORTED);
            assert_true(strlen(qmi_error_text()) > 20);
            refused++;
        }
        qmi_gguf_free(&g, &alloc);
        free(copy);
    }
    assert_true(accepted > 0 && refused > 0);
    writer_free(&w);
}

/* ---- one crafted file for each way to lie ---- */

static void bad_magic(writer *w) { put_sample(w, 3), w->bytes[0] = 'X'; }
static void version_1(writer *w) { put_sample(w, 1); }
static void version_4(writer *w) { put_sample(w, 4); }
static void big_endian(writer *w) { put_sample(w, 0x03000000); }
static void tensor_count(writer *w) { put_sample(w, 3), memset(w->bytes + 8, 0xFF, 8); }
static void value_count(writer *w) { put_sample(w, 3), memset(w->bytes + 16, 0xFF, 8); }
static void value_count_some_more(writer *w) { put_start(w, 3, 0, 2), put_u32_value(w, "k", 1), put_data(w, 32, 2); }

static void key_length_wraps(writer *w)
{
    put_start(w, 3, 0, 1), put_u64(w, UINT64_MAX - 8), put_data(w, 32, 64);
}

static void empty_key(writer *w) { put_start(w, 3, 0, 1), put_u32_value(w, "", 1), put_data(w, 32, 64); }

static void text_length_negative(writer *w)
{
    put_start(w, 3, 0, 1), put_key(w, "k", 8), put_u64(w, UINT64_MAX), put_data(w, 32, 64);
}

static void array_count_wraps(writer *w)
{
    put_start(w, 3, 0, 1), put_array(w, "k", 10, (UINT64_C(1) << 61) + 1), put_data(w, 32, 64);
}

static void array_of_texts_count(writer *w)
{
    put_start(w, 3, 0, 1), put_array(w, "k", 8, UINT64_C(1) << 32), put_data(w, 32, 64);
}

static void array_of_texts_length(writer *w)
{
    put_start(w, 3, 0, 1), put_array(w, "k", 8, 2), put_text(w, "x"), put_u64(w, 1 << 30), put_data(w, 32, 64);
}

static void array_of_arrays(writer *w) { put_start(w, 3, 0, 1), put_array(w, "k", 9, 1), put_data(w, 32, 64); }
static void value_type(writer *w) { put_start(w, 3, 0, 1), put_key(w, "k", 13), put_data(w, 32, 64); }
static void element_type(writer *w) { put_start(w, 3, 0, 1), put_array(w, "k", 99, 1), put_data(w, 32, 64); }
static void bool_two(writer *w) { put_start(w, 3, 0, 1), put_key(w, "k", 7), put_u8(w, 2), put_data(w, 32, 64); }

static void key_twice(writer *w)
{
    put_start(w, 3, 0, 2), put_u32_value(w, "k", 1), put_u32_value(w, "k", 1), put_data(w, 32, 64);
}

static void alignment(writer *w, uint32_t value)
{
    put_start(w, 3, 1, 1), put_u32_value(w, "general.alignment", value);
    put_tensor(w, "t", QMI_TYPE_F32, 1, (uint64_t[]){ 4 }, 0), put_data(w, 32, 64);
}

static void alignment_0(writer *w) { alignment(w, 0); }
static void alignment_48(writer *w) { alignment(w, 48); }
static void alignment_4(writer *w) { alignment(w, 4); }
static void alignment_wraps(writer *w) { alignment(w, 0x80000000u); }

static void alignment_type(writer *w)
{
    put_start(w, 3, 0, 1), put_text_value(w, "general.alignment", "32"), put_data(w, 32, 64);
}

static void tensor(writer *w, uint32_t type, int dimensions, const uint64_t *sizes, uint64_t offset)
{
    put_start(w, 3, 1, 0), put_tensor(w, "the.weight", type, dimensions, sizes, offset), put_data(w, 32, 256);
}

static void no_dimensions(writer *w) { tensor(w, 0, 0, NULL, 0); }
static void five_dimensions(writer *w) { tensor(w, 0, 5, (uint64_t[]){ 1, 1, 1, 1, 1 }, 0); }
static void many_dimensions(writer *w) { put_start(w, 3, 1, 0), put_text(w, "t"), put_u32(w, UINT32_MAX), put_data(w, 32, 256); }
static void dimension_0(writer *w) { tensor(w, 0, 2, (uint64_t[]){ 4, 0 }, 0); }
static void dimension_negative(writer *w) { tensor(w, 0, 2, (uint64_t[]){ 4, UINT64_MAX }, 0); }
static void dimension_over_int(writer *w) { tensor(w, QMI_TYPE_I8, 1, (uint64_t[]){ UINT64_C(1) << 31 }, 0); }
static void dimensions_wrap(writer *w) { tensor(w, 0, 4, (uint64_t[]){ 1 << 30, 1 << 30, 1 << 30, 4 }, 0); }

/* 2^66 bytes: 0 in 64 bits */
static void dimensions_wrap_to_small(writer *w)
{
    tensor(w, 0, 3, (uint64_t[]){ 16, 1 << 30, 1 << 30 }, 0);
}

static void rows_wrap(writer *w) { tensor(w, 0, 4, (uint64_t[]){ 1, 1 << 30, 1 << 30, 1 << 30 }, 0); }
static void row_of_parts(writer *w) { tensor(w, QMI_TYPE_Q4_K, 1, (uint64_t[]){ 128 }, 0); }
static void unknown_type(writer *w) { tensor(w, 99, 1, (uint64_t[]){ 32 }, 0); }
static void retired_type(writer *w) { tensor(w, 4, 1, (uint64_t[]){ 32 }, 0); }
static void offset_unaligned(writer *w) { tensor(w, 0, 1, (uint64_t[]){ 4 }, 4); }
static void offset_past_end(writer *w) { tensor(w, 0, 1, (uint64_t[]){ 4 }, 1 << 20); }
static void offset_wraps(writer *w) { tensor(w, 0, 1, (uint64_t[]){ 4 }, UINT64_MAX - 31); }
static void end_past_end(writer *w) { tensor(w, 0, 1, (uint64_t[]){ 65 }, 0); }
static void last_byte_missing(writer *w) { tensor(w, QMI_TYPE_I8, 1, (uint64_t[]){ 257 }, 0); }

/* Their sizes, 2^63 each, add up to 2^64: nothing, in 64 bits. */
static void sum_of_sizes_wraps(writer *w)
{
    put_start(w, 3, 2, 0);
    put_tensor(w, "a", QMI_TYPE_F32, 3, (uint64_t[]){ 1 << 30, 1 << 30, 2 }, 0);
    put_tensor(w, "b", QMI_TYPE_F32, 3, (uint64_t[]){ 1 << 30, 1 << 30, 2 }, 64);
    put_data(w, 32, 256);
}

static void tensors_overlap(writer *w)
{
    put_start(w, 3, 2, 0);
    put_tensor(w, "b", QMI_TYPE_F32, 1, (uint64_t[]){ 8 }, 32);
    put_tensor(w, "a", QMI_TYPE_F32, 1, (uint64_t[]){ 9 }, 0);
    put_data(w, 32, 256);
}

static void tensors_same_place(writer *w)
{
    put_start(w, 3, 2, 0);
    put_tensor(w, "a", QMI_TYPE_F32, 1, (uint64_t[]){ 8 }, 0);
    put_tensor(w, "b", QMI_TYPE_F32, 1, (uint64_t[]){ 8 }, 0);
    put_data(w, 32, 256);
}

static void tensor_twice(writer *w)
{
    put_start(w, 3, 2, 0);
    put_tensor(w, "a", QMI_TYPE_F32, 1, (uint64_t[]){ 8 }, 0);
    put_tensor(w, "a", QMI_TYPE_F32, 1, (uint64_t[]){ 8 }, 32);
    put_data(w, 32, 256);
}

static void name_too_long(writer *w)
{
    put_start(w, 3, 1, 0);
    put_tensor(w, "0123456789012345678901234567890123456789012345678901234567890123456789", 0, 1, (uint64_t[]){ 8 }, 0);
    put_data(w, 32, 256);
}

static void name_with_escape(writer *w) /* must not reach a terminal as it is */
{
    put_start(w, 3, 1, 0), put_tensor(w, "\033[2Jx", 99, 1, (uint64_t[]){ 8 }, 0), put_data(w, 32, 256);
}

static void test_refuses(void **state)
{
    static const struct { void (*build)(writer *); int32_t code; const char *words; } cases[] = {
        { bad_magic, QM_ERROR_FORMAT, "XGUF" },
        { version_1, QM_ERROR_UNSUPPORTED, "version 1" },
        { version_4, QM_ERROR_UNSUPPORTED, "version 4" },
        { big_endian, QM_ERROR_UNSUPPORTED, "big-endian" },
        { tensor_count, QM_ERROR_FORMAT, "number of tensors is 18446744073709551615" },
        { value_count, QM_ERROR_FORMAT, "number of metadata entries is 18446744073709551615" },
        { value_count_some_more, QM_ERROR_FORMAT, "metadata entry 2 of 2" },
        { key_length_wraps, QM_ERROR_FORMAT, "18446744073709551607" },
        { empty_key, QM_ERROR_FORMAT, "length 0" },
        { text_length_negative, QM_ERROR_FORMAT, "metadata key k" },
        { array_count_wraps, QM_ERROR_FORMAT, "2305843009213693953 elements" },
        { array_of_texts_count, QM_ERROR_FORMAT, "4294967296 elements" },
        { array_of_texts_length, QM_ERROR_FORMAT, "needs 1073741824 bytes" },
        { array_of_arrays, QM_ERROR_UNSUPPORTED, "array of arrays" },
        { value_type, QM_ERROR_FORMAT, "value type 13" },
        { element_type, QM_ERROR_FORMAT, "value type 99" },
        { bool_two, QM_ERROR_FORMAT, "bool" },
        { key_twice, QM_ERROR_FORMAT, "key k appears twice" },
        { alignment_0, QM_ERROR_FORMAT, "general.alignment is 0" },
        { alignment_48, QM_ERROR_FORMAT, "general.alignment is 48" },
        { alignment_4, QM_ERROR_FORMAT, "general.alignment is 4" },
        { alignment_wraps, QM_ERROR_FORMAT, "general.alignment is 2147483648" },
        { alignment_type, QM_ERROR_FORMAT, "general.alignment has value type 8" },
        { no_dimensions, QM_ERROR_FORMAT, "the.weight has 0 dimensions" },
        { five_dimensions, QM_ERROR_FORMAT, "the.weight has 5 dimensions" },
        { many_dimensions, QM_ERROR_FORMAT, "4294967295 dimensions" },
        { dimension_0, QM_ERROR_FORMAT, "dimension 1 is 0" },
        { dimension_negative, QM_ERROR_FORMAT, "dimension 1 is 18446744073709551615" },
        { dimension_over_int, QM_ERROR_FORMAT, "dimension 0 is 2147483648" },
        { dimensions_wrap, QM_ERROR_FORMAT, "the.weight: " },
        { dimensions_wrap_to_small, QM_ERROR_FORMAT, "size in bytes" },
        { rows_wrap, QM_ERROR_FORMAT, "product" },
        { row_of_parts, QM_ERROR_FORMAT, "Q4_K's block of 256" },
        { unknown_type, QM_ERROR_UNSUPPORTED, "type 99" },
        { retired_type, QM_ERROR_UNSUPPORTED, "type 4" },
        { offset_unaligned, QM_ERROR_FORMAT, "offset 4 " },
        { offset_past_end, QM_ERROR_FORMAT, "offset 1048576 is past" },
        { offset_wraps, QM_ERROR_FORMAT, "offset 18446744073709551584" },
        { end_past_end, QM_ERROR_FORMAT, "260 bytes" },
        { last_byte_missing, QM_ERROR_FORMAT, "257 bytes" },
        { sum_of_sizes_wraps, QM_ERROR_FORMAT, "tensor a: " },
        { tensors_overlap, QM_ERROR_FORMAT, "tensors a and b overlap" },
        { tensors_same_place, QM_ERROR_FORMAT, "overlap" },
        { tensor_twice, QM_ERROR_FORMAT, "tensor a appears twice" },
        { name_too_long, QM_ERROR_FORMAT, "length 70" },
        { name_with_escape, QM_ERROR_UNSUPPORTED, "?[2Jx" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        writer w = { 0 };
        uint8_t *copy;
        qmi_gguf g;
        cases[i].build(&w);
        const int32_t status = read_copy(w.bytes, w.size, &copy, &g);
        if (status != cases[i].code || !strstr(qmi_error_text(), cases[i].words))
            fail_msg("case %zu (%s): code %d, message \"%s\"", i, cases[i].words, status, qmi_error_text());
        free(copy);
        writer_free(&w);
    }
}

/* Counts that the file's size allows, but no model has: else a large file of nothing could ask for any amount of memory. */
static void test_refuses_more_than_any_model_has(void **state)
{
    (void)state;
    enum { SIZE = 64 << 20 };
    qmi_gguf g;
    uint8_t *file = qmi_os_pages_new(SIZE);
    assert_non_null(file);
    for (int i = 0; i < 2; i++) { /* tensors, metadata entries */
        const uint64_t counts[2] = { i == 0 ? QMI_GGUF_COUNT_MAX + 1 : 0, i == 1 ? QMI_GGUF_COUNT_MAX + 1 : 0 };
        memcpy(file, "GGUF\3\0\0", 8);
        memcpy(file + 8, counts, 16);
        assert_int_equal(qmi_gguf_read(file, SIZE, &alloc, &g), QM_ERROR_FORMAT);
        assert_non_null(strstr(qmi_error_text(), "is 1048577"));
    }
    qmi_os_pages_free(file, SIZE);
}

/* The bound that a tensor may just reach, next to the one that end_past_end crosses. */
static void test_accepts_a_tensor_up_to_the_end(void **state)
{
    (void)state;
    writer w = { 0 };
    uint8_t *copy;
    qmi_gguf g;
    tensor(&w, 0, 1, (uint64_t[]){ 64 }, 0);
    assert_int_equal(read_copy(w.bytes, w.size, &copy, &g), QM_OK);
    assert_ptr_equal(g.tensors[0].data + g.tensors[0].bytes, copy + w.size);
    qmi_gguf_free(&g, &alloc);
    free(copy);
    writer_free(&w);
}

/* A header of values alone need not be padded, and may be empty. */
static void test_accepts_no_tensors(void **state)
{
    (void)state;
    writer w = { 0 };
    qmi_gguf g;
    put_start(&w, 3, 0, 1);
    put_u32_value(&w, "k", 5);
    assert_int_equal(qmi_gguf_read(w.bytes, (int64_t)w.size, &alloc, &g), QM_OK);
    assert_int_equal(g.header_bytes, w.size);
    qmi_gguf_free(&g, &alloc);
    put_start(&w, 3, 0, 0);
    assert_int_equal(qmi_gguf_read(w.bytes, (int64_t)w.size, &alloc, &g), QM_OK);
    assert_null(qmi_gguf_find(&g, "k"));
    qmi_gguf_free(&g, &alloc);
    qmi_gguf_free(&g, &alloc); /* again: nothing */
    writer_free(&w);
}

static void test_finds_each_of_many(void **state)
{
    enum { COUNT = 1500 };
    (void)state;
    writer w = { 0 };
    qmi_gguf g;
    char name[32];
    int64_t value;
    put_start(&w, 3, COUNT, COUNT);
    for (uint32_t i = 0; i < COUNT; i++) { /* 7 and 1500 have no common factor: all numbers, in a jumble */
        snprintf(name, sizeof name, "k%u", i * 7 % COUNT);
        put_u32_value(&w, name, i * 7 % COUNT);
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "t%u", i * 7 % COUNT);
        put_tensor(&w, name, QMI_TYPE_F32, 1, (uint64_t[]){ 1 }, 32 * (uint64_t)i);
    }
    put_data(&w, 32, 32 * COUNT);
    assert_int_equal(qmi_gguf_read(w.bytes, (int64_t)w.size, &alloc, &g), QM_OK);
    for (uint32_t i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "k%u", i * 7 % COUNT);
        assert_int_equal(qmi_gguf_int(&g, name, &value), 1);
        assert_int_equal(value, i * 7 % COUNT);
        snprintf(name, sizeof name, "t%u", i * 7 % COUNT);
        assert_ptr_equal(qmi_gguf_find_tensor(&g, name), &g.tensors[i]);
    }
    qmi_gguf_free(&g, &alloc);
    writer_free(&w);
}

/* Facts of this file as another reader (the Python package gguf) gives them. */
static void test_reads_a_real_file(void **state)
{
    (void)state;
    char path[1024];
    qmi_os_map map;
    qmi_gguf g;
    int64_t number = 0;
    double real = 0;
    qmi_text text;
    const qmi_gguf_value *array;
    snprintf(path, sizeof path, "%s/oracle/qwen35moe.gguf", getenv("TEST_DATA"));
    assert_int_equal(qmi_os_map_open(path, &map), QM_OK);
    assert_int_equal(qmi_gguf_read(map.data, map.size, &alloc, &g), QM_OK);
    assert_int_equal(g.tensor_count, 76);
    assert_int_equal(g.value_count, 34);
    assert_int_equal(qmi_gguf_text(&g, "general.architecture", &text), 1);
    assert_memory_equal(text.data, "qwen35moe", 9);
    assert_int_equal(qmi_gguf_int(&g, "qwen35moe.ssm.inner_size", &number), 1);
    assert_int_equal(number, 512);
    assert_int_equal(qmi_gguf_int(&g, "tokenizer.ggml.add_bos_token", &number), 1);
    assert_int_equal(number, 0);
    assert_int_equal(qmi_gguf_float(&g, "qwen35moe.rope.freq_base", &real), 1);
    assert_true(real == 1e7);
    assert_int_equal(qmi_gguf_int_array(&g, "qwen35moe.rope.dimension_sections", &array), 1);
    assert_int_equal(array->count, 4);
    assert_int_equal(qmi_gguf_array_int(array, 2), 10);
    const qmi_gguf_tensor *t = qmi_gguf_find_tensor(&g, "blk.0.attn_qkv.weight");
    assert_non_null(t);
    assert_int_equal(t->type, QMI_TYPE_F16);
    assert_int_equal(t->dimensions[0], 128);
    assert_int_equal(t->dimensions[1], 1024);
    assert_int_equal(t->data - map.data, 210144);
    qmi_gguf_free(&g, &alloc);
    qmi_os_map_close(&map);
}

static void test_printable(void **state)
{
    (void)state;
    char out[QMI_GGUF_PRINTABLE], longer[100];
    assert_string_equal(qmi_gguf_printable((qmi_text){ "a\n\xC3\xA9\0z", 6 }, out), "a????z");
    assert_string_equal(qmi_gguf_printable((qmi_text){ "", 0 }, out), "");
    memset(longer, 'x', sizeof longer);
    assert_int_equal(strlen(qmi_gguf_printable((qmi_text){ longer, 64 }, out)), 64);
    assert_int_equal(strlen(qmi_gguf_printable((qmi_text){ longer, 65 }, out)), 64);
    assert_string_equal(out + 61, "...");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_values),
        cmocka_unit_test(test_reads_arrays_and_tensors),
        cmocka_unit_test(test_access_checks_types),
        cmocka_unit_test(test_truncation_at_each_length),
        cmocka_unit_test(test_flip_of_each_header_bit),
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_refuses_more_than_any_model_has),
        cmocka_unit_test(test_accepts_a_tensor_up_to_the_end),
        cmocka_unit_test(test_accepts_no_tensors),
        cmocka_unit_test(test_finds_each_of_many),
        cmocka_unit_test(test_reads_a_real_file),
        cmocka_unit_test(test_printable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

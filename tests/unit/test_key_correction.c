/* The correction of 2-bit keys: what is fitted has the properties that key_correction.h says, and its file is refused whenever
 * anything about it is wrong. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/error.h"
#include "memory/key_correction.h"

#define N 4
#define HEADS 2

static const qmi_alloc alloc;
static const qmi_hparams hparams = { .attention_layers = 1, .kv_heads = HEADS, .head_size = N };
static char path[64];

/* K and Q of each head: sums of squares of vectors whose numbers differ in size and depend on each other. */
static void make_moments(double *moments)
{
    uint32_t random = 7;
    memset(moments, 0, HEADS * 2 * N * N * sizeof *moments);
    for (int m = 0; m < HEADS * 2; m++)
        for (int sample = 0; sample < 50; sample++) {
            double x[N];
            for (int i = 0; i < N; i++) {
                random = random * 1664525 + 1013904223; /* Numerical Recipes, chapter 7 */
                x[i] = ((double)(random >> 8) / (1 << 23) - 1) * (1 + (m % 2 ? i : N - i)) + (i > 0 ? 1.5 * x[i - 1] : 0);
            }
            for (int i = 0; i < N * N; i++)
                moments[m * N * N + i] += x[i / N] * x[i % N];
        }
}

static void write_correction(void)
{
    static double moments[HEADS * 2 * N * N];
    const qmi_key_head head = qmi_key_head_of(&hparams, 77);
    make_moments(moments);
    if (qmi_key_correction_write(path, &head, moments, &alloc) < 0)
        fail_msg("%s", qmi_error_text());
}

/* Entry c of the diagonal of A M A^T. */
static double diagonal(const float *a, const double *m, int c)
{
    double sum = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            sum += a[c * N + i] * m[i * N + j] * (double)a[c * N + j];
    return sum;
}

static void fits(void **state)
{
    (void)state;
    static double moments[HEADS * 2 * N * N];
    const qmi_key_head head = qmi_key_head_of(&hparams, 77);
    float *floats = NULL;
    make_moments(moments);
    write_correction();
    assert_int_equal(qmi_key_floats(&head), HEADS * 2 * N * N);
    assert_int_equal(qmi_key_correction_read(path, &head, &alloc, &floats), QM_OK);
    for (int h = 0; h < HEADS; h++) {
        const float *t = floats + 2 * h * N * N, *inverse = t + N * N;
        const double *k = moments + 2 * h * N * N, *q = k + N * N;
        double trace = 0, fitted = 0, plain = 0, loss = 0;
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) { /* T (T^-T)^T = 1 */
                double sum = 0;
                for (int x = 0; x < N; x++)
                    sum += (double)t[i * N + x] * inverse[j * N + x];
                assert_true(fabs(sum - (i == j)) < 1e-5);
            }
        for (int c = 0; c < N; c++) {
            trace += k[c * N + c];
            fitted += diagonal(t, k, c);
            plain += k[c * N + c] * q[c * N + c];
            loss += diagonal(t, k, c) * diagonal(inverse, q, c);
        }
        assert_true(fabs(fitted / trace - 1) < 0.01);
        for (int c = 0; c < N; c++) { /* evenly spread, but for the ridge */
            assert_true(fabs(diagonal(t, k, c) * N / trace - 1) < 0.02);
            assert_true(fabs(diagonal(inverse, q, c) / diagonal(inverse, q, 0) - 1) < 0.02);
        }
        assert_true(loss < 0.8 * plain);
    }
    qmi_delete(&alloc, floats);
    assert_int_equal(unlink(path), 0);
}

static void refuses_moments(void **state)
{
    (void)state;
    static double moments[HEADS * 2 * N * N];
    const qmi_key_head head = qmi_key_head_of(&hparams, 77);
    assert_int_equal(qmi_key_correction_write(path, &head, moments, &alloc), QM_ERROR_STATE);
    assert_non_null(strstr(qmi_error_text(), "nothing to fit"));
    make_moments(moments);
    moments[0] = NAN;
    assert_int_equal(qmi_key_correction_write(path, &head, moments, &alloc), QM_ERROR_STATE);
    assert_int_equal(access(path, F_OK), -1);
}

static void put_bytes(const uint8_t *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    fclose(file);
}

static void expect_refused(const qmi_key_head *head)
{
    float *floats = NULL;
    int32_t code = qmi_key_correction_read(path, head, &alloc, &floats);
    assert_true(code == QM_ERROR_FORMAT || code == QM_ERROR_UNSUPPORTED);
    assert_null(floats);
    assert_non_null(strstr(qmi_error_text(), path));
}

/* A bit of each byte flipped, each length, another model, another shape. */
static void refuses_files(void **state)
{
    (void)state;
    static uint8_t bytes[32 + HEADS * 2 * N * N * 4 + 4 + 1];
    qmi_key_head head = qmi_key_head_of(&hparams, 77);
    size_t size = sizeof bytes - 1;
    write_correction();
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(bytes, 1, sizeof bytes, file), size);
    fclose(file);
    for (size_t i = 0; i < size; i++) {
        bytes[i] ^= (uint8_t)(1 << i % 8);
        put_bytes(bytes, size);
        expect_refused(&head);
        bytes[i] ^= (uint8_t)(1 << i % 8);
    }
    for (size_t length = 0; length <= sizeof bytes; length += length < 40 ? 1 : 37)
        if (length != size) {
            put_bytes(bytes, length);
            expect_refused(&head);
        }
    put_bytes(bytes, size);
    head.model = 78;
    expect_refused(&head);
    head.model = 77;
    head.layers = 2;
    expect_refused(&head);
    assert_int_equal(unlink(path), 0);
    float *floats = NULL;
    assert_int_equal(qmi_key_correction_read(path, &head, &alloc, &floats), QM_ERROR_FILE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fits),
        cmocka_unit_test(refuses_moments),
        cmocka_unit_test(refuses_files),
    };
    snprintf(path, sizeof path, "/tmp/qwenmoe-keys-%ld", (long)getpid());
    return cmocka_run_group_tests(tests, NULL, NULL);
}

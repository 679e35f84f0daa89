/* What decoding moves through the memory, against sums made by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "backend/traffic.h"
#include "quant/quant.h"

static qmi_matrix matrix(uint32_t type, int64_t columns, int64_t rows, int64_t count)
{
    return (qmi_matrix){ type, columns, rows, count, 1 };
}

static qmi_traffic of_one(qmi_op op)
{
    return qmi_traffic_of(&(qmi_program){ .ops = &op, .count = 1 });
}

static void expect(qmi_traffic t, int64_t step, int64_t experts, int64_t sequence, int64_t held)
{
    assert_int_equal(t.step, step);
    assert_int_equal(t.experts, experts);
    assert_int_equal(t.sequence, sequence);
    assert_int_equal(t.held, held);
}

static void test_matrices(void **state)
{
    (void)state;
    /* 64 floats of a norm; 3 rows of 64 halves; 2 rows of two Q8_0 blocks of 34 bytes */
    expect(of_one((qmi_op){ .kind = QMI_OP_PROJECT, .project = {
               .norm = { { 64, 1 }, 0 }, .count = 2,
               .matrix = { matrix(QMI_TYPE_F16, 64, 3, 1), matrix(QMI_TYPE_Q8_0, 64, 2, 1) } } }),
           4 * 64 + 3 * 128 + 2 * 68, 0, 0, 0);
    expect(of_one((qmi_op){ .kind = QMI_OP_GLU, .glu = {
               .gate = matrix(QMI_TYPE_F32, 8, 5, 1), .up = matrix(QMI_TYPE_F32, 8, 5, 1) } }),
           2 * 160, 0, 0, 0);
    expect(of_one((qmi_op){ .kind = QMI_OP_PROJECT_ADD, .project_add = { .matrix = matrix(QMI_TYPE_Q4_K, 256, 7, 1) } }),
           7 * 144, 0, 0, 0);
    expect(of_one((qmi_op){ .kind = QMI_OP_LOGITS, .logits = {
               .norm = { { 32, 1 }, 0 }, .output = matrix(QMI_TYPE_Q6_K, 256, 9, 1) } }),
           128 + 9 * 210, 0, 0, 0);
    expect(of_one((qmi_op){ .kind = QMI_OP_EMBED, .embed = { .table = matrix(QMI_TYPE_F32, 8, 1000, 1) } }), 0, 0, 0, 0);
}

static void test_experts(void **state)
{
    (void)state;
    qmi_op op = { .kind = QMI_OP_EXPERTS, .experts = {
        .top = 3, .gate = matrix(QMI_TYPE_F32, 8, 2, 16), .up = matrix(QMI_TYPE_F32, 8, 2, 16),
        .down = matrix(QMI_TYPE_F32, 2, 8, 16),
        .shared_gate = matrix(QMI_TYPE_F32, 8, 4, 1), .shared_up = matrix(QMI_TYPE_F32, 8, 4, 1),
        .shared_down = matrix(QMI_TYPE_F32, 4, 8, 1) } };
    expect(of_one(op), 3 * 128, 3 * 3 * 64, 0, 0);
    op.experts.shared_gate.data = op.experts.shared_up.data = op.experts.shared_down.data = 0;
    expect(of_one(op), 0, 3 * 3 * 64, 0, 0);
    expect(of_one((qmi_op){ .kind = QMI_OP_ROUTE, .route = { .router = matrix(QMI_TYPE_F32, 8, 16, 1),
                                                            .shared_gate = matrix(QMI_TYPE_F32, 8, 1, 1) } }), 17 * 32, 0, 0, 0);
}

static void test_layers(void **state)
{
    (void)state;
    /* for a token of a head: 64 halves, and two blocks of 32 codes of 4 bits with a half as scale */
    expect(of_one((qmi_op){ .kind = QMI_OP_ATTEND, .attend = {
               .heads = 8, .kv_heads = 2, .head_size = 64, .query_norm = { { 64, 1 }, 0 }, .key_type = QMI_KV_F16,
               .value_type = QMI_KV_Q4_0 } }),
           256, 0, 0, 2 * (128 + 2 * 18));
    /* S: 4 heads of 8 x 16; 3 columns of 2 * 2 * 8 + 4 * 16 channels; both read and written */
    expect(of_one((qmi_op){ .kind = QMI_OP_DELTA, .delta = {
               .key_heads = 2, .value_heads = 4, .key_size = 8, .value_size = 16, .taps = 4, .convolution = { 384, 1 } } }),
           4 * 384, 0, 2 * 4 * (4 * 8 * 16 + 3 * 96), 0);
}

static void test_sums(void **state)
{
    (void)state;
    qmi_op two[2] = { { .kind = QMI_OP_PROJECT_ADD, .project_add = { .matrix = matrix(QMI_TYPE_F32, 2, 2, 1) } } };
    two[1] = two[0];
    expect(qmi_traffic_of(&(qmi_program){ .ops = two, .count = 2 }), 32, 0, 0, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matrices),
        cmocka_unit_test(test_experts),
        cmocka_unit_test(test_layers),
        cmocka_unit_test(test_sums),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* PROJECT, GLU, PROJECT_ADD and LOGITS of up to 8 rows on the emulator: all formats, in sizes that fit nothing. */
#include "matvec_scene.h"

/* ---- PROJECT ---- */

static void project(const std::vector<uint32_t> &types, const std::vector<int64_t> &rows, int64_t columns, int64_t n,
                    bool with_norm, int32_t shared_most)
{
    scene s;
    begin(&s, n);
    s.run.shared_most = shared_most;
    const std::vector<float> x = random_floats(n * columns, 3, 0.1f), norm = random_floats(columns, 1, 1);
    qmi_op_project op = {};
    std::vector<weights> w;
    op.in = add_slot(&s, 0, x);
    if (with_norm) {
        op.norm.weight.size = columns;
        op.norm.weight.data = (qmi_address)upload(norm);
        op.norm.epsilon = 1e-6f;
    }
    op.count = (int32_t)types.size();
    for (size_t i = 0; i < types.size(); i++) {
        w.push_back(make_weights(types[i], columns, rows[i], 1));
        op.matrix[i] = w[i].matrix;
        op.out[i] = add_slot(&s, 1 + (int)i, std::vector<float>((size_t)(n * rows[i]), NAN));
    }
    cuda_matvec_project(&s.run, &op);
    finish(&s);
    for (size_t i = 0; i < types.size(); i++) {
        const std::vector<float> got = download((const float *)s.slots[1 + i], n * rows[i]);
        for (int64_t t = 0; t < n; t++) {
            const seen a = see(&x[(size_t)(t * columns)], columns, with_norm ? &norm : NULL, 1e-6, !is_float(types[i]));
            for (int64_t r = 0; r < rows[i]; r++)
                check("project", types[i], t, r, got[(size_t)(t * rows[i] + r)], product(w[i], r, a));
        }
    }
    free_all(NULL);
}

static void test_project(void **)
{
    for (uint32_t type : all_types)
        for (int64_t n : { 1, 3, 8 }) {
            project({ type, QMI_TYPE_Q6_K, QMI_TYPE_F32 }, { 37, 5, 3 }, 768, n, true, all_shared);
            project({ type }, { 3 }, 1280, n, false, all_shared);
        }
}

static void test_project_rows(void **) /* each number of rows; rings that go round; tiles of several rows */
{
    for (int64_t n = 1; n <= 8; n++)
        project({ QMI_TYPE_Q4_K, QMI_TYPE_Q5_K }, { 403, 61 }, 2304, n, true, all_shared);
    project({ QMI_TYPE_Q6_K }, { 530 }, 512, 1, true, all_shared);
    project({ QMI_TYPE_IQ4_XS, QMI_TYPE_Q8_0, QMI_TYPE_Q4_K, QMI_TYPE_Q4_K }, { 100, 33, 32, 1 }, 256, 2, true, all_shared);
}

static void test_project_odd(void **) /* columns that are no multiple of anything */
{
    for (int64_t n : { 1, 5 }) {
        for (int64_t columns : { 1, 50, 103 })
            project({ QMI_TYPE_F16, QMI_TYPE_BF16, QMI_TYPE_F32 }, { 9, 4, 70 }, columns, n, true, all_shared);
        for (int64_t columns : { 32, 96, 1120 })
            project({ QMI_TYPE_Q8_0, QMI_TYPE_Q4_0, QMI_TYPE_Q5_0, QMI_TYPE_IQ4_NL }, { 9, 4, 70, 1 }, columns, n, true,
                    all_shared);
    }
}

static void test_project_little_shared(void **) /* rows in parts, and the kernels that hold none of them */
{
    project({ QMI_TYPE_Q4_K, QMI_TYPE_F16 }, { 20, 3 }, 4096, 7, true, 48 << 10);
    for (uint32_t type : all_types)
        project({ type, QMI_TYPE_Q5_0 }, { 5, 2 }, 8192, 2, true, 8 << 10);
}

/* ---- GLU ---- */

static void glu(uint32_t gate_type, uint32_t up_type, int64_t rows, int64_t columns, int64_t n)
{
    scene s;
    begin(&s, n);
    const std::vector<float> x = random_floats(n * columns, 3, 0.1f), norm = random_floats(columns, 1, 1);
    const weights gate = make_weights(gate_type, columns, rows, 1), up = make_weights(up_type, columns, rows, 1);
    qmi_op_glu op = {};
    op.in = add_slot(&s, 0, x);
    op.norm.weight.size = columns;
    op.norm.weight.data = (qmi_address)upload(norm);
    op.norm.epsilon = 1e-5f;
    op.gate = gate.matrix;
    op.up = up.matrix;
    op.out = add_slot(&s, 1, std::vector<float>((size_t)(n * rows), NAN));
    cuda_matvec_glu(&s.run, &op);
    finish(&s);
    const std::vector<float> got = download((const float *)s.slots[1], n * rows);
    for (int64_t t = 0; t < n; t++) {
        const float *row = &x[(size_t)(t * columns)];
        const seen a = see(row, columns, &norm, 1e-5, !is_float(gate_type));
        const seen b = see(row, columns, &norm, 1e-5, !is_float(up_type));
        for (int64_t r = 0; r < rows; r++) {
            const expected g = product(gate, r, a), u = product(up, r, b);
            const double gated = silu(g.value);
            const double error = 1.1 * g.error * fabs(u.value) + fabs(gated) * u.error; /* silu' is at most 1.1 */
            check("glu", gate_type, t, r, got[(size_t)(t * rows + r)],
                  { gated * u.value, error + 1e-5 * fabs(gated * u.value) });
        }
    }
    free_all(NULL);
}

static void test_glu(void **)
{
    for (uint32_t type : all_types)
        for (int64_t n : { 1, 2, 6 })
            glu(type, type, 21, 512, n);
    glu(QMI_TYPE_Q4_K, QMI_TYPE_Q4_K, 403, 1280, 1);
    glu(QMI_TYPE_Q4_K, QMI_TYPE_Q4_K, 403, 1280, 8);
    glu(QMI_TYPE_Q4_K, QMI_TYPE_Q5_K, 19, 256, 3);
    glu(QMI_TYPE_F16, QMI_TYPE_Q8_0, 7, 64, 1);
    glu(QMI_TYPE_F16, QMI_TYPE_F32, 7, 45, 1);
}

/* ---- PROJECT_ADD ---- */

static void project_add(uint32_t type, int64_t rows, int64_t columns, int64_t n, bool add)
{
    scene s;
    begin(&s, n);
    const std::vector<float> x = random_floats(n * columns, 3, 0), old = random_floats(n * rows, 1, 0);
    const weights w = make_weights(type, columns, rows, 1);
    qmi_op_project_add op = {};
    op.in = add_slot(&s, 0, x);
    op.out = add_slot(&s, 1, old);
    op.matrix = w.matrix;
    op.add = add;
    cuda_matvec_project_add(&s.run, &op);
    finish(&s);
    const std::vector<float> got = download((const float *)s.slots[1], n * rows);
    for (int64_t t = 0; t < n; t++) {
        const seen a = see(&x[(size_t)(t * columns)], columns, NULL, 0, !is_float(type));
        for (int64_t r = 0; r < rows; r++) {
            expected want = product(w, r, a);
            want.value += add ? (double)old[(size_t)(t * rows + r)] : 0;
            check("project_add", type, t, r, got[(size_t)(t * rows + r)], want);
        }
    }
    free_all(NULL);
}

static void test_project_add(void **)
{
    for (uint32_t type : all_types)
        for (int64_t n : { 1, 4, 7 })
            project_add(type, 31, 1024, n, n != 4);
    project_add(QMI_TYPE_Q4_K, 70, 4096, 1, true);
    project_add(QMI_TYPE_Q8_0, 200, 96, 2, true);
    for (int64_t n : { 1, 2, 8 })
        project_add(QMI_TYPE_Q4_K, 129, 256, n, false);
}

/* ---- LOGITS ---- */

static void logits(uint32_t type, int64_t rows, int64_t columns, int64_t n, const std::vector<int32_t> &outputs)
{
    scene s;
    begin(&s, n);
    const int64_t count = (int64_t)outputs.size();
    const std::vector<float> x = random_floats(n * columns, 3, 0.1f), norm = random_floats(columns, 1, 1);
    const weights w = make_weights(type, columns, rows, 1);
    qmi_op_logits op = {};
    op.in = add_slot(&s, 0, x);
    op.norm.weight.size = columns;
    op.norm.weight.data = (qmi_address)upload(norm);
    op.norm.epsilon = 1e-6f;
    op.output = w.matrix;
    op.hidden = add_slot(&s, 1, std::vector<float>((size_t)(n * columns), NAN));
    op.logits = add_slot(&s, 2, std::vector<float>((size_t)(count * rows), NAN));
    s.run.outputs = (int32_t)count;
    s.run.step.outputs = upload(outputs);
    cuda_matvec_logits(&s.run, &op);
    finish(&s);
    const std::vector<float> got = download((const float *)s.slots[2], count * rows);
    check_hidden(download((const float *)s.slots[1], n * columns), x, columns, norm);
    for (int64_t i = 0; i < count; i++) {
        const seen a = see(&x[(size_t)(outputs[(size_t)i] * columns)], columns, &norm, 1e-6, !is_float(type));
        for (int64_t r = 0; r < rows; r++)
            check("logits", type, i, r, got[(size_t)(i * rows + r)], product(w, r, a));
    }
    free_all(NULL);
}

static void test_logits(void **)
{
    logits(QMI_TYPE_Q6_K, 1003, 512, 1, { 0 });
    logits(QMI_TYPE_Q6_K, 101, 256, 6, { 1, 5 });
    logits(QMI_TYPE_F16, 45, 100, 3, { 2 });
    logits(QMI_TYPE_Q8_0, 45, 96, 8, { 0, 1, 2, 3, 4, 5, 6, 7 });
    logits(QMI_TYPE_Q4_K, 45, 256, 2, {});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_project, free_all),
        cmocka_unit_test_teardown(test_project_rows, free_all),
        cmocka_unit_test_teardown(test_project_odd, free_all),
        cmocka_unit_test_teardown(test_project_little_shared, free_all),
        cmocka_unit_test_teardown(test_glu, free_all),
        cmocka_unit_test_teardown(test_project_add, free_all),
        cmocka_unit_test_teardown(test_logits, free_all),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}

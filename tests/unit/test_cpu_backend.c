/* The CPU's ops against formulas in double, and the device around them. */
#include "cpu_scene.h"

#define EXACT 2e-6 /* float32 throughout */
#define Q8 2e-2    /* activations in 8 bits */

/* ---- Matrices ---- */

static void project_scene(uint32_t type_0, uint32_t type_1, int64_t columns, int32_t tokens, bool with_norm, double tolerance)
{
    scene s = { .tokens = tokens };
    qmi_slot in = make_input(&s, "in", columns), out[2] = { make_slot(&s, "out 0", 40), make_slot(&s, "out 1", 21) };
    qmi_norm norm = { with_norm ? make_vector(&s, columns) : (qmi_vector){ 0 }, 1e-6f };
    qmi_matrix matrix[2] = { make_matrix(&s, type_0, columns, 40, 1), make_matrix(&s, type_1, columns, 21, 1) };
    append(&s, (qmi_op){ .kind = QMI_OP_PROJECT, .project = { .in = in, .norm = norm, .count = 2,
        .matrix = { matrix[0], matrix[1] }, .out = { out[0], out[1] } } });
    double *x = to_double(s.in[in], tokens * columns), expected[80 * 40];
    for (int32_t t = 0; t < tokens; t++)
        ref_rms(x + t * columns, &norm, x + t * columns, columns);
    for (int32_t i = 0; i < 2; i++) {
        for (int32_t t = 0; t < tokens; t++)
            ref_multiply(&matrix[i], 0, matrix[i].rows, x + t * columns, expected + t * matrix[i].rows);
        s.out = out[i];
        check_scene(&s, expected, tolerance);
    }
    free(x);
    end_scene(&s);
}

static void test_project(void **state)
{
    (void)state;
    project_scene(QMI_TYPE_F32, QMI_TYPE_F16, 96, 9, true, EXACT);
    project_scene(QMI_TYPE_BF16, QMI_TYPE_F32, 70, 3, false, EXACT); /* no multiple of a vector */
    project_scene(QMI_TYPE_F16, QMI_TYPE_F16, 33, 70, true, EXACT);  /* more than a tile of tokens */
}

static void test_project_quantized(void **state)
{
    (void)state;
    project_scene(QMI_TYPE_Q8_0, QMI_TYPE_F32, 96, 9, true, Q8); /* both formats of activations */
    project_scene(QMI_TYPE_Q8_0, QMI_TYPE_Q8_0, 32, 70, false, Q8);
    project_scene(QMI_TYPE_Q4_K, QMI_TYPE_Q6_K, 512, 5, true, Q8);
    project_scene(QMI_TYPE_Q5_K, QMI_TYPE_Q4_K, 256, 3, true, Q8);
    project_scene(QMI_TYPE_Q4_0, QMI_TYPE_IQ4_XS, 256, 9, true, Q8);
    project_scene(QMI_TYPE_Q2_K, QMI_TYPE_F32, 256, 66, true, Q8); /* without a kernel of its own */
}

static void test_glu(void **state)
{
    (void)state;
    scene s = { .tokens = 9 };
    qmi_slot in = make_input(&s, "in", 48), inner = make_slot(&s, "inner", 100), out = make_input(&s, "out", 48);
    qmi_norm norm = { make_vector(&s, 48), 1e-6f };
    qmi_matrix gate = make_matrix(&s, QMI_TYPE_F16, 48, 100, 1), up = make_matrix(&s, QMI_TYPE_F32, 48, 100, 1);
    qmi_matrix down = make_matrix(&s, QMI_TYPE_BF16, 100, 48, 1);
    append(&s, (qmi_op){ .kind = QMI_OP_GLU, .glu = { .in = in, .norm = norm, .gate = gate, .up = up, .out = inner } });
    append(&s, (qmi_op){ .kind = QMI_OP_PROJECT_ADD, .project_add = { .matrix = down, .in = inner, .out = out, .add = true } });
    s.out = out;
    double expected[9 * 48], *x = to_double(s.in[in], 9 * 48), g[100], u[100];
    for (int t = 0; t < 9; t++) {
        ref_rms(x + t * 48, &norm, x + t * 48, 48);
        ref_multiply(&gate, 0, 100, x + t * 48, g);
        ref_multiply(&up, 0, 100, x + t * 48, u);
        for (int i = 0; i < 100; i++)
            u[i] *= silu(g[i]);
        ref_multiply(&down, 0, 48, u, expected + t * 48);
        for (int i = 0; i < 48; i++)
            expected[t * 48 + i] += s.in[out][t * 48 + i];
    }
    check_scene(&s, expected, EXACT);
    free(x);
    end_scene(&s);
}

static void test_embed_join_logits(void **state)
{
    (void)state;
    static const int32_t ids[8] = { 3, 0, 36, 7, 7, 1, 20, 5 };
    scene s = { .tokens = 8, .ids = ids };
    qmi_slot embedded = make_slot(&s, "embedded", 32), before = make_input(&s, "hidden in", 32);
    qmi_slot joined = make_slot(&s, "joined", 64);
    qmi_slot hidden = make_slot(&s, "hidden", 64), logits = qmi_program_slot(&s.program, "logits", 37, true);
    qmi_matrix table = make_matrix(&s, QMI_TYPE_Q8_0, 32, 37, 1), output = make_matrix(&s, QMI_TYPE_F16, 64, 37, 1);
    qmi_norm norms[3] = { { make_vector(&s, 32), 1e-6f }, { make_vector(&s, 32), 1e-5f }, { make_vector(&s, 64), 1e-6f } };
    append(&s, (qmi_op){ .kind = QMI_OP_EMBED, .embed = { table, embedded } });
    append(&s, (qmi_op){ .kind = QMI_OP_JOIN, .join = { table, norms[0], norms[1], before, joined } });
    append(&s, (qmi_op){ .kind = QMI_OP_LOGITS, .logits = { joined, norms[2], output, hidden, logits } });
    double embeddings[8 * 32], normed[8 * 64], expected[8 * 37];
    const qmi_quant_format *format = qmi_quant_format_of(QMI_TYPE_Q8_0);
    for (int t = 0; t < 8; t++) {
        float row[32];
        double both[64];
        format->unpack((const char *)(uintptr_t)table.data + ids[t] * 34, row, 1);
        for (int i = 0; i < 32; i++) {
            embeddings[t * 32 + i] = row[i];
            both[32 + i] = s.in[before][t * 32 + i];
        }
        ref_rms(embeddings + t * 32, &norms[0], both, 32);
        ref_rms(both + 32, &norms[1], both + 32, 32);
        ref_rms(both, &norms[2], normed + t * 64, 64);
        ref_multiply(&output, 0, 37, normed + t * 64, expected + t * 37);
    }
    s.out = embedded;
    check_scene(&s, embeddings, 0);
    s.out = hidden;
    check_scene(&s, normed, EXACT);
    s.out = logits;
    check_scene(&s, expected, EXACT);
    end_scene(&s);
}

/* Only some rows' logits, in their order. */
static void test_outputs(void **state)
{
    (void)state;
    scene s = { .tokens = 6 };
    qmi_slot in = make_input(&s, "in", 24), hidden = make_slot(&s, "hidden", 24);
    qmi_slot logits = qmi_program_slot(&s.program, "logits", 50, true);
    qmi_matrix output = make_matrix(&s, QMI_TYPE_F16, 24, 50, 1);
    append(&s, (qmi_op){ .kind = QMI_OP_LOGITS, .logits = { in, { { 0 }, 0 }, output, hidden, logits } });
    rig r = open_rig(&s, "auto", 2, 6);
    memcpy((void *)(uintptr_t)r.workspace.slots[in], s.in[in], 6 * 24 * 4);
    qmi_sequence sequence = { .count = 6 };
    const int32_t outputs[] = { 1, 4, 5 }, tokens[6] = { 0 };
    qmi_batch batch = { .count = 6, .tokens = tokens, .sequence_count = 1, .sequences = &sequence, .output_count = 3,
                        .outputs = outputs };
    assert_int_equal(qmi_cpu_backend.run(r.device, &s.program, &r.workspace, &batch), QM_OK);
    double expected[3 * 50], *x = to_double(s.in[in], 6 * 24);
    for (int i = 0; i < 3; i++)
        ref_multiply(&output, 0, 50, x + outputs[i] * 24, expected + i * 50);
    assert_true(relative_error((float *)(uintptr_t)r.workspace.slots[logits], expected, 3 * 50) < EXACT);
    free(x);
    close_rig(&s, &r);
    end_scene(&s);
}

/* ---- Experts ---- */

enum { EXPERTS = 6, TOP = 3, WIDTH = 64, INNER = 32, SHARED = 96 };

static void ref_glu(const qmi_matrix *gate, int64_t gate_first, const qmi_matrix *up, int64_t up_first, const qmi_matrix *down,
                    int64_t down_first, int64_t inner, const double *x, double weight, double *sum)
{
    double g[SHARED], u[SHARED], y[WIDTH];
    ref_multiply(gate, gate_first, inner, x, g);
    ref_multiply(up, up_first, inner, x, u);
    for (int64_t i = 0; i < inner; i++)
        u[i] *= silu(g[i]);
    ref_multiply(down, down_first, WIDTH, u, y);
    for (int64_t i = 0; i < WIDTH; i++)
        sum[i] += weight * y[i];
}

/* The formulas of op.h for one token: x becomes the normed hidden vector, route and y what the ops give. */
static void ref_experts(const qmi_op_route *route, const qmi_op_experts *op, double *x, double *chosen, double *y)
{
    double p[EXPERTS], total = 0, sum = 0, gate = 0;
    bool used[EXPERTS] = { false };
    ref_rms(x, &route->norm, x, WIDTH);
    ref_multiply(&route->router, 0, EXPERTS, x, p);
    for (int e = 0; e < EXPERTS; e++)
        total += p[e] = exp(p[e]);
    for (int k = 0; k < TOP; k++) {
        int best = -1;
        for (int e = 0; e < EXPERTS; e++)
            if (!used[e] && (best < 0 || p[e] > p[best]))
                best = e;
        used[best] = true;
        chosen[k] = best;
        sum += chosen[TOP + k] = p[best] / total;
    }
    for (int k = 0; k < TOP; k++)
        chosen[TOP + k] /= sum;
    if (route->shared_gate.data)
        ref_multiply(&route->shared_gate, 0, 1, x, &gate);
    chosen[2 * TOP] = route->shared_gate.data ? sigmoid(gate) : 1;
    for (int k = 0; k < TOP; k++) {
        int64_t e = (int64_t)chosen[k];
        const qmi_matrix *up = op->up.data ? &op->up : &op->gate;
        int64_t up_first = op->up.data ? e * INNER : e * op->gate.rows + INNER;
        ref_glu(&op->gate, e * op->gate.rows, up, up_first, &op->down, e * WIDTH, INNER, x, chosen[TOP + k], y);
    }
    if (op->shared_gate.data)
        ref_glu(&op->shared_gate, 0, &op->shared_up, 0, &op->shared_down, 0, SHARED, x, chosen[2 * TOP], y);
}

static void experts_scene(uint32_t type, uint32_t down_type, bool fused, bool shared, int32_t tokens, double tolerance)
{
    scene s = { .tokens = tokens };
    qmi_slot in = make_input(&s, "in", WIDTH), out = make_input(&s, "out", WIDTH);
    qmi_op_route route = { .in = in, .norm = { make_vector(&s, WIDTH), 1e-6f },
                           .router = make_matrix(&s, QMI_TYPE_F32, WIDTH, EXPERTS, 1),
                           .top = TOP, .hidden = make_slot(&s, "hidden", WIDTH), .route = make_slot(&s, "route", 2 * TOP + 1) };
    qmi_op_experts op = { .hidden = route.hidden, .route = route.route, .top = TOP, .out = out,
                          .gate = make_matrix(&s, type, WIDTH, fused ? 2 * INNER : INNER, EXPERTS),
                          .down = make_matrix(&s, down_type, INNER, WIDTH, EXPERTS) };
    if (!fused)
        op.up = make_matrix(&s, type, WIDTH, INNER, EXPERTS);
    if (shared) {
        route.shared_gate = make_matrix(&s, QMI_TYPE_F32, WIDTH, 1, 1);
        op.shared_gate = make_matrix(&s, type, WIDTH, SHARED, 1);
        op.shared_up = make_matrix(&s, type, WIDTH, SHARED, 1);
        op.shared_down = make_matrix(&s, QMI_TYPE_F16, SHARED, WIDTH, 1);
    }
    append(&s, (qmi_op){ .kind = QMI_OP_ROUTE, .route = route });
    append(&s, (qmi_op){ .kind = QMI_OP_EXPERTS, .experts = op });
    double *x = to_double(s.in[in], tokens * WIDTH), *y = to_double(s.in[out], tokens * WIDTH);
    double *chosen = calloc((size_t)tokens * (2 * TOP + 1), sizeof *chosen);
    assert_non_null(chosen);
    for (int32_t t = 0; t < tokens; t++)
        ref_experts(&route, &op, x + t * WIDTH, chosen + t * (2 * TOP + 1), y + t * WIDTH);
    s.out = route.route;
    check_scene(&s, chosen, EXACT);
    s.out = route.hidden;
    check_scene(&s, x, EXACT);
    s.out = out;
    check_scene(&s, y, tolerance);
    free(x);
    free(y);
    free(chosen);
    end_scene(&s);
}

static void test_experts(void **state)
{
    (void)state;
    experts_scene(QMI_TYPE_F16, QMI_TYPE_F32, false, true, 9, EXACT);
    experts_scene(QMI_TYPE_F32, QMI_TYPE_F16, true, false, 5, EXACT);
    experts_scene(QMI_TYPE_F32, QMI_TYPE_BF16, false, false, 150, EXACT); /* more than a tile of tokens for some expert */
}

static void test_experts_quantized(void **state)
{
    (void)state;
    experts_scene(QMI_TYPE_Q8_0, QMI_TYPE_Q8_0, false, true, 9, Q8);
    experts_scene(QMI_TYPE_F16, QMI_TYPE_Q8_0, true, true, 70, Q8);
    experts_scene(QMI_TYPE_Q5_1, QMI_TYPE_Q8_0, false, false, 9, Q8); /* without a kernel of its own */
}

/* Equal probabilities: the lower index comes first. What is not a number still gives experts that exist. */
static void test_route_ties(void **state)
{
    (void)state;
    scene s = { .tokens = 1 };
    qmi_slot in = make_input(&s, "in", 8);
    qmi_op_route route = { .in = in, .router = make_matrix(&s, QMI_TYPE_F32, 8, 20, 1), .top = 4,
                           .hidden = make_slot(&s, "hidden", 8), .route = make_slot(&s, "route", 9) };
    float *rows = (float *)(uintptr_t)route.router.data;
    for (int e = 0; e < 20; e++) /* scores 0, but for 11 and 17 */
        for (int c = 0; c < 8; c++)
            rows[8 * e + c] = c == 0 && (e == 11 || e == 17) ? 1 : 0;
    s.in[in][0] = 2;
    append(&s, (qmi_op){ .kind = QMI_OP_ROUTE, .route = route });
    s.out = route.route;
    double high = exp(2.0) / (2 * exp(2.0) + 2), low = 1 / (2 * exp(2.0) + 2);
    const double expected[9] = { 11, 17, 0, 1, high, high, low, low, 1 };
    check_scene(&s, expected, EXACT);
    s.in[in][3] = NAN;
    float result[9];
    play(&s, "auto", 2, 1, result);
    for (int k = 0; k < 4; k++)
        assert_true(result[k] == (float)k);
    end_scene(&s);
}

/* ---- The device ---- */

static void test_cancel(void **state)
{
    (void)state;
    scene s = { .tokens = 4 };
    qmi_slot in = make_input(&s, "in", 16), out = make_input(&s, "out", 16);
    qmi_matrix matrix = make_matrix(&s, QMI_TYPE_F32, 16, 16, 1);
    for (int i = 0; i < 3; i++)
        append(&s, (qmi_op){ .kind = QMI_OP_PROJECT_ADD, .project_add = { .matrix = matrix, .in = in, .out = out } });
    for (int32_t threads = 1; threads <= 3; threads++) {
        rig r = open_rig(&s, "auto", threads, 4);
        const int32_t yes = 1, no = 0, tokens[4] = { 0 };
        qmi_sequence sequence = { .count = 4 };
        qmi_batch batch = { .count = 4, .tokens = tokens, .sequence_count = 1, .sequences = &sequence, .cancel = &yes };
        for (int i = 0; i < 20; i++) { /* and the pool is in order afterwards */
            batch.cancel = i & 1 ? &no : &yes;
            assert_int_equal(qmi_cpu_backend.run(r.device, &s.program, &r.workspace, &batch), i & 1 ? QM_OK : QM_ERROR_CANCELLED);
        }
        close_rig(&s, &r);
    }
    end_scene(&s);
}

static void test_memory_limit(void **state)
{
    (void)state;
    scene s = { .tokens = 4 };
    qmi_slot in = make_input(&s, "in", 64), out = make_slot(&s, "out", 64);
    append(&s, (qmi_op){ .kind = QMI_OP_PROJECT, .project = { .in = in, .count = 1, .out = { out },
        .matrix = { make_matrix(&s, QMI_TYPE_Q8_0, 64, 64, 1) } } });
    int64_t needed = qmi_cpu_backend.scratch_bytes(&s.program, 4, 2);
    qmi_device *device;
    qmi_device_info info;
    qmi_address a, b;
    assert_true(needed > 0);
    assert_int_equal(qmi_cpu_backend.open(&(qmi_device_settings){ .threads = 2, .memory_limit = needed + 1000 }, &device), QM_OK);
    assert_int_equal(qmi_cpu_backend.allocate(device, 900, "a", &a), QM_OK);
    for (int i = 0; i < 900; i++)
        assert_int_equal(((const char *)(uintptr_t)a)[i], 0);
    assert_int_equal(qmi_cpu_backend.prepare(device, &s.program, 4), QM_OK);
    assert_int_equal(qmi_cpu_backend.prepare(device, &s.program, 4), QM_OK); /* nothing more is needed */
    assert_int_equal(qmi_cpu_backend.allocate(device, 101, "the last straw", &b), QM_ERROR_MEMORY);
    assert_non_null(strstr(qmi_error_text(), "the last straw"));
    qmi_cpu_backend.info(device, &info);
    assert_int_equal(info.memory_total, needed + 1000);
    assert_true(info.memory_free <= 100);
    assert_int_equal(info.threads, 2);
    assert_true(info.shares_host);
    assert_int_equal(qmi_cpu_backend.allocate(device, 100, "b", &b), QM_OK);
    qmi_cpu_backend.release(device, b);
    assert_int_equal(qmi_cpu_backend.prepare(device, &s.program, 4000), QM_ERROR_MEMORY);
    qmi_cpu_backend.release(device, a);
    qmi_cpu_backend.release(device, 0);
    qmi_cpu_backend.close(&device);
    end_scene(&s);
}

static void test_unprepared(void **state)
{
    (void)state;
    scene s = { .tokens = 4 };
    qmi_slot in = make_input(&s, "in", 64), out = make_slot(&s, "out", 64);
    append(&s, (qmi_op){ .kind = QMI_OP_PROJECT, .project = { .in = in, .count = 1, .out = { out },
        .matrix = { make_matrix(&s, QMI_TYPE_Q8_0, 64, 64, 1) } } });
    rig r = open_rig(&s, "auto", 2, 4);
    const int32_t tokens[5] = { 0 };
    qmi_sequence sequence = { .count = 5 };
    qmi_batch batch = { .count = 5, .tokens = tokens, .sequence_count = 1, .sequences = &sequence };
    assert_int_equal(qmi_cpu_backend.run(r.device, &s.program, &r.workspace, &batch), QM_ERROR_STATE);
    r.workspace.rows = 100;
    assert_int_equal(qmi_cpu_backend.run(r.device, &s.program, &r.workspace, &batch), QM_ERROR_STATE);
    assert_int_equal(qmi_cpu_backend.scratch_bytes(&s.program, 0, 1), QM_ERROR_ARGUMENT);
    assert_int_equal(qmi_cpu_backend.scratch_bytes(&s.program, INT32_MAX, 1), QM_ERROR_ARGUMENT);
    close_rig(&s, &r);
    end_scene(&s);
}

static void test_memory_moves(void **state)
{
    (void)state;
    scene s = { .tokens = 1 };
    rig r = open_rig(&s, "scalar", 1, 1);
    qmi_address at = rig_memory(&r, 64);
    char text[8] = "";
    assert_int_equal(qmi_cpu_backend.write(r.device, at, "abcdefg", 8), QM_OK);
    assert_int_equal(qmi_cpu_backend.copy(r.device, at + 32, at + 2, 6), QM_OK);
    assert_int_equal(qmi_cpu_backend.clear(r.device, at + 34, 1), QM_OK);
    assert_int_equal(qmi_cpu_backend.read(r.device, text, at + 32, 6), QM_OK);
    assert_memory_equal(text, "cd\0fg", 6);
    qmi_cpu_backend.release(r.device, at);
    close_rig(&s, &r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_project),       cmocka_unit_test(test_project_quantized), cmocka_unit_test(test_glu),
        cmocka_unit_test(test_embed_join_logits), cmocka_unit_test(test_outputs),       cmocka_unit_test(test_experts),
        cmocka_unit_test(test_experts_quantized), cmocka_unit_test(test_route_ties),    cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_memory_limit),  cmocka_unit_test(test_unprepared),        cmocka_unit_test(test_memory_moves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* ROUTE and EXPERTS of up to 8 rows on the emulator: all formats, one call or two, ties, shapes that fit nothing. */
#include "matvec_scene.h"

/* ---- ROUTE and EXPERTS ---- */

typedef struct mixture {
    int64_t columns, experts, top, inner, shared_inner, n;
    uint32_t router_type, gate_type, up_type, down_type, shared_type; /* router_type: of the shared gate too */
    bool fused, shared_gate;
} mixture;

typedef struct routed { /* one row's choice */
    std::vector<int64_t> expert;
    std::vector<double> weight; /* [top + 1] */
} routed;

static routed choose(const mixture &m, const weights &router, const weights &gate, const float *x, const std::vector<float> &norm)
{
    const seen a = see(x, m.columns, &norm, 1e-6, !is_float(m.router_type));
    std::vector<double> scores;
    routed out;
    double sum = 0;
    for (int64_t e = 0; e < m.experts; e++) {
        scores.push_back(product(router, e, a).value);
        out.expert.push_back(e);
    }
    std::stable_sort(out.expert.begin(), out.expert.end(),
                     [&](int64_t i, int64_t j) { return scores[(size_t)i] > scores[(size_t)j]; });
    out.expert.resize((size_t)m.top);
    for (int64_t e : out.expert)
        sum += exp(scores[(size_t)e] - scores[(size_t)out.expert[0]]);
    for (int64_t e : out.expert)
        out.weight.push_back(exp(scores[(size_t)e] - scores[(size_t)out.expert[0]]) / sum);
    out.weight.push_back(m.shared_gate ? 1 / (1 + exp(-product(gate, 0, a).value)) : 1);
    return out;
}

/* The result of one row, from what the hidden state is seen as. */
static void add_expert(const weights &gate, int64_t gate_row, const weights &up, int64_t up_row, const weights &down,
                       int64_t down_row, int64_t inner, const seen &for_gate, const seen &for_up, double weight,
                       std::vector<expected> *out)
{
    std::vector<float> act((size_t)inner);
    double relative = 0, largest = 0;
    for (int64_t f = 0; f < inner; f++) {
        const expected g = product(gate, gate_row + f, for_gate), u = product(up, up_row + f, for_up);
        act[(size_t)f] = (float)(silu(g.value) * u.value);
        relative = fmax(relative, 1.1 * g.error * fabs(u.value) + fabs(silu(g.value)) * u.error);
        largest = fmax(largest, fabs(silu(g.value) * u.value));
    }
    const seen a = see(act.data(), inner, NULL, 0, !is_float(down.matrix.type));
    for (size_t r = 0; r < out->size(); r++) {
        const expected d = product(down, down_row + (int64_t)r, a);
        double most = 0;
        for (int64_t f = 0; f < inner; f++)
            most = fmax(most, fabs((double)down.values[(size_t)((down_row + (int64_t)r) * inner + f)]));
        (*out)[r].value += weight * d.value;
        (*out)[r].error += weight * (d.error + 2 * most * relative + 1e-5 * most * largest * (double)inner);
    }
}

static void give_scratch(scene *s, const qmi_op *op, const qmi_op *other)
{
    const int64_t a = cuda_scratch_matvec(op, (int32_t)s->n), b = other ? cuda_scratch_matvec(other, (int32_t)s->n) : 0;
    s->run.scratch = upload(std::vector<uint8_t>((size_t)std::max(a, b)));
}

/* together: by one call; else ROUTE, then EXPERTS. tie: two experts that are in the choice have equal scores. */
static void experts(const mixture &m, bool together, bool tie, int32_t shared_most)
{
    scene s;
    begin(&s, m.n);
    s.run.shared_most = shared_most;
    const std::vector<float> x = random_floats(m.n * m.columns, 3, 0.1f), norm = random_floats(m.columns, 1, 1);
    weights router = make_weights(m.router_type, m.columns, m.experts, 1);
    const weights shared_router = make_weights(m.router_type, m.columns, 1, 1);
    if (tie) { /* the last expert as the first, and both far above the others for the first row */
        assert_int_equal(m.router_type, QMI_TYPE_F32);
        float *values = router.values.data();
        for (int64_t c = 0; c < m.columns; c++)
            values[c] = values[(m.experts - 1) * m.columns + c] = x[(size_t)c];
        float *data = (float *)router.matrix.data;
        const size_t bytes = sizeof(float) * (size_t)m.columns;
        assert_int_equal(cudaMemcpy(data, values, bytes, cudaMemcpyHostToDevice), 0);
        assert_int_equal(cudaMemcpy(data + (m.experts - 1) * m.columns, values, bytes, cudaMemcpyHostToDevice), 0);
    }
    const weights gate = make_weights(m.gate_type, m.columns, m.fused ? 2 * m.inner : m.inner, m.experts);
    const weights up = m.fused ? weights{} : make_weights(m.up_type, m.columns, m.inner, m.experts);
    const weights down = make_weights(m.down_type, m.inner, m.columns, m.experts);
    weights shared_gate = {}, shared_up = {}, shared_down = {};
    if (m.shared_inner) {
        shared_gate = make_weights(m.shared_type, m.columns, m.shared_inner, 1);
        shared_up = make_weights(m.shared_type, m.columns, m.shared_inner, 1);
        shared_down = make_weights(m.shared_type, m.shared_inner, m.columns, 1);
    }
    qmi_op route = {}, op = {};
    route.kind = QMI_OP_ROUTE;
    route.route.in = add_slot(&s, 0, x);
    route.route.norm.weight.size = m.columns;
    route.route.norm.weight.data = (qmi_address)upload(norm);
    route.route.norm.epsilon = 1e-6f;
    route.route.router = router.matrix;
    if (m.shared_gate)
        route.route.shared_gate = shared_router.matrix;
    route.route.top = (int32_t)m.top;
    route.route.hidden = op.experts.hidden = add_slot(&s, 1, std::vector<float>((size_t)(m.n * m.columns), NAN));
    route.route.route = op.experts.route = add_slot(&s, 2, std::vector<float>((size_t)(m.n * (2 * m.top + 1)), NAN));
    op.kind = QMI_OP_EXPERTS;
    op.experts.top = (int32_t)m.top;
    op.experts.gate = gate.matrix;
    op.experts.up = up.matrix;
    op.experts.down = down.matrix;
    op.experts.shared_gate = shared_gate.matrix;
    op.experts.shared_up = shared_up.matrix;
    op.experts.shared_down = shared_down.matrix;
    op.experts.out = add_slot(&s, 0, x); /* the residual is where both read and add */
    route.route.in = 0;
    give_scratch(&s, &route, &op);
    if (together)
        cuda_matvec_route_experts(&s.run, &route.route, &op.experts);
    else {
        cuda_matvec_route_experts(&s.run, &route.route, NULL);
        cuda_matvec_route_experts(&s.run, NULL, &op.experts);
    }
    finish(&s);
    const std::vector<float> got = download((const float *)s.slots[0], m.n * m.columns);
    check_hidden(download((const float *)s.slots[1], m.n * m.columns), x, m.columns, norm);
    const std::vector<float> choice = download((const float *)s.slots[2], m.n * (2 * m.top + 1));
    for (int64_t t = 0; t < m.n; t++) {
        const float *row = &x[(size_t)(t * m.columns)], *chosen = &choice[(size_t)(t * (2 * m.top + 1))];
        const routed want = choose(m, router, shared_router, row, norm);
        for (int64_t k = 0; k < m.top; k++) {
            if (chosen[k] != (float)want.expert[(size_t)k])
                fail_msg("route: choice %lld of row %lld is %g, not %lld", (long long)k, (long long)t, (double)chosen[k],
                         (long long)want.expert[(size_t)k]);
            check("route", m.router_type, t, k, chosen[m.top + k], { want.weight[(size_t)k], 2e-3 * want.weight[(size_t)k] });
        }
        check("route", m.router_type, t, m.top, chosen[2 * m.top], { want.weight[(size_t)m.top], 2e-3 });
        std::vector<expected> sums((size_t)m.columns);
        for (int64_t c = 0; c < m.columns; c++)
            sums[(size_t)c] = { (double)row[c], 1e-6 };
        const seen a = see(row, m.columns, &norm, 1e-6, !is_float(m.gate_type));
        const seen b = see(row, m.columns, &norm, 1e-6, !is_float(m.fused ? m.gate_type : m.up_type));
        for (int64_t k = 0; k < m.top; k++) {
            const int64_t e = (int64_t)chosen[k];
            add_expert(gate, e * gate.matrix.rows, m.fused ? gate : up, m.fused ? e * gate.matrix.rows + m.inner : e * m.inner,
                       down, e * m.columns, m.inner, a, b, (double)chosen[m.top + k], &sums);
        }
        if (m.shared_inner) {
            const seen c = see(row, m.columns, &norm, 1e-6, !is_float(m.shared_type));
            add_expert(shared_gate, 0, shared_up, 0, shared_down, 0, m.shared_inner, c, c, (double)chosen[2 * m.top], &sums);
        }
        for (int64_t c = 0; c < m.columns; c++)
            check("experts", m.down_type, t, c, got[(size_t)(t * m.columns + c)], sums[(size_t)c]);
    }
    free_all(NULL);
}

/* 2 of 12 experts and a shared one, each of `type`. */
static mixture usual(uint32_t type, int64_t n)
{
    return { 256, 12, 2, 256, 256, n, QMI_TYPE_F32, type, type, type, type, false, true };
}

static void test_experts(void **)
{
    for (uint32_t type : all_types)
        for (int64_t n : { 1, 4, 7 })
            experts(usual(type, n), true, false, all_shared);
    for (int64_t n : { 1, 2, 5, 8 }) {
        mixture m = usual(QMI_TYPE_Q4_K, n);
        m.experts = 40;
        m.top = 8;
        experts(m, n & 1, n < 3, all_shared);
    }
}

static void test_experts_shapes(void **)
{
    for (bool together : { true, false }) {
        mixture m = usual(QMI_TYPE_Q4_K, 2); /* three experts, no shared one */
        m.experts = 3;
        m.top = 2;
        m.shared_inner = 0;
        m.shared_gate = false;
        experts(m, together, false, all_shared);
        m = usual(QMI_TYPE_Q5_K, 1); /* the shared one of another size and type, without a gate */
        m.shared_inner = 768;
        m.shared_type = QMI_TYPE_Q8_0;
        m.shared_gate = false;
        experts(m, together, false, all_shared);
        m.n = 5;
        experts(m, together, false, all_shared);
        m = usual(QMI_TYPE_Q4_K, 3); /* each matrix of another type; all chosen; a wide inner size */
        m.gate_type = m.up_type = QMI_TYPE_Q4_0;
        m.down_type = QMI_TYPE_Q6_K;
        m.shared_type = QMI_TYPE_Q5_0;
        m.experts = m.top = 5;
        m.inner = 1280;
        m.shared_inner = 96;
        m.columns = 512;
        experts(m, together, false, all_shared);
        m.n = 1;
        experts(m, together, false, all_shared);
        m = usual(QMI_TYPE_Q8_0, 1); /* fused; sizes that fill no block of 16 */
        m.fused = true;
        m.columns = 96;
        m.inner = 32;
        m.shared_inner = 160;
        experts(m, together, false, all_shared);
        m.n = 8;
        experts(m, together, true, all_shared);
        m = usual(QMI_TYPE_Q4_K, 2); /* gate and up of different types: the general kernels */
        m.up_type = QMI_TYPE_Q6_K;
        experts(m, together, false, all_shared);
        m = usual(QMI_TYPE_F16, 2); /* no multiple of 32 */
        m.columns = 50;
        m.inner = 37;
        m.shared_inner = 13;
        m.router_type = QMI_TYPE_BF16;
        experts(m, together, false, all_shared);
        m.fused = true;
        experts(m, together, false, all_shared);
    }
}

static void test_experts_many(void **) /* routers of all sizes and types; little shared memory */
{
    for (int64_t count : { 256, 257, 512, 700 })
        for (uint32_t router : { QMI_TYPE_F32, QMI_TYPE_F16, QMI_TYPE_Q8_0 }) {
            const uint32_t type = QMI_TYPE_Q8_0;
            const mixture m = { 64, count, 9, 32, 32, 2, router, type, type, type, type, false, count != 257 };
            experts(m, true, router == QMI_TYPE_F32, all_shared);
        }
    mixture m = { 32, 70, 64, 32, 0, 3, QMI_TYPE_F32, QMI_TYPE_Q4_0, QMI_TYPE_Q4_0, QMI_TYPE_Q4_0, 0, false, false };
    experts(m, true, false, all_shared);
    m = usual(QMI_TYPE_Q4_K, 8);
    experts(m, true, false, 64 << 10);
    experts(m, true, false, 4 << 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_experts, free_all),
        cmocka_unit_test_teardown(test_experts_shapes, free_all),
        cmocka_unit_test_teardown(test_experts_many, free_all),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}

/* The decode kernels on the emulator against sums in double precision, for all formats and 1 to 8 rows, in sizes that fit
 * nothing.
 *
 * Where weights are quantized the expected values are made of activations that are quantized here, in the way that the kernels
 * say (blocks of 32, 127 steps to the largest): so what is left between the two is the rounding of sums, and now and then an
 * activation that fell to the other side of a half step. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
extern "C" {
#include <cmocka.h>
}

#include <algorithm>
#include <vector>

#include "cuda.h"

static uint64_t seed = 0x9E3779B97F4A7C15u;

static uint32_t random_bits(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 32);
}

static float random_float(void) /* -1 .. 1, most of them small */
{
    const float a = (float)(int32_t)random_bits() * 0x1p-31f, b = (float)(int32_t)random_bits() * 0x1p-31f;
    return a * b;
}

static void put_half(uint8_t *at, float value)
{
    const uint16_t half = qmi_float_to_half(value);
    memcpy(at, &half, 2);
}

static bool is_float(uint32_t type)
{
    return type == QMI_TYPE_F32 || type == QMI_TYPE_F16 || type == QMI_TYPE_BF16;
}

static const uint32_t all_types[] = { QMI_TYPE_F32, QMI_TYPE_F16, QMI_TYPE_BF16, QMI_TYPE_Q8_0, QMI_TYPE_Q4_0, QMI_TYPE_Q5_0,
                                      QMI_TYPE_Q4_K, QMI_TYPE_Q5_K, QMI_TYPE_Q6_K, QMI_TYPE_IQ4_NL, QMI_TYPE_IQ4_XS };

/* ---- memory of the card ---- */

static std::vector<void *> allocations;

template <class T> static T *upload(const std::vector<T> &values)
{
    void *at;
    assert_int_equal(cudaMalloc(&at, values.size() * sizeof(T) + 16), 0);
    assert_int_equal(cudaMemcpy(at, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), 0);
    allocations.push_back(at);
    return (T *)at;
}

static std::vector<float> download(const float *from, int64_t count)
{
    std::vector<float> values((size_t)count);
    assert_int_equal(cudaMemcpy(values.data(), from, (size_t)count * sizeof(float), cudaMemcpyDeviceToHost), 0);
    return values;
}

static int free_all(void **)
{
    for (void *at : allocations)
        assert_int_equal(cudaFree(at), 0);
    allocations.clear();
    return 0;
}

/* ---- operands ---- */

typedef struct weights {
    qmi_matrix matrix;
    std::vector<float> values; /* [count][rows][columns] */
} weights;

/* Random codes, and scales of usual size where the format (quant_blocks.h) has them. */
static weights make_weights(uint32_t type, int64_t columns, int64_t rows, int64_t count)
{
    const qmi_quant_format *format = qmi_quant_format_of(type);
    const int64_t blocks = rows * count * columns / format->block;
    std::vector<uint8_t> file((size_t)(blocks * format->bytes));
    uint8_t *bytes = file.data();
    for (int64_t b = 0; b < blocks; b++, bytes += format->bytes) {
        for (int i = 0; i < format->bytes; i++)
            bytes[i] = (uint8_t)random_bits();
        const float value = random_float();
        if (type == QMI_TYPE_F32)
            memcpy(bytes, &value, 4);
        else if (type == QMI_TYPE_F16)
            put_half(bytes, value);
        else if (type == QMI_TYPE_BF16)
            memcpy(bytes, (const uint8_t *)&value + 2, 2);
        else
            put_half(bytes + (type == QMI_TYPE_Q6_K ? format->bytes - 2 : 0), 0.001f * (1 + value));
        if (type == QMI_TYPE_Q4_K || type == QMI_TYPE_Q5_K)
            put_half(bytes + 2, 0.001f * (1 + random_float()));
    }
    weights w = {};
    w.values.resize((size_t)(rows * count * columns));
    format->unpack(file.data(), w.values.data(), blocks);
    qmi_cuda_planes planes;
    qmi_cuda_planes_of(type, columns, rows * count, &planes);
    std::vector<uint8_t> host((size_t)planes.bytes);
    qmi_cuda_reorder(type, columns, file.data(), 0, rows * count, &planes, host.data());
    w.matrix.type = type;
    w.matrix.columns = columns;
    w.matrix.rows = rows;
    w.matrix.count = count;
    w.matrix.data = (qmi_address)upload(host);
    return w;
}

static std::vector<float> random_floats(int64_t count, float scale, float offset)
{
    std::vector<float> out((size_t)count);
    for (float &x : out)
        x = offset + scale * random_float();
    return out;
}

typedef struct scene {
    cuda_run run;
    qmi_address slots[8];
    int64_t n;
} scene;

static void begin(scene *s, int64_t n)
{
    *s = {};
    s->n = n;
    s->run.rows = (int32_t)n;
    s->run.outputs = 0;
    s->run.sequences = (int32_t)n;
    s->run.single = true;
    s->run.processors = 4;
    s->run.shared_most = 227 << 10;
    s->run.capability = 90;
    s->run.linked = true;
    s->run.slots = s->slots;
    assert_int_equal(cudaStreamCreate(&s->run.stream), 0);
}

static void finish(scene *s)
{
    assert_int_equal(cudaStreamSynchronize(s->run.stream), 0);
    assert_int_equal(cudaGetLastError(), 0);
    assert_int_equal(cudaStreamDestroy(s->run.stream), 0);
}

static qmi_slot add_slot(scene *s, int index, const std::vector<float> &values)
{
    s->slots[index] = (qmi_address)upload(values);
    return index;
}

static void give_scratch(scene *s, const qmi_op *op, const qmi_op *other)
{
    const int64_t a = cuda_scratch_matvec(op, (int32_t)s->n), b = other ? cuda_scratch_matvec(other, (int32_t)s->n) : 0;
    s->run.scratch = upload(std::vector<uint8_t>((size_t)std::max(a, b)));
}

/* ---- expected ---- */

/* Activations as a matrix of a type sees them: what the norm's factor multiplies, and steps: the size of a half step of each. */
typedef struct seen {
    std::vector<double> x, steps;
    double factor;
} seen;

static seen see(const float *x, int64_t columns, const std::vector<float> *norm, double epsilon, bool quantized)
{
    seen out = { std::vector<double>((size_t)columns), std::vector<double>((size_t)columns, 0), 1 };
    double square = 0;
    for (int64_t c = 0; c < columns; c++) {
        square += (double)x[c] * (double)x[c];
        out.x[(size_t)c] = norm ? (double)(x[c] * (*norm)[(size_t)c]) : (double)x[c];
    }
    if (norm)
        out.factor = 1 / sqrt(square / (double)columns + epsilon);
    for (int64_t b = 0; quantized && b < columns; b += 32) {
        double most = 0;
        for (int64_t c = b; c < b + 32; c++)
            most = fmax(most, fabs(out.x[(size_t)c]));
        for (int64_t c = b; c < b + 32; c++) {
            out.x[(size_t)c] = most > 0 ? nearbyint(out.x[(size_t)c] * 127 / most) * most / 127 : 0;
            out.steps[(size_t)c] = most / 127;
        }
    }
    return out;
}

typedef struct expected {
    double value, error;
} expected;

/* Row `row` of all the rows of w. Two activations may have been rounded the other way. */
static expected product(const weights &w, int64_t row, const seen &a)
{
    double sum = 0, size = 0, step = 0;
    for (int64_t c = 0; c < w.matrix.columns; c++) {
        const double value = (double)w.values[(size_t)(row * w.matrix.columns + c)];
        sum += value * a.x[(size_t)c];
        size += fabs(value * a.x[(size_t)c]);
        step = fmax(step, fabs(value) * a.steps[(size_t)c]);
    }
    return { sum * a.factor, (1e-5 * size + 2 * step) * a.factor };
}

static void check(const char *what, uint32_t type, int64_t n, int64_t row, float got, expected want)
{
    if (!(fabs((double)got - want.value) <= want.error + 1e-6))
        fail_msg("%s, %s: row %lld of activation %lld is %g, not %g (+- %g)", what, qmi_quant_format_of(type)->name, (long long)row,
                 (long long)n, (double)got, want.value, want.error);
}

static double silu(double x)
{
    return x / (1 + exp(-x));
}

/* ---- PROJECT ---- */

static void project(const std::vector<uint32_t> &types, const std::vector<int64_t> &rows, int64_t columns, int64_t n, bool with_norm,
                    int32_t shared_most)
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

static const int32_t all_shared = 227 << 10;

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
            project({ QMI_TYPE_Q8_0, QMI_TYPE_Q4_0, QMI_TYPE_Q5_0, QMI_TYPE_IQ4_NL }, { 9, 4, 70, 1 }, columns, n, true, all_shared);
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
        const seen a = see(row, columns, &norm, 1e-5, !is_float(gate_type)), b = see(row, columns, &norm, 1e-5, !is_float(up_type));
        for (int64_t r = 0; r < rows; r++) {
            const expected g = product(gate, r, a), u = product(up, r, b);
            const double gated = silu(g.value);
            /* silu grows by at most 1.1 */
            const expected want = { gated * u.value, 1.1 * g.error * fabs(u.value) + fabs(gated) * u.error + 1e-5 * fabs(gated * u.value) };
            check("glu", gate_type, t, r, got[(size_t)(t * rows + r)], want);
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
    const std::vector<float> got = download((const float *)s.slots[2], count * rows), hidden = download((const float *)s.slots[1], n * columns);
    for (int64_t t = 0; t < n; t++) {
        const seen a = see(&x[(size_t)(t * columns)], columns, &norm, 1e-6, false);
        for (int64_t c = 0; c < columns; c++)
            check("hidden", type, t, c, hidden[(size_t)(t * columns + c)], { a.x[(size_t)c] * a.factor, 1e-5 * fabs(a.x[(size_t)c]) * a.factor });
    }
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
    std::stable_sort(out.expert.begin(), out.expert.end(), [&](int64_t i, int64_t j) { return scores[(size_t)i] > scores[(size_t)j]; });
    out.expert.resize((size_t)m.top);
    for (int64_t e : out.expert)
        sum += exp(scores[(size_t)e] - scores[(size_t)out.expert[0]]);
    for (int64_t e : out.expert)
        out.weight.push_back(exp(scores[(size_t)e] - scores[(size_t)out.expert[0]]) / sum);
    out.weight.push_back(m.shared_gate ? 1 / (1 + exp(-product(gate, 0, a).value)) : 1);
    return out;
}

/* The result of one row, from what the hidden state is seen as. */
static void add_expert(const weights &gate, int64_t gate_row, const weights &up, int64_t up_row, const weights &down, int64_t down_row,
                       int64_t inner, const seen &for_gate, const seen &for_up, double weight, std::vector<expected> *out)
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
        assert_int_equal(cudaMemcpy((void *)router.matrix.data, values, sizeof(float) * (size_t)m.columns, cudaMemcpyHostToDevice), 0);
        assert_int_equal(cudaMemcpy((float *)router.matrix.data + (m.experts - 1) * m.columns, values, sizeof(float) * (size_t)m.columns,
                                    cudaMemcpyHostToDevice), 0);
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
    const std::vector<float> hidden = download((const float *)s.slots[1], m.n * m.columns);
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
        const seen h = see(row, m.columns, &norm, 1e-6, false);
        for (int64_t c = 0; c < m.columns; c++)
            check("hidden", m.router_type, t, c, hidden[(size_t)(t * m.columns + c)], { h.x[(size_t)c] * h.factor, 1e-5 * fabs(h.x[(size_t)c]) * h.factor });

        std::vector<expected> sums((size_t)m.columns);
        for (int64_t c = 0; c < m.columns; c++)
            sums[(size_t)c] = { (double)row[c], 1e-6 };
        const seen a = see(row, m.columns, &norm, 1e-6, !is_float(m.gate_type));
        const seen b = see(row, m.columns, &norm, 1e-6, !is_float(m.fused ? m.gate_type : m.up_type));
        for (int64_t k = 0; k < m.top; k++) {
            const int64_t e = (int64_t)chosen[k];
            add_expert(gate, e * gate.matrix.rows, m.fused ? gate : up, m.fused ? e * gate.matrix.rows + m.inner : e * m.inner, down,
                       e * m.columns, m.inner, a, b, (double)chosen[m.top + k], &sums);
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

/* 8 of 40 experts and a shared one, each of `type`. */
static mixture usual(uint32_t type, int64_t n)
{
    return { 256, 40, 8, 256, 256, n, QMI_TYPE_F32, type, type, type, type, false, true };
}

static void test_experts(void **)
{
    for (uint32_t type : all_types)
        for (int64_t n : { 1, 4, 7 })
            experts(usual(type, n), true, false, all_shared);
    for (int64_t n = 1; n <= 8; n++)
        experts(usual(QMI_TYPE_Q4_K, n), n & 1, n < 3, all_shared);
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
            mixture m = { 64, count, 9, 32, 32, 2, router, QMI_TYPE_Q8_0, QMI_TYPE_Q8_0, QMI_TYPE_Q8_0, QMI_TYPE_Q8_0, false, count != 257 };
            experts(m, true, router == QMI_TYPE_F32, all_shared);
        }
    mixture m = { 32, 70, 64, 32, 0, 3, QMI_TYPE_F32, QMI_TYPE_Q4_0, QMI_TYPE_Q4_0, QMI_TYPE_Q4_0, 0, false, false };
    experts(m, true, false, all_shared);
    m = usual(QMI_TYPE_Q4_K, 8);
    experts(m, true, false, 64 << 10);
    experts(m, true, false, 4 << 10);
}

static int set_up(void **)
{
    return cuda_matvec_setup();
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
        cmocka_unit_test_teardown(test_experts, free_all),
        cmocka_unit_test_teardown(test_experts_shapes, free_all),
        cmocka_unit_test_teardown(test_experts_many, free_all),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}

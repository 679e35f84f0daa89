/* The ops of many rows (cuda/matmul.cu, route.cu, experts.cu) on the emulator, against sums in double precision of the same
 * weights: every format, sizes that fill no tile, experts without tokens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
extern "C" {
#include <cmocka.h>
}

#include "cuda.h"
#include "cuda_blas.h"

/* ---- scene: a card with slots ---- */

static uint64_t seed;

static uint32_t random_bits(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 32);
}

static float random_float(void) /* -1 .. 1 */
{
    return (float)(int32_t)random_bits() * 0x1p-31f;
}

#define SLOTS 8
#define MATRICES 8

typedef struct weights { /* a matrix on the card and its values here */
    qmi_matrix matrix;
    float *values;
    float *most;             /* the largest of each block of 32, which rounding is relative to */
} weights;

typedef struct scene {
    cuda_run run;
    qmi_address slots[SLOTS];
    struct weights weights[MATRICES];
    int matrices;
    float *norm;
} scene;

static void *on_card(const void *from, size_t bytes)
{
    void *at;
    assert_int_equal(cudaMalloc(&at, bytes), cudaSuccess);
    if (from)
        assert_int_equal(cudaMemcpy(at, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return at;
}

static int set_up(void **state)
{
    scene *s = (scene *)calloc(1, sizeof *s);
    seed = 0x9E3779B97F4A7C15u;
    assert_int_equal(cudaStreamCreate(&s->run.stream), cudaSuccess);
    s->run.processors = 4;
    s->run.shared_most = 227 << 10;
    s->run.capability = 90;
    s->run.slots = s->slots;
    assert_int_equal(cuda_matmul_setup(), cudaSuccess);
    *state = s;
    return 0;
}

static void forget(scene *s) /* slots and matrices */
{
    for (int i = 0; i < SLOTS; i++) {
        cudaFree((void *)s->slots[i]);
        s->slots[i] = 0;
    }
    for (int i = 0; i < s->matrices; i++) {
        cudaFree((void *)s->weights[i].matrix.data);
        free(s->weights[i].values);
        free(s->weights[i].most);
    }
    s->matrices = 0;
}

static int tear_down(void **state)
{
    scene *s = (scene *)*state;
    forget(s);
    cudaStreamDestroy(s->run.stream);
    free(s);
    return 0;
}

static float *slot_of_floats(scene *s, int slot, int64_t count, float size)
{
    float *values = (float *)malloc((size_t)count * sizeof(float));
    for (int64_t i = 0; i < count; i++)
        values[i] = size * random_float();
    s->slots[slot] = (qmi_address)on_card(values, (size_t)count * sizeof(float));
    return values;
}

static float *slot_read(scene *s, int slot, int64_t count)
{
    const size_t bytes = (size_t)count * sizeof(float);
    float *values = (float *)malloc(bytes);
    assert_int_equal(cudaMemcpy(values, (void *)s->slots[slot], bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
}

static void put_half(uint8_t *at, float value)
{
    const uint16_t half = qmi_float_to_half(value);
    memcpy(at, &half, 2);
}

/* Random codes, and scales that give values below about 1 where the format (quant_blocks.h) has them. */
static void random_block(uint32_t type, const qmi_quant_format *format, uint8_t *bytes)
{
    const float value = random_float();
    for (int i = 0; i < format->bytes; i++)
        bytes[i] = (uint8_t)random_bits();
    if (type == QMI_TYPE_F32)
        memcpy(bytes, &value, 4);
    else if (type == QMI_TYPE_F16)
        put_half(bytes, value);
    else if (type == QMI_TYPE_BF16)
        memcpy(bytes, (const uint8_t *)&value + 2, 2);
    else
        put_half(bytes + (type == QMI_TYPE_Q6_K ? format->bytes - 2 : 0), 0.001f * value);
    if (type == QMI_TYPE_Q4_K || type == QMI_TYPE_Q5_K)
        put_half(bytes + 2, 0.001f * random_float());
}

static weights *make_weights(scene *s, uint32_t type, int64_t columns, int64_t rows, int64_t count)
{
    const qmi_quant_format *format = qmi_quant_format_of(type);
    const int64_t blocks = (columns + 31) / 32, all = rows * count, file_blocks = all * columns / format->block;
    weights *w = &s->weights[s->matrices++];
    qmi_cuda_planes planes;
    assert_true(s->matrices <= MATRICES);
    uint8_t *file = (uint8_t *)malloc((size_t)(file_blocks * format->bytes));
    for (int64_t b = 0; b < file_blocks; b++)
        random_block(type, format, file + b * format->bytes);
    w->values = (float *)malloc((size_t)(all * columns) * sizeof(float));
    w->most = (float *)calloc((size_t)(all * blocks), sizeof(float));
    format->unpack(file, w->values, file_blocks);
    for (int64_t r = 0; r < all; r++)
        for (int64_t c = 0; c < columns; c++) {
            float *most = &w->most[r * blocks + c / 32];
            *most = fmaxf(*most, fabsf(w->values[r * columns + c]));
        }
    qmi_cuda_planes_of(type, columns, all, &planes);
    uint8_t *card = (uint8_t *)calloc(1, (size_t)planes.bytes);
    qmi_cuda_reorder(type, columns, file, 0, all, &planes, card);
    w->matrix.type = type;
    w->matrix.columns = columns;
    w->matrix.rows = rows;
    w->matrix.count = count;
    w->matrix.data = (qmi_address)on_card(card, (size_t)planes.bytes);
    free(card);
    free(file);
    return w;
}

static void start(scene *s, const qmi_op *op, int32_t rows, int32_t most_rows)
{
    const int64_t bytes = cuda_scratch_matmul(op, most_rows);
    s->run.rows = rows;
    s->run.scratch = (uint8_t *)on_card(NULL, (size_t)bytes);
    switch (op->kind) {
    case QMI_OP_PROJECT: cuda_matmul_project(&s->run, &op->project); break;
    case QMI_OP_PROJECT_ADD: cuda_matmul_project_add(&s->run, &op->project_add); break;
    case QMI_OP_GLU: cuda_matmul_glu(&s->run, &op->glu); break;
    case QMI_OP_ROUTE: cuda_matmul_route(&s->run, &op->route); break;
    case QMI_OP_EXPERTS: cuda_matmul_experts(&s->run, &op->experts); break;
    case QMI_OP_LOGITS: cuda_matmul_logits(&s->run, &op->logits); break;
    default: fail();
    }
    assert_int_equal(cudaStreamSynchronize(s->run.stream), cudaSuccess);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    cudaFree(s->run.scratch);
}

/* ---- references ---- */

/* A sum and the sizes that rounding of its terms is relative to. */
typedef struct sum {
    double value, size;
} sum;

static sum dot(const weights *w, int64_t row, const double *x)
{
    const int64_t columns = w->matrix.columns, blocks = (columns + 31) / 32;
    sum out = { 0, 0 };
    for (int64_t c = 0; c < columns; c++) {
        out.value += (double)w->values[row * columns + c] * x[c];
        out.size += (double)w->most[row * blocks + c / 32] * fabs(x[c]);
    }
    return out;
}

#define ROUNDING 1e-3 /* of a weight and an activation, each to 11 bits */

static void expect(const char *what, int64_t i, float got, double value, double bound)
{
    if (!(fabs((double)got - value) <= bound + 2e-7 * fabs(value) + 1e-30)) /* the last: of adding to the residual in float32 */
        fail_msg("%s %lld is %g, not %g (+- %g)", what, (long long)i, (double)got, value, bound);
}

static void normalise(const float *x, const float *weight, double epsilon, int64_t columns, double *out)
{
    double squares = 0;
    for (int64_t c = 0; c < columns; c++)
        squares += (double)x[c] * (double)x[c];
    for (int64_t c = 0; c < columns; c++)
        out[c] = weight ? (double)x[c] / sqrt(squares / (double)columns + epsilon) * (double)weight[c] : (double)x[c];
}

static qmi_norm make_norm(scene *s, int64_t columns)
{
    qmi_norm norm = {};
    s->norm = slot_of_floats(s, SLOTS - 1, columns, 1.5f);
    norm.weight.size = columns;
    norm.weight.data = s->slots[SLOTS - 1];
    norm.epsilon = 1e-6f;
    return norm;
}

static double silu(double x)
{
    return x / (1 + exp(-x));
}

/* ---- PROJECT ---- */

static void check_project(scene *s, const uint32_t *types, int count, int64_t columns, int32_t rows, bool norm, float size)
{
    static const int64_t widths[4] = { 77, 20, 1, 130 };
    qmi_op op = {};
    op.kind = QMI_OP_PROJECT;
    float *in = slot_of_floats(s, 0, rows * columns, size);
    double *x = (double *)malloc((size_t)columns * sizeof(double));
    for (int64_t c = 0; c < columns; c++) /* one row is far larger than the others */
        in[columns + c] *= 1e6f;
    assert_int_equal(cudaMemcpy((void *)s->slots[0], in, (size_t)(rows * columns) * 4, cudaMemcpyHostToDevice), cudaSuccess);
    if (norm)
        op.project.norm = make_norm(s, columns);
    op.project.in = 0;
    op.project.count = count;
    for (int i = 0; i < count; i++) {
        op.project.matrix[i] = make_weights(s, types[i], columns, widths[i], 1)->matrix;
        op.project.out[i] = 1 + i;
        free(slot_of_floats(s, 1 + i, rows * widths[i], 1));
    }
    start(s, &op, rows, rows + 5);
    for (int i = 0; i < count; i++) {
        float *out = slot_read(s, 1 + i, rows * widths[i]);
        for (int32_t t = 0; t < rows; t++) {
            normalise(in + t * columns, norm ? s->norm : NULL, 1e-6, columns, x);
            for (int64_t r = 0; r < widths[i]; r++) {
                sum y = dot(&s->weights[i], r, x);
                const int64_t at = t * widths[i] + r;
                expect(qmi_quant_format_of(types[i])->name, at, out[at], y.value, ROUNDING * y.size);
            }
        }
        free(out);
    }
    free(in);
    free(x);
    if (norm)
        free(s->norm);
    forget(s);
}

static const uint32_t all_types[] = { QMI_TYPE_F32,  QMI_TYPE_F16,  QMI_TYPE_BF16, QMI_TYPE_Q8_0,   QMI_TYPE_Q4_0,  QMI_TYPE_Q5_0,
                                      QMI_TYPE_Q4_K, QMI_TYPE_Q5_K, QMI_TYPE_Q6_K, QMI_TYPE_IQ4_XS, QMI_TYPE_IQ4_NL };
#define TYPES (int)(sizeof all_types / sizeof *all_types)

static void test_project_types(void **state)
{
    static const int32_t rows[] = { 2, 9, 17, 40, 130 };
    for (int i = 0; i < TYPES; i++)
        for (int j = 0; j < 5; j++)
            check_project((scene *)*state, &all_types[i], 1, j & 1 ? 512 : 256, rows[j], j & 1, 1);
}

static void test_project_columns(void **state)
{
    static const uint32_t types[] = { QMI_TYPE_Q8_0, QMI_TYPE_Q4_0, QMI_TYPE_F32, QMI_TYPE_BF16 };
    static const uint32_t floats[] = { QMI_TYPE_F32, QMI_TYPE_F16 };
    check_project((scene *)*state, types, 4, 32, 9, true, 1);
    check_project((scene *)*state, types, 4, 96, 130, false, 1);
    check_project((scene *)*state, types, 4, 800, 17, true, 1);
    check_project((scene *)*state, floats, 2, 50, 11, true, 1);
    check_project((scene *)*state, floats, 2, 131, 2, false, 1);
}

static void test_project_large(void **state) /* activations beyond half's range, and tiny ones */
{
    static const uint32_t types[] = { QMI_TYPE_Q4_K, QMI_TYPE_F16 };
    check_project((scene *)*state, types, 2, 256, 9, false, 1e9f);
    check_project((scene *)*state, types, 2, 256, 9, true, 1e-6f);
}

/* Many rows of weights on few processors and the other way round: all ways of sharing out k. */
static void test_project_shapes(void **state)
{
    static const uint32_t types[] = { QMI_TYPE_Q6_K, QMI_TYPE_Q4_K, QMI_TYPE_Q6_K, QMI_TYPE_Q4_K };
    scene *s = (scene *)*state;
    s->run.processors = 1;
    check_project(s, types, 4, 1024, 16, true, 1);
    s->run.processors = 132;
    check_project(s, types, 4, 1024, 33, true, 1);
    check_project(s, types, 4, 1024, 130, true, 1);
    check_project(s, types, 4, 1024, 259, true, 1);
}

/* ---- PROJECT_ADD, GLU ---- */

static void check_project_add(scene *s, int32_t rows, bool add)
{
    const int64_t columns = 256, width = 70;
    qmi_op op = {};
    float *in = slot_of_floats(s, 0, rows * columns, 1), *before = slot_of_floats(s, 1, rows * width, 1);
    double x[256];
    op.kind = QMI_OP_PROJECT_ADD;
    op.project_add.matrix = make_weights(s, QMI_TYPE_Q5_K, columns, width, 1)->matrix;
    op.project_add.in = 0;
    op.project_add.out = 1;
    op.project_add.add = add;
    start(s, &op, rows, rows);
    float *out = slot_read(s, 1, rows * width);
    for (int32_t t = 0; t < rows; t++) {
        normalise(in + t * columns, NULL, 0, columns, x);
        for (int64_t r = 0; r < width; r++) {
            sum y = dot(&s->weights[0], r, x);
            y.value += add ? (double)before[t * width + r] : 0;
            expect("sum", t * width + r, out[t * width + r], y.value, ROUNDING * y.size);
        }
    }
    free(in);
    free(before);
    free(out);
    forget(s);
}

static void test_project_add(void **state)
{
    check_project_add((scene *)*state, 12, true);
    check_project_add((scene *)*state, 40, true);
    check_project_add((scene *)*state, 17, false);
}

/* d(silu(g) u) <= |u| 1.1 dg + |silu(g)| du */
static double glu_bound(sum gate, sum up)
{
    return ROUNDING * (1.1 * (fabs(up.value) + ROUNDING * up.size) * gate.size + fabs(silu(gate.value)) * up.size) +
           1e-6 * fabs(silu(gate.value) * up.value);
}

static void check_glu(scene *s, uint32_t gate_type, uint32_t up_type, int32_t rows)
{
    const int64_t columns = 256, width = 70;
    qmi_op op = {};
    float *in = slot_of_floats(s, 0, rows * columns, 1);
    double x[256];
    free(slot_of_floats(s, 1, rows * width, 1));
    op.kind = QMI_OP_GLU;
    op.glu.in = 0;
    op.glu.out = 1;
    op.glu.norm = make_norm(s, columns);
    op.glu.gate = make_weights(s, gate_type, columns, width, 1)->matrix;
    op.glu.up = make_weights(s, up_type, columns, width, 1)->matrix;
    start(s, &op, rows, rows + 9);
    float *out = slot_read(s, 1, rows * width);
    for (int32_t t = 0; t < rows; t++) {
        normalise(in + t * columns, s->norm, 1e-6, columns, x);
        for (int64_t r = 0; r < width; r++) {
            sum gate = dot(&s->weights[0], r, x), up = dot(&s->weights[1], r, x);
            expect("product", t * width + r, out[t * width + r], silu(gate.value) * up.value, glu_bound(gate, up));
        }
    }
    free(in);
    free(s->norm);
    free(out);
    forget(s);
}

static void test_glu(void **state)
{
    check_glu((scene *)*state, QMI_TYPE_Q4_K, QMI_TYPE_Q4_K, 9);
    check_glu((scene *)*state, QMI_TYPE_Q8_0, QMI_TYPE_Q8_0, 130);
    check_glu((scene *)*state, QMI_TYPE_Q4_K, QMI_TYPE_Q6_K, 33);
}

/* ---- LOGITS ---- */

static void check_logits(scene *s, int32_t rows, const int32_t *outputs, int32_t count)
{
    const int64_t columns = 256, width = 300;
    qmi_op op = {};
    float *in = slot_of_floats(s, 0, rows * columns, 3);
    double x[256];
    free(slot_of_floats(s, 1, rows * columns, 1));
    free(slot_of_floats(s, 2, (count + 1) * width, 1));
    op.kind = QMI_OP_LOGITS;
    op.logits.in = 0;
    op.logits.hidden = 1;
    op.logits.logits = 2;
    op.logits.norm = make_norm(s, columns);
    op.logits.output = make_weights(s, QMI_TYPE_Q6_K, columns, width, 1)->matrix;
    s->run.outputs = count;
    s->run.step.outputs = count ? (const int32_t *)on_card(outputs, (size_t)count * 4) : NULL;
    start(s, &op, rows, rows);
    float *hidden = slot_read(s, 1, rows * columns), *logits = slot_read(s, 2, count * width);
    for (int32_t t = 0; t < rows; t++) {
        normalise(in + t * columns, s->norm, 1e-6, columns, x);
        for (int64_t c = 0; c < columns; c++)
            expect("hidden", t * columns + c, hidden[t * columns + c], x[c], 1e-5 * fabs(x[c]));
        for (int32_t i = 0; i < count; i++)
            for (int64_t r = 0; outputs[i] == t && r < width; r++) {
                sum y = dot(&s->weights[0], r, x);
                expect("logit", i * width + r, logits[i * width + r], y.value, ROUNDING * y.size);
            }
    }
    cudaFree((void *)s->run.step.outputs);
    free(in);
    free(s->norm);
    free(hidden);
    free(logits);
    forget(s);
}

static void test_logits(void **state)
{
    static const int32_t one[] = { 39 }, all[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 };
    check_logits((scene *)*state, 40, one, 1);
    check_logits((scene *)*state, 17, all, 17);
    check_logits((scene *)*state, 20, NULL, 0);
}

/* ---- ROUTE ---- */

static void check_route(scene *s, uint32_t type, int64_t columns, int32_t experts, int32_t top, int32_t rows, bool gated)
{
    qmi_op op = {};
    float *in = slot_of_floats(s, 0, rows * columns, 2);
    double *x = (double *)malloc((size_t)columns * sizeof(double)), *p = (double *)malloc((size_t)experts * sizeof(double));
    const int32_t width = 2 * top + 1;
    free(slot_of_floats(s, 1, rows * columns, 1));
    free(slot_of_floats(s, 2, rows * width, 1));
    op.kind = QMI_OP_ROUTE;
    op.route.in = 0;
    op.route.hidden = 1;
    op.route.route = 2;
    op.route.top = top;
    op.route.norm = make_norm(s, columns);
    op.route.router = make_weights(s, type, columns, experts, 1)->matrix;
    if (gated)
        op.route.shared_gate = make_weights(s, rows % 2 ? QMI_TYPE_F32 : QMI_TYPE_BF16, columns, 1, 1)->matrix;
    start(s, &op, rows, rows + 1);
    float *hidden = slot_read(s, 1, rows * columns), *route = slot_read(s, 2, rows * width);
    for (int32_t t = 0; t < rows; t++) {
        const float *got = route + t * width;
        double total = 0, chosen = 0, bound = 1e-5; /* of probabilities: what float32 loses of the largest score's terms */
        normalise(in + t * columns, s->norm, 1e-6, columns, x);
        for (int64_t c = 0; c < columns; c++)
            expect("hidden", t * columns + c, hidden[t * columns + c], x[c], 1e-5 * fabs(x[c]));
        for (int32_t e = 0; e < experts; e++) {
            const sum score = dot(&s->weights[0], e, x);
            total += p[e] = exp(score.value);
            bound = fmax(bound, 1e-6 * score.size);
        }
        for (int32_t k = 0; k < top; k++)
            chosen += p[(int)got[k]];
        for (int32_t k = 0; k < top; k++) {
            const int e = (int)got[k];
            assert_true(e >= 0 && e < experts && p[e] >= 0); /* p < 0: chosen already */
            expect("weight", t * width + k, got[top + k], p[e] / chosen, bound * p[e] / chosen);
            for (int32_t other = 0; other < experts; other++)
                if (p[other] > p[e] * (1 + bound))
                    fail_msg("row %d: choice %d is %d (%g), but %d has %g", t, k, e, p[e] / total, other, p[other] / total);
            p[e] = -p[e];
        }
        const double gate = gated ? dot(&s->weights[1], 0, x).value : 0;
        expect("shared weight", t, got[2 * top], gated ? 1 / (1 + exp(-gate)) : 1, 1e-5);
    }
    free(in);
    free(x);
    free(p);
    free(s->norm);
    free(hidden);
    free(route);
    forget(s);
}

static void test_route(void **state)
{
    scene *s = (scene *)*state;
    check_route(s, QMI_TYPE_F32, 256, 40, 4, 9, true);
    check_route(s, QMI_TYPE_F32, 1500, 21, 4, 12, false);
    check_route(s, QMI_TYPE_F32, 1500, 21, 4, 70, false);
    check_route(s, QMI_TYPE_F32, 96, 5, 5, 33, false);
    check_route(s, QMI_TYPE_F32, 50, 300, 40, 10, true);
    check_route(s, QMI_TYPE_Q8_0, 64, 600, 3, 130, false);
    for (int i = 1; i < TYPES; i++)
        check_route(s, all_types[i], 256, 7, 2, 9, false);
}

/* Equal rows of the router: the lower index comes first; experts without a probability come by their index. */
static void test_route_ties(void **state)
{
    scene *s = (scene *)*state;
    const int32_t rows = 9, experts = 70, columns = 32, top = 6;
    qmi_op op = {};
    float *router = (float *)calloc((size_t)(experts * columns), sizeof(float));
    free(slot_of_floats(s, 0, rows * columns, 2));
    free(slot_of_floats(s, 1, rows * columns, 1));
    free(slot_of_floats(s, 2, rows * (2 * top + 1), 1));
    op.kind = QMI_OP_ROUTE;
    op.route.hidden = 1;
    op.route.route = 2;
    op.route.top = top;
    op.route.router = make_weights(s, QMI_TYPE_F32, columns, experts, 1)->matrix;
    void *data = (void *)op.route.router.data;
    assert_int_equal(cudaMemcpy(data, router, (size_t)(experts * columns) * 4, cudaMemcpyHostToDevice), cudaSuccess);
    start(s, &op, rows, rows);
    float *route = slot_read(s, 2, rows * (2 * top + 1));
    for (int32_t t = 0; t < rows; t++)
        for (int32_t k = 0; k < top; k++) {
            assert_float_equal(route[t * (2 * top + 1) + k], (float)k, 0);
            assert_float_equal(route[t * (2 * top + 1) + top + k], 1.f / (float)top, 1e-6f);
        }
    free(router);
    free(route);
    forget(s);
}

/* ---- EXPERTS ---- */

typedef struct experts_case {
    uint32_t gate, up, down, shared; /* types */
    int64_t width, inner, shared_inner; /* shared_inner 0: no shared expert */
    int32_t experts, top, rows;
    bool fused;
    int32_t popular;  /* experts that tokens choose from, the first ones: the others stay without */
} experts_case;

/* down(silu(gate x) * up x) of one expert, [width]. */
static void expert_reference(const weights *gate, const weights *up, const weights *down, int64_t gate_first, int64_t up_first,
                             int64_t down_first, int64_t inner, const double *x, double weight, sum *sums)
{
    double *act = (double *)malloc((size_t)inner * sizeof(double)), *error = (double *)malloc((size_t)inner * sizeof(double));
    for (int64_t i = 0; i < inner; i++) {
        sum g = dot(gate, gate_first + i, x), u = dot(up, up_first + i, x);
        act[i] = silu(g.value) * u.value;
        error[i] = glu_bound(g, u) / ROUNDING;
    }
    for (int64_t r = 0; r < down->matrix.rows; r++) {
        sum y = dot(down, down_first + r, act), e = dot(down, down_first + r, error);
        sums[r].value += weight * y.value;
        sums[r].size += weight * (y.size + e.size);
    }
    free(act);
    free(error);
}

static void check_experts(scene *s, const experts_case *c)
{
    const int32_t rows = c->rows, top = c->top, route_width = 2 * top + 1;
    qmi_op op = {};
    qmi_op_experts *e = &op.experts;
    float *in = slot_of_floats(s, 0, rows * c->width, 1), *before = slot_of_floats(s, 2, rows * c->width, 1);
    float *route = slot_of_floats(s, 1, rows * route_width, 1);
    for (int32_t t = 0; t < rows; t++) {
        const int32_t first = (int32_t)(random_bits() % (uint32_t)c->popular);
        for (int32_t k = 0; k < top; k++) {
            route[t * route_width + k] = (float)((first + k * 3) % c->popular); /* popular is no multiple of 3 */
            route[t * route_width + top + k] = fabsf(random_float());
        }
        route[t * route_width + 2 * top] = fabsf(random_float());
    }
    void *data = (void *)s->slots[1];
    assert_int_equal(cudaMemcpy(data, route, (size_t)(rows * route_width) * 4, cudaMemcpyHostToDevice), cudaSuccess);
    op.kind = QMI_OP_EXPERTS;
    e->hidden = 0;
    e->route = 1;
    e->out = 2;
    e->top = top;
    const weights *gate = make_weights(s, c->gate, c->width, c->fused ? 2 * c->inner : c->inner, c->experts), *up = gate;
    e->gate = gate->matrix;
    if (!c->fused) {
        up = make_weights(s, c->up, c->width, c->inner, c->experts);
        e->up = up->matrix;
    }
    const weights *down = make_weights(s, c->down, c->inner, c->width, c->experts), *shared = NULL;
    e->down = down->matrix;
    if (c->shared_inner) {
        shared = make_weights(s, c->gate, c->width, c->shared_inner, 1);
        e->shared_gate = shared->matrix;
        e->shared_up = make_weights(s, c->shared, c->width, c->shared_inner, 1)->matrix;
        e->shared_down = make_weights(s, c->shared, c->shared_inner, c->width, 1)->matrix;
    }
    start(s, &op, rows, rows + 100);

    float *out = slot_read(s, 2, rows * c->width);
    double *x = (double *)malloc((size_t)c->width * sizeof(double));
    sum *sums = (sum *)malloc((size_t)c->width * sizeof(sum));
    for (int32_t t = 0; t < rows; t++) {
        const float *r = route + t * route_width;
        memset(sums, 0, (size_t)c->width * sizeof(sum));
        normalise(in + t * c->width, NULL, 0, c->width, x);
        for (int32_t k = 0; k < top; k++) {
            const int64_t i = (int64_t)r[k], stride = c->fused ? 2 * c->inner : c->inner;
            expert_reference(gate, up, down, i * stride, i * stride + (c->fused ? c->inner : 0), i * c->width, c->inner, x,
                             (double)r[top + k], sums);
        }
        if (shared)
            expert_reference(shared, shared + 1, shared + 2, 0, 0, 0, c->shared_inner, x, (double)r[2 * top], sums);
        for (int64_t i = 0; i < c->width; i++)
            expect("expert", t * c->width + i, out[t * c->width + i], (double)before[t * c->width + i] + sums[i].value,
                   ROUNDING * sums[i].size);
    }
    free(in);
    free(before);
    free(route);
    free(out);
    free(x);
    free(sums);
    forget(s);
}

static void test_experts(void **state)
{
    static const experts_case cases[] = {
        { QMI_TYPE_Q4_K, QMI_TYPE_Q4_K, QMI_TYPE_Q5_K, QMI_TYPE_Q4_K, 256, 256, 256, 11, 2, 9, false, 7 },
        { QMI_TYPE_Q4_K, QMI_TYPE_Q4_K, QMI_TYPE_Q4_K, QMI_TYPE_Q6_K, 256, 256, 512, 5, 3, 17, false, 4 },
        { QMI_TYPE_Q8_0, 0, QMI_TYPE_Q8_0, QMI_TYPE_Q8_0, 96, 32, 0, 5, 2, 130, true, 4 },
        { QMI_TYPE_Q8_0, QMI_TYPE_Q4_0, QMI_TYPE_F16, QMI_TYPE_Q8_0, 64, 96, 32, 8, 3, 40, false, 7 },
        { QMI_TYPE_F32, QMI_TYPE_F32, QMI_TYPE_BF16, QMI_TYPE_F32, 50, 31, 7, 4, 1, 1, false, 4 },
        { QMI_TYPE_Q4_0, QMI_TYPE_Q4_0, QMI_TYPE_Q4_0, QMI_TYPE_Q4_0, 32, 32, 0, 1, 1, 300, false, 1 },
        { QMI_TYPE_Q4_0, QMI_TYPE_Q4_0, QMI_TYPE_Q4_0, QMI_TYPE_Q4_0, 32, 32, 32, 1000, 4, 25, false, 1000 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_experts((scene *)*state, &cases[i]);
}

/* ---- large dense products by a library, whose place is taken by sums here ---- */

static int products_left; /* before they fail */

static int32_t multiply(cuda_blas *, const cuda_product *p)
{
    if (products_left-- <= 0)
        return 1;
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    const size_t k = (size_t)p->k, b_stride = (size_t)p->b_stride;
    const size_t a_bytes = (size_t)p->rows * k * sizeof(__half), b_bytes = (size_t)p->n * b_stride * sizeof(__half);
    const size_t all = (size_t)(p->n - 1) * (size_t)p->stride + (size_t)p->rows;
    __half *a = (__half *)malloc(a_bytes), *b = (__half *)malloc(b_bytes);
    float *out = (float *)malloc(all * sizeof(float));
    assert_int_equal(cudaMemcpy(a, p->a, a_bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    assert_int_equal(cudaMemcpy(b, p->b, b_bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    assert_int_equal(cudaMemcpy(out, p->out, all * sizeof(float), cudaMemcpyDeviceToHost), cudaSuccess);
    for (int32_t t = 0; t < p->n; t++)
        for (int32_t r = 0; r < p->rows; r++) {
            float *to = &out[(size_t)t * (size_t)p->stride + (size_t)r], sum = 0;
            for (size_t i = 0; i < k; i++)
                sum += __half2float(a[(size_t)r * k + i]) * __half2float(b[(size_t)t * b_stride + i]);
            *to = p->alpha * sum + (p->add ? *to : 0);
        }
    assert_int_equal(cudaMemcpy(p->out, out, all * sizeof(float), cudaMemcpyHostToDevice), cudaSuccess);
    free(a);
    free(b);
    free(out);
    return 0;
}

static void test_dense(void **state)
{
    static const uint32_t types[] = { QMI_TYPE_Q4_K, QMI_TYPE_Q6_K, QMI_TYPE_Q8_0, QMI_TYPE_IQ4_XS };
    static const uint32_t floats[] = { QMI_TYPE_F32, QMI_TYPE_F16 };
    scene *s = (scene *)*state;
    cuda_blas blas = {};
    blas.multiply = multiply;
    s->run.blas = &blas;
    cuda_blas_emulated = true;
    for (int left : { 1000, 1, 0 }) { /* none fails, the second one does, the first */
        products_left = left;
        check_project(s, types, 4, 256, 256, true, left ? 1 : 1e9f);
        products_left = left;
        check_project_add(s, 257, true);
        products_left = left;
        check_glu(s, QMI_TYPE_Q5_0, QMI_TYPE_Q5_0, 256);
    }
    products_left = 1000;
    check_project(s, floats, 2, 50, 256, false, 1);
    check_glu(s, QMI_TYPE_Q4_K, QMI_TYPE_BF16, 256);
    check_route(s, QMI_TYPE_F32, 256, 21, 4, 256, true);
    assert_true(products_left < 1000);
    cuda_blas_emulated = false;
}

/* The kernels of cards before sm_90 and after it. */
static int set_up_portable(void **state)
{
    set_up(state);
    scene *s = (scene *)*state;
    s->run.capability = 86;
    s->run.shared_most = 99 << 10;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_project_types), cmocka_unit_test(test_project_columns), cmocka_unit_test(test_project_large),
        cmocka_unit_test(test_project_shapes), cmocka_unit_test(test_project_add),    cmocka_unit_test(test_glu),
        cmocka_unit_test(test_logits),         cmocka_unit_test(test_route),          cmocka_unit_test(test_route_ties),
        cmocka_unit_test(test_experts),        cmocka_unit_test(test_dense),
    };
    const size_t count = sizeof tests / sizeof *tests;
    struct CMUnitTest all[2 * sizeof tests / sizeof *tests];
    for (size_t i = 0; i < count; i++) {
        all[i] = all[count + i] = tests[i];
        all[i].setup_func = set_up;
        all[count + i].setup_func = set_up_portable;
        all[i].teardown_func = all[count + i].teardown_func = tear_down;
    }
    return cmocka_run_group_tests(all, NULL, NULL);
}

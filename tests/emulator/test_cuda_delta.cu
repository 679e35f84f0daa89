/* cuda/delta*.cu on the emulator, against the op's formulas (op.h) in double: outputs, state, the convolution's columns. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
extern "C" {
#include <cmocka.h>
}

#include <algorithm>
#include <vector>

#include "cuda.h"

#define SEQUENCES_MOST 8
#define EPSILON 1e-6f

/* ALIKE: rows nearly the same, all kept and learnt whole; FORGETFUL: decays down to e^-100 a row; LARGE: qkv up to 10^4. */
typedef enum operand_kind { PLAIN, ALIKE, FORGETFUL, LARGE } operand_kind;

typedef struct shape {
    const char *name;
    int key_heads, value_heads, key_size, value_size, taps;
    bool grouped, interleaved, in_place, normed;
    int capability, shared_most;
    int counts[SEQUENCES_MOST]; /* rows of the sequences; 0 ends */
    double bound;               /* of errors, as a part of the largest value */
    operand_kind kind = PLAIN;
} shape;

/* ---- operands ---- */
static uint64_t random_state;

static float uniform(float low, float high) /* splitmix64 */
{
    uint64_t x = random_state += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return low + (high - low) * (float)((x ^ x >> 31) >> 40) / (float)(1 << 24);
}

static std::vector<float> random_floats(int64_t count, float low, float high)
{
    std::vector<float> v((size_t)count);
    for (float &x : v)
        x = uniform(low, high);
    return v;
}

typedef struct operands {
    int channels, inner, rows, sequences;
    int64_t state_floats;       /* of a sequence, from its state_offset on */
    std::vector<float> qkv, z, beta, alpha, convolution, bias, rate, norm, state;
} operands;

#define STATE_OFFSET 3 /* floats: states need only be aligned as floats */

static operands make(const shape &s)
{
    operands o = {};
    o.inner = s.value_heads * s.value_size;
    o.channels = 2 * s.key_heads * s.key_size + o.inner;
    for (; o.sequences < SEQUENCES_MOST && s.counts[o.sequences]; o.sequences++)
        o.rows += s.counts[o.sequences];
    o.state_floats = (int64_t)(s.taps - 1) * o.channels + (int64_t)s.key_size * o.inner;
    random_state = (uint64_t)(o.rows * 131 + s.value_heads);
    o.qkv = random_floats((int64_t)o.rows * o.channels, -2, 2);
    o.z = random_floats((int64_t)o.rows * o.inner, -3, 3);
    o.beta = random_floats((int64_t)o.rows * s.value_heads * (s.interleaved ? 2 : 1), -3, 3);
    o.alpha = random_floats((int64_t)o.rows * s.value_heads, -4, 2);
    o.alpha[0] = 30; /* softplus is the identity */
    o.convolution = random_floats((int64_t)o.channels * s.taps, -0.6f, 0.8f);
    o.bias = random_floats(s.value_heads, -2, 1);
    o.rate = random_floats(s.value_heads, -0.4f, -0.001f);
    if (s.kind == ALIKE) {
        const std::vector<float> row = random_floats(o.channels, -2, 2);
        for (size_t i = 0; i < o.qkv.size(); i++)
            o.qkv[i] = 0.1f * o.qkv[i] + row[i % row.size()];
        for (float &b : o.beta)
            b = b * 0.2f + 8;
        for (float &r : o.rate)
            r *= 1e-3f;
    }
    for (float &r : o.rate)
        r *= s.kind == FORGETFUL ? 100 : 1;
    for (float &x : o.qkv)
        x *= s.kind == LARGE ? 5000 : 1;
    o.norm = random_floats(s.value_size, 0.5f, 1.5f);
    o.state = random_floats(o.state_floats * o.sequences, -0.5f, 0.5f);
    return o;
}

/* ---- the formulas ---- */
static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

typedef struct expected {
    std::vector<double> out, state;
} expected;

static void one_row(const shape &s, const operands &o, int row, const std::vector<double> &x, double *state, double *out)
{
    const int per_key = s.value_heads / s.key_heads;
    for (int h = 0; h < s.value_heads; h++) {
        const int kh = s.grouped ? h / per_key : h % s.key_heads;
        const double *q = &x[(size_t)(kh * s.key_size)], *k = q + s.key_heads * s.key_size;
        const double *v = &x[(size_t)(2 * s.key_heads * s.key_size + h * s.value_size)];
        double *S = state + (int64_t)(s.taps - 1) * o.channels + (int64_t)h * s.key_size * s.value_size;
        double b, a, qq = 1e-6, kk = 1e-6, squares = 0;
        if (s.interleaved) {
            const float *pair = &o.beta[(size_t)(row * 2 * s.value_heads + h / per_key * 2 * per_key)];
            b = pair[h % per_key];
            a = pair[per_key + h % per_key];
        } else {
            b = o.beta[(size_t)(row * s.value_heads + h)];
            a = o.alpha[(size_t)(row * s.value_heads + h)];
        }
        const double beta = sigmoid(b), g = exp((double)o.rate[(size_t)h] * log1p(exp(a + o.bias[(size_t)h])));
        for (int i = 0; i < s.key_size; i++) {
            qq += q[i] * q[i];
            kk += k[i] * k[i];
        }
        for (int c = 0; c < s.value_size; c++) {
            double recalled = 0, sum = 0;
            for (int i = 0; i < s.key_size; i++)
                recalled += (S[i * s.value_size + c] *= g) * k[i] / sqrt(kk);
            for (int i = 0; i < s.key_size; i++) {
                S[i * s.value_size + c] += k[i] / sqrt(kk) * beta * (v[c] - recalled);
                sum += S[i * s.value_size + c] * q[i] / sqrt(qq * s.key_size);
            }
            out[h * s.value_size + c] = sum;
            squares += sum * sum;
        }
        for (int c = 0; c < s.value_size; c++) {
            const double z = o.z[(size_t)(row * o.inner + h * s.value_size + c)];
            const double scale = s.normed ? o.norm[(size_t)c] / sqrt(squares / s.value_size + (double)EPSILON) : 1;
            out[h * s.value_size + c] *= scale * z * sigmoid(z);
        }
    }
}

static expected reckon(const shape &s, const operands &o)
{
    expected e = { std::vector<double>((size_t)(o.rows * o.inner)), std::vector<double>(o.state.begin(), o.state.end()) };
    std::vector<double> x((size_t)o.channels);
    for (int q = 0, row = 0; q < o.sequences; q++) {
        double *state = &e.state[(size_t)(q * o.state_floats)];
        for (int t = 0; t < s.counts[q]; t++, row++) {
            for (int c = 0; c < o.channels; c++) {
                double sum = 0;
                for (int i = 0; i < s.taps; i++) {
                    const double present = o.qkv[(size_t)(row * o.channels + c)];
                    const double in = i == s.taps - 1 ? present : state[i * o.channels + c];
                    sum += o.convolution[(size_t)(c * s.taps + i)] * in;
                    if (i < s.taps - 1)
                        state[i * o.channels + c] = i == s.taps - 2 ? present : state[(i + 1) * o.channels + c];
                }
                x[(size_t)c] = sum * sigmoid(sum);
            }
            one_row(s, o, row, x, state, &e.out[(size_t)(row * o.inner)]);
        }
    }
    return e;
}

/* ---- the op ---- */
static std::vector<void *> taken;

static void *take(size_t bytes)
{
    void *p = NULL;
    assert_int_equal(cudaMalloc(&p, bytes ? bytes : 4), cudaSuccess);
    taken.push_back(p);
    return p;
}

static qmi_address put(const void *from, size_t bytes)
{
    void *p = take(bytes);
    assert_int_equal(cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return (qmi_address)(uintptr_t)p;
}

static qmi_address put_floats(const std::vector<float> &v)
{
    return put(v.data(), v.size() * sizeof(float));
}

static std::vector<float> get(qmi_address from, size_t count)
{
    std::vector<float> v(count);
    const void *p = (const void *)(uintptr_t)from;
    assert_int_equal(cudaMemcpy(v.data(), p, count * sizeof(float), cudaMemcpyDeviceToHost), cudaSuccess);
    return v;
}

static cuda_step put_step(const shape &s, const operands &o, qmi_address state, qmi_address next)
{
    std::vector<int32_t> sequence, position;
    std::vector<cuda_sequence> sequences;
    cuda_step step = {};
    for (int q = 0, row = 0; q < o.sequences; q++) {
        const uint64_t at = (uint64_t)(q * o.state_floats) * sizeof(float);
        sequences.push_back({ row, s.counts[q], 7, 0, state + at, next + at });
        for (int t = 0; t < s.counts[q]; t++, row++) {
            sequence.push_back(q);
            position.push_back(7 + t);
        }
    }
    step.sequence = (const int32_t *)(uintptr_t)put(sequence.data(), sequence.size() * sizeof(int32_t));
    step.position = (const int32_t *)(uintptr_t)put(position.data(), position.size() * sizeof(int32_t));
    step.sequences = (const cuda_sequence *)(uintptr_t)put(sequences.data(), sequences.size() * sizeof(cuda_sequence));
    return step;
}

static qmi_op_delta op_of(const shape &s, const operands &o)
{
    qmi_op_delta op = {};
    op.qkv = 0;
    op.z = 1;
    op.beta = 2;
    op.alpha = s.interleaved ? QMI_NO_SLOT : 3;
    op.out = 4;
    op.key_heads = s.key_heads;
    op.value_heads = s.value_heads;
    op.key_size = s.key_size;
    op.value_size = s.value_size;
    op.taps = s.taps;
    op.grouped = s.grouped;
    op.interleaved = s.interleaved;
    op.convolution = { (int64_t)o.convolution.size(), put_floats(o.convolution) };
    op.time_bias = { (int64_t)o.bias.size(), put_floats(o.bias) };
    op.decay = { (int64_t)o.rate.size(), put_floats(o.rate) };
    if (s.normed)
        op.norm.weight = { (int64_t)o.norm.size(), put_floats(o.norm) };
    op.norm.epsilon = EPSILON;
    op.state_offset = STATE_OFFSET * (int64_t)sizeof(float);
    return op;
}

static void compare(const shape &s, const char *what, const float *got, const double *wanted, size_t count)
{
    double largest = 0, worst = 0;
    for (size_t i = 0; i < count; i++) {
        assert_true(isfinite(got[i]));
        largest = std::max(largest, fabs(wanted[i]));
        worst = std::max(worst, fabs((double)got[i] - wanted[i]));
    }
    if (worst > s.bound * largest)
        print_message("%s: %s off by %.2g, the largest is %.3g\n", s.name, what, worst, largest);
    assert_true(worst <= s.bound * largest);
}

static void check(const shape &s)
{
    const operands o = make(s);
    const expected e = reckon(s, o);
    std::vector<float> padded(o.state.size() + STATE_OFFSET, 1);
    std::copy(o.state.begin(), o.state.end(), padded.begin() + STATE_OFFSET);
    const qmi_address state = put_floats(padded), next = s.in_place ? state : put_floats(std::vector<float>(padded.size(), NAN));
    const qmi_op_delta op = op_of(s, o);
    const qmi_address slots[] = { put_floats(o.qkv), put_floats(o.z), put_floats(o.beta), put_floats(o.alpha),
                                  (qmi_address)(uintptr_t)take((size_t)(o.rows * o.inner) * sizeof(float)) };
    cuda_run run = {};
    run.step = put_step(s, o, state, next);
    run.rows = o.rows;
    run.sequences = o.sequences;
    run.single = o.rows == o.sequences;
    run.processors = 8;
    run.shared_most = s.shared_most;
    run.capability = s.capability;
    run.linked = s.capability >= 90;
    run.slots = slots;
    run.scratch = (uint8_t *)take((size_t)cuda_scratch_delta(&op, o.rows));
    assert_int_equal(cudaStreamCreate(&run.stream), cudaSuccess);
    cuda_delta(&run, &op);
    assert_int_equal(cudaStreamSynchronize(run.stream), cudaSuccess);

    compare(s, "outputs", get(slots[4], e.out.size()).data(), e.out.data(), e.out.size());
    const std::vector<float> after = get(next, padded.size());
    for (int q = 0; q < o.sequences; q++) {
        const size_t columns = (size_t)(s.taps - 1) * (size_t)o.channels, first = (size_t)(q * o.state_floats);
        for (size_t i = 0; i < columns; i++) /* moved, not computed */
            assert_true((double)after[STATE_OFFSET + first + i] == e.state[first + i]);
        compare(s, "state", &after[STATE_OFFSET + first + columns], &e.state[first + columns], (size_t)o.state_floats - columns);
    }
    if (!s.in_place)
        assert_true(get(state, padded.size()) == padded);
    for (void *p : taken)
        cudaFree(p);
    taken.clear();
    cudaStreamDestroy(run.stream);
}

#define SHARED_90 232448 /* bytes of shared memory: sm_90 */
#define SHARED_86 101376
#define EXACT 1e-5
#define HALVES 2e-3

static void any_size(void **unused)
{
    (void)unused;
    const shape shapes[] = {
        { "16", 2, 4, 16, 16, 4, false, false, true, true, 90, SHARED_90, { 1, 5, 2 }, EXACT },
        { "unequal", 3, 3, 24, 40, 3, true, false, false, true, 90, SHARED_90, { 3, 1 }, EXACT },
        { "interleaved", 2, 6, 32, 64, 4, true, true, true, true, 86, SHARED_86, { 70 }, EXACT },
        { "one tap, no norm", 1, 2, 8, 100, 1, false, false, true, false, 86, SHARED_86, { 2, 2 }, EXACT },
        { "wide values", 1, 1, 20, 128, 2, false, false, false, true, 86, SHARED_86, { 3 }, EXACT },
    };
    for (const shape &s : shapes)
        check(s);
}

static void few_rows(void **unused)
{
    (void)unused;
    const shape shapes[] = {
        { "one", 2, 4, 128, 128, 4, false, false, true, true, 86, SHARED_86, { 1 }, EXACT },
        { "one, elsewhere", 1, 3, 128, 128, 4, true, true, false, true, 86, SHARED_86, { 1, 1, 1 }, EXACT },
        { "two", 1, 2, 128, 128, 4, false, false, true, false, 86, SHARED_86, { 2, 1 }, EXACT },
        { "many", 1, 1, 128, 128, 4, false, false, false, true, 86, SHARED_86, { 32 }, EXACT },
        { "cluster of 8", 2, 4, 128, 128, 4, false, false, true, true, 90, SHARED_90, { 1, 1 }, EXACT },
        { "cluster of 6", 1, 3, 128, 128, 4, true, true, true, true, 90, SHARED_90, { 1, 2 }, EXACT },
        { "cluster of 4", 2, 2, 128, 128, 4, false, false, false, false, 90, SHARED_90, { 1, 1 }, EXACT },
        { "cluster of wide blocks", 1, 4, 128, 128, 4, true, false, true, true, 90, SHARED_90, { 3, 5 }, EXACT },
        { "too many for a cluster", 1, 5, 128, 128, 4, true, false, true, true, 90, SHARED_90, { 1 }, EXACT },
    };
    for (const shape &s : shapes)
        check(s);
}

static void chunks(void **unused)
{
    (void)unused;
    const shape shapes[] = {
        { "33 rows", 1, 2, 128, 128, 4, false, false, true, true, 86, SHARED_86, { 33 }, HALVES },
        { "63 rows", 1, 1, 128, 128, 4, false, false, false, true, 90, SHARED_90, { 63 }, HALVES },
        { "64 rows", 1, 2, 128, 128, 4, true, true, true, true, 86, SHARED_86, { 64 }, HALVES },
        { "65 rows", 1, 3, 128, 128, 4, false, false, false, false, 86, SHARED_90, { 65 }, HALVES },
        { "200 rows", 2, 4, 128, 128, 4, false, false, true, true, 86, SHARED_90, { 200 }, HALVES },
        { "alike", 1, 1, 128, 128, 4, false, false, true, true, 86, SHARED_90, { 400 }, HALVES, ALIKE },
        { "forgetful", 1, 1, 128, 128, 4, false, false, true, true, 86, SHARED_90, { 150 }, HALVES, FORGETFUL },
        { "large", 1, 1, 128, 128, 4, false, false, true, true, 86, SHARED_90, { 150 }, HALVES, LARGE },
        { "several", 1, 2, 128, 128, 4, true, false, true, true, 86, SHARED_86, { 2, 130, 33, 1, 65 }, HALVES },
        { "several, clusters", 1, 2, 128, 128, 4, true, false, true, true, 90, SHARED_90, { 1, 40, 32, 100, 1 }, HALVES },
        { "several, elsewhere", 1, 2, 128, 128, 4, true, false, false, true, 90, SHARED_90, { 64, 3, 128 }, HALVES },
    };
    for (const shape &s : shapes)
        check(s);
}

static int set_up(void **unused)
{
    (void)unused;
    return cuda_delta_setup() == cudaSuccess ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(any_size), cmocka_unit_test(few_rows), cmocka_unit_test(chunks) };
    return cmocka_run_group_tests(tests, set_up, NULL);
}

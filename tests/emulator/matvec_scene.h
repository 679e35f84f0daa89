/* Operands on the emulated card, and what the decode kernels should make of them, in double precision.
 *
 * Where weights are quantized the expected values are made of activations that are quantized here, in the way that the kernels
 * say (blocks of 32, 127 steps to the largest): so what is left between the two is the rounding of sums, and now and then an
 * activation that fell to the other side of a half step. */
#ifndef QMI_TEST_MATVEC_SCENE_H
#define QMI_TEST_MATVEC_SCENE_H

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

static const int32_t all_shared = 227 << 10; /* bytes of shared memory that a block of the H200 may have */
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
    s->run.shared_most = all_shared;
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
        fail_msg("%s, %s: row %lld of activation %lld is %g, not %g (+- %g)", what, qmi_quant_format_of(type)->name,
                 (long long)row, (long long)n, (double)got, want.value, want.error);
}

/* Rows of x, normalised. */
static void check_hidden(const std::vector<float> &got, const std::vector<float> &x, int64_t columns,
                         const std::vector<float> &norm)
{
    for (size_t i = 0; i < x.size(); i += (size_t)columns) {
        const seen a = see(&x[i], columns, &norm, 1e-6, false);
        for (size_t c = 0; c < (size_t)columns; c++) {
            const double value = a.x[c] * a.factor;
            check("hidden", QMI_TYPE_F32, (int64_t)i / columns, (int64_t)c, got[i + c], { value, 1e-5 * fabs(value) });
        }
    }
}

static double silu(double x)
{
    return x / (1 + exp(-x));
}

static int set_up(void **)
{
    return cuda_matvec_setup();
}

#endif

/* What tests of attention have in common: cases, random operands, and the heads as they should be, in double. */
#ifndef ATTEND_SCENE_H
#define ATTEND_SCENE_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#include "cuda.h"

#define SEQUENCES_MOST 8

typedef struct test_sequence {
    int start, count;
} test_sequence;

typedef struct test_types {
    qmi_kv_type key, value;
    bool rotated;
} test_types;

typedef struct test_case {
    const char *name;
    int heads, kv_heads, head_size, rotary;
    bool gated, norms;
    test_types types;
    int page_tokens, processors, shared_most;
    test_sequence sequences[SEQUENCES_MOST]; /* up to one of count 0 */
} test_case;

static uint64_t random_state = 1;

static float random_float(void) /* mean 0, deviation 1 */
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        random_state = random_state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(random_state >> 40) / 16777216.f - 0.5f;
    }
    return sum * 1.7320508f;
}

static void *to_card(const void *from, size_t bytes)
{
    void *p = NULL;
    if (cudaMalloc(&p, bytes) != cudaSuccess || cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice) != cudaSuccess) {
        fprintf(stderr, "no memory on the card: %zu bytes\n", bytes);
        exit(1);
    }
    return p;
}

template <class T> static T *to_card(const std::vector<T> &from)
{
    return (T *)to_card(from.data(), from.size() * sizeof(T));
}

static std::vector<float> random_floats(size_t count)
{
    std::vector<float> x(count);
    for (float &value : x)
        value = random_float();
    return x;
}

/* x H S / sqrt(m), or back, by the matrix (quant/kv_type.h). */
static void spread(std::vector<double> &x, bool back)
{
    const int size = (int)x.size(), run = size & -size;
    std::vector<double> y(size);
    for (int i = 0; i < size; i++)
        for (int j = 0; j < run; j++) {
            const int from = i / run * run + j, to = i % run;
            const bool minus = (__builtin_popcount(to & j) + qmi_kv_sign(back ? to : j)) & 1;
            y[i] += (minus ? -x[from] : x[from]) / sqrt(run);
        }
    x = y;
}

static std::vector<double> turned(const float *x, const test_case &c, const std::vector<float> &norm,
                                  const std::vector<float> &frequency, int position)
{
    std::vector<double> y(x, x + c.head_size);
    double squares = 0;
    for (double value : y)
        squares += value * value;
    if (c.norms)
        for (int i = 0; i < c.head_size; i++)
            y[i] *= norm[i] / sqrt(squares / c.head_size + 1e-6);
    for (int i = 0; i < c.rotary / 2; i++) {
        const double angle = (float)position * frequency[i], a = y[i], b = y[i + c.rotary / 2]; /* a float product: op.h */
        y[i] = a * cos(angle) - b * sin(angle);
        y[i + c.rotary / 2] = b * cos(angle) + a * sin(angle);
    }
    if (c.types.rotated)
        spread(y, false);
    return y;
}

/* The op of a case; the offsets in pages are the caller's to set. */
static qmi_op_attend op_of_case(const test_case &c, const std::vector<float> &query_norm, const std::vector<float> &key_norm,
                                const std::vector<float> &frequency)
{
    qmi_op_attend op = {};
    op.query = 0;
    op.key = 1;
    op.value = 2;
    op.out = 3;
    op.heads = c.heads;
    op.kv_heads = c.kv_heads;
    op.head_size = c.head_size;
    op.rotary = c.rotary;
    op.gated = c.gated;
    op.query_norm.epsilon = op.key_norm.epsilon = 1e-6f;
    if (c.norms) {
        op.query_norm.weight = { c.head_size, (qmi_address)to_card(query_norm) };
        op.key_norm.weight = { c.head_size, (qmi_address)to_card(key_norm) };
    }
    op.inverse_frequency = { c.rotary / 2, (qmi_address)to_card(frequency) };
    op.key_type = c.types.key;
    op.value_type = c.types.value;
    op.rotate_keys = op.rotate_values = c.types.rotated;
    op.page_tokens = c.page_tokens;
    return op;
}

typedef struct test_batch {
    std::vector<int32_t> sequence_of, position_of; /* [rows] */
    std::vector<cuda_sequence> sequences;
    std::vector<uint64_t> table;
    std::vector<float> query, key, value, out;
} test_batch;

static void make_operands(const test_case &c, test_batch &batch)
{
    const size_t rows = batch.position_of.size();
    batch.query = random_floats(rows * c.heads * c.head_size * (c.gated ? 2 : 1));
    batch.key = random_floats(rows * c.kv_heads * c.head_size);
    batch.value = random_floats(rows * c.kv_heads * c.head_size);
    batch.out.assign(rows * c.heads * c.head_size, NAN);
}

/* Computes batch.out. `run` says of the batch: single, longest, packs, moves. */
static bool run_attend(const test_case &c, const qmi_op_attend &op, int capability, cuda_run run, test_batch &batch)
{
    const qmi_address slots[] = { (qmi_address)to_card(batch.query), (qmi_address)to_card(batch.key),
                                  (qmi_address)to_card(batch.value), (qmi_address)to_card(batch.out) };
    run.rows = (int32_t)batch.position_of.size();
    run.outputs = 1;
    run.sequences = (int32_t)batch.sequences.size();
    run.processors = c.processors;
    run.shared_most = c.shared_most;
    run.capability = capability;
    run.linked = true;
    run.slots = slots;
    const int64_t scratch = cuda_scratch_attend(&op, run.rows);
    run.scratch = (uint8_t *)to_card(std::vector<uint8_t>(scratch ? scratch : 1, 0xFF));
    run.step.sequence = to_card(batch.sequence_of);
    run.step.position = to_card(batch.position_of);
    run.step.sequences = to_card(batch.sequences);
    run.step.pages = to_card(batch.table);
    cudaStreamCreate(&run.stream);
    cuda_attend(&run, &op);
    const bool good = cudaStreamSynchronize(run.stream) == cudaSuccess && cudaGetLastError() == cudaSuccess;
    cudaMemcpy(batch.out.data(), (void *)slots[3], batch.out.size() * sizeof(float), cudaMemcpyDeviceToHost);
    void *const all[] = { (void *)slots[0], (void *)slots[1], (void *)slots[2], (void *)slots[3], run.scratch,
                          (void *)run.step.sequence, (void *)run.step.position, (void *)run.step.sequences,
                          (void *)run.step.pages };
    for (void *p : all)
        cudaFree(p);
    cudaStreamDestroy(run.stream);
    return good;
}

/* Whether a case's name has one of those that the command line gives; all have, if it gives none. */
static bool is_wanted(const char *name, int count, char **names)
{
    bool wanted = count == 1;
    for (int i = 1; i < count; i++)
        wanted = wanted || strstr(name, names[i]);
    return wanted;
}

static int reports; /* of the present case */

static int check(bool good, const test_case &c, const char *what, int row, int index, double got, double want)
{
    if (!good && reports++ < 10)
        printf("%s: %s of row %d, [%d] is %g, not %g\n", c.name, what, row, index, got, want);
    return !good;
}

#endif

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

static int reports; /* of the present case */

static int check(bool good, const test_case &c, const char *what, int row, int index, double got, double want)
{
    if (!good && reports++ < 10)
        printf("%s: %s of row %d, [%d] is %g, not %g\n", c.name, what, row, index, got, want);
    return !good;
}

#endif

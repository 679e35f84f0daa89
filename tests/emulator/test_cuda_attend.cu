/* Attention on the card against sums in double: several sequences, heads of each size, pages that end anywhere. */
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

typedef struct test_case {
    const char *name;
    int heads, kv_heads, head_size, rotary;
    bool gated, norms;
    qmi_kv_type type;
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

/* What a value is after it was stored. */
static double stored(qmi_kv_type type, double x)
{
    return type == QMI_KV_F16 ? __half2float(__double2half(x)) : (double)(float)x;
}

static double read_stored(qmi_kv_type type, const uint8_t *page, int64_t index)
{
    return type == QMI_KV_F16 ? __half2float(((const __half *)page)[index]) : ((const float *)page)[index];
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
    return y;
}

typedef struct test_page {
    uint64_t address;
    std::vector<uint8_t> before; /* host copy */
} test_page;

static int reports; /* of the present case */

static int check(bool good, const test_case &c, const char *what, int row, int index, double got, double want)
{
    if (!good && reports++ < 10)
        printf("%s: %s of row %d, [%d] is %g, not %g\n", c.name, what, row, index, got, want);
    return !good;
}

static int run_case(const test_case &c, int capability)
{
    const int size = c.head_size, group = c.heads / c.kv_heads, query_step = c.gated ? 2 * size : size;
    const int64_t value_bytes = c.type == QMI_KV_F16 ? 2 : 4, layer = (int64_t)c.kv_heads * c.page_tokens * size * value_bytes;
    const int64_t key_offset = 128, value_offset = key_offset + layer + 64, page_bytes = value_offset + layer + 64;
    std::vector<int32_t> sequence_of, position_of;
    std::vector<cuda_sequence> sequences;
    std::vector<uint64_t> table;
    std::vector<test_page> pages;
    int rows = 0, longest = 0;
    bool single = true;
    for (int s = 0; s < SEQUENCES_MOST && c.sequences[s].count; s++) {
        const test_sequence &from = c.sequences[s];
        cuda_sequence sequence = {};
        sequence.first = rows;
        sequence.count = from.count;
        sequence.start = from.start;
        table.push_back(~(uint64_t)0); /* a page nobody may touch */
        sequence.page_first = (int32_t)table.size();
        for (int t = 0; t < from.start + from.count; t += c.page_tokens) {
            test_page page;
            page.before.resize(page_bytes, 0xFF);
            for (int64_t i = 0; i < 2 * layer / value_bytes; i++) { /* tokens behind it; NaN where none was */
                const int64_t byte = i * value_bytes, at = byte < layer ? key_offset + byte : value_offset + byte - layer;
                const int token = t + (int)(i / size % c.page_tokens);
                const float x = random_float();
                if (token < from.start && value_bytes == 2)
                    *(__half *)(page.before.data() + at) = __float2half(x);
                else if (token < from.start)
                    *(float *)(page.before.data() + at) = x;
            }
            page.address = (uint64_t)to_card(page.before);
            table.push_back(page.address);
            pages.push_back(page);
        }
        for (int i = 0; i < from.count; i++) {
            sequence_of.push_back(s);
            position_of.push_back(from.start + i);
        }
        sequences.push_back(sequence);
        rows += from.count;
        single = single && from.count == 1;
        longest = longest > from.start + from.count ? longest : from.start + from.count;
    }
    std::vector<float> query = random_floats((size_t)rows * c.heads * query_step);
    std::vector<float> key = random_floats((size_t)rows * c.kv_heads * size);
    std::vector<float> value = random_floats((size_t)rows * c.kv_heads * size);
    std::vector<float> out((size_t)rows * c.heads * size, NAN);
    std::vector<float> query_norm = random_floats(size), key_norm = random_floats(size), frequency(c.rotary / 2 + 1);
    for (int i = 0; i < c.rotary / 2; i++)
        frequency[i] = (float)pow(1e7, -2. * i / c.rotary);

    qmi_op_attend op = {};
    op.query = 0;
    op.key = 1;
    op.value = 2;
    op.out = 3;
    op.heads = c.heads;
    op.kv_heads = c.kv_heads;
    op.head_size = size;
    op.rotary = c.rotary;
    op.gated = c.gated;
    op.query_norm.epsilon = op.key_norm.epsilon = 1e-6f;
    if (c.norms) {
        op.query_norm.weight = { size, (qmi_address)to_card(query_norm) };
        op.key_norm.weight = { size, (qmi_address)to_card(key_norm) };
    }
    op.inverse_frequency = { c.rotary / 2, (qmi_address)to_card(frequency) };
    op.key_type = op.value_type = c.type;
    op.page_tokens = c.page_tokens;
    op.key_offset = key_offset;
    op.value_offset = value_offset;
    const qmi_address slots[] = { (qmi_address)to_card(query), (qmi_address)to_card(key), (qmi_address)to_card(value),
                                  (qmi_address)to_card(out) };
    const int64_t scratch_bytes = cuda_scratch_attend(&op, rows);
    cuda_run run = {};
    run.rows = rows;
    run.outputs = 1;
    run.sequences = (int32_t)sequences.size();
    run.single = single;
    run.longest = longest;
    run.processors = c.processors;
    run.shared_most = c.shared_most;
    run.capability = capability;
    run.linked = true;
    run.slots = slots;
    run.scratch = (uint8_t *)to_card(std::vector<uint8_t>(scratch_bytes + 1, 0xFF));
    run.step.sequence = to_card(sequence_of);
    run.step.position = to_card(position_of);
    run.step.sequences = to_card(sequences);
    run.step.pages = to_card(table);
    cudaStreamCreate(&run.stream);
    cuda_attend(&run, &op);
    if (cudaStreamSynchronize(run.stream) != cudaSuccess || cudaGetLastError() != cudaSuccess) {
        printf("%s: the run failed\n", c.name);
        return 1;
    }
    cudaMemcpy(out.data(), (void *)slots[3], out.size() * sizeof(float), cudaMemcpyDeviceToHost);

    int failures = 0;
    reports = 0;
    double worst = 0;
    for (int row = 0; row < rows && failures < 10; row++) {
        const cuda_sequence &s = sequences[sequence_of[row]];
        const int position = position_of[row];
        for (int kv_head = 0; kv_head < c.kv_heads; kv_head++) { /* appended as it should be */
            std::vector<double> k = turned(&key[((size_t)row * c.kv_heads + kv_head) * size], c, key_norm, frequency, position);
            const float *v = &value[((size_t)row * c.kv_heads + kv_head) * size];
            std::vector<uint8_t> page(page_bytes);
            cudaMemcpy(page.data(), (void *)table[s.page_first + position / c.page_tokens], page_bytes, cudaMemcpyDeviceToHost);
            const int64_t at = ((int64_t)kv_head * c.page_tokens + position % c.page_tokens) * size;
            for (int i = 0; i < size; i++) {
                const double got = read_stored(c.type, page.data() + key_offset, at + i);
                const double got_value = read_stored(c.type, page.data() + value_offset, at + i);
                const double bound = fabs(k[i]) * (c.type == QMI_KV_F16 ? 6e-4 : 1e-5) + 1e-5;
                failures += check(fabs(got - k[i]) <= bound, c, "key", row, i, got, k[i]);
                failures += check(got_value == stored(c.type, v[i]), c, "value", row, i, got_value, v[i]);
            }
        }
        for (int head = 0; head < c.heads; head++) {
            const float *from = &query[((size_t)row * c.heads + head) * query_step];
            const std::vector<double> q = turned(from, c, query_norm, frequency, position);
            std::vector<double> score(position + 1), y(size);
            double most = -INFINITY, sum = 0;
            for (int pass = 0; pass < 2; pass++)
                for (int t = 0; t <= position; t++) {
                    /* tokens of this run by what the projections gave, older ones from the pages as they were */
                    std::vector<double> x(size);
                    const int kv_head = head / group;
                    if (t >= s.start) {
                        const size_t at = ((size_t)(s.first + t - s.start) * c.kv_heads + kv_head) * size;
                        if (pass == 0)
                            x = turned(&key[at], c, key_norm, frequency, t);
                        else
                            x.assign(&value[at], &value[at] + size);
                        for (double &each : x)
                            each = stored(c.type, each);
                    } else
                        for (const test_page &page : pages)
                            if (page.address == table[s.page_first + t / c.page_tokens])
                                for (int i = 0; i < size; i++)
                                    x[i] = read_stored(c.type, page.before.data() + (pass ? value_offset : key_offset),
                                                       ((int64_t)kv_head * c.page_tokens + t % c.page_tokens) * size + i);
                    if (pass == 0) {
                        for (int i = 0; i < size; i++)
                            score[t] += q[i] * x[i] / sqrt(size);
                        most = most > score[t] ? most : score[t];
                    } else {
                        const double weight = exp(score[t] - most);
                        sum += weight;
                        for (int i = 0; i < size; i++)
                            y[i] += weight * x[i];
                    }
                }
            for (int i = 0; i < size; i++) {
                const double got = out[((size_t)row * c.heads + head) * size + i];
                const double want = y[i] / sum * (c.gated ? 1 / (1 + exp(-(double)from[size + i])) : 1);
                worst = fabs(got - want) > worst ? fabs(got - want) : worst;
                /* halves are exact to 2^-12, of values that may be 4 here */
                failures += check(fabs(got - want) <= 2e-3, c, "result", row, head * size + i, got, want);
            }
        }
    }
    for (const test_page &page : pages) { /* what was there before still is */
        std::vector<uint8_t> now(page_bytes);
        cudaMemcpy(now.data(), (void *)page.address, page_bytes, cudaMemcpyDeviceToHost);
        for (int64_t i = 0; i < page_bytes; i++)
            if (now[i] != page.before[i] && page.before[i] != 0xFF) {
                printf("%s: byte %lld of a page has changed\n", c.name, (long long)i);
                failures++;
                break;
            }
        cudaFree((void *)page.address);
    }
    void *const all[] = { (void *)slots[0], (void *)slots[1], (void *)slots[2], (void *)slots[3], run.scratch,
                          (void *)run.step.sequence, (void *)run.step.position, (void *)run.step.sequences,
                          (void *)run.step.pages, (void *)op.query_norm.weight.data, (void *)op.key_norm.weight.data,
                          (void *)op.inverse_frequency.data };
    for (void *p : all)
        cudaFree(p);
    cudaStreamDestroy(run.stream);
    printf("%-28s %d: %s, largest difference %.2g\n", c.name, capability, failures ? "FAILED" : "good", worst);
    return failures;
}

#define LARGE (227 << 10)
#define SMALL (99 << 10)
#define F16 QMI_KV_F16
#define F32 QMI_KV_F32

static const test_case cases[] = {
    /* heads, key-value heads, size, rotary, gated, norms, type, page, processors, shared memory, sequences */
    { "decode 256", 16, 2, 256, 64, true, true, F16, 64, 4, LARGE, { { 100, 1 } } },
    { "decode 256 first token", 16, 2, 256, 64, true, true, F16, 64, 4, LARGE, { { 0, 1 } } },
    { "decode 256 shared", 16, 2, 256, 64, true, true, F16, 64, 16, LARGE, { { 700, 1 } } },
    { "decode 256 many", 8, 1, 256, 64, true, true, F16, 64, 8, SMALL,
      { { 0, 1 }, { 63, 1 }, { 64, 1 }, { 130, 1 }, { 15, 1 }, { 16, 1 } } },
    { "decode 256 shared unevenly", 8, 1, 256, 64, true, true, F16, 64, 64, LARGE, { { 5, 1 }, { 900, 1 }, { 333, 1 } } },
    { "decode 256 float", 4, 2, 256, 256, false, true, F32, 64, 8, LARGE, { { 47, 1 }, { 600, 1 } } },
    { "decode 128", 4, 4, 128, 128, false, true, F16, 64, 4, LARGE, { { 65, 1 } } },
    { "decode 128 group of 6", 12, 2, 128, 128, false, false, F16, 24, 4, SMALL, { { 95, 1 }, { 96, 1 } } },
    { "decode 64 group of 12", 12, 1, 64, 32, true, true, F32, 16, 32, LARGE, { { 200, 1 }, { 3, 1 } } },
    { "decode 32", 4, 2, 32, 20, true, true, F16, 64, 4, LARGE, { { 150, 1 }, { 2, 1 } } },
    { "prefill 256", 16, 2, 256, 64, true, true, F16, 64, 1, LARGE, { { 0, 70 } } },
    { "prefill 256 later", 8, 1, 256, 64, true, true, F16, 64, 1, LARGE, { { 77, 35 } } },
    { "prefill 256 small memory", 8, 1, 256, 64, true, true, F16, 64, 1, SMALL, { { 77, 19 }, { 0, 1 }, { 200, 2 } } },
    { "prefill 256 shared", 8, 1, 256, 64, false, true, F16, 64, 32, LARGE, { { 700, 3 }, { 0, 1 }, { 120, 20 } } },
    { "prefill 256 float small", 2, 1, 256, 64, true, true, F32, 64, 32, SMALL, { { 300, 5 } } },
    { "prefill 256 float", 2, 1, 256, 64, true, true, F32, 64, 1, LARGE, { { 30, 70 } } },
    { "prefill 128", 4, 4, 128, 128, false, true, F16, 64, 2, LARGE, { { 0, 2 }, { 60, 9 }, { 1, 1 } } },
    { "prefill 128 group of 6", 12, 2, 128, 128, false, false, F16, 24, 16, SMALL, { { 380, 23 } } },
    { "prefill 64 group of 24", 24, 1, 64, 32, true, true, F32, 100, 2, LARGE, { { 130, 9 } } },
    { "prefill 40", 3, 1, 40, 40, true, true, F32, 64, 2, LARGE, { { 130, 3 }, { 0, 2 } } },
};

int main(int count, char **names)
{
    int failed = 0;
    if (cuda_attend_setup() != cudaSuccess) {
        printf("setup failed\n");
        return 1;
    }
    for (const test_case &c : cases) {
        bool wanted = count == 1;
        for (int i = 1; i < count; i++)
            wanted = wanted || strstr(c.name, names[i]);
        failed += wanted && run_case(c, 90);
        if (strstr(c.name, "prefill")) /* the kernel for other cards, too */
            failed += wanted && run_case(c, 86);
    }
    printf("%d failed\n", failed);
    return failed != 0;
}

/* Attention on the card against sums in double: several sequences, heads of each size, pages that end anywhere. */
#include "attend_scene.h"

typedef struct test_page {
    uint64_t address;
    std::vector<uint8_t> before, after; /* host copies */
} test_page;

static void pack(qmi_kv_type type, const std::vector<double> &x, uint8_t *record)
{
    const std::vector<float> head(x.begin(), x.end());
    qmi_kv_pack(type, head.data(), record, (int64_t)head.size());
}

static std::vector<double> unpacked(qmi_kv_type type, const uint8_t *record, int size)
{
    std::vector<float> head(size);
    qmi_kv_unpack(type, record, head.data(), size);
    return std::vector<double>(head.begin(), head.end());
}

/* A value as stored against what it should be: rounded otherwise at most once in a hundred, and then by a step. */
static int check_stored(const test_case &c, const char *what, qmi_kv_type type, int row, const std::vector<double> &got,
                        const std::vector<double> &want)
{
    std::vector<uint8_t> record(4096);
    pack(type, want, record.data());
    const std::vector<double> nearest = unpacked(type, record.data(), (int)want.size());
    int failures = 0, others = 0;
    for (int i = 0; i < (int)want.size(); i++) {
        double most = 0;
        for (int k = i / 32 * 32; k < (i / 32 + 1) * 32 && k < (int)want.size(); k++)
            most = fmax(most, fabs(want[k]));
        const double step = type == QMI_KV_F32 ? 0 : type == QMI_KV_F16 ? fabs(want[i]) / 1024 : type == QMI_KV_BF16
                          ? fabs(want[i]) / 128 : type == QMI_KV_Q8_0 ? most / 120 : type == QMI_KV_Q6 ? most / 30
                          : type == QMI_KV_Q5 ? most / 15 : most / 7;
        failures += check(fabs(got[i] - nearest[i]) <= 1.01 * step + 1e-5, c, what, row, i, got[i], nearest[i]);
        others += fabs(got[i] - nearest[i]) > fabs(want[i]) * 1e-5 + 1e-5;
    }
    return failures + check(others <= 1 + (int)want.size() / 100, c, "roundings", row, 0, others, 0);
}

static int run_case(const test_case &c, int capability)
{
    const int size = c.head_size, group = c.heads / c.kv_heads, query_step = c.gated ? 2 * size : size;
    const int64_t key_bytes = qmi_kv_head_bytes(c.types.key, size), value_bytes = qmi_kv_head_bytes(c.types.value, size);
    const int64_t records = (int64_t)c.kv_heads * c.page_tokens, key_offset = 128;
    const int64_t value_offset = (key_offset + records * key_bytes + 64 + 15) / 16 * 16;
    const int64_t page_bytes = value_offset + records * value_bytes + 64;
    std::vector<test_page> pages;
    test_batch batch;
    cuda_run run = {};
    int rows = 0;
    run.single = true;
    for (int s = 0; s < SEQUENCES_MOST && c.sequences[s].count; s++) {
        const test_sequence &from = c.sequences[s];
        cuda_sequence sequence = {};
        sequence.first = rows;
        sequence.count = from.count;
        sequence.start = from.start;
        batch.table.push_back(~(uint64_t)0); /* a page nobody may touch */
        sequence.page_first = (int32_t)batch.table.size();
        for (int t = 0; t < from.start + from.count; t += c.page_tokens) {
            test_page page;
            page.before.resize(page_bytes, 0xFF);
            for (int64_t i = 0; i < records; i++) /* tokens behind it; NaN where none was */
                if (t + (int)(i % c.page_tokens) < from.start) {
                    const std::vector<float> k = random_floats(size), v = random_floats(size);
                    qmi_kv_pack(c.types.key, k.data(), page.before.data() + key_offset + i * key_bytes, size);
                    qmi_kv_pack(c.types.value, v.data(), page.before.data() + value_offset + i * value_bytes, size);
                }
            page.address = (uint64_t)to_card(page.before);
            batch.table.push_back(page.address);
            pages.push_back(page);
        }
        for (int i = 0; i < from.count; i++) {
            batch.sequence_of.push_back(s);
            batch.position_of.push_back(from.start + i);
        }
        batch.sequences.push_back(sequence);
        rows += from.count;
        run.single = run.single && from.count == 1;
        run.longest = run.longest > from.start + from.count ? run.longest : from.start + from.count;
    }
    make_operands(c, batch);
    std::vector<float> query_norm = random_floats(size), key_norm = random_floats(size), frequency(c.rotary / 2 + 1);
    for (int i = 0; i < c.rotary / 2; i++)
        frequency[i] = (float)pow(1e7, -2. * i / c.rotary);

    qmi_op_attend op = op_of_case(c, query_norm, key_norm, frequency);
    op.key_offset = key_offset;
    op.value_offset = value_offset;
    if (!run_attend(c, op, capability, run, batch)) {
        printf("%s: the run failed\n", c.name);
        return 1;
    }
    int failures = 0;
    reports = 0;
    double worst = 0;
    for (test_page &page : pages) {
        page.after.resize(page_bytes);
        cudaMemcpy(page.after.data(), (void *)page.address, page_bytes, cudaMemcpyDeviceToHost);
    }
    for (int row = 0; row < rows && failures < 10; row++) {
        const cuda_sequence &s = batch.sequences[batch.sequence_of[row]];
        const int position = batch.position_of[row];
        auto stored = [&](int kv_head, int t, bool value) {
            for (const test_page &page : pages)
                if (page.address == batch.table[s.page_first + t / c.page_tokens]) {
                    const int64_t record = (int64_t)kv_head * c.page_tokens + t % c.page_tokens;
                    return value ? unpacked(c.types.value, page.after.data() + value_offset + record * value_bytes, size)
                                 : unpacked(c.types.key, page.after.data() + key_offset + record * key_bytes, size);
                }
            abort();
        };
        for (int kv_head = 0; kv_head < c.kv_heads; kv_head++) { /* appended as it should be */
            const size_t at = ((size_t)row * c.kv_heads + kv_head) * size;
            std::vector<double> v(&batch.value[at], &batch.value[at] + size);
            if (c.types.rotated)
                spread(v, false);
            failures += check_stored(c, "key", c.types.key, row, stored(kv_head, position, false),
                                     turned(&batch.key[at], c, key_norm, frequency, position));
            failures += check_stored(c, "value", c.types.value, row, stored(kv_head, position, true), v);
        }
        for (int head = 0; head < c.heads; head++) {
            const float *from = &batch.query[((size_t)row * c.heads + head) * query_step];
            const std::vector<double> q = turned(from, c, query_norm, frequency, position);
            std::vector<double> score(position + 1), y(size);
            double most = -INFINITY, sum = 0;
            for (int pass = 0; pass < 2; pass++)
                for (int t = 0; t <= position; t++) {
                    const std::vector<double> x = stored(head / group, t, pass);
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
            if (c.types.rotated)
                spread(y, true);
            for (int i = 0; i < size; i++) {
                const double got = batch.out[((size_t)row * c.heads + head) * size + i];
                const double want = y[i] / sum * (c.gated ? 1 / (1 + exp(-(double)from[size + i])) : 1);
                worst = fabs(got - want) > worst ? fabs(got - want) : worst;
                /* halves are exact to 2^-12, of values that may be 4 here */
                failures += check(fabs(got - want) <= 2e-3, c, "result", row, head * size + i, got, want);
            }
        }
    }
    for (const test_page &page : pages) { /* what was there before still is */
        for (int64_t i = 0; i < page_bytes; i++)
            if (page.after[i] != page.before[i] && page.before[i] != 0xFF) {
                printf("%s: byte %lld of a page has changed\n", c.name, (long long)i);
                failures++;
                break;
            }
        cudaFree((void *)page.address);
    }
    void *const all[] = { (void *)op.query_norm.weight.data, (void *)op.key_norm.weight.data, (void *)op.inverse_frequency.data };
    for (void *p : all)
        cudaFree(p);
    printf("%-28s %d: %s, largest difference %.2g\n", c.name, capability, failures ? "FAILED" : "good", worst);
    return failures;
}

#define LARGE (227 << 10)
#define SMALL (99 << 10)
#define F16 { QMI_KV_F16, QMI_KV_F16, false }
#define F32 { QMI_KV_F32, QMI_KV_F32, false }
#define TURNED(key, value) { QMI_KV_##key, QMI_KV_##value, true }

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
    { "prefill 256", 8, 1, 256, 64, true, true, F16, 64, 1, LARGE, { { 0, 70 } } },
    { "prefill 256 later", 8, 1, 256, 64, true, true, F16, 64, 1, LARGE, { { 77, 35 } } },
    { "prefill 256 small memory", 8, 1, 256, 64, true, true, F16, 64, 1, SMALL, { { 77, 19 }, { 0, 1 }, { 200, 2 } } },
    { "prefill 256 shared", 8, 1, 256, 64, false, true, F16, 64, 32, LARGE, { { 330, 3 }, { 0, 1 }, { 60, 20 } } },
    { "prefill 256 float small", 2, 1, 256, 64, true, true, F32, 64, 32, SMALL, { { 300, 5 } } },
    { "prefill 256 float", 2, 1, 256, 64, true, true, F32, 64, 1, LARGE, { { 30, 70 } } },
    { "prefill 128", 4, 4, 128, 128, false, true, F16, 64, 2, LARGE, { { 0, 2 }, { 60, 9 }, { 1, 1 } } },
    { "prefill 128 group of 6", 12, 2, 128, 128, false, false, F16, 24, 16, SMALL, { { 200, 23 } } },
    { "prefill 64 group of 24", 24, 1, 64, 32, true, true, F32, 100, 2, LARGE, { { 130, 9 } } },
    { "decode 256 q4_0", 16, 2, 256, 64, true, true, TURNED(Q4_0, Q4_0), 64, 8, LARGE, { { 150, 1 }, { 20, 1 } } },
    { "decode 128 q8_0 q6", 4, 2, 128, 128, false, true, TURNED(Q8_0, Q6), 24, 1, LARGE, { { 65, 1 }, { 0, 1 } } },
    { "decode 128 q8_0 q6 many", 8, 2, 128, 64, true, true, TURNED(Q8_0, Q6), 64, 1, SMALL, { { 65, 1 }, { 0, 1 }, { 15, 1 } } },
    { "decode 64 q5 q4_0 shared", 12, 1, 64, 32, true, true, TURNED(Q5, Q4_0), 32, 16, LARGE, { { 300, 1 }, { 16, 1 } } },
    { "decode 64 q5 bf16", 6, 2, 64, 32, true, true, { QMI_KV_Q5, QMI_KV_BF16, false }, 64, 1, LARGE, { { 70, 1 } } },
    { "decode 32 q6 q4_0", 4, 2, 32, 20, true, true, TURNED(Q6, Q4_0), 64, 4, LARGE, { { 50, 1 }, { 2, 1 } } },
    { "prefill 256 q4_0", 4, 1, 256, 64, true, true, TURNED(Q4_0, Q4_0), 64, 1, LARGE, { { 70, 20 } } },
    { "prefill 128 q6 q8_0", 2, 1, 128, 128, false, true, TURNED(Q6, Q8_0), 64, 8, LARGE, { { 130, 9 }, { 0, 3 } } },
    { "prefill 64 q5 q5", 4, 2, 64, 32, true, true, TURNED(Q5, Q5), 40, 1, LARGE, { { 50, 9 } } },
    { "prefill 64 f16 q4_0", 2, 1, 64, 64, false, true, { QMI_KV_F16, QMI_KV_Q4_0, false }, 64, 1, SMALL, { { 90, 4 } } },
    { "prefill 48 bf16 q5", 2, 2, 48, 16, true, true, TURNED(BF16, Q5), 64, 1, LARGE, { { 9, 5 } } },
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
        const bool wanted = is_wanted(c.name, count, names);
        failed += wanted && run_case(c, 90);
        if (strstr(c.name, "prefill")) /* the kernel for other cards, too */
            failed += wanted && run_case(c, 86);
    }
    printf("%d failed\n", failed);
    return failed != 0;
}

/* Attention with a window (type q2) on the card against sums in double: what is packed, what stays in the state, and results,
 * over several batches, each of which goes on with what the one before has left. */
#include "attend_scene.h"

#define BATCHES_MOST 4

typedef struct window_case {
    const char *name;
    int heads, kv_heads, head_size, rotary;
    bool gated, norms;
    test_types types;          /* rotated: values */
    int window;
    bool corrected, moves;     /* the state moves with each batch */
    int processors, shared_most;
    int counts[BATCHES_MOST][3]; /* rows of each sequence; batches up to an empty one */
} window_case;

typedef struct window_sequence {
    std::vector<uint64_t> pages;
    uint64_t states[2];
    int held, compared;        /* tokens; those whose packing was looked at */
    std::vector<std::vector<double>> keys, values; /* [kv_heads]: all tokens' heads as the window should have them */
} window_sequence;

typedef struct window_scene {
    window_case c;
    test_case like;            /* the same for `turned` */
    int64_t page_bytes, state_bytes, key_offset, value_offset;
    std::vector<float> query_norm, key_norm, frequency, correction;
    std::vector<window_sequence> sequences;
    qmi_op_attend op;
    int failures, others, codes; /* codes: channels and values compared, others: of those packed otherwise */
    double worst;
} window_scene;

static double half_of(double x)
{
    return qmi_half_to_float(qmi_float_to_half((float)x));
}

static std::vector<uint8_t> from_card(uint64_t address, int64_t bytes)
{
    std::vector<uint8_t> out(bytes);
    cudaMemcpy(out.data(), (void *)address, bytes, cudaMemcpyDeviceToHost);
    return out;
}

/* y = M x, of the key-value head's T (0) or T^-T (1). */
static std::vector<double> corrected(const window_scene &s, int kv_head, int which, const std::vector<double> &x)
{
    const int size = s.c.head_size;
    if (!s.c.corrected)
        return x;
    std::vector<double> y(size);
    for (int i = 0; i < size; i++)
        for (int j = 0; j < size; j++)
            y[i] += s.correction[((size_t)(2 * kv_head + which) * size + i) * size + j] * x[j];
    return y;
}

static void open_window_scene(window_scene &s)
{
    const window_case &c = s.c;
    const int64_t records = (int64_t)c.kv_heads * QMI_KV_GROUP, ring = c.window + QMI_KV_GROUP;
    s.like = test_case{ c.name, c.heads, c.kv_heads, c.head_size, c.rotary, c.gated, c.norms,
                        { c.types.key, c.types.value, false }, QMI_KV_GROUP, c.processors, c.shared_most, {} };
    s.key_offset = 128;
    s.value_offset = (s.key_offset + records * qmi_kv_head_bytes(c.types.key, c.head_size) + 64 + 15) / 16 * 16;
    s.page_bytes = s.value_offset + records * qmi_kv_head_bytes(c.types.value, c.head_size) + 64;
    s.query_norm = random_floats(c.head_size);
    s.key_norm = random_floats(c.head_size);
    s.frequency = random_floats(c.rotary / 2 + 1);
    for (int i = 0; i < c.rotary / 2; i++)
        s.frequency[i] = (float)pow(1e7, -2. * i / c.rotary);
    s.correction = random_floats((size_t)2 * c.kv_heads * c.head_size * c.head_size);
    for (size_t i = 0; i < s.correction.size(); i++) {
        const size_t row = i / c.head_size % c.head_size, column = i % c.head_size;
        s.correction[i] = s.correction[i] / sqrtf(2.f * (float)c.head_size) + (row == column ? 0.7f : 0);
    }
    qmi_op_attend &op = s.op;
    op = op_of_case(s.like, s.query_norm, s.key_norm, s.frequency);
    op.rotate_values = c.types.rotated;
    op.key_offset = s.key_offset;
    op.value_offset = s.value_offset;
    op.window = c.window;
    op.window_offset = 48;
    s.state_bytes = op.window_offset + 2 * c.kv_heads * ring * c.head_size * 2 + 32;
    if (c.corrected)
        op.correction = { (int64_t)s.correction.size(), (qmi_address)to_card(s.correction) };
    for (int i = 0; i < 3 && c.counts[0][i]; i++) {
        window_sequence q = {};
        for (int b = 0, tokens = 0; b < BATCHES_MOST; b++)
            for (tokens += c.counts[b][i]; (int)q.pages.size() * QMI_KV_GROUP < tokens;)
                q.pages.push_back((uint64_t)to_card(std::vector<uint8_t>(s.page_bytes, 0xFF)));
        for (uint64_t &state : q.states)
            state = (uint64_t)to_card(std::vector<uint8_t>(s.state_bytes, 0xFF)); /* halves that are no numbers */
        q.keys.resize(c.kv_heads);
        q.values.resize(c.kv_heads);
        s.sequences.push_back(q);
    }
}

static bool same(const window_scene &s, const char *what, int row, int i, double got, double want, double bound)
{
    return !check(fabs(got - want) <= bound, s.like, what, row, i, got, want);
}

/* A key-value head's keys and values as they lie: packed, and in the window, [tokens][head_size] each. */
typedef struct window_lies {
    std::vector<float> of[2][2];
} window_lies;

/* Read back; what is new is compared with what should be there. */
static void read_back(window_scene &s, window_sequence &q, int kv_head, window_lies &lies)
{
    const window_case &c = s.c;
    std::vector<float>(&out)[2][2] = lies.of;
    const int size = c.head_size, packed = (int)qmi_kv_packed(c.window, q.held), ring = c.window + QMI_KV_GROUP;
    const std::vector<uint8_t> state = from_card(q.states[0], s.state_bytes);
    std::vector<std::vector<uint8_t>> pages;
    for (uint64_t page : q.pages)
        pages.push_back(from_card(page, s.page_bytes));
    for (int value = 0; value < 2; value++) {
        const std::vector<double> &want = value ? q.values[kv_head] : q.keys[kv_head];
        const qmi_kv_type type = value ? c.types.value : c.types.key;
        const int64_t bytes = qmi_kv_head_bytes(type, size), offset = value ? s.value_offset : s.key_offset;
        std::vector<float> got((size_t)QMI_KV_GROUP * size), whole(got.size());
        out[value][0].assign((size_t)q.held * size, 0);
        out[value][1].assign((size_t)q.held * size, 0);
        for (int first = 0; first < packed; first += QMI_KV_GROUP) {
            const uint8_t *records = pages[first / QMI_KV_GROUP].data() + offset + (int64_t)kv_head * QMI_KV_GROUP * bytes;
            std::vector<uint8_t> room(QMI_KV_GROUP * bytes);
            const bool is_new = first >= q.compared;
            for (int t = 0; t < QMI_KV_GROUP; t++) {
                qmi_kv_unpack(type, records + t * bytes, &got[(size_t)t * size], size);
                if (!is_new)
                    continue;
                std::vector<double> x(&want[(size_t)(first + t) * size], &want[(size_t)(first + t) * size] + size);
                if (!value && type == QMI_KV_Q2)
                    x = corrected(s, kv_head, 0, x);
                for (int i = 0; i < size; i++)
                    whole[(size_t)t * size + i] = (float)x[i];
                qmi_kv_pack(type, &whole[(size_t)t * size], room.data() + t * bytes, size);
            }
            if (!value && type == QMI_KV_Q2)
                qmi_kv_unpack_group(records, got.data(), size);
            memcpy(&out[value][0][(size_t)first * size], got.data(), got.size() * sizeof(float));
            if (!is_new)
                continue;
            if (!value && type == QMI_KV_Q2) {
                qmi_kv_pack_group(whole.data(), room.data(), size);
                qmi_kv_unpack_group(room.data(), whole.data(), size);
            } else
                for (int t = 0; t < QMI_KV_GROUP; t++)
                    qmi_kv_unpack(type, room.data() + t * bytes, &whole[(size_t)t * size], size);
            for (size_t i = 0; i < got.size(); i++) {
                s.codes++;
                s.others += !(fabs(got[i] - whole[i]) <= 1e-3);
                s.failures += !(fabs(got[i] - whole[i]) < 3);
            }
        }
        for (int t = packed; t < q.held; t++)
            for (int i = 0; i < size; i++) {
                uint16_t half;
                memcpy(&half, state.data() + s.op.window_offset +
                       2 * ((((int64_t)value * c.kv_heads + kv_head) * ring + t % ring) * size + i), 2);
                const double x = want[(size_t)t * size + i], read = qmi_half_to_float(half);
                s.failures += !same(s, value ? "value kept" : "key kept", t, i, read, x, fabs(x) / 500 + 1e-5);
                out[value][1][(size_t)t * size + i] = (float)read;
            }
        for (int t = 0; t < packed; t++) /* what an earlier row saw as halves */
            for (int i = 0; i < size; i++)
                out[value][1][(size_t)t * size + i] = (float)want[(size_t)t * size + i];
    }
}

static void check_row(window_scene &s, const std::vector<window_lies> &all, int row, int position, const float *query,
                      const float *out)
{
    const window_case &c = s.c;
    const int size = c.head_size, group = c.heads / c.kv_heads, packed = (int)qmi_kv_packed(c.window, position + 1);
    for (int kv_head = 0; kv_head < c.kv_heads; kv_head++) {
        const window_lies &lies = all[kv_head];
        for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
            const float *from = query + (size_t)head * (c.gated ? 2 : 1) * size;
            const std::vector<double> plain = turned(from, s.like, s.query_norm, s.frequency, position);
            const std::vector<double> other = c.types.key == QMI_KV_Q2 ? corrected(s, kv_head, 1, plain) : plain;
            std::vector<double> score(position + 1), y(size);
            double most = -INFINITY, sum = 0;
            for (int pass = 0; pass < 2; pass++)
                for (int t = 0; t <= position; t++) {
                    const float *x = &lies.of[pass][t >= packed][(size_t)t * size];
                    if (pass == 0) {
                        for (int i = 0; i < size; i++)
                            score[t] += (t < packed ? other : plain)[i] * x[i] / sqrt(size);
                        most = fmax(most, score[t]);
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
                const double got = out[(size_t)head * size + i];
                const double want = y[i] / sum * (c.gated ? 1 / (1 + exp(-(double)from[size + i])) : 1);
                s.worst = fmax(s.worst, fabs(got - want));
                s.failures += !same(s, "result", row, head * size + i, got, want, 3e-3);
            }
        }
    }
}

static void play_batch(window_scene &s, const int counts[3], int capability)
{
    const window_case &c = s.c;
    const int size = c.head_size, query_step = c.gated ? 2 * size : size;
    test_batch batch;
    cuda_run run = {};
    int rows = 0;
    run.single = true;
    for (size_t i = 0; i < s.sequences.size(); i++) {
        window_sequence &q = s.sequences[i];
        if (!counts[i])
            continue;
        batch.sequences.push_back({ rows, counts[i], q.held, (int32_t)batch.table.size(), q.states[0], q.states[c.moves] });
        batch.table.insert(batch.table.end(), q.pages.begin(), q.pages.end());
        for (int j = 0; j < counts[i]; j++) {
            batch.sequence_of.push_back((int32_t)batch.sequences.size() - 1);
            batch.position_of.push_back(q.held + j);
        }
        rows += counts[i];
        run.single = run.single && counts[i] == 1;
        run.longest = q.held + counts[i] > run.longest ? q.held + counts[i] : run.longest;
        run.packs = run.packs || qmi_kv_packed(c.window, q.held + counts[i]) > qmi_kv_packed(c.window, q.held);
        run.moves = c.moves;
    }
    make_operands(s.like, batch);
    s.failures += !run_attend(s.like, s.op, capability, run, batch);
    for (size_t i = 0, row = 0; i < s.sequences.size(); i++) {
        window_sequence &q = s.sequences[i];
        for (int j = 0; j < counts[i]; j++, row++, q.held++)
            for (int kv_head = 0; kv_head < c.kv_heads; kv_head++) {
                const size_t at = (row * c.kv_heads + kv_head) * size;
                std::vector<double> v(&batch.value[at], &batch.value[at] + size);
                if (c.types.rotated)
                    spread(v, false);
                for (double x : turned(&batch.key[at], s.like, s.key_norm, s.frequency, q.held))
                    q.keys[kv_head].push_back(half_of(x));
                for (double x : v)
                    q.values[kv_head].push_back(half_of(x));
            }
        if (c.moves && counts[i]) {
            const uint64_t next = q.states[1];
            q.states[1] = q.states[0];
            q.states[0] = next;
        }
    }
    for (size_t i = 0, row = 0; i < s.sequences.size(); i++) {
        window_sequence &q = s.sequences[i];
        std::vector<window_lies> lies(c.kv_heads);
        for (int kv_head = 0; kv_head < c.kv_heads && counts[i]; kv_head++)
            read_back(s, q, kv_head, lies[kv_head]);
        q.compared = (int)qmi_kv_packed(c.window, q.held);
        for (int j = 0; j < counts[i]; j++, row++)
            if (j % 16 == 3 || j + 1 == counts[i])
                check_row(s, lies, (int)row, q.held - counts[i] + j, &batch.query[row * c.heads * query_step],
                          &batch.out[row * c.heads * size]);
    }
}

static int run_window_case(const window_case &c, int capability)
{
    window_scene s = {};
    s.c = c;
    reports = 0;
    open_window_scene(s);
    for (int b = 0; b < BATCHES_MOST && (c.counts[b][0] || c.counts[b][1]); b++)
        play_batch(s, c.counts[b], capability);
    for (window_sequence &q : s.sequences) {
        for (uint64_t page : q.pages)
            cudaFree((void *)page);
        for (uint64_t state : q.states)
            cudaFree((void *)state);
    }
    void *const all[] = { (void *)s.op.query_norm.weight.data, (void *)s.op.key_norm.weight.data,
                          (void *)s.op.inverse_frequency.data, (void *)s.op.correction.data };
    for (void *p : all)
        cudaFree(p);
    s.failures += s.others * 100 > s.codes; /* halves that were rounded otherwise lead to other codes now and then */
    printf("%-28s %d: %s, largest difference %.2g, %d of %d packed otherwise\n", c.name, capability,
           s.failures ? "FAILED" : "good", s.worst, s.others, s.codes);
    return s.failures;
}

#define LARGE (227 << 10)
#define SMALL (99 << 10)
#define TYPES(key, value, rotated) { QMI_KV_##key, QMI_KV_##value, rotated }

static const window_case cases[] = {
    /* heads, key-value heads, size, rotary, gated, norms, types, window, corrected, moves, processors, shared memory, batches */
    { "128 corrected, moves", 4, 1, 128, 64, true, true, TYPES(Q2, Q2, true), 16, true, true, 32, LARGE,
      { { 79, 70, 0 }, { 1, 1, 0 }, { 10, 3, 0 }, { 1, 1, 0 } } },
    { "256 small memory", 2, 1, 256, 64, true, true, TYPES(Q2, Q2, true), 40, true, false, 32, SMALL,
      { { 103, 0, 0 }, { 1, 0, 0 }, { 9, 0, 0 }, { 1, 0, 0 } } },
    { "64 q2 f16", 12, 1, 64, 32, true, true, TYPES(Q2, F16, false), 30, false, true, 8, LARGE,
      { { 93, 20, 0 }, { 1, 1, 0 }, { 1, 100, 0 }, { 1, 1, 0 } } },
    { "128 q8_0 q2", 4, 1, 128, 64, true, true, TYPES(Q8_0, Q2, true), 20, false, false, 2, LARGE,
      { { 82, 3, 0 }, { 1, 1, 0 }, { 66, 1, 0 }, { 1, 1, 0 } } },
    { "40 corrected", 2, 1, 40, 20, true, true, TYPES(Q2, Q2, true), 12, true, true, 2, LARGE,
      { { 75, 2, 0 }, { 1, 1, 0 }, { 70, 80, 0 }, { 1, 1, 0 } } },
};

int main(int count, char **names)
{
    int failed = 0;
    if (cuda_attend_setup() != cudaSuccess) {
        printf("setup failed\n");
        return 1;
    }
    for (const window_case &c : cases) {
        const bool wanted = is_wanted(c.name, count, names);
        failed += wanted && run_window_case(c, 90);
        failed += wanted && c.head_size >= 64 && run_window_case(c, 86);
    }
    printf("%d failed\n", failed);
    return failed != 0;
}

/* The op check of kernels over stored keys and values, and of the recurrent layers. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "opcheck.h"

#define EPS 1.1920929e-7 /* 2^-23 */

/* Compares `count` outputs within bound, looks at the fences, frees both. */
static void compare(check_context *c, float *got, float *want, int64_t count, double bound)
{
    for (int64_t i = 0; i < count; i++)
        if (!check_near(c, got[i], want[i], bound, i))
            break;
    check_unharmed(c, got, (size_t)count * sizeof *got);
    check_watched_free(got);
    check_watched_free(want);
}

static float *outputs(int64_t count, float start)
{
    float *x = check_watched((size_t)count * sizeof *x);
    for (int64_t i = 0; i < count; i++)
        x[i] = start;
    return x;
}

static float *inputs(check_context *c, int64_t count)
{
    float *x = check_fenced((size_t)count * sizeof *x);
    check_fill(c, x, count);
    return x;
}

static void inputs_end(float *x, int64_t count)
{
    check_fenced_free(x, (size_t)count * sizeof *x);
}

/* ---- attention ---- */

typedef struct cache {
    void *stored;          /* [count] records of the type, fenced */
    size_t bytes;
    int32_t head_size, count, heads;
} cache;

static cache make_cache(check_context *c, qmi_kv_type type, int round)
{
    const int32_t sizes[] = { 64, 128, 256, 2, 34, 80, 32, 96 };
    cache k = { .head_size = sizes[round % 8], .count = (int32_t)check_between(c, 1, 70),
                .heads = (int32_t)check_between(c, 1, 9) };
    int64_t record = qmi_kv_head_bytes(type, k.head_size);
    float head[256];
    k.bytes = (size_t)(record * k.count);
    k.stored = check_fenced(k.bytes);
    for (int32_t j = 0; j < k.count; j++) {
        for (int32_t d = 0; d < k.head_size; d++)
            head[d] = check_float(c);
        qmi_kv_pack(type, head, (char *)k.stored + j * record, k.head_size);
    }
    return k;
}

static void check_scores(check_context *c, qmi_kv_type type)
{
    for (int round = 0; round < 60; round++) {
        cache k = make_cache(c, type, round);
        int64_t queries = (int64_t)k.heads * (k.head_size + 5), scores = (int64_t)k.heads * (k.count + 2);
        qmi_cpu_scores work = { .query = inputs(c, queries), .keys = k.stored, .score = outputs(scores, 7),
                                .query_stride = k.head_size + 5, .score_stride = k.count + 2, .heads = k.heads,
                                .head_size = k.head_size, .count = k.count, .scale = 0.125f };
        float *got = work.score;
        c->tested->kv[type].scores(&work);
        /* one head and key at a time: the same bits */
        qmi_cpu_scores one = work;
        float single, whole = got[(k.heads - 1) * work.score_stride + k.count - 1];
        one.query += (k.heads - 1) * work.query_stride;
        one.keys = (const char *)k.stored + (size_t)(k.count - 1) * k.bytes / (size_t)k.count;
        one.score = &single;
        one.heads = one.count = 1;
        c->tested->kv[type].scores(&one);
        check_same_bits(c, &single, &whole, 1, "when alone");
        work.score = outputs(scores, 7);
        c->scalar->kv[type].scores(&work);
        compare(c, got, work.score, scores, 4 * EPS * k.head_size * 0.125);
        inputs_end((float *)work.query, queries);
        check_fenced_free(k.stored, k.bytes);
    }
}

/* Groups of keys of two bits. */
static void run_scores_q2(check_context *c)
{
    static const int32_t sizes[] = { 64, 128, 256, 2, 34, 80, 32, 96 };
    for (int round = 0; round < 60; round++) {
        int32_t size = sizes[round % 8], heads = (int32_t)check_between(c, 1, 9);
        size_t bytes = (size_t)qmi_kv_group_bytes(size);
        int64_t queries = (int64_t)heads * (size + 5), scores = (int64_t)heads * (QMI_KV_GROUP + 2);
        float *keys = inputs(c, (int64_t)QMI_KV_GROUP * size);
        void *group = check_fenced(bytes);
        qmi_kv_pack_group(keys, group, size);
        qmi_cpu_scores work = { .query = inputs(c, queries), .keys = group, .score = outputs(scores, 7), .query_stride = size + 5,
                                .score_stride = QMI_KV_GROUP + 2, .heads = heads, .head_size = size, .count = QMI_KV_GROUP,
                                .scale = 0.125f };
        float *got = work.score;
        c->tested->kv[QMI_KV_Q2].scores(&work);
        /* one head at a time: the same bits */
        qmi_cpu_scores one = work;
        float single[QMI_KV_GROUP];
        one.query += (heads - 1) * work.query_stride;
        one.score = single;
        one.heads = 1;
        c->tested->kv[QMI_KV_Q2].scores(&one);
        check_same_bits(c, single, got + (heads - 1) * work.score_stride, QMI_KV_GROUP, "when alone");
        work.score = outputs(scores, 7);
        c->scalar->kv[QMI_KV_Q2].scores(&work);
        compare(c, got, work.score, scores, 8 * EPS * size * 0.125);
        inputs_end((float *)work.query, queries);
        inputs_end(keys, (int64_t)QMI_KV_GROUP * size);
        check_fenced_free(group, bytes);
    }
}

static void check_mix(check_context *c, qmi_kv_type type)
{
    for (int round = 0; round < 60; round++) {
        cache k = make_cache(c, type, round);
        int64_t weights = (int64_t)k.heads * (k.count + 3), out = (int64_t)k.heads * (k.head_size + 2);
        qmi_cpu_mix work = { .weight = inputs(c, weights), .values = k.stored, .out = outputs(out, 1),
                             .weight_stride = k.count + 3, .out_stride = k.head_size + 2,
                             .heads = k.heads, .head_size = k.head_size, .count = k.count };
        float *got = work.out;
        c->tested->kv[type].mix(&work);
        /* in two runs: the same bits */
        int32_t first = k.count / 2;
        work.out = outputs(out, 1);
        work.count = first;
        if (first)
            c->tested->kv[type].mix(&work);
        qmi_cpu_mix rest = work;
        rest.weight += first;
        rest.values = (const char *)k.stored + (size_t)first * k.bytes / (size_t)k.count;
        rest.count = k.count - first;
        c->tested->kv[type].mix(&rest);
        check_same_bits(c, got, work.out, out, "when cut in two");
        check_watched_free(work.out);

        work.out = outputs(out, 1);
        work.count = k.count;
        c->scalar->kv[type].mix(&work);
        compare(c, got, work.out, out, 16 * EPS * sqrt((double)k.count) * 4);
        inputs_end((float *)work.weight, weights);
        check_fenced_free(k.stored, k.bytes);
    }
}

/* Records byte for byte, and back; a NaN may be another one. */
static void check_store(check_context *c, qmi_kv_type type)
{
    const float special[] = { 0, -0.0f, 65504, 65519, 65520, INFINITY, -INFINITY, NAN, 6e-8f, 2.9e-8f, 1e-7f, 1.00048828125f,
                              1.00146484375f, 3.4e38f };
    for (int64_t count = 1; count < 70; count++) {
        size_t bytes = (size_t)qmi_kv_head_bytes(type, count);
        float *x = inputs(c, count), from_got[70], from_want[70];
        uint8_t *got = check_watched(bytes), *want = check_watched(bytes);
        for (int64_t i = 0; i < count; i++)
            if (check_between(c, 0, 2) == 0 && count % 3)
                x[i] = special[check_between(c, 0, 13)];
        c->tested->kv[type].store(x, got, count);
        c->scalar->kv[type].store(x, want, count);
        qmi_kv_unpack(type, got, from_got, count);
        qmi_kv_unpack(type, want, from_want, count);
        for (int64_t i = 0; i < count; i++)
            if (isnan(from_want[i]) ? !isnan(from_got[i]) : memcmp(from_got + i, from_want + i, sizeof *x) != 0)
                check_fail(c, "%.9g, number %d of %d, is stored as %.9g, scalar %.9g", x[i], (int)i, (int)count, from_got[i],
                           from_want[i]);
        if (c->tested->kv[type].unpack) {
            float *unpacked = outputs(count, 7);
            c->tested->kv[type].unpack(want, unpacked, count);
            for (int64_t i = 0; i < count; i++)
                if (isnan(from_want[i]) ? !isnan(unpacked[i]) : memcmp(unpacked + i, from_want + i, sizeof *x) != 0)
                    check_fail(c, "number %d of %d is unpacked as %.9g, not %.9g", (int)i, (int)count, unpacked[i], from_want[i]);
            check_unharmed(c, unpacked, (size_t)count * sizeof *unpacked);
            check_watched_free(unpacked);
        }
        check_unharmed(c, got, bytes);
        inputs_end(x, count);
        check_watched_free(got);
        check_watched_free(want);
    }
}

/* There and back. */
static void run_spread(check_context *c)
{
    for (int32_t size = 1; size <= 1024; size = size < 70 ? size + 1 : size * 2 - 12) {
        float *x = inputs(c, size), *got = outputs(size, 0), *want = outputs(size, 0), *back = outputs(size, 0);
        memcpy(got, x, (size_t)size * sizeof *x);
        memcpy(want, x, (size_t)size * sizeof *x);
        c->tested->spread(got, size);
        c->scalar->spread(want, size);
        check_same_bits(c, got, want, size, "spread");
        memcpy(back, got, (size_t)size * sizeof *x);
        c->tested->gather(back, size);
        c->scalar->gather(want, size);
        check_same_bits(c, back, want, size, "gathered");
        for (int32_t i = 0; i < size; i++)
            check_near(c, back[i], x[i], 64 * EPS, i);
        check_unharmed(c, got, (size_t)size * sizeof *x);
        check_watched_free(got);
        check_watched_free(want);
        check_watched_free(back);
        inputs_end(x, size);
    }
}

#define KV(stem, type) \
    static void run_scores_##stem(check_context *c) { check_scores(c, type); } \
    KV_BUT_SCORES(stem, type)

#define KV_BUT_SCORES(stem, type) \
    static void run_mix_##stem(check_context *c) { check_mix(c, type); } \
    static void run_store_##stem(check_context *c) { check_store(c, type); } \
    static bool differs_scores_##stem(const qmi_cpu_kernels *a, const qmi_cpu_kernels *b) \
    { \
        return a->kv[type].scores != b->kv[type].scores; \
    } \
    static bool differs_mix_##stem(const qmi_cpu_kernels *a, const qmi_cpu_kernels *b) \
    { \
        return a->kv[type].mix != b->kv[type].mix; \
    } \
    static bool differs_store_##stem(const qmi_cpu_kernels *a, const qmi_cpu_kernels *b) \
    { \
        return a->kv[type].store != b->kv[type].store || a->kv[type].unpack != b->kv[type].unpack; \
    }

KV(f32, QMI_KV_F32)
KV(f16, QMI_KV_F16)
KV(bf16, QMI_KV_BF16)
KV(q8_0, QMI_KV_Q8_0)
KV(q6, QMI_KV_Q6)
KV(q5, QMI_KV_Q5)
KV(q4_0, QMI_KV_Q4_0)
KV_BUT_SCORES(q2, QMI_KV_Q2)

/* ---- the recurrent layers ---- */

static void run_convolve(check_context *c)
{
    for (int round = 0; round < 40; round++) {
        int32_t channels = (int32_t)check_between(c, 1, 100), taps = round % 2 ? 4 : (int32_t)check_between(c, 2, 8);
        int32_t tokens = (int32_t)check_between(c, 1, 6);
        int32_t times = tokens + taps - 1;
        float *weights = inputs(c, (int64_t)channels * taps), *data = inputs(c, (int64_t)times * channels);
        const float *columns[16];
        for (int32_t t = 0; t < times; t++)
            columns[t] = data + (int64_t)(times - 1 - t) * channels; /* in any order in memory */
        int64_t out = (int64_t)tokens * (channels + 1);
        qmi_cpu_convolution work = { columns, weights, outputs(out, 3), channels + 1, channels, taps, tokens };
        float *got = work.out;
        c->tested->convolve(&work);
        work.out = outputs(out, 3);
        c->scalar->convolve(&work);
        compare(c, got, work.out, out, 32 * EPS * taps);
        inputs_end(weights, (int64_t)channels * taps);
        inputs_end(data, (int64_t)times * channels);
    }
}

typedef struct recurrence {
    qmi_cpu_delta work;
    int64_t state, keys, values, outs;
    float *start;              /* the state before */
} recurrence;

static recurrence make_recurrence(check_context *c, int32_t key_size, int32_t columns, int32_t tokens)
{
    recurrence r = { .state = (int64_t)key_size * (columns + 4), .keys = (int64_t)tokens * key_size,
                     .values = (int64_t)tokens * columns,
                     .outs = (int64_t)tokens * (columns + 1) };
    float *query = inputs(c, r.keys), *key = inputs(c, r.keys), *decay = inputs(c, tokens), *beta = inputs(c, tokens);
    r.start = inputs(c, r.state);
    for (int32_t t = 0; t < tokens; t++) {
        decay[t] = 1 / (1 + expf(-decay[t]));
        beta[t] = 1 / (1 + expf(-beta[t]));
    }
    for (int64_t i = 0; i < r.keys; i++)
        key[i] /= sqrtf((float)key_size); /* of length about 1, as in the models: else the state grows */
    r.work = (qmi_cpu_delta){ .state = r.start, .state_stride = columns + 4, .query = query, .key = key,
                              .value = inputs(c, r.values), .decay = decay, .beta = beta, .key_stride = key_size,
                              .value_stride = columns, .gate_stride = 1, .out_stride = columns + 1,
                              .key_size = key_size, .columns = columns, .tokens = tokens };
    return r;
}

static void end_recurrence(recurrence *r)
{
    inputs_end((float *)r->work.query, r->keys);
    inputs_end((float *)r->work.key, r->keys);
    inputs_end((float *)r->work.value, r->values);
    inputs_end((float *)r->work.decay, r->work.tokens);
    inputs_end((float *)r->work.beta, r->work.tokens);
    inputs_end(r->start, r->state);
}

/* Token by token in place gives the bits of all tokens from one state to another. */
static void check_in_place(check_context *c, const recurrence *r, const float *state, const float *out)
{
    qmi_cpu_delta step = r->work;
    step.tokens = 1;
    step.next_state = check_watched((size_t)r->state * sizeof(float));
    memcpy(step.next_state, r->start, (size_t)r->state * sizeof(float));
    step.state = step.next_state;
    step.out = outputs(r->outs, 0);
    float *outs = step.out;
    for (int32_t t = 0; t < r->work.tokens; t++) {
        c->tested->delta(&step);
        step.query += step.key_stride;
        step.key += step.key_stride;
        step.value += step.value_stride;
        step.decay++;
        step.beta++;
        step.out += step.out_stride;
    }
    check_same_bits(c, outs, out, r->outs, "in place");
    for (int32_t i = 0; i < r->work.key_size; i++)
        check_same_bits(c, step.next_state + i * r->work.state_stride, state + i * r->work.state_stride, r->work.columns,
                        "in place");
    check_watched_free(step.next_state);
    check_watched_free(outs);
}

static void run_delta(check_context *c)
{
    const int32_t sizes[][2] = { { 128, 128 }, { 128, 64 }, { 64, 64 }, { 16, 1 }, { 5, 37 }, { 1, 16 }, { 33, 100 } };
    for (int round = 0; round < 35; round++) {
        recurrence r = make_recurrence(c, sizes[round % 7][0], sizes[round % 7][1], (int32_t)check_between(c, 1, 6));
        r.work.next_state = outputs(r.state, 0);
        r.work.out = outputs(r.outs, 0);
        float *got_state = r.work.next_state, *got = r.work.out;
        c->tested->delta(&r.work);
        check_in_place(c, &r, got_state, got);
        r.work.next_state = outputs(r.state, 0);
        r.work.out = outputs(r.outs, 0);
        c->scalar->delta(&r.work);
        double bound = 64 * EPS * sqrt((double)r.work.key_size) * 4;
        compare(c, got, r.work.out, r.outs, bound);
        compare(c, got_state, r.work.next_state, r.state, bound);
        end_recurrence(&r);
    }
}

typedef struct timed {
    check_context *c;
    recurrence r;
} timed;

static void run_timed(void *argument)
{
    timed *t = argument;
    t->c->tested->delta(&t->r.work);
}

static void bench_delta(check_context *c)
{
    for (int32_t tokens = 1; tokens <= 64; tokens *= 64) {
        timed t = { c, make_recurrence(c, 128, 128, tokens) };
        char shape[32];
        t.r.work.next_state = outputs(t.r.state, 0);
        t.r.work.out = outputs(t.r.outs, 0);
        snprintf(shape, sizeof shape, "128 x 128, %d tokens", tokens);
        check_bench(c, shape, 2.0 * 128 * 128 * 4 * tokens, run_timed, &t);
        check_watched_free(t.r.work.next_state);
        check_watched_free(t.r.work.out);
        end_recurrence(&t.r);
    }
}

#define DIFFERS(stem, entry) \
    static bool differs_##stem(const qmi_cpu_kernels *a, const qmi_cpu_kernels *b) { return a->entry != b->entry; }

DIFFERS(spread, spread)
DIFFERS(convolve, convolve)
DIFFERS(delta, delta)

#define KV_PARTS(stem) \
    { "scores " #stem, run_scores_##stem, NULL, differs_scores_##stem }, \
    { "mix " #stem, run_mix_##stem, NULL, differs_mix_##stem }, \
    { "store " #stem, run_store_##stem, NULL, differs_store_##stem }

const check_part check_attend_parts[] = {
    KV_PARTS(f32), KV_PARTS(f16), KV_PARTS(bf16), KV_PARTS(q8_0), KV_PARTS(q6), KV_PARTS(q5), KV_PARTS(q4_0),
    KV_PARTS(q2),
    { "spread", run_spread, NULL, differs_spread }, { "convolve", run_convolve, NULL, differs_convolve },
    { "delta", run_delta, bench_delta, differs_delta }, { 0 }
};

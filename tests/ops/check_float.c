/* The op check of element-wise kernels: norms, gates, the pieces of a softmax, rotation. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "opcheck.h"

#define EPS 1.1920929e-7 /* 2^-23 */

/* Two vectors and what both sides make of them; sizes from 1 up to odd ones. */
typedef struct pair {
    int64_t count;
    float *a, *b;              /* fenced inputs */
    float *got, *want;         /* watched outputs, at first copies of b */
} pair;

static pair make(check_context *c, int round, float scale)
{
    pair p = { .count = round < 40 ? round + 1 : check_between(c, 41, 700) };
    size_t bytes = (size_t)p.count * sizeof(float);
    p.a = check_fenced(bytes);
    p.b = check_fenced(bytes);
    p.got = check_watched(bytes);
    p.want = check_watched(bytes);
    for (int64_t i = 0; i < p.count; i++) {
        p.a[i] = scale * check_float(c);
        p.b[i] = check_float(c);
    }
    memcpy(p.got, p.b, bytes);
    memcpy(p.want, p.b, bytes);
    return p;
}

/* Compares elements, each within `ulps` units of its own size plus `absolute`. */
static void end(check_context *c, pair *p, double ulps, double absolute)
{
    size_t bytes = (size_t)p->count * sizeof(float);
    for (int64_t i = 0; i < p->count; i++)
        if (!check_near(c, p->got[i], p->want[i], ulps * EPS * fabs((double)p->want[i]) + absolute, i))
            break;
    check_unharmed(c, p->got, bytes);
    check_fenced_free(p->a, bytes);
    check_fenced_free(p->b, bytes);
    check_watched_free(p->got);
    check_watched_free(p->want);
}

#define ROUNDS 80

static void run_rms(check_context *c)
{
    for (int round = 0; round < ROUNDS; round++) {
        pair p = make(c, round, powf(10, (float)check_between(c, -6, 6)));
        c->tested->rms(p.a, p.b, 1e-6f, p.got, p.count);
        c->scalar->rms(p.a, p.b, 1e-6f, p.want, p.count);
        end(c, &p, 16, 0);
    }
}

static void run_unit(check_context *c)
{
    for (int round = 0; round < ROUNDS; round++) {
        pair p = make(c, round, 1);
        c->tested->unit(p.got, 1e-6f, 0.125f, p.count);
        c->scalar->unit(p.want, 1e-6f, 0.125f, p.count);
        end(c, &p, 16, 0);
    }
}

static void run_silu_mul(check_context *c)
{
    for (int round = 0; round < ROUNDS; round++) {
        pair p = make(c, round, round % 3 ? 4 : 60);
        if (round % 7 == 0)
            p.a[p.count / 2] = round % 2 ? INFINITY : NAN;
        c->tested->silu_mul(p.a, p.b, p.got, p.count);
        c->scalar->silu_mul(p.a, p.b, p.want, p.count);
        end(c, &p, 8, 1e-37); /* results below the smallest normal number may lose bits */
    }
}

static void run_sigmoid_mul(check_context *c)
{
    for (int round = 0; round < ROUNDS; round++) {
        pair p = make(c, round, round % 3 ? 4 : 60);
        c->tested->sigmoid_mul(p.a, p.got, p.count);
        c->scalar->sigmoid_mul(p.a, p.want, p.count);
        end(c, &p, 8, 1e-37);
    }
}

static void run_blend(check_context *c)
{
    for (int round = 0; round < ROUNDS; round++) {
        pair p = make(c, round, 1);
        float a = check_float(c), b = check_float(c);
        c->tested->blend(p.got, a, p.a, b, p.count);
        c->scalar->blend(p.want, a, p.a, b, p.count);
        end(c, &p, 2, 8 * EPS); /* the two terms may cancel */
    }
}

static void run_maximum(check_context *c)
{
    for (int round = 0; round < ROUNDS; round++) {
        pair p = make(c, round, 3);
        if (round % 5 == 0)
            p.a[check_between(c, 0, p.count - 1)] = NAN;
        if (round % 11 == 0)
            for (int64_t i = 0; i < p.count; i++)
                p.a[i] = round % 2 ? NAN : -INFINITY;
        check_near(c, c->tested->maximum(p.a, p.count), c->scalar->maximum(p.a, p.count), 0, p.count);
        end(c, &p, 0, 0);
    }
}

static void run_exp_sum(check_context *c)
{
    for (int round = 0; round < ROUNDS; round++) {
        pair p = make(c, round, 1);
        for (int64_t i = 0; i < p.count; i++)
            p.got[i] = p.want[i] = -fabsf(p.a[i]) * (round % 3 ? 5 : 40);
        if (round % 6 == 0)
            p.got[0] = p.want[0] = -INFINITY;
        float got = c->tested->exp_sum(p.got, p.count, 0.25f), want = c->scalar->exp_sum(p.want, p.count, 0.25f);
        check_near(c, got, want, 16 * EPS * want, p.count);
        end(c, &p, 2.5, 1e-44);
    }
}

static void run_rotate(check_context *c)
{
    for (int round = 0; round < ROUNDS; round++) {
        pair p = make(c, round, 1);
        int32_t half = (int32_t)(p.count / 2);
        if (half) {
            c->tested->rotate(p.got, p.a, p.b, half);
            c->scalar->rotate(p.want, p.a, p.b, half);
        }
        end(c, &p, 2, 16 * EPS);
    }
}

typedef struct timed {
    check_context *c;
    float *a, *b, *out;
    int64_t count;
} timed;

#define TIMED_SIZE 2048

static void bench(check_context *c, void (*run)(void *), double arrays)
{
    timed t = { c, malloc(TIMED_SIZE * sizeof(float)), malloc(TIMED_SIZE * sizeof(float)), malloc(TIMED_SIZE * sizeof(float)),
                TIMED_SIZE };
    check_fill(c, t.a, TIMED_SIZE);
    check_fill(c, t.b, TIMED_SIZE);
    check_fill(c, t.out, TIMED_SIZE);
    check_bench(c, "2048", arrays * TIMED_SIZE * sizeof(float), run, &t);
    free(t.a);
    free(t.b);
    free(t.out);
}

static void timed_rms(void *argument) { timed *t = argument; t->c->tested->rms(t->a, t->b, 1e-6f, t->out, t->count); }
static void timed_silu_mul(void *argument) { timed *t = argument; t->c->tested->silu_mul(t->a, t->b, t->out, t->count); }
static void timed_exp_sum(void *argument) { timed *t = argument; t->c->tested->exp_sum(t->out, t->count, 1); }
static void bench_rms(check_context *c) { bench(c, timed_rms, 3); }
static void bench_silu_mul(check_context *c) { bench(c, timed_silu_mul, 3); }
static void bench_exp_sum(check_context *c) { bench(c, timed_exp_sum, 2); }

#define DIFFERS(entry) \
    static bool differs_##entry(const qmi_cpu_kernels *a, const qmi_cpu_kernels *b) { return a->entry != b->entry; }

DIFFERS(rms)
DIFFERS(unit)
DIFFERS(silu_mul)
DIFFERS(sigmoid_mul)
DIFFERS(blend)
DIFFERS(maximum)
DIFFERS(exp_sum)
DIFFERS(rotate)

const check_part check_float_parts[] = {
    { "rms", run_rms, bench_rms, differs_rms }, { "unit", run_unit, NULL, differs_unit },
    { "silu_mul", run_silu_mul, bench_silu_mul, differs_silu_mul }, { "sigmoid_mul", run_sigmoid_mul, NULL, differs_sigmoid_mul },
    { "blend", run_blend, NULL, differs_blend }, { "maximum", run_maximum, NULL, differs_maximum },
    { "exp_sum", run_exp_sum, bench_exp_sum, differs_exp_sum }, { "rotate", run_rotate, NULL, differs_rotate }, { 0 }
};

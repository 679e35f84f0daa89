/* The op check: every kernel of every instruction set this machine has against the scalar one, on random operands and odd sizes.
 *
 *   opcheck [--list] [--kernel=NAME] [--isa=NAME] [--seed=N] [--bench] [--json]
 *
 * Prints a line a kernel and instruction set; exits with 1 when one differs. --bench times them instead. */
#include "opcheck.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "cpu/cpu_features.h"
#if defined(__x86_64__)
#include "cpu/x86/x86.h"
#endif

#define FENCE 64 /* bytes of pattern before and behind watched memory */
#define PATTERN 0xa5

/* ---- random operands (xorshift64*, Vigna 2016, arXiv 1402.6246) ---- */

uint64_t check_random(check_context *c)
{
    c->random ^= c->random >> 12;
    c->random ^= c->random << 25;
    c->random ^= c->random >> 27;
    return c->random * UINT64_C(2685821657736338717);
}

int64_t check_between(check_context *c, int64_t low, int64_t high)
{
    return low + (int64_t)(check_random(c) % (uint64_t)(high - low + 1));
}

float check_float(check_context *c)
{
    double sum = 0; /* of 12 uniform numbers: variance 1 */
    for (int i = 0; i < 12; i++)
        sum += (double)(check_random(c) >> 11) / 9007199254740992.0;
    return (float)(sum - 6);
}

void check_fill(check_context *c, float *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = check_float(c);
}

/* ---- memory ---- */

static void *needed(void *pointer)
{
    if (!pointer || pointer == MAP_FAILED) {
        fprintf(stderr, "opcheck: out of memory\n");
        exit(2);
    }
    return pointer;
}

static size_t pages_of(size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (size + page - 1) / page * page;
}

void *check_fenced(size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = pages_of(size);
    char *start = needed(mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(start + whole, page, PROT_NONE);
    return start + whole - size;
}

void check_fenced_free(void *pointer, size_t size)
{
    size_t whole = pages_of(size);
    munmap((char *)pointer + size - whole, whole + (size_t)sysconf(_SC_PAGESIZE));
}

void *check_watched(size_t size)
{
    size_t whole = (size + 63) / 64 * 64 + 2 * FENCE;
    char *start = needed(aligned_alloc(64, whole));
    memset(start, PATTERN, whole);
    return start + FENCE;
}

bool check_unharmed(check_context *c, const void *pointer, size_t size)
{
    const unsigned char *before = (const unsigned char *)pointer - FENCE, *behind = (const unsigned char *)pointer + size;
    for (int i = 0; i < FENCE; i++) {
        if (before[i] != PATTERN || behind[i] != PATTERN) {
            check_fail(c, "wrote %s its output", before[i] != PATTERN ? "before" : "behind");
            return false;
        }
    }
    return true;
}

void check_watched_free(void *pointer)
{
    free((char *)pointer - FENCE);
}

/* ---- results ---- */

void check_fail(check_context *c, const char *format, ...)
{
    va_list arguments;
    if (c->failures++ >= 5) /* enough to see the pattern */
        return;
    printf("    %s %s: ", c->isa, c->kernel);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
}

bool check_near(check_context *c, float got, float want, double bound, int64_t index)
{
    if ((isnan(got) && isnan(want)) || got == want || fabs((double)got - want) <= bound)
        return true;
    check_fail(c, "[%lld] is %.9g, scalar %.9g, bound %.3g", (long long)index, got, want, bound);
    return false;
}

bool check_same_bits(check_context *c, const float *a, const float *b, int64_t count, const char *what)
{
    for (int64_t i = 0; i < count; i++) {
        if (memcmp(a + i, b + i, sizeof *a)) {
            check_fail(c, "[%lld] differs in bits %s: %.9g, %.9g", (long long)i, what, a[i], b[i]);
            return false;
        }
    }
    return true;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void check_bench(check_context *c, const char *shape, double bytes, void (*run)(void *), void *argument)
{
    double best = INFINITY;
    for (int trial = 0; trial < 5; trial++) {
        int64_t calls = 0;
        double start = now(), end;
        do {
            run(argument);
            calls++;
            end = now();
        } while (end - start < 0.02);
        best = fmin(best, (end - start) / (double)calls);
    }
    if (c->json)
        printf("{\"kernel\": \"%s\", \"isa\": \"%s\", \"shape\": \"%s\", \"ns\": %.1f, \"gb_per_s\": %.3f}\n", c->kernel, c->isa,
               shape, best * 1e9, bytes / best * 1e-9);
    else
        printf("%-16s %-12s %-28s %12.1f ns %8.2f GB/s\n", c->kernel, c->isa, shape, best * 1e9, bytes / best * 1e-9);
}

/* ---- all parts, all instruction sets ---- */

typedef struct arguments {
    const char *kernel, *isa;
    uint64_t seed;
    bool list, bench, json;
} arguments;

static const char *value_of(const char *argument, const char *name)
{
    size_t length = strlen(name);
    return !strncmp(argument, name, length) && argument[length] == '=' ? argument + length + 1 : NULL;
}

static bool read_arguments(int count, char **words, arguments *out)
{
    *out = (arguments){ .seed = (uint64_t)time(NULL) };
    for (int i = 1; i < count; i++) {
        const char *value;
        if ((value = value_of(words[i], "--kernel")))
            out->kernel = value;
        else if ((value = value_of(words[i], "--isa")))
            out->isa = value;
        else if ((value = value_of(words[i], "--seed")))
            out->seed = strtoull(value, NULL, 10);
        else if (!strcmp(words[i], "--list"))
            out->list = true;
        else if (!strcmp(words[i], "--bench"))
            out->bench = true;
        else if (!strcmp(words[i], "--json"))
            out->bench = out->json = true;
        else {
            fprintf(stderr, "usage: opcheck [--list] [--kernel=NAME] [--isa=NAME] [--seed=N] [--bench] [--json]\n");
            return false;
        }
    }
    return true;
}

static int run_part(const check_part *part, check_context *c, const arguments *a)
{
    c->kernel = part->name;
    c->failures = 0;
    c->random = a->seed * 2 + 1;
    if (a->bench) {
        if (part->bench)
            part->bench(c);
        return 0;
    }
    part->run(c);
    printf("%-16s %-12s %s\n", part->name, c->isa, c->failures ? "FAILED" : "ok");
    return c->failures != 0;
}

#if defined(__x86_64__)
QMI_DECLARE_Q8_KERNELS(byavx512)
QMI_DECLARE_Q8_KERNELS(amxbyc)

#define TAKE(stem) \
    kernels->dot[QMI_TYPE_Q8_0] = qmi_##stem##_dot_q8_0; \
    kernels->dot[QMI_TYPE_Q4_0] = qmi_##stem##_dot_q4_0; \
    kernels->dot[QMI_TYPE_Q5_0] = qmi_##stem##_dot_q5_0; \
    kernels->dot[QMI_TYPE_IQ4_NL] = qmi_##stem##_dot_iq4_nl; \
    kernels->dot[QMI_TYPE_IQ4_XS] = qmi_##stem##_dot_iq4_xs; \
    kernels->dot[QMI_TYPE_Q4_K] = qmi_##stem##_dot_q4_k; \
    kernels->dot[QMI_TYPE_Q5_K] = qmi_##stem##_dot_q5_k; \
    kernels->dot[QMI_TYPE_Q6_K] = qmi_##stem##_dot_q6_k

/* For instruction sets that are not there: AVX-VNNI's instruction in AVX-512's encoding, tiles in plain C. */
static void take_twins(qmi_cpu_kernels *kernels, uint32_t absent)
{
    if (absent & QMI_CPU_AVX_VNNI) {
        TAKE(byavx512);
    }
    if (absent & QMI_CPU_AMX) {
        TAKE(amxbyc);
    }
}
#else
static void take_twins(qmi_cpu_kernels *kernels, uint32_t absent)
{
    (void)kernels, (void)absent;
}
#endif

typedef struct isa {
    const char *name;
    uint32_t features;
    qmi_cpu_kernels kernels;
    bool there;
} isa;

/* Whether one of the first `count` instruction sets has the same kernel. */
static bool known(const check_part *part, const isa *at, const isa *isas, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (isas[i].there && !part->differs(&isas[i].kernels, &at->kernels))
            return true;
    return false;
}

/* The first of isas is scalar. What an instruction set has from one before has been run. */
static int run_isa(const isa *isas, const isa *at, const arguments *a)
{
    const int64_t before = a->isa && at > isas ? 1 : at - isas;
    const check_part *groups[] = { check_dot_parts, check_float_parts, check_attend_parts };
    int failed = 0;
    if (!at->there || (a->isa && strcmp(a->isa, at->name)))
        return 0;
    check_context c = { .isa = at->name, .tested = &at->kernels, .scalar = &isas[0].kernels, .json = a->json };
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
        for (const check_part *part = groups[g]; part->name; part++) {
            if ((a->kernel && strcmp(a->kernel, part->name)) || known(part, at, isas, before))
                continue;
            if (a->list)
                printf("%-16s %s\n", part->name, at->name);
            else if (at > isas || a->bench)
                failed += run_part(part, &c, a);
        }
    }
    return failed;
}

int main(int count, char **words)
{
    isa isas[] = {
        { .name = "scalar" }, { .name = "avx2", .features = QMI_CPU_AVX2 },
        { .name = "avx2-vnni", .features = QMI_CPU_AVX2 | QMI_CPU_AVX_VNNI },
        { .name = "avx512", .features = QMI_CPU_AVX2 | QMI_CPU_AVX512 },
        { .name = "avx512-vnni", .features = QMI_CPU_AVX2 | QMI_CPU_AVX512 | QMI_CPU_AVX512_VNNI },
        { .name = "amx", .features = QMI_CPU_AVX2 | QMI_CPU_AVX512 | QMI_CPU_AVX512_VNNI | QMI_CPU_AMX } };
    uint32_t present = qmi_cpu_features_chosen("amx"), twins = 0;
    if (present & QMI_CPU_AVX512_VNNI)
        twins = QMI_CPU_AVX_VNNI | QMI_CPU_AMX;
    arguments a;
    int failed = 0;
    setvbuf(stdout, NULL, _IOLBF, 0); /* so that a crash shows which kernel it was */
    if (!read_arguments(count, words, &a))
        return 2;
    if (!a.list && !a.json)
        printf("seed %llu\n", (unsigned long long)a.seed);
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        isas[i].there = (isas[i].features & ~(present | twins)) == 0;
        qmi_cpu_kernels_fill(&isas[i].kernels, isas[i].features);
        take_twins(&isas[i].kernels, isas[i].features & ~present);
        failed += run_isa(isas, &isas[i], &a);
    }
    if (!a.list && !a.bench)
        printf(failed ? "%d kernels differ\n" : "all kernels agree\n", failed);
    return failed != 0;
}

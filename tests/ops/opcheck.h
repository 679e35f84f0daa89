/* Shared by the op check's parts: random operands, fenced memory, reporting. */
#ifndef TEST_OPCHECK_H
#define TEST_OPCHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "cpu/kernels.h"

typedef struct check_context {
    const char *isa;                 /* under test */
    const qmi_cpu_kernels *tested, *scalar;
    uint64_t random;                 /* state of the generator, seeded for each kernel */
    const char *kernel;              /* present one, for messages */
    int failures;
    bool bench, json;
} check_context;

/* ---- random operands ---- */
uint64_t check_random(check_context *c);
int64_t check_between(check_context *c, int64_t low, int64_t high); /* inclusive */
float check_float(check_context *c);                                /* about normal, mean 0, deviation 1 */
void check_fill(check_context *c, float *x, int64_t count);

/* ---- memory whose ends are watched ----
 * check_fenced: `size` bytes that end where an unreadable page begins, so that reading one byte too far ends the program.
 * check_watched: aligned to 64 bytes, with a pattern before and behind that check_unharmed looks at.
 * Both exit when memory is short. */
void *check_fenced(size_t size);
void check_fenced_free(void *pointer, size_t size);
void *check_watched(size_t size);
bool check_unharmed(check_context *c, const void *pointer, size_t size); /* reports */
void check_watched_free(void *pointer);

/* ---- results ---- */
void check_fail(check_context *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* |got - want| <= bound, or both the same NaN or infinity. Reports with index. */
bool check_near(check_context *c, float got, float want, double bound, int64_t index);
bool check_same_bits(check_context *c, const float *a, const float *b, int64_t count, const char *what);

/* Times `run` until it has taken long enough, and prints a line: bytes is what it reads and writes a call. */
void check_bench(check_context *c, const char *shape, double bytes, void (*run)(void *), void *argument);

/* ---- the parts: each knows its kernels by name ---- */
typedef struct check_part {
    const char *name;
    void (*run)(check_context *c);
    void (*bench)(check_context *c);  /* or NULL */
    bool (*differs)(const qmi_cpu_kernels *a, const qmi_cpu_kernels *b); /* is there a kernel of its own to test? */
} check_part;

extern const check_part check_dot_parts[], check_float_parts[], check_attend_parts[]; /* end with an empty name */

#endif

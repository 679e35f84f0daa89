/* An allocator that counts what lives and fails at a chosen allocation, for tests. */
#ifndef TEST_FAILING_ALLOC_H
#define TEST_FAILING_ALLOC_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include "base/alloc.h"

typedef struct failing_alloc {
    int64_t until_failure; /* allocations that still succeed, then all fail; negative: none does */
    int64_t made, live;
    bool failed;           /* did one? */
} failing_alloc;

static inline void *failing_allocate(int64_t size, int64_t alignment, void *user)
{
    failing_alloc *f = user;
    if (f->until_failure == 0) {
        f->failed = true;
        return NULL;
    }
    f->until_failure--;
    void *block = aligned_alloc((size_t)alignment, (size_t)(size + alignment - 1) / (size_t)alignment * (size_t)alignment);
    if (block) {
        f->made++;
        f->live++;
    }
    return block;
}

static inline void failing_release(void *pointer, void *user)
{
    failing_alloc *f = user;
    f->live--;
    free(pointer);
}

static inline qmi_alloc failing_hook(failing_alloc *f)
{
    return (qmi_alloc){ failing_allocate, failing_release, f };
}

#endif

/* A device for tests of what lies in its memory: the CPU's, with a memory limit and an allocator that can fail. */
#ifndef TEST_POOL_DEVICE_H
#define TEST_POOL_DEVICE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "backend/backend.h"
#include "base/error.h"
#include "failing_alloc.h"

typedef struct pool_device {
    failing_alloc counter;
    qmi_alloc alloc;
    qmi_device *device;
} pool_device;

static inline void pool_device_start(pool_device *d, int64_t memory_limit)
{
    d->counter = (failing_alloc){ .until_failure = -1 };
    d->alloc = failing_hook(&d->counter);
    const qmi_device_settings settings = { .threads = 1, .isa = "scalar", .memory_limit = memory_limit, .alloc = d->alloc };
    assert_int_equal(qmi_cpu_backend.open(&settings, &d->device), QM_OK);
}

static inline void pool_device_end(pool_device *d)
{
    qmi_cpu_backend.close(&d->device);
    assert_int_equal(d->counter.live, 0);
}

#endif

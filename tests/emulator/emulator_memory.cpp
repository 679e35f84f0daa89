/* The card's memory and pinned memory, which are the host's, with guards round them; copies. */
#include "emulator_runtime.h"

#include <memory>

#include <sys/mman.h>
#include <unistd.h>

#define ALIGNMENT 256 /* of cudaMalloc */

/* ---- memory ---- */
/* The allocation that `p` lies in. */
static const struct emulator_memory *allocation_of(const void *p, uintptr_t *start)
{
    auto i = emulator_card.memory.upper_bound((uintptr_t)p);
    if (i == emulator_card.memory.begin())
        return NULL;
    --i;
    if ((uintptr_t)p >= i->first + i->second.bytes)
        return NULL;
    *start = i->first;
    return &i->second;
}

uint64_t emulator_allocation_changes;

uintptr_t emulator_allocation(const void *p, size_t *bytes)
{
    auto i = emulator_card.memory.upper_bound((uintptr_t)p + 2 * ALIGNMENT); /* also what lies a little before or after it */
    while (i != emulator_card.memory.begin()) {
        --i;
        if ((uintptr_t)p < (uintptr_t)i->second.map)
            continue;
        if ((uintptr_t)p >= (uintptr_t)i->second.map + i->second.mapped || i->second.host)
            return 0;
        *bytes = i->second.bytes;
        return i->first;
    }
    return 0;
}

static cudaError_t allocate(void **out, size_t bytes, bool host)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct emulator_memory a = { bytes, 0, NULL, host };
    *out = NULL;
    if (!bytes)
        return cudaSuccess;
    NOT_CAPTURING("an allocation");
    if (emulator_counted_down(&emulator_card.fail_allocation) || (!host && emulator_card.used + bytes > emulator_memory_total()))
        return emulator_last_error = cudaErrorMemoryAllocation;
    /* [ zone | memory | zone ][ page that can't be touched ] */
    const size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, room = (rounded + ALIGNMENT + page - 1) / page * page;
    a.mapped = room + page;
    a.map = (uint8_t *)mmap(NULL, a.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (a.map == MAP_FAILED)
        return emulator_last_error = cudaErrorMemoryAllocation;
    mprotect(a.map + room, page, PROT_NONE);
    memset(a.map, EMULATOR_FRESH, room);
    uint8_t *p = a.map + room - rounded;
    emulator_card.memory[(uintptr_t)p] = a;
    emulator_allocation_changes++;
    if (!host)
        emulator_card.used += bytes;
    *out = p;
    return cudaSuccess;
}

static cudaError_t release(void *p, bool host)
{
    auto i = emulator_card.memory.find((uintptr_t)p);
    if (!p)
        return cudaSuccess;
    NOT_CAPTURING("a release of memory");
    if (i == emulator_card.memory.end() || i->second.host != host)
        return emulator_failed(cudaErrorInvalidValue, "release of %p, which is no %s memory", p, host ? "pinned" : "card's");
    emulator_drain_all();
    const struct emulator_memory a = i->second;
    const uint8_t *end = a.map + a.mapped - (size_t)sysconf(_SC_PAGESIZE);
    for (const uint8_t *q = a.map; q < end; q++)
        if (*q != EMULATOR_FRESH && !(q >= (uint8_t *)p && q < (uint8_t *)p + a.bytes))
            emulator_fault("byte %td of an allocation of %zu bytes was written", q - (uint8_t *)p, a.bytes);
    if (!host)
        emulator_card.used -= a.bytes;
    emulator_check_released(i->first);
    emulator_allocation_changes++;
    emulator_card.memory.erase(i);
    munmap(a.map, a.mapped);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **out, size_t bytes) { CALL(); return allocate(out, bytes, false); }
cudaError_t cudaMallocHost(void **out, size_t bytes) { CALL(); return allocate(out, bytes, true); }
cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned) { CALL(); return allocate(out, bytes, true); }
cudaError_t cudaFree(void *p) { std::lock_guard<std::recursive_mutex> lock(emulator_card.mutex); return release(p, false); }
cudaError_t cudaFreeHost(void *p) { std::lock_guard<std::recursive_mutex> lock(emulator_card.mutex); return release(p, true); }

cudaError_t cudaHostGetDevicePointer(void **out, void *host, unsigned)
{
    CALL();
    uintptr_t start;
    const struct emulator_memory *a = allocation_of(host, &start);
    if (!a || !a->host)
        return emulator_failed(cudaErrorInvalidValue, "%p is no pinned memory", host);
    *out = host;
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *, size_t, unsigned) { CALL(); return cudaSuccess; }
cudaError_t cudaHostUnregister(void *) { return cudaSuccess; }

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    CALL();
    *total = emulator_memory_total();
    *available = *total - emulator_card.used;
    return cudaSuccess;
}

/* The card's side of a copy must lie in one allocation; the host's must not be the card's memory. */
static cudaError_t check_range(const void *p, size_t bytes, bool on_card, const char *what)
{
    uintptr_t start = 0;
    const struct emulator_memory *a = allocation_of(p, &start);
    if (on_card && (!a || (uintptr_t)p - start + bytes > a->bytes))
        return emulator_failed(cudaErrorInvalidValue, "%s: %zu bytes at %p are not in one allocation", what, bytes, p);
    if (!on_card && a && !a->host)
        return emulator_failed(cudaErrorInvalidValue, "%s: %p is the card's memory", what, p);
    return cudaSuccess;
}

/* A copy or fill in a stream: kernels after it wait for it in any case. */
static void move(void *to, const void *from, size_t bytes)
{
    emulator_check_unlinked();
    emulator_check_overwritten(to, bytes);
    memmove(to, from, bytes);
}

static void fill(void *p, int value, size_t bytes)
{
    emulator_check_unlinked();
    emulator_check_overwritten(p, bytes);
    memset(p, value, bytes);
}

static cudaError_t check_copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    cudaError_t e = cudaSuccess;
    if (kind == cudaMemcpyDefault || !bytes)
        return e;
    e = check_range(to, bytes, kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice, "copy to");
    return e ? e : check_range(from, bytes, kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice, "copy from");
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    CALL();
    NOT_CAPTURING("cudaMemcpy");
    cudaError_t e = check_copy(to, from, bytes, kind);
    if (e)
        return e;
    emulator_drain_blocking();
    move(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    CALL();
    cudaStream_t s = emulator_stream(stream);
    uintptr_t start;
    const bool pageable_from = !allocation_of(from, &start), pageable_to = !allocation_of(to, &start);
    cudaError_t e = check_copy(to, from, bytes, kind);
    if (e)
        return e;
    if (pageable_from && !s->capture) { /* such memory is read before the call returns */
        auto kept = std::make_shared<std::vector<uint8_t>>((const uint8_t *)from, (const uint8_t *)from + bytes);
        emulator_enqueue(s, [=]() { move(to, kept->data(), bytes); });
    } else
        emulator_enqueue(s, [=]() { move(to, from, bytes); });
    if (pageable_to && !s->capture) /* and written before it returns */
        emulator_drain(s, NULL, 0);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream)
{
    CALL();
    cudaError_t e = bytes ? check_range(p, bytes, true, "cudaMemset") : cudaSuccess;
    if (e)
        return e;
    emulator_enqueue(emulator_stream(stream), [=]() { fill(p, value, bytes); });
    return cudaSuccess;
}

cudaError_t cudaMemset(void *p, int value, size_t bytes)
{
    CALL();
    NOT_CAPTURING("cudaMemset");
    cudaError_t e = bytes ? check_range(p, bytes, true, "cudaMemset") : cudaSuccess;
    if (e)
        return e;
    emulator_drain_blocking();
    fill(p, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *out, const void *p)
{
    CALL();
    uintptr_t start;
    const struct emulator_memory *a = allocation_of(p, &start);
    memset(out, 0, sizeof *out);
    out->type = !a ? cudaMemoryTypeUnregistered : a->host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    out->devicePointer = a ? (void *)p : NULL;
    out->hostPointer = a && a->host ? (void *)p : NULL;
    return cudaSuccess;
}


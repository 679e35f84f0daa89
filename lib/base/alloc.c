/* The allocator hook: see alloc.h. */
#include "base/alloc.h"

#include <stdbool.h>
#include <string.h>
#include "base/error.h"
#include "base/os.h"

/* Without a hook each block carries its size before it, so that large ones can be pages of their own:
 * zero without being touched, and given back to the system at once. */
typedef struct block_head {
    size_t size;  /* of the whole block, head included */
    bool pages;   /* from qmi_os_pages_new */
} block_head;

#define LARGE_BLOCK ((size_t)1 << 20) /* from here on pages: below, a system call costs more than clearing */

_Static_assert(sizeof(block_head) <= QMI_ALIGNMENT, "the head lies in the alignment before the block");

static void *own_new(size_t size)
{
    if (size > SIZE_MAX - 2 * QMI_ALIGNMENT)
        return NULL;
    size_t whole = (size + 2 * QMI_ALIGNMENT - 1) / QMI_ALIGNMENT * QMI_ALIGNMENT;
    bool pages = whole >= LARGE_BLOCK;
    char *start = pages ? qmi_os_pages_new(whole) : qmi_os_block_new(whole);
    if (!start)
        return NULL;
    *(block_head *)start = (block_head){ whole, pages };
    if (!pages)
        memset(start + QMI_ALIGNMENT, 0, whole - QMI_ALIGNMENT);
    return start + QMI_ALIGNMENT;
}

static void own_delete(void *pointer)
{
    char *start = (char *)pointer - QMI_ALIGNMENT;
    const block_head head = *(block_head *)start;
    if (head.pages)
        qmi_os_pages_free(start, head.size);
    else
        qmi_os_block_free(start);
}

void *qmi_new(const qmi_alloc *alloc, size_t count, size_t size, const char *what)
{
    if (size && count > (size_t)INT64_MAX / size) {
        qmi_fail(QM_ERROR_MEMORY, "out of memory: %zu x %zu bytes for %s is more than this machine can address", count, size,
                 what);
        return NULL;
    }
    const size_t bytes = count && size ? count * size : 1;
    void *pointer = alloc->allocate ? alloc->allocate((int64_t)bytes, QMI_ALIGNMENT, alloc->user) : own_new(bytes);
    if (!pointer) {
        qmi_fail(QM_ERROR_MEMORY, "out of memory: %zu bytes for %s", bytes, what);
        return NULL;
    }
    if (alloc->allocate)
        memset(pointer, 0, bytes);
    return pointer;
}

void *qmi_resize(const qmi_alloc *alloc, void *pointer, size_t old_count, size_t new_count, size_t size, const char *what)
{
    void *fresh = qmi_new(alloc, new_count, size, what);
    if (!fresh)
        return NULL;
    if (pointer) {
        memcpy(fresh, pointer, (old_count < new_count ? old_count : new_count) * size);
        qmi_delete(alloc, pointer);
    }
    return fresh;
}

char *qmi_new_text(const qmi_alloc *alloc, const char *text, size_t length)
{
    char *copy = qmi_new(alloc, length + 1, 1, "text");
    if (copy && length)
        memcpy(copy, text, length);
    return copy;
}

void qmi_delete(const qmi_alloc *alloc, void *pointer)
{
    if (!pointer)
        return;
    if (alloc->release)
        alloc->release(pointer, alloc->user);
    else
        own_delete(pointer);
}

int32_t qmi_reserve(const qmi_alloc *alloc, void **array, size_t *capacity, size_t needed, size_t size, const char *what)
{
    if (needed <= *capacity)
        return QM_OK;
    size_t room = *capacity > SIZE_MAX / 2 ? needed : 2 * *capacity;
    if (room < needed)
        room = needed;
    if (room < 16)
        room = 16;
    void *fresh = qmi_resize(alloc, *array, *capacity, room, size, what);
    if (!fresh)
        return QM_ERROR_MEMORY;
    *array = fresh;
    *capacity = room;
    return QM_OK;
}

/* Memory: every allocation of the library goes through one of these, so that a host can bring its own allocator
 * and a test can fail the n-th allocation.
 *
 * Where the parts of the library get theirs: a model has one (from its options), and passes it down. */
#ifndef QMI_BASE_ALLOC_H
#define QMI_BASE_ALLOC_H

#include <stddef.h>
#include "qwenmoe.h"

typedef struct qmi_alloc {
    qm_allocate_callback allocate; /* NULL: the process's own (aligned, lazily committed zero pages for large blocks) */
    qm_release_callback release;
    void *user;
} qmi_alloc;

#define QMI_ALIGNMENT 64 /* of every block: a cache line, and the widest vector register */

/* count * size bytes, set to zero; NULL with QM_ERROR_MEMORY's message set (`what` names the use) when there is no memory
 * or the product does not fit. count 0 gives a valid pointer. */
void *qmi_new(const qmi_alloc *alloc, size_t count, size_t size, const char *what);

/* A larger (or smaller) block with the first min(old, new) elements kept and the rest zero; frees `pointer`.
 * On failure returns NULL and `pointer` stays valid. */
void *qmi_resize(const qmi_alloc *alloc, void *pointer, size_t old_count, size_t new_count, size_t size, const char *what);

char *qmi_new_text(const qmi_alloc *alloc, const char *text, size_t length); /* a copy with a zero at its end */

void qmi_delete(const qmi_alloc *alloc, void *pointer); /* NULL is fine */

/* For growing arrays: makes room for `needed` elements in *array (capacity *capacity), doubling. 0 or QM_ERROR_MEMORY. */
int32_t qmi_reserve(const qmi_alloc *alloc, void **array, size_t *capacity, size_t needed, size_t size, const char *what);

#endif

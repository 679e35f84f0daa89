/* Slices of weights: which ones a member needs, each once, how they lie on its device, and their bytes gathered. */
#ifndef QMI_EXCHANGE_SLICES_H
#define QMI_EXCHANGE_SLICES_H

#include "base/os.h"
#include "exchange/cut.h"

typedef struct qmi_slice_list {
    const qmi_slice **list;  /* borrowed from the cuts */
    size_t count, capacity;
} qmi_slice_list;

/* Adds the member's slices of matrices (or of vectors) that the list does not have yet. */
int32_t qmi_slices_collect(qmi_slice_list *list, const qmi_cut *cut, int32_t member, bool vectors, const qmi_alloc *alloc);
void qmi_slices_free(qmi_slice_list *list, const qmi_alloc *alloc);
size_t qmi_slices_find(const qmi_slice_list *list, const qmi_slice *slice); /* it is there */

qmi_matrix qmi_slice_matrix(const qmi_slice *slice); /* its type in the file and shape; no data */
/* Is it one run of the whole's bytes? Then *offset says where. */
bool qmi_slice_is_run(const qmi_slice *slice, int64_t *offset);
int64_t qmi_slice_bytes(const qmi_slice *slice);     /* of the file's type */
void qmi_slice_gather(const qmi_slice *slice, const void *whole, void *to);
/* Rows [first, first + count) of the slice, counted over all experts. map: that `whole` lies in, or NULL; runs of rows are read
 * through its descriptor, parts of rows are not, since they are small. */
int32_t qmi_slice_gather_rows(const qmi_slice *slice, const void *whole, const qmi_os_map *map, int64_t first, int64_t count,
                              void *to);

#endif

/* Matrices from the file to planes on the card (layout.h), by threads that read pieces of the file into pinned memory while
 * earlier pieces are copied and re-ordered.
 *
 *   cuda_uploader_new(&settings, &uploader);
 *   cuda_uploader_add(uploader, data, type, columns, rows, to);      for each matrix; returns at once
 *   cuda_uploader_finish(&uploader, progress, user, cancel);         waits until all is there
 *
 * One thread calls these; nothing runs and nothing is allocated before the first `add`. Failures set qmi_fail's message. */
#ifndef QMI_CUDA_UPLOAD_H
#define QMI_CUDA_UPLOAD_H

#include "cuda.h"

extern "C" {
#include "base/os.h"
}

#define CUDA_UPLOAD_THREADS_MAX 16
#define CUDA_UPLOAD_PIECE (4 << 20) /* 0.1 ms over PCIe, which hides what a copy and a launch cost beside it */

typedef struct cuda_upload_settings {
    int32_t device;         /* number of the card, as cudaSetDevice takes it */
    int32_t threads;        /* readers; 0: one a processor, 2 to CUDA_UPLOAD_THREADS_MAX */
    int64_t piece;          /* bytes of a piece (a row that is larger is a piece of its own); 0: CUDA_UPLOAD_PIECE */
    /* The mapped files that data points into: pieces of them are read through the file's descriptor, which builds no page tables,
     * and a file that was cut is an error and no bus error. Data of other memory is copied from there. NULL, 0: none. */
    const qmi_os_map *maps; /* must stay until `finish` */
    int32_t map_count;
    qmi_alloc alloc;
} cuda_upload_settings;

typedef struct cuda_uploader cuda_uploader;

int32_t cuda_uploader_new(const cuda_upload_settings *settings, cuda_uploader **out);

/* A matrix as it is in the file; rows: of all experts. to: memory of the card for the planes of qmi_cuda_type(type), aligned to
 * QMI_CUDA_PLANE_ALIGN. Both must stay until `finish`. Fails early when the upload has failed already. */
int32_t cuda_uploader_add(cuda_uploader *uploader, const void *data, uint32_t type, int64_t columns, int64_t rows, void *to);
/* The same with rows that the readers ask for. */
int32_t cuda_uploader_add_rows(cuda_uploader *uploader, const qmi_row_source *source, uint32_t type, int64_t columns,
                               int64_t rows, void *to);

/* Waits, frees the uploader and its staging memory, sets NULL; accepts NULL. progress (NULL: none; stage "load", bytes of the
 * file) is called by this thread. QM_ERROR_CANCELLED when it returns nonzero or *cancel (NULL: never; read atomically) is not 0.
 * After any failure nothing is under way any more, and what the planes hold is undefined. */
int32_t cuda_uploader_finish(cuda_uploader **uploader, qm_progress_callback progress, void *user, const int32_t *cancel);

/* For matrices that come again and again. cuda_uploader_add_behind: the card's memory is written only after `after` (NULL: at
 * once). cuda_uploader_join: what the stream is told from now on comes after all that was added; returns when that was read from
 * the file. The uploader stays, as do the failures. */
int32_t cuda_uploader_add_behind(cuda_uploader *uploader, cudaEvent_t after, const void *data, uint32_t type, int64_t columns,
                                 int64_t rows, void *to);
int32_t cuda_uploader_join(cuda_uploader *uploader, cudaStream_t stream);
bool cuda_uploader_has_read(cuda_uploader *uploader); /* all that was added, or it failed: a join would not wait */

/* Some rows of a matrix: [first, first + count) of those on the card, of which `rows` are all. */
typedef struct cuda_upload_part {
    const void *data;       /* in the file, of its first row */
    int64_t first, count;
} cuda_upload_part;

int32_t cuda_uploader_add_part(cuda_uploader *uploader, const cuda_upload_part *part, uint32_t type, int64_t columns,
                               int64_t rows, void *to);

/* For a caller that has failed elsewhere: ends what is under way, and frees as `finish` does. */
void cuda_uploader_abandon(cuda_uploader **uploader);

/* Bytes of the card's memory that an uploader with these settings takes for itself, at most (rows larger than a piece aside). */
int64_t cuda_uploader_staging(const cuda_upload_settings *settings);

#endif

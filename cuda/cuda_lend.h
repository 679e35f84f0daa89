/* Lent matrices: experts that stay in the host's memory. Two rooms on the card hold one EXPERTS op's matrices each; while an op
 * computes from one, the next op's matrices come into the other.
 *
 * A lent matrix has a number in place of an address. A program with such matrices is run by a copy of its ops, in which they have
 * the addresses of their room: op k of those that want any has room k % 2.
 *
 *   cuda_lend_prepare(device, program, rows, &lent);  the copy, the rooms, the threads that read
 *   cuda_lend_start(device, lent);               at the start of a run: the first op's matrices are on their way
 *   cuda_lend_arrive(device, lent, k);           before op k is launched
 *   cuda_lend_leave(device, k);            after that
 *   cuda_lend_end(device, code);                 of the run, also after a failure */
#ifndef QMI_CUDA_LEND_H
#define QMI_CUDA_LEND_H

#include "cuda_cache.h"
#include "cuda_upload.h"

#define CUDA_LEND_ROOMS 2
#define CUDA_LEND_MATRICES 3 /* of an op: gate, up, down */

typedef struct cuda_lent_matrix {
    const void *data;          /* in the file */
    uint32_t type;
    int64_t columns, rows, bytes; /* rows: of all experts; bytes on the card */
} cuda_lent_matrix;

typedef struct cuda_lent_op {
    size_t op;                 /* in the program */
    int32_t matrix[CUDA_LEND_MATRICES]; /* in the device's list; -1: none */
    int64_t bytes;
} cuda_lent_op;

typedef struct cuda_lent {     /* of a program */
    qmi_op *ops;               /* the copy; NULL: the program has no lent matrices */
    size_t count;
    cuda_lent_op *list;        /* those that have some, in order */
    size_t list_count, list_capacity;
    cuda_cache cache;
} cuda_lent;

typedef struct cuda_lender {   /* of a device */
    qmi_os_map *files;         /* a copy of what upload_start was told */
    int32_t file_count;
    cuda_lent_matrix *matrices;
    size_t count, capacity;
    cuda_uploader *uploader;   /* NULL: not started, or it failed */
    int64_t staging;
    cuda_uploader *filler;     /* of caches: one reader, as the processors have enough to do */
    int64_t filler_staging;
    uint8_t *rooms[CUDA_LEND_ROOMS];
    int64_t room_bytes;
    cudaEvent_t left[CUDA_LEND_ROOMS]; /* the op that had the room is over */
} cuda_lender;

int32_t cuda_lend_files(qmi_device *device, const qmi_os_map *files, int32_t count);
int32_t cuda_lend_prepare(qmi_device *device, const qmi_program *program, int32_t rows, cuda_lent *lent);
void cuda_lend_forget(qmi_device *device, cuda_lent *lent);
int32_t cuda_lend_start_filler(qmi_device *device);
int32_t cuda_lend_start(qmi_device *device, cuda_lent *lent);
int32_t cuda_lend_arrive(qmi_device *device, const cuda_lent *lent, size_t k);
int32_t cuda_lend_leave(qmi_device *device, size_t k);
int32_t cuda_lend_end(qmi_device *device, int32_t code);
void cuda_lend_close(qmi_device *device);

#endif

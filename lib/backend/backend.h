/* The interface between the engine and what computes. A backend is one constant table of functions; the CPU's is linked in, the
 * others are shared objects that export one symbol, qmi_backend_entry, of type qmi_backend_entry_function.
 *
 * The front end checks (program.h: validate; batches: the engine) and the backend trusts. Functions are called by one thread at a
 * time per device, not always the same. Failures are codes of qwenmoe.h with the calling thread's message set (base/error.h; a
 * shared object sets it through qmi_backend_host). After QM_ERROR_DEVICE a device may be lost: each further call fails alike, and
 * `close` still frees everything. */
#ifndef QMI_BACKEND_BACKEND_H
#define QMI_BACKEND_BACKEND_H

#include <string.h>
#include "base/alloc.h"
#include "base/log.h"
#include "base/os.h"
#include "backend/helper.h"
#include "backend/joint.h"
#include "backend/program.h"

#define QMI_BACKEND_ABI 7

typedef struct qmi_device qmi_device;

typedef struct qmi_device_settings {
    int32_t index;         /* which of the backend's devices */
    int32_t threads;       /* CPU: workers, 0: one a processor */
    bool pin;              /* CPU: bind each to a processor */
    const char *isa;       /* CPU: "auto" or the highest instruction set to use */
    int64_t memory_limit;  /* bytes it may allocate; 0: no limit */
    bool profile;          /* times each kind of op and logs the sums when closed */
    qmi_alloc alloc;
    qmi_log log;
} qmi_device_settings;

typedef struct qmi_device_info {
    char name[128];        /* "AMD EPYC" */
    char isa[32];          /* kernels in use: "avx512" */
    int32_t threads;
    int64_t memory_total, memory_free; /* bytes */
    int64_t memory_fixed;  /* bytes that the backend will take for itself, whatever the program; not yet taken from memory_free */
    bool picks;            /* a run can give each output's highest logits, which costs less than reading all */
    bool shares_host;      /* addresses are pointers */
    bool mapped;           /* weights are used where the file is mapped */
    /* Rows of a large batch: more than chunk_high gain nothing; fewer than chunk_low cost much. */
    int32_t chunk_low, chunk_high;
} qmi_device_info;

/* What a block of memory is for, so that a device made of several can keep each part where it is computed with. */
typedef enum qmi_content_kind { QMI_CONTENT_VECTORS, QMI_CONTENT_PAGES, QMI_CONTENT_STATES, QMI_CONTENT_SLOT } qmi_content_kind;

typedef struct qmi_content {
    qmi_content_kind kind;
    const qmi_program *program; /* of QMI_CONTENT_SLOT */
    qmi_slot slot;
} qmi_content;

/* Rows of a matrix that are not together in the file. */
typedef struct qmi_row_source {
    /* Rows [first, first + count) of all experts' as the file has them, from any thread; with the thread's message on failure. */
    int32_t (*read)(const void *user, int64_t first, int64_t count, void *to);
    const void *user;      /* stays until upload_finish */
} qmi_row_source;

typedef struct qmi_backend {
    int32_t abi;           /* QMI_BACKEND_ABI it was built with */
    const char *name;      /* "cpu" */
    int32_t (*device_count)(void); /* 0: not supported here, which is no error; the thread's message says why */
    /* QM_ERROR_DEVICE: there is no device of that index, or it can't be used; the message says why and what to do. */
    int32_t (*open)(const qmi_device_settings *settings, qmi_device **out);
    void (*close)(qmi_device **device); /* ends what is under way and frees all; accepts a pointer to NULL */
    void (*info)(qmi_device *device, qmi_device_info *out);

    /* Zero-filled; `what` is for the message. */
    int32_t (*allocate)(qmi_device *device, int64_t bytes, const char *what, qmi_address *out);
    void (*release)(qmi_device *device, qmi_address address); /* of `allocate`; 0 is fine */

    /* What a matrix of the file takes on the device, and as which type it lies there: *type is the file's, and then the device's.
     * rows: of all experts. NULL: it is used where the file is mapped. */
    int64_t (*matrix_bytes)(uint32_t *type, int64_t columns, int64_t rows);
    /* Uploads of all matrices stand between upload_start, which takes the memory for them (bytes: the sum of matrix_bytes) and is
     * told the files that data points into, and upload_finish. Either may be NULL.
     * upload: matrix has type and shape as in the file, data is the tensor; sets matrix->type and matrix->data, usable until the
     * device is closed. The work may go on after the call, so the file must stay mapped; a device that shares the host gives back
     * the pointer.
     * upload_rows (NULL: not offered): likewise for a matrix that is not together in the file.
     * lend (NULL: not offered): likewise for matrices of experts, none of which it copies: they stay where they are, and a run
     * brings those of each EXPERTS op over while the ops before it compute, which pays for batches of many rows. matrix->data is
     * then good for such an op alone, in a program that was prepared after all were lent. `prepare` takes memory for twice the
     * matrix_bytes of the op that has most.
     * upload_finish: waits until all is there. QM_ERROR_CANCELLED when progress (NULL: none; stage "load", bytes of the file's
     * matrices) returns nonzero or *cancel (NULL: never) becomes nonzero; also a failure of the uploads themselves. */
    int32_t (*upload_start)(qmi_device *device, int64_t bytes, const qmi_os_map *files, int32_t file_count);
    int32_t (*upload)(qmi_device *device, const void *data, qmi_matrix *matrix);
    int32_t (*upload_rows)(qmi_device *device, const qmi_row_source *source, qmi_matrix *matrix);
    int32_t (*lend)(qmi_device *device, const void *data, qmi_matrix *matrix);
    int32_t (*upload_finish)(qmi_device *device, qm_progress_callback progress, void *user, const int32_t *cancel);

    int32_t (*write)(qmi_device *device, qmi_address to, const void *from, int64_t bytes);
    int32_t (*read)(qmi_device *device, void *to, qmi_address from, int64_t bytes);
    int32_t (*copy)(qmi_device *device, qmi_address to, qmi_address from, int64_t bytes);
    int32_t (*clear)(qmi_device *device, qmi_address at, int64_t bytes);

    /* Scratch of the backend's own that a program needs for batches of that many rows: how much, and have it ready. Called again
     * with larger needs or for further programs it grows; nothing is allocated by `run`. */
    int64_t (*scratch_bytes)(const qmi_program *program, int32_t rows, int32_t threads);
    int32_t (*prepare)(qmi_device *device, const qmi_program *program, int32_t rows);
    /* Computes a batch; returns when the results are there. QM_ERROR_CANCELLED when batch->cancel said so: keys, values and
     * next_state of the batch are then undefined, `state` is untouched where next_state differs from it. */
    int32_t (*run)(qmi_device *device, const qmi_program *program, const qmi_workspace *workspace, const qmi_batch *batch);
    /* Bytes a second that the device reads of its memory, measured for a moment; a negative code when it can't. May be NULL. */
    int64_t (*read_rate)(qmi_device *device);
    /* As `allocate`, for a block of that content. NULL: the device need not know. */
    int32_t (*allocate_content)(qmi_device *device, const qmi_content *content, int64_t bytes, const char *what, qmi_address *out);
    const qmi_joint *const *joints; /* ways in which its devices sum without the host, best first, then NULL; NULL: none */
    /* Who computes lent experts for batches of few rows: before the programs are prepared. NULL: they are always brought. */
    void (*set_helper)(qmi_device *device, const qmi_helper *helper);
} qmi_backend;

static inline int32_t qmi_backend_allocate(const qmi_backend *backend, qmi_device *device, const qmi_content *content,
                                           int64_t bytes, const char *what, qmi_address *out)
{
    return backend->allocate_content ? backend->allocate_content(device, content, bytes, what, out)
                                     : backend->allocate(device, bytes, what, out);
}

/* Its way of that name; NULL: it has none. */
static inline const qmi_joint *qmi_joint_find(const qmi_backend *backend, const char *name)
{
    const qmi_joint *const *joint = backend->joints;
    while (joint && *joint && strcmp((*joint)->name, name) != 0)
        joint++;
    return joint ? *joint : NULL;
}

/* What a backend in a shared object uses of the library that opened it: the message of the calling thread. Constant. */
typedef struct qmi_backend_host {
    int32_t (*fail)(int32_t code, const char *format, ...) QMI_PRINTF(2, 3); /* qmi_fail */
    const char *(*error_text)(void);                                        /* qmi_error_text */
} qmi_backend_host;

/* abi: QMI_BACKEND_ABI of the caller. NULL: that is not the ABI it was built with. */
typedef const qmi_backend *(*qmi_backend_entry_function)(int32_t abi, const qmi_backend_host *host);

extern const qmi_backend qmi_cpu_backend;

#endif

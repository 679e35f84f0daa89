/* The interface between the engine and what computes. A backend is one constant table of functions; the CPU's is linked in, the
 * others are shared objects that export one symbol, qmi_backend_entry, of type qmi_backend_entry_function.
 *
 * The front end checks (program.h: validate; batches: the engine) and the backend trusts. Functions are called by one thread at a
 * time per device. Failures are codes of qwenmoe.h with the message set through `fail` of the settings. */
#ifndef QMI_BACKEND_BACKEND_H
#define QMI_BACKEND_BACKEND_H

#include "base/alloc.h"
#include "base/log.h"
#include "backend/program.h"

#define QMI_BACKEND_ABI 1

typedef struct qmi_device qmi_device;

typedef struct qmi_device_settings {
    int32_t index;         /* which of the backend's devices */
    int32_t threads;       /* CPU: workers, 0: one a processor */
    bool pin;              /* CPU: bind each to a processor */
    const char *isa;       /* CPU: "auto" or the highest instruction set to use */
    int64_t memory_limit;  /* bytes it may allocate; 0: no limit */
    qmi_alloc alloc;
    qmi_log log;
} qmi_device_settings;

typedef struct qmi_device_info {
    char name[128];        /* "AMD EPYC" */
    char isa[32];          /* kernels in use: "avx512" */
    int32_t threads;
    int64_t memory_total, memory_free; /* bytes */
    bool shares_host;      /* weights are used where the file is mapped; addresses are pointers */
} qmi_device_info;

typedef struct qmi_backend {
    int32_t abi;           /* QMI_BACKEND_ABI it was built with */
    const char *name;      /* "cpu" */
    int32_t (*device_count)(void); /* 0: not supported here, which is no error */
    int32_t (*open)(const qmi_device_settings *settings, qmi_device **out);
    void (*close)(qmi_device **device);
    void (*info)(qmi_device *device, qmi_device_info *out);

    /* Zero-filled; `what` is for the message. */
    int32_t (*allocate)(qmi_device *device, int64_t bytes, const char *what, qmi_address *out);
    void (*release)(qmi_device *device, qmi_address address); /* of `allocate`; 0 is fine */
    /* Makes a tensor of the file usable until the device is closed; a device that shares the host gives back the pointer, so the
     * file must stay mapped. rows: all of them, experts too. */
    int32_t (*upload)(qmi_device *device, const void *data, uint32_t type, int64_t columns, int64_t rows, qmi_address *out);
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
} qmi_backend;

typedef const qmi_backend *(*qmi_backend_entry_function)(int32_t abi); /* NULL: cannot serve that ABI */

extern const qmi_backend qmi_cpu_backend;

#endif

/* Sums between devices of one kind by a way of their own, without the host: cards by NCCL, through each other's memory, or through
 * the host's. */
#ifndef QMI_BACKEND_JOINT_H
#define QMI_BACKEND_JOINT_H

#include "backend/op.h"

#define QMI_JOINT_ID 128 /* bytes */

typedef struct qmi_device qmi_device;
typedef struct qmi_joint_end qmi_joint_end; /* a device's part in one circle of devices that sum */

typedef struct qmi_joint_terms {  /* of joining */
    int32_t rank, ranks;
    int64_t timeout_ns;           /* until a rank that does not come counts as lost, and for how long a sum waits; < 0: for ever */
    const int32_t *cancel;        /* atomic: not 0 ends the waiting for the others; NULL: never */
} qmi_joint_terms;

typedef struct qmi_joint {
    const char *name;  /* "nccl" */
    bool inside;       /* a program's SUM ops go by it */
    bool one_process;  /* only between devices that one process has opened */
    /* A name for a circle, from any process. QM_ERROR_DEVICE: what it needs is not installed here; the message says what. */
    int32_t (*make_id)(qmi_device *device, uint8_t id[QMI_JOINT_ID]);
    /* Returns when all ranks have called it, each with its device and in a thread of its own, or when it failed. */
    int32_t (*join)(qmi_device *device, const uint8_t id[QMI_JOINT_ID], const qmi_joint_terms *terms, qmi_joint_end **out);
    /* to = the sum over the ranks of their `from`, the same bits on each; in the order of what the device was told before and is
     * told after. May return before it is done. Where `from` is not `to`, zeros are left in it if `inside`. */
    int32_t (*sum)(qmi_joint_end *end, qmi_address from, qmi_address to, int64_t count);
    /* From any thread: sums under way and later ones come to nothing, and nobody waits in them. */
    void (*abort)(qmi_joint_end *end);
    void (*leave)(qmi_joint_end **end); /* frees it, after `abort` too; accepts a pointer to NULL */
} qmi_joint;

#endif

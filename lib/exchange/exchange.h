/* The exchange: activations between the devices that share a model. Each device takes part as a rank, 0 .. ranks - 1, and holds
 * an end of the exchange; what carries the bytes is a table of functions, so that ends in one process (exchange_host.h), on cards
 * or on other machines look alike to whoever computes.
 *
 * A step is one batch through the model. In it all ranks make the same sums and gathers in the same order, and each receive
 * meets the send of its turn. An end is used by one thread at a time; different ends by different threads.
 *
 * Failures. Whatever ends one rank's part ends that of all: the others' calls, waiting or later, return with a message that
 * names the rank and what happened to it. A call never waits for longer than the time-out.
 *   - A rank that can't go on calls `give_up`, with its code and its message.
 *   - A rank that does not come in time, or whose connection breaks, is failed by those who wait for it: QM_ERROR_DEVICE.
 *   - A step whose cancel word (of `start`) is set ends for all with QM_ERROR_CANCELLED.
 *   - QM_ERROR_DEVICE is for good: each later call returns it. After any other failure the next `start` begins afresh. */
#ifndef QMI_EXCHANGE_EXCHANGE_H
#define QMI_EXCHANGE_EXCHANGE_H

#include "backend/backend.h"

#define QMI_RANKS_MAX 16

typedef struct qmi_exchange qmi_exchange; /* an end */

typedef struct qmi_carrier {
    const char *name; /* "host"; of sums by a way of the devices' own that one's */
    /* Begins a step. All ranks have ended the one before: their calls have returned, and nobody waits for anybody. cancel: read
     * atomically while waiting; NULL: never. */
    int32_t (*start)(qmi_exchange *end, const int32_t *cancel);
    /* to[i] = sum over the ranks, in their order, of their from[i]: the same bits on every rank. from == to is fine. Floats in
     * the rank's device memory, as everywhere here. What the device was told to compute before is in `from`; `to` is there for
     * what it is told next. */
    int32_t (*sum)(qmi_exchange *end, qmi_address from, qmi_address to, int64_t count);
    /* to = what all ranks give, in their order, counts[rank] floats of each; the same counts everywhere. */
    int32_t (*gather)(qmi_exchange *end, qmi_address from, qmi_address to, const int64_t *counts);
    /* Messages from one rank to another arrive in order. The sender does not wait for the receiver; `from` may be overwritten
     * after the call. The receiver's count must be the sender's. */
    int32_t (*send)(qmi_exchange *end, int32_t rank, qmi_address from, int64_t count);
    int32_t (*receive)(qmi_exchange *end, int32_t rank, qmi_address to, int64_t count);
    /* This rank's part of the step is over, with that code and message; from any thread, at any time between open and close. The
     * first failure is the one that all report. */
    void (*give_up)(qmi_exchange *end, int32_t code, const char *message);
    void (*close)(qmi_exchange *end); /* frees it; no other call of this end is under way */
    /* This rank's part in sums that are ops of a program (backend/op.h), from `start` to the next one. NULL: there is none, or
     * the carrier makes such sums only here. */
    qmi_joint_end *(*inside)(const qmi_exchange *end);
    /* Whether the step has ended for all, and how; a program with sums fails for everybody when one fails. May be NULL. */
    int32_t (*failed)(qmi_exchange *end);
} qmi_carrier;

/* What every end begins with; a carrier's own follows. */
struct qmi_exchange {
    const qmi_carrier *carrier;
    int32_t rank, ranks;
    const qmi_backend *backend; /* of the rank's device */
    qmi_device *device;
};

/* What an opening function is told of a rank in this process. */
typedef struct qmi_exchange_member {
    const qmi_backend *backend;
    qmi_device *device;
    char name[32];              /* for messages: "cuda:1" */
} qmi_exchange_member;

#endif

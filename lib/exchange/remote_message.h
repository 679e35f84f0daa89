/* The messages by which rank 0 computes on the devices of other ranks: the calls of a backend (backend/backend.h), with what they
 * point to. Both sides are of one version, which joining has made sure of (ranks.h), so numbers and ops travel as they lie in
 * memory; who receives checks them nevertheless.
 *
 * A request that is marked R is answered by a REPLY: its code, and the result's bytes, or the message when the code is negative.
 * Others are not; if one of them fails, the next R is answered with that failure and nothing else is done. */
#ifndef QMI_EXCHANGE_REMOTE_MESSAGE_H
#define QMI_EXCHANGE_REMOTE_MESSAGE_H

#include "backend/backend.h"
#include "exchange/link.h"

typedef enum qmi_remote_kind {
    QMI_REMOTE_CARD = QMI_MESSAGE_FIRST, /* who joins: ranks.h */
    QMI_REMOTE_WELCOME, /* all have joined, and agree */
    QMI_REMOTE_REPLY,
    QMI_REMOTE_OPEN,    /* R, of no bytes: opens the device, qmi_remote_opened */
    QMI_REMOTE_INFO,    /* R, of no bytes: qmi_device_info */
    QMI_REMOTE_RATE,    /* R, of no bytes: i64 */
    QMI_REMOTE_ALLOCATE, /* R, i64 bytes, then the text of what for: the address */
    QMI_REMOTE_RELEASE, /* address */
    QMI_REMOTE_WRITE,   /* address, bytes */
    QMI_REMOTE_READ,    /* R, qmi_remote_range: the bytes */
    QMI_REMOTE_COPY,    /* to, qmi_remote_range */
    QMI_REMOTE_CLEAR,   /* qmi_remote_range */
    QMI_REMOTE_START,   /* R, i64: uploads of so many bytes follow */
    QMI_REMOTE_STAGE,   /* qmi_remote_stage, bytes: of data that is not in the file, for the next UPLOAD */
    QMI_REMOTE_UPLOAD,  /* R, qmi_remote_upload: the matrix as it lies on the device */
    QMI_REMOTE_FINISH,  /* R, of no bytes */
    QMI_REMOTE_PREPARE, /* R, qmi_remote_program and what it counts */
    QMI_REMOTE_RUN,     /* R, qmi_remote_run and what it counts: the picks, if they are wanted */
    QMI_REMOTE_NAME_CIRCLE, /* R, of no bytes: [QMI_JOINT_ID], see backend/joint.h */
    QMI_REMOTE_JOIN,    /* R, qmi_remote_join: i64, by which the end is named. An urgent message aborts all ends */
    QMI_REMOTE_SUM,     /* qmi_remote_sum */
    QMI_REMOTE_LEAVE    /* i64, the end */
} qmi_remote_kind;

typedef struct qmi_remote_opened {
    char backend[16], joint[16]; /* "": its devices can't sum among themselves */
    qmi_device_info info;
} qmi_remote_opened;

typedef struct qmi_remote_range {
    qmi_address at;
    int64_t bytes;
} qmi_remote_range;

typedef struct qmi_remote_stage {
    int64_t offset, total; /* pieces come in order, from offset 0 on */
} qmi_remote_stage;

typedef struct qmi_remote_upload {
    qmi_matrix matrix;
    int64_t file, offset;  /* part of the model's file, -1: what was staged; and where in it */
} qmi_remote_upload;

typedef struct qmi_remote_join {
    uint8_t id[QMI_JOINT_ID];
    int32_t rank, ranks;
    int64_t timeout_ns, number; /* number: of what a cancel message cancels */
} qmi_remote_join;

typedef struct qmi_remote_sum {
    int64_t end;
    qmi_address from, to;
    int64_t count;
} qmi_remote_sum;

#define QMI_REMOTE_ENDS_MAX 64
#define QMI_REMOTE_PROGRAMS_MAX 4096
typedef struct qmi_remote_slot {
    char name[32];
    int64_t width, outputs;
} qmi_remote_slot;

typedef struct qmi_remote_program { /* slots and ops follow */
    int32_t number, rows, slots, ops;
} qmi_remote_program;

typedef struct qmi_remote_sequence {
    int64_t start;
    qmi_address state, next_state;
    int32_t first, count;
    int64_t pages;
} qmi_remote_sequence;

typedef struct qmi_remote_run { /* sequences, their pages, tokens, outputs follow */
    int32_t program, number; /* of the program, and of what a cancel message cancels */
    qmi_workspace workspace;
    int32_t count, sequences, outputs, picks;
} qmi_remote_run;

#endif

/* What the files of the group share. */
#ifndef QMI_EXCHANGE_GROUP_INSIDE_H
#define QMI_EXCHANGE_GROUP_INSIDE_H

#include "base/error.h"
#include "base/os.h"
#include "exchange/group.h"

typedef struct group_block {            /* of the group's memory */
    qmi_address base;
    int64_t bytes;
    const qmi_piece_map *map;
    qmi_address members[QMI_RANKS_MAX]; /* 0: the member has none of it */
} group_block;

typedef struct group_program {
    const qmi_program *whole;
    qmi_cut cut;
    bool has_wide;                      /* for batches of many rows: the host's experts come to the cards (backend.h: lend) */
    qmi_cut wide;
    qmi_program *helped;                /* where the host helps: its ops, each a program */
    size_t helped_count;
    qmi_address own[QMI_RANKS_MAX][QMI_SLOTS_MAX]; /* the members' own slots */
    int32_t own_rows;
} group_program;

/* Batches of more rows have the experts of the host's memory come to the card. With those of 20 layers of 35B-A3B there, 9 GB,
 * that takes 0.19 s on an H200 (PCIe 5.0, 47 GB/s); its 16 processors compute 192 rows in 0.17 s, 255 in 0.21 s. On a slower bus
 * it pays later, with fewer processors earlier. A constant, so that the same input gives the same bits. */
#define QMI_GROUP_HELP_ROWS 255

/* A batch as a member gets it: in pieces, one behind the other. */
#define GROUP_PIECES 8
typedef struct group_piece {
    qmi_batch batch;
    int32_t first_row, first_output;
    int32_t first_sequence;
} group_piece;

typedef struct group_member {
    qmi_exchange_member base;
    qmi_device_info info;
    qmi_address vectors;                /* those of which it needs a part */
    void **buffers;                     /* slices of weights, gathered */
    size_t buffer_count, buffer_capacity;
    /* of the present run */
    qmi_sequence *sequences;
    size_t sequence_capacity;
    qmi_address *pages;
    size_t page_capacity;
    group_piece pieces[GROUP_PIECES];
    qmi_joint_end *joints[QMI_CIRCLES_MAX]; /* its part in sums within its programs, in this run; NULL: none */
    qmi_pick *picks;                    /* where the group's are put together of several members' */
    size_t pick_capacity;
    qmi_workspace workspace;
    int32_t code;
    bool at_fault;                      /* it failed by itself, and not because another did */
    char message[QMI_ERROR_SIZE];
    /* its thread; the first member's work is done by the caller's */
    qmi_os_thread *thread;
    struct qmi_group *group;
    int32_t turn, done;                 /* turns that were asked for, and that are done; atomic */
    bool stopping;
} group_member;

typedef struct qmi_group {
    qmi_alloc alloc;
    qmi_log log;
    int64_t timeout_ns, cache_bytes[QMI_RANKS_MAX]; /* as in the settings */
    int64_t spin_ns;                    /* a thread looks this long for what it waits for before it sleeps */
    int32_t count;
    group_member members[QMI_RANKS_MAX];
    qmi_sharing sharing;
    qmi_cut_sizes sizes;
    int32_t circle_count;
    qmi_circle circles[QMI_CIRCLES_MAX];
    qmi_exchange *ends[QMI_CIRCLES_MAX][QMI_RANKS_MAX]; /* by member */
    qmi_cut_maps maps;
    qmi_piece_map whole_map;            /* of what every member has all of */
    bool helps;                         /* the host computes experts within the cards' runs (group_help.h) */
    qmi_os_mutex *help_mutex;           /* it computes for one card at a time */
    int32_t program_count;
    group_program programs[QMI_GROUP_PROGRAMS];
    group_block *blocks;                /* ascending */
    size_t block_count, block_capacity;
    qmi_address next;
    /* of the present run */
    const group_program *program;
    const qmi_cut *cut;                 /* of the program */
    const int32_t *cancel;
    int32_t piece_count;
    int32_t *outputs;                   /* of all pieces, counted from each one's first row */
    size_t output_capacity;
} qmi_group;

static inline qmi_group *qmi_group_of(qmi_device *device)
{
    return (qmi_group *)(void *)device;
}

/* The block that an address lies in; NULL: none. */
const group_block *qmi_group_find_block(const qmi_group *group, qmi_address address);
/* Where a member has what begins at an address of the group; 0: it has nothing of the block. */
qmi_address qmi_group_member_address(const qmi_group *group, int32_t member, qmi_address address);

int32_t qmi_group_allocate(qmi_device *device, int64_t bytes, const char *what, qmi_address *out);
int32_t qmi_group_allocate_content(qmi_device *device, const qmi_content *content, int64_t bytes, const char *what,
                                   qmi_address *out);
void qmi_group_release(qmi_device *device, qmi_address address);
int32_t qmi_group_write(qmi_device *device, qmi_address to, const void *from, int64_t bytes);
int32_t qmi_group_read(qmi_device *device, void *to, qmi_address from, int64_t bytes);
int32_t qmi_group_copy(qmi_device *device, qmi_address to, qmi_address from, int64_t bytes);
int32_t qmi_group_clear(qmi_device *device, qmi_address at, int64_t bytes);

const group_program *qmi_group_find_program(const qmi_group *group, const qmi_program *whole);
/* Pieces of a batch for each member, translated. */
int32_t qmi_group_cut_batch(qmi_group *group, const qmi_workspace *workspace, const qmi_batch *batch);
/* Puts together each output's highest logits from those of the members that have a part of the vocabulary. */
void qmi_group_join_picks(const qmi_group *group, const qmi_batch *batch);

int32_t qmi_group_run(qmi_device *device, const qmi_program *program, const qmi_workspace *workspace, const qmi_batch *batch);
int32_t qmi_group_start_threads(qmi_group *group);
void qmi_group_stop_threads(qmi_group *group); /* also after a part of them was started */

#endif

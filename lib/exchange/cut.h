/* The cut: from the program of one device and a sharing to the programs of its members. A pure function of both; nothing here
 * computes, and no architecture is known, only ops.
 *
 * A member's part is a list of steps: runs of programs of its own, and what goes between the members. All programs of a part have
 * the same slots: those of the whole program under their numbers, narrower where the member has a part of them (width 0: not
 * there), and behind them some of its own. Matrices and vectors are slices, named by number + 1 in place of an address.
 *
 *   attention   by key-value heads with their query heads      gated delta rule   by key heads with their value heads
 *   GLU         by rows, its PROJECT_ADD by columns            experts            by their inner rows and columns, each expert
 *   logits      by rows of the vocabulary                      router             on every member
 *   embedding   on the first member alone, then summed with the others' zeros
 *
 * Columns are cut between blocks of the matrix's format. After each PROJECT_ADD and EXPERTS of a shared stage its members sum:
 * the first has added to the residual, the others give what they have to add. The sums are steps, or ops of the programs, which
 * then go from one end of a stage to the other. */
#ifndef QMI_EXCHANGE_CUT_H
#define QMI_EXCHANGE_CUT_H

#include "backend/program.h"
#include "exchange/piece_map.h"
#include "exchange/sharing.h"

typedef struct qmi_range {
    int64_t first, count;
} qmi_range;

#define QMI_RANGES_MAX 20 /* queries and keys, and values of each of the key head's value heads */
typedef struct qmi_ranges {
    int32_t count;
    qmi_range list[QMI_RANGES_MAX];
} qmi_ranges;

int64_t qmi_ranges_total(const qmi_ranges *ranges);

/* A part of a matrix [count][rows][columns], or of a vector seen as [rows][columns]. */
typedef struct qmi_slice {
    qmi_matrix whole;
    bool vector;
    qmi_ranges rows, columns;
} qmi_slice;

typedef enum qmi_step_kind {
    QMI_STEP_RUN,       /* program */
    QMI_STEP_CLEAR,     /* slot `to`: the batch's rows */
    QMI_STEP_SUM,       /* slot `to` = sum over the circle of slots `from` */
    QMI_STEP_SEND,      /* slot `from` to member `peer` */
    QMI_STEP_RECEIVE    /* slot `to` from member `peer` */
} qmi_step_kind;

typedef struct qmi_cut_step {
    qmi_step_kind kind;
    int32_t program, circle, peer;
    qmi_slot from, to;
} qmi_cut_step;

typedef struct qmi_part_of {       /* one member's */
    qmi_slot_shape slots[QMI_SLOTS_MAX];
    qmi_program *programs;
    size_t program_count, program_capacity;
    qmi_cut_step *steps;
    size_t step_count, step_capacity;
    qmi_slice *slices;
    size_t slice_count, slice_capacity;
} qmi_part_of;

/* Members that sum; sends and receives go by circle 0, which is all. */
typedef struct qmi_circle {
    int32_t count;
    int32_t members[QMI_RANKS_MAX];
} qmi_circle;
#define QMI_CIRCLES_MAX (2 * QMI_RANKS_MAX + 1)

typedef struct qmi_cut {
    const qmi_program *whole;
    int32_t members, slot_count, own_slots; /* slots of the whole; and behind them those of members alone */
    qmi_part_of parts[QMI_RANKS_MAX];
    qmi_piece_map slots[QMI_SLOTS_MAX];     /* of the whole's: where a row of it is */
} qmi_cut;

/* Where pages and states lie. */
typedef struct qmi_cut_maps {
    qmi_piece_map pages, state;
} qmi_cut_maps;

/* Sizes of the whole's records. */
typedef struct qmi_cut_sizes {
    int64_t page_bytes, layer_bytes, value_offset; /* of keys and values: of a layer in a page */
    int64_t recurrent_bytes, hidden_bytes, logits_bytes; /* of a state: memory/state.h */
} qmi_cut_sizes;

/* Circles of a sharing; the same for every program. Returns their number. */
int32_t qmi_cut_circles(const qmi_sharing *sharing, qmi_circle circles[QMI_CIRCLES_MAX]);

/* Of all programs that use the same pages and states. */
int32_t qmi_cut_map(const qmi_program *const *programs, int32_t count, const qmi_sharing *sharing, const qmi_cut_sizes *sizes,
                    const qmi_alloc *alloc, qmi_cut_maps *out);
void qmi_cut_maps_free(qmi_cut_maps *maps, const qmi_alloc *alloc);

/* The program's own addresses may be of anything that tells matrices apart. maps: of qmi_cut_map. */
int32_t qmi_cut_make(const qmi_program *program, const qmi_sharing *sharing, const qmi_cut_maps *maps, const qmi_alloc *alloc,
                     qmi_cut *out);
void qmi_cut_free(qmi_cut *cut, const qmi_alloc *alloc);

#endif

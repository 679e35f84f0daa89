/* Which parts of an op's operands a member has: what cutting programs and mapping memory have in common. */
#ifndef QMI_EXCHANGE_CUT_RANGES_H
#define QMI_EXCHANGE_CUT_RANGES_H

#include "exchange/cut.h"

void qmi_ranges_add(qmi_ranges *ranges, int64_t first, int64_t count); /* joins neighbours; nothing for count 0 */
qmi_ranges qmi_ranges_one(int64_t first, int64_t end);
qmi_ranges qmi_ranges_times(const qmi_ranges *ranges, int64_t factor);

const qmi_stage *qmi_cut_stage(const qmi_sharing *sharing, const qmi_op *op);

/* How the stage's members share the op: ATTEND by key-value heads, DELTA by key heads, GLU and EXPERTS by inner rows, LOGITS by
 * rows of the vocabulary. All ops of a kind in a stage are cut alike, so that they can use the same slots. */
void qmi_cut_bounds(const qmi_program *program, const qmi_op *op, const qmi_sharing *sharing, int64_t bounds[QMI_RANKS_MAX + 1]);
/* Likewise of the shared expert, among the members that have a part of the others. */
void qmi_cut_bounds_shared(const qmi_program *program, const qmi_op *op, const qmi_sharing *sharing,
                           int64_t bounds[QMI_RANKS_MAX + 1]);

qmi_ranges qmi_cut_value_heads(const qmi_op_delta *op, int64_t first, int64_t end); /* of key heads [first, end) */
qmi_ranges qmi_cut_channels(const qmi_op_delta *op, int64_t first, int64_t end);

#endif

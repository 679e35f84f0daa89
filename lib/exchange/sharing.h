/* Who computes what, where several members share a model.
 *
 *   stages   runs of layers, in order; the embedding goes with the first, norm, output and the multi-token-prediction block with
 *            the last. What a stage hands to the next is the residual
 *   members  those of a stage share each of its layers by heads, inner columns and rows of the vocabulary, each as much as its
 *            share says (tensor split), and sum what they add to the residual; a stage of one member has its layers whole
 *   host     may compute the experts of some layers for a stage it is no member of */
#ifndef QMI_EXCHANGE_SHARING_H
#define QMI_EXCHANGE_SHARING_H

#include "exchange/exchange.h"

typedef struct qmi_stage {
    int32_t first, count;      /* layers */
    int32_t member, members;   /* [member, member + members) */
} qmi_stage;

typedef struct qmi_sharing {
    int32_t members;
    int32_t shares[QMI_RANKS_MAX]; /* of its stage's work, relative to the others'; above 0 */
    int32_t stage_count;
    qmi_stage stages[QMI_RANKS_MAX];
    int32_t expert_member;     /* computes the experts of layers [expert_first, expert_first + expert_count); -1: none */
    int32_t expert_first, expert_count;
    bool inside;               /* sums of a stage are ops of its members' programs (qmi_carrier: inside) */
    bool alike;                /* members of a stage compute the same bits, so that each may choose the experts for itself */
} qmi_sharing;

/* Cuts `count` things into parts of whole units (the last may be less) for a stage's members: member i has
 * [bounds[i], bounds[i + 1]). A part may be empty. */
void qmi_sharing_cut(const qmi_sharing *sharing, const qmi_stage *stage, int64_t count, int64_t unit,
                     int64_t bounds[QMI_RANKS_MAX + 1]);

/* One more stage, of one member; none for no layers. */
void qmi_sharing_add(qmi_sharing *sharing, int32_t first, int32_t count, int32_t member);

/* Is it of use to bring the experts that the host computes to their stages for batches of many rows? Where each stage is one
 * member whose backend can have them lent. *wide: the sharing of such batches. */
bool qmi_sharing_widen(const qmi_sharing *sharing, const bool lends[QMI_RANKS_MAX], qmi_sharing *wide);

#endif

/* How long a token takes with a sharing: each member's steps in turn, by the bytes of weights that they read, and what starting
 * them and exchanging costs; who waits for others goes on when the last of them has come. Keys, values and states are not
 * counted: it is the time of the first tokens. */
#ifndef QMI_EXCHANGE_PREDICT_H
#define QMI_EXCHANGE_PREDICT_H

#include "exchange/group_plan.h"

/* Fills token_bytes, runs and exchanges of each member, and decode_ns (0: rates are unknown). cut: of the forward pass, with
 * types as on the devices. */
int32_t qmi_predict(const qmi_cut *cut, const qmi_sharing *sharing, const qmi_plan_device *devices, const qmi_group_rates *rates,
                    const qmi_alloc *alloc, qmi_group_plan *out);

#endif

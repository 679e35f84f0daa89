/* Measures, within some milliseconds, what predictions are made of: how fast members read their memory, and what a sum between
 * them costs. What starting programs and ops costs is taken as known. */
#ifndef QMI_EXCHANGE_PROBE_H
#define QMI_EXCHANGE_PROBE_H

#include "exchange/group_plan.h"

/* Members with nothing under way. A rate that can't be measured, for want of memory perhaps, stays 0; exchange_ns is left to
 * qmi_probe_sum. */
void qmi_probe_rates(const qmi_exchange_member *members, int32_t count, qmi_group_rates *out);

/* Nanoseconds of a sum of `width` floats by a way of the members' own (backend/joint.h), or through the host's memory ("host").
 * QM_ERROR_DEVICE: they are no sums. */
int32_t qmi_probe_sum(const char *way, const qmi_exchange_member *members, int32_t count, int64_t width, const qmi_alloc *alloc,
                      double *ns);

/* What is taken as known of a member: what starting costs, on the host or on a card. */
void qmi_probe_known(bool host, qmi_group_rates *rates, int32_t member);

#endif

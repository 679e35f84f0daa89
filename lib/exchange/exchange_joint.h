/* The exchange of devices that can sum among themselves (backend/joint.h): sums go that way, all else through the host's memory,
 * as do failures and their names.
 *
 * A circle that was given up in the middle of a sum is gone; the next step makes another one. */
#ifndef QMI_EXCHANGE_EXCHANGE_JOINT_H
#define QMI_EXCHANGE_EXCHANGE_JOINT_H

#include "exchange/exchange.h"

/* As qmi_exchange_host_open, by the way of that name. QM_ERROR_UNSUPPORTED: not all of them have it; another error: they can't
 * sum so now, and the message says why. */
int32_t qmi_exchange_joint_open(const char *name, const qmi_exchange_member *members, int32_t count, int64_t timeout_ns,
                                const qmi_alloc *alloc, qmi_exchange **ends);

#endif

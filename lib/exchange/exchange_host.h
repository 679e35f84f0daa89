/* The exchange of devices in one process through the host's memory: of simulated devices, and of cards without a better way. */
#ifndef QMI_EXCHANGE_EXCHANGE_HOST_H
#define QMI_EXCHANGE_EXCHANGE_HOST_H

#include "exchange/exchange.h"

/* Ends of ranks 0 .. count - 1, all or none. timeout_ns < 0: for ever. The devices stay open while the ends are. */
int32_t qmi_exchange_host_open(const qmi_exchange_member *members, int32_t count, int64_t timeout_ns, const qmi_alloc *alloc,
                               qmi_exchange **ends);

/* How long who waits for another member looks before it sleeps. */
int64_t qmi_exchange_spin(const qmi_exchange_member *members, int32_t count);

#endif

/* Ranks: processes, on one machine or several, that run one model together. Rank 0 drives: it has the sessions, and computes on
 * the devices of all (remote.h); the others follow (follow.h).
 *
 * All are told where rank 0 listens and a key by which those of one run know each other (option rank-id, HOST:PORT/KEY). The
 * others call it, each with a card that says who it is and what it has. When all have come and agree, rank 0 bids them welcome;
 * if one has another version, file or options, or does not come in time, all end with a message that names it.
 *
 * Afterwards each rank watches its connection to rank 0, and rank 0 all of them: when a rank ends, is silent for longer than
 * option rank-timeout, or sends what it should not, all end with a message that names it.
 *
 * The key keeps runs apart. It is no guard against malice: it travels in the clear, as everything here does, so the ports belong
 * in a network that only friends can reach. */
#ifndef QMI_EXCHANGE_RANKS_H
#define QMI_EXCHANGE_RANKS_H

#include "base/options.h"
#include "exchange/exchange.h"
#include "exchange/link.h"
#include "file/gguf_parts.h"

#define QMI_RANK_OPTIONS_SIZE 4096

typedef struct qmi_rank_card { /* as it travels; texts end with a zero */
    char version[32];          /* of the library */
    uint64_t layout;           /* sizes of what travels as it lies in memory */
    char key[64];
    int32_t rank, ranks;
    int64_t file_bytes;
    uint64_t file_sum;
    char file[128], host[64];
    char options[QMI_RANK_OPTIONS_SIZE]; /* those that have to be alike, a line each: name=value */
} qmi_rank_card;

/* Where rank 0 is: of option rank-id. */
typedef struct qmi_rank_id {
    char host[QMI_OS_HOST_SIZE], key[64];
    int32_t port;
} qmi_rank_id;

int32_t qmi_rank_id_read(const char *text, qmi_rank_id *out); /* QM_ERROR_OPTION */
/* Of this process: by its options, and the open file. */
int32_t qmi_rank_card_make(const qmi_settings *settings, const qmi_parts *parts, qmi_rank_card *out);

typedef struct qmi_ranks qmi_ranks; /* rank 0's: the links to all others */

/* Waits until all have come. cancel: read atomically; NULL: never. */
int32_t qmi_ranks_gather(const qmi_rank_card *card, const qmi_settings *settings, const int32_t *cancel, qmi_ranks **out);
/* Opens the device of rank 1 .. ranks - 1. It ends with the backend's `close`, before the ranks are closed. */
int32_t qmi_ranks_open(qmi_ranks *ranks, int32_t rank, const qmi_settings *settings, qmi_exchange_member *out);
/* QM_OK, or how they have ended. */
int32_t qmi_ranks_check(qmi_ranks *ranks);
/* This rank can't go on, for the reason that this thread's message gives: the others end with it. */
void qmi_ranks_fail(qmi_ranks *ranks, int32_t code);
void qmi_ranks_close(qmi_ranks **ranks); /* the others end in peace; accepts a pointer to NULL */

/* Another rank: calls rank 0 and waits to be welcome. */
int32_t qmi_ranks_join(const qmi_rank_card *card, const qmi_settings *settings, const int32_t *cancel, qmi_link **link);
/* All of another rank's life, with the model of that path: joins, and does what rank 0 asks until that ends. */
int32_t qmi_ranks_follow(const char *path, const qmi_settings *settings, const int32_t *cancel);

#endif

/* A cache of lent experts in the card's spare memory, for runs in which the host computes the others (cuda_help.h). Of each op it
 * holds some experts as a smaller matrix of the same kind, with one more of zeros behind them: a route's experts that are not
 * there are sent to that one. The host does not compute those that are.
 *
 * Choices are counted. Between two runs an expert that was chosen more often takes the place of one that was chosen less; it
 * comes while the next runs go on, and is used once it is there.
 *
 *   cuda_cache_make(device, lent, bytes);            when a program is prepared, with what the cache may take
 *   cuda_cache_begin(device, lent);                  before a run: what has come is used from now on
 *   cuda_cache_note(device, lent, k, route, rows);   what was chosen
 *   cuda_cache_end(device, lent);                    after a run: who comes next */
#ifndef QMI_CUDA_CACHE_H
#define QMI_CUDA_CACHE_H

#include "cuda.h"

struct cuda_lent;

#define CUDA_CACHE_COMING 4        /* experts under way at once, of as many ops: 7 MB of 35B-A3B, a little of what a run reads */

typedef struct cuda_cached_op {
    qmi_matrix gate, up, down;     /* of slots + 1 experts */
    int32_t *expert;               /* [slots], or -1: free */
    int32_t *slot;                 /* [experts], or -1; of the table */
    uint32_t *heat;                /* [experts], how often it was chosen, later choices counting more */
    int64_t noted;                 /* since all were halved */
} cuda_cached_op;

typedef struct cuda_cache {        /* of a program */
    cuda_cached_op *ops;           /* [count], as the program's lent ops; NULL: there is none */
    size_t count;
    int32_t slots, experts;        /* the same of all ops */
    uint8_t *room;                 /* on the card: the matrices, then the table */
    int64_t bytes;
    int32_t *table, *card_table;   /* [count][experts] */
    bool stopped;                  /* nothing comes any more, after a failure */
    bool changed;                  /* the card's table is not this one */
    struct {
        size_t op;
        int32_t expert, slot;
    } coming[CUDA_CACHE_COMING];
    int32_t coming_count;
    size_t next;                   /* op whose turn it is */
    int64_t chosen, found;         /* for the log */
} cuda_cache;

int32_t cuda_cache_make(qmi_device *device, struct cuda_lent *lent, int64_t bytes);
int32_t cuda_cache_begin(qmi_device *device, struct cuda_lent *lent);
void cuda_cache_note(struct cuda_lent *lent, size_t k, const float *route, int32_t rows, int32_t top);
void cuda_cache_end(qmi_device *device, struct cuda_lent *lent);
void cuda_cache_free(qmi_device *device, cuda_cache *cache);

/* A choice as the host gets it: of an expert in the cache it does nothing. */
static inline float cuda_cache_code(int32_t expert)
{
    return (float)(-1 - expert);
}

static inline int32_t cuda_cache_expert(float choice)
{
    return choice < 0 ? -1 - (int32_t)choice : (int32_t)choice;
}

#endif

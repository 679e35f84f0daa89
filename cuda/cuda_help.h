/* Lent experts that the host computes (backend/helper.h), for batches of few rows. The card writes a question into memory that it
 * shares with the host, goes on with the shared expert, and adds the answer when it is there.
 *
 * Runs that are launched kernel by kernel ask by an event, and the answer is there before its kernel is launched. Recorded ones
 * have all questions in them: the host sees their numbers come, and writes the number of the last answer, for which a kernel
 * looks. So nothing is launched or waited for in between. The host answers whatever happens, be it by `stopped`; a card that
 * waits for longer than the time-out goes on, and the run fails.
 *
 *   cuda_help_room(device, rows, op);          when a program is prepared: for each lent op
 *   cuda_help_now(device, work, run, k);       op k, kernel by kernel
 *   cuda_help_record(device, run, lent, k);    the same into a graph
 *   cuda_help_begin(device);                   before the graph is launched
 *   cuda_help_serve(device, lent, ...);        after that: answers all questions
 *   cuda_help_end(device);                     when the card is done: whether it got all answers */
#ifndef QMI_CUDA_HELP_H
#define QMI_CUDA_HELP_H

#include "cuda.h"

extern "C" {
#include "backend/helper.h"
}

typedef struct cuda_lent cuda_lent;

#define CUDA_HELP_STOPPED (UINT64_C(1) << 32)

/* Each side's in a cache line of its own. */
typedef struct cuda_help_words {
    uint64_t asked;            /* the card's: number of the last question of this run, from 1 on */
    uint64_t late;             /* the card waited in vain */
    uint64_t own[14];
    uint64_t answered;         /* the host's: of the last answer, or CUDA_HELP_STOPPED */
    uint64_t other[15];
} cuda_help_words;

typedef struct cuda_help {     /* of a device */
    qmi_helper table;          /* compute NULL: there is none */
    cuda_help_words *words;    /* pinned; behind them hidden, route and answer */
    cuda_help_words *mapped;   /* the same, as the card sees it */
    int64_t bytes;
    int64_t hidden, route, out; /* offsets */
    float *own;                /* on the card: the route of what it computes itself */
    int64_t own_bytes;
    cudaEvent_t asked;
    int64_t answers, computing_ns, waiting_ns; /* of recorded runs: for the host, and for the next question of a run */
} cuda_help;

int32_t cuda_help_room(qmi_device *device, int32_t rows, const qmi_op_experts *op);
int64_t cuda_help_scratch(const qmi_op_experts *op, int32_t rows);
int32_t cuda_help_now(qmi_device *device, const cuda_run *run, cuda_lent *lent, size_t k, const qmi_program *program,
                      const int32_t *cancel);
void cuda_help_record(qmi_device *device, const cuda_run *run, const cuda_lent *lent, size_t k);
void cuda_help_begin(qmi_device *device);
int32_t cuda_help_serve(qmi_device *device, cuda_lent *lent, const qmi_program *program, const qmi_batch *batch);
int32_t cuda_help_end(qmi_device *device);
void cuda_help_log(const qmi_device *device);
void cuda_help_close(qmi_device *device);

#endif

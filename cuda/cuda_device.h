/* The device: one card, one stream, and all the memory that was taken there. */
#ifndef QMI_CUDA_DEVICE_H
#define QMI_CUDA_DEVICE_H

#include "cuda.h"
#include "cuda_blas.h"
#include "cuda_help.h"
#include "cuda_lend.h"
#include "cuda_profile.h"
#include "cuda_upload.h"

typedef struct cuda_block { /* memory of `allocate`, and weights */
    void *address;
    int64_t bytes;
} cuda_block;

/* A program that `prepare` has seen, so that a run need not look through its ops again. */
typedef struct cuda_prepared {
    const qmi_program *program;
    int32_t rows;              /* of the largest batch */
    int32_t page_tokens;       /* 0: no op has pages */
    int32_t window;            /* of tokens that are not packed; 0: none */
    uint64_t circles;          /* a bit each: those in which SUM ops sum */
    cuda_lent lent;
} cuda_prepared;

/* The numbers of a batch: written by the host into memory that the card can read, copied from there by a run's first kernel. */
typedef struct cuda_step_room {
    uint8_t *host;             /* pinned */
    const uint8_t *mapped;     /* the same, as the card sees it */
    uint8_t *card;
    int64_t bytes;
} cuda_step_room;

/* Everything that a recorded graph has in it, so that one with an equal key does the same. */
typedef struct cuda_graph_key {
    const qmi_program *program;
    qmi_address slots[QMI_SLOTS_MAX];
    int64_t step_bytes;        /* copied to the card: those of the batch, rounded up */
    int32_t rows, outputs, longest;
    int32_t picks, packs, moves;
} cuda_graph_key;

#define CUDA_GRAPHS 16         /* a batch size each, of some lengths; about a megabyte of the card each */
typedef struct cuda_graph {
    cuda_graph_key key;        /* program NULL: free */
    cudaGraphExec_t exec;      /* NULL: the key was seen once; the second time it is recorded */
    int64_t used;              /* run in which it was last */
} cuda_graph;

#define CUDA_PICK_OUTPUTS 64   /* whose highest logits are picked at once */
#define CUDA_AHEAD 2           /* layers that the host is ahead of the card at most, where a run can be cancelled */

struct qmi_device {
    qmi_alloc alloc;
    qmi_log log;
    int32_t index;
    char name[128];
    int32_t capability, processors, shared_most; /* see cuda_run */
    int64_t memory_total;
    int64_t memory_limit, memory_used;           /* bytes; limit 0: none */
    int32_t lost;                                /* code of every further call; 0: it works */
    char lost_text[QMI_ERROR_SIZE];
    cudaStream_t stream;
    cudaEvent_t ahead[CUDA_AHEAD];
    cuda_block *blocks;
    size_t block_count, block_capacity;
    uint8_t *weights;                            /* of the uploads under way: one of the blocks */
    int64_t weights_used, weights_bytes;
    cuda_uploader *uploader;
    int64_t staging;                             /* bytes that it has */
    cuda_lender lender;
    cuda_help help;
    uint8_t *scratch;
    int64_t scratch_bytes;
    cuda_blas *blas;                             /* NULL: no program needs it, or it is not installed */
    void *blas_workspace;
    uint8_t *bounce;                             /* pinned: reading into other memory goes through it */
    cuda_prepared *prepared;
    size_t prepared_count, prepared_capacity;
    cuda_step_room step;
    qmi_pick *picks, *picks_mapped;              /* pinned [picks_room][QMI_PICKS_MAX] */
    int32_t picks_room;
    cuda_graph graphs[CUDA_GRAPHS];
    bool no_graphs;                              /* recording failed once */
    int64_t runs;
    cuda_profile *profile;                       /* NULL: not asked for */
};

/* First of each function that is given a device: binds the calling thread to the card. The code of a lost one. */
int32_t cuda_enter(qmi_device *device);
/* QM_OK, QM_ERROR_MEMORY, or QM_ERROR_DEVICE with "`doing` failed: ...", after which the device may be lost. */
int32_t cuda_check(qmi_device *device, cudaError_t error, const char *doing);

/* Memory of the card, counted against the limit; not cleared. */
int32_t cuda_take(qmi_device *device, int64_t bytes, const char *what, void **out);
void cuda_give(qmi_device *device, void *address, int64_t bytes); /* NULL is fine */

/* An uploader whose readers' memory fits the limit; *staging: their bytes, counted. */
typedef struct cuda_upload_files {
    const qmi_os_map *list;
    int32_t count, threads;    /* as in cuda_upload_settings */
} cuda_upload_files;

int32_t cuda_start_uploader(qmi_device *device, const cuda_upload_files *files, cuda_uploader **out, int64_t *staging);

/* cuda_run.cu */
int32_t cuda_run_open(qmi_device *device);
void cuda_run_close(qmi_device *device);
void cuda_run_drop_graphs(qmi_device *device, const qmi_program *program); /* NULL: of all programs */
cudaError_t cuda_run_attributes(struct cudaFuncAttributes *out);           /* of any kernel of the backend */

#endif

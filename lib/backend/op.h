/* The ops of a forward pass: what each computes, on which operands.
 *
 * An op is large enough to be one kernel on a GPU and one or two parallel regions on a CPU. A forward pass is a list of them
 * (program.h), built once for a model; what changes from step to step is the batch.
 *
 * Notation: n rows of a batch (tokens), D the model's width. Every slot is float32 [rows][width]. Formulas: Qwen3 technical
 * report (arXiv 2505.09388) for attention and experts; Gated Delta Networks (arXiv 2412.06464) section 3 for the recurrence. */
#ifndef QMI_BACKEND_OP_H
#define QMI_BACKEND_OP_H

#include <stdbool.h>
#include <stdint.h>
#include "quant/kv_type.h"

typedef uint64_t qmi_address; /* of device memory; the CPU's are pointers. 0: none */
typedef int32_t qmi_slot;     /* index of an activation buffer of the program; QMI_NO_SLOT: none */
#define QMI_NO_SLOT (-1)

/* Limits that qmi_program_validate checks, wide of every model known, so that backends may size local arrays by them and
 * products of a few sizes stay far from overflow. */
#define QMI_COLUMNS_MAX ((int64_t)1 << 24)
#define QMI_ROWS_MAX ((int64_t)1 << 28)
#define QMI_HEADS_MAX 4096
#define QMI_HEAD_SIZE_MAX 1024
#define QMI_TAPS_MAX 16
#define QMI_EXPERTS_MAX 65536 /* an index is exact as a float */
#define QMI_TOP_MAX 64
#define QMI_PAGE_TOKENS_MAX 65536
#define QMI_WINDOW_MAX 65536 /* tokens */

/* Weights [count][rows][columns], row by row in a format of quant.h (a device may lay the blocks out anew); y = W x has `rows`
 * values. */
typedef struct qmi_matrix {
    uint32_t type;
    int64_t columns, rows;
    int64_t count;          /* experts; 1 for a plain matrix */
    qmi_address data;       /* 0: absent */
} qmi_matrix;

typedef struct qmi_vector { /* float32 */
    int64_t size;
    qmi_address data;       /* 0: absent */
} qmi_vector;

typedef struct qmi_norm { /* rms(x) = x / sqrt(mean(x^2) + eps) * weight */
    qmi_vector weight;      /* absent: x is taken as it is */
    float epsilon;
} qmi_norm;

typedef enum qmi_op_kind {
    QMI_OP_EMBED,       /* x[row] = table[token of row] */
    QMI_OP_JOIN,        /* out[row] = [ rms(table[token of row], norm) | rms(hidden[row], hidden_norm) ]: what MTP starts from */
    QMI_OP_PROJECT,     /* out_i = W_i rms(in), for up to 4 matrices */
    QMI_OP_GLU,         /* out = silu(gate rms(in)) * (up rms(in)) */
    QMI_OP_PROJECT_ADD, /* out += W in   (or out = W in: add false) */
    QMI_OP_ATTEND,      /* causal attention of one layer over the paged keys and values, appending the batch's own */
    QMI_OP_DELTA,       /* gated delta rule of one layer, advancing the recurrent state */
    QMI_OP_ROUTE,       /* normalise, score the experts, choose the top k */
    QMI_OP_EXPERTS,     /* x += weighted sum of the chosen experts (+ shared expert) */
    QMI_OP_LOGITS,      /* final norm of all rows, logits of the batch's output rows */
    QMI_OP_SUM,         /* to = the sum of what devices of a circle have in `from`; only in programs of members (exchange/cut.h) */
    QMI_OP_COUNT
} qmi_op_kind;

typedef struct qmi_op_embed {
    qmi_matrix table;       /* [vocabulary][D] */
    qmi_slot out;           /* [n][D] */
} qmi_op_embed;

typedef struct qmi_op_join {
    qmi_matrix table;
    qmi_norm norm, hidden_norm;
    qmi_slot hidden;        /* [n][D], written by the caller before the run */
    qmi_slot out;           /* [n][2 D] */
} qmi_op_join;

#define QMI_PROJECT_MAX 4
typedef struct qmi_op_project {
    qmi_slot in;            /* [n][columns] */
    qmi_norm norm;
    int32_t count;
    qmi_matrix matrix[QMI_PROJECT_MAX]; /* all of the same columns */
    qmi_slot out[QMI_PROJECT_MAX];      /* [n][rows of its matrix] */
} qmi_op_project;

typedef struct qmi_op_glu {
    qmi_slot in;
    qmi_norm norm;
    qmi_matrix gate, up;    /* [F][D] */
    qmi_slot out;           /* [n][F] */
} qmi_op_glu;

typedef struct qmi_op_project_add {
    qmi_matrix matrix;
    qmi_slot in;            /* [n][columns] */
    qmi_slot out;           /* [n][rows] */
    bool add;
} qmi_op_project_add;

/* Per query head h, with key-value head h / (heads / kv_heads):
 *   q = rope(rms(q, query_norm)), k = rope(rms(k, key_norm)); the position of a row is its place in its sequence
 *   o = softmax(q K^T / sqrt(head_size)) V; gated: o *= sigmoid(gate)
 * K and V are what unpacks from the page; with a window, of the tokens behind the packed ones (qmi_kv_packed of the tokens that
 * the row sees), what the f16 of the window unpacks to. With a correction, keys of q2 are packed in a basis of their own: T k is
 * packed, and q.k = (T^-T q).(T k), T [head_size][head_size] of the key-value head.
 * rotate_keys: q and k are turned by H S (quant/kv_type.h) behind rope; rotate_values: v
 * is, and o turned back before the gate.
 * rope turns the pairs (i, i + rotary / 2), i < rotary / 2, by the angle position * inverse_frequency[i]; the rest passes. */
typedef struct qmi_op_attend {
    qmi_slot query;         /* [n][heads][head_size], gated: [n][heads][query | gate] */
    qmi_slot key, value;    /* [n][kv_heads][head_size] */
    qmi_slot out;           /* [n][heads][head_size] */
    int32_t heads, kv_heads, head_size, rotary;
    bool gated;
    qmi_norm query_norm, key_norm;  /* [head_size] */
    qmi_vector inverse_frequency;   /* [rotary / 2] */
    /* A page holds page_tokens tokens of all layers: this layer's keys [kv_heads][page_tokens] records of head_size numbers of
     * key_type at key_offset bytes from its start, its values likewise. */
    qmi_kv_type key_type, value_type;
    bool rotate_keys, rotate_values;
    int32_t page_tokens;
    int64_t key_offset, value_offset;
    /* window: tokens that are kept as f16 before they are packed into pages, a whole page at a time; 0: rows go into the pages at
     * once. Of the sequence's state: keys [kv_heads][window + QMI_KV_GROUP] heads of f16, token t at t modulo their number, then
     * values likewise. */
    int32_t window;
    int64_t window_offset;      /* bytes */
    qmi_vector correction;      /* [kv_heads][T, T^-T]; or absent */
    qmi_address moments;        /* [kv_heads][2][head_size][head_size] doubles, to which a batch that packs keys of q2 adds the sums
                                 * of x x^T over the keys packed, x being what k is above the mean of the keys packed with it, and
                                 * of q q^T over all its queries. 0: it does not */
} qmi_op_attend;

/* x = silu(causal depthwise convolution of qkv over time, `taps` wide, last tap = the present token)
 * x = [q: key_heads * key_size | k: the same | v: value_heads * value_size]
 * q, k: x * rsqrt(sum(x^2) + 1e-6);  q /= sqrt(key_size)
 * Per value head h, with its key head: beta = sigmoid(b), g = exp(decay * softplus(a + time_bias))
 *   S *= g;  r = S^T k;  S += k (beta (v - r))^T;  o = S^T q;   out = rms(o, norm) * silu(z) */
typedef struct qmi_op_delta {
    qmi_slot qkv;           /* [n][channels], channels = 2 key_heads key_size + value_heads value_size */
    qmi_slot z;             /* [n][value_heads][value_size] */
    qmi_slot beta, alpha;   /* [n][value_heads]; interleaved: no alpha, beta is [n][key_heads][b of its value heads | a] */
    qmi_slot out;           /* [n][value_heads][value_size] */
    int32_t key_heads, value_heads, key_size, value_size, taps;
    bool grouped;           /* key head of h: grouped h / (value_heads / key_heads), else h % key_heads */
    bool interleaved;
    qmi_vector convolution; /* [channels][taps] */
    qmi_vector time_bias;   /* [value_heads] */
    qmi_vector decay;       /* [value_heads], -exp(A_log) */
    qmi_norm norm;          /* [value_size] */
    /* Of the sequence's state: [taps - 1][channels] columns before the convolution, oldest first; then S
     * [value_heads][key_size][value_size]. */
    int64_t state_offset;   /* bytes */
} qmi_op_delta;

/* h = rms(in); p = softmax(router h); the top k by p (ties: lower index); weights p / sum of the chosen p.
 * route = [k indices, as floats | k weights | sigmoid(shared_gate h)] */
typedef struct qmi_op_route {
    qmi_slot in;
    qmi_norm norm;
    qmi_matrix router;      /* [experts][D] */
    qmi_matrix shared_gate; /* [1][D], or absent */
    int32_t top;
    qmi_slot hidden;        /* [n][D], h */
    qmi_slot route;         /* [n][2 top + 1] */
} qmi_op_route;

/* out += sum_k w_k down_e(silu(gate_e h) * up_e h) + shared_weight * shared(h) */
typedef struct qmi_op_experts {
    qmi_slot hidden, route; /* from ROUTE */
    int32_t top;
    qmi_matrix gate, up;    /* [experts][F][D] each; fused: gate is [experts][gate rows | up rows][D], up absent */
    qmi_matrix down;        /* [experts][D][F] */
    qmi_matrix shared_gate, shared_up, shared_down; /* or absent */
    qmi_slot out;           /* [n][D] */
} qmi_op_experts;

typedef struct qmi_op_logits {
    qmi_slot in;            /* [n][D] */
    qmi_norm norm;
    qmi_matrix output;      /* [vocabulary][D] */
    qmi_slot hidden;        /* [n][D]: rms(in), all rows */
    qmi_slot logits;        /* [outputs][vocabulary] */
} qmi_op_logits;

/* Among the devices of batch->joints[circle], which all come to it in their turn. The same bits on each of them; zeros are left in
 * `from`, unless it is `to`. */
typedef struct qmi_op_sum {
    qmi_slot from, to;      /* [n][D] */
    int32_t circle;
} qmi_op_sum;

typedef struct qmi_op {
    qmi_op_kind kind;
    int32_t layer;          /* for messages; -1: none */
    union {
        qmi_op_embed embed;
        qmi_op_join join;
        qmi_op_project project;
        qmi_op_glu glu;
        qmi_op_project_add project_add;
        qmi_op_attend attend;
        qmi_op_delta delta;
        qmi_op_route route;
        qmi_op_experts experts;
        qmi_op_logits logits;
        qmi_op_sum sum;
    };
} qmi_op;

const char *qmi_op_name(qmi_op_kind kind); /* "attend" */

#endif

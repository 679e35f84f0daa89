/* The architectures, as data. Nothing else in the library knows their names. */
#ifndef QMI_MODEL_ARCH_H
#define QMI_MODEL_ARCH_H

#include <stdbool.h>
#include "file/gguf.h"

typedef struct qmi_arch {
    const char *name;       /* general.architecture, and the prefix of its keys */
    bool experts;           /* mixture of experts, else a dense SwiGLU */
    bool hybrid;            /* gated-delta layers between gated attention layers */
    bool grouped;           /* value heads of a key head lie together (op.h: qmi_op_delta) */
    bool beta_alpha_fused;  /* one tensor ssm_ba, interleaved by key head */
    const char *ffn_norm;   /* name of the norm before the feed-forward */
} qmi_arch;

const qmi_arch *qmi_arch_find(qmi_text name); /* NULL: unknown; the message then lists the known ones */

#endif

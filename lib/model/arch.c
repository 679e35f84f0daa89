/* The architectures, as data: see arch.h. Source of the facts: the reference implementations in transformers (models/qwen3,
 * qwen3_moe, qwen3_next, qwen3_5, qwen3_5_moe) and the tensor names that GGUF converters give them. */
#include "model/arch.h"

#include <string.h>
#include "base/error.h"

static const qmi_arch architectures[] = {
    { .name = "qwen35moe", .experts = true, .hybrid = true, .ffn_norm = "post_attention_norm" },
    { .name = "qwen35", .hybrid = true, .ffn_norm = "post_attention_norm" },
    { .name = "qwen3next", .experts = true, .hybrid = true, .grouped = true, .beta_alpha_fused = true,
      .ffn_norm = "post_attention_norm" },
    { .name = "qwen3moe", .experts = true, .ffn_norm = "ffn_norm" },
    { .name = "qwen3", .ffn_norm = "ffn_norm" },
};

const qmi_arch *qmi_arch_find(qmi_text name)
{
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++) {
        const qmi_arch *arch = &architectures[i];
        if ((int64_t)strlen(arch->name) == name.length && !memcmp(arch->name, name.data, (size_t)name.length))
            return arch;
    }
    qmi_fail(QM_ERROR_UNSUPPORTED,
             "general.architecture is '%.*s'; this library runs qwen35moe, qwen35, qwen3next, qwen3moe and qwen3",
             (int)(name.length < 64 ? name.length : 64), name.data);
    return NULL;
}

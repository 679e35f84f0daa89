/* What gguf.c and gguf_access.c share: little-endian numbers at any address, value types, comparing and sorting names. */
#ifndef QMI_FILE_GGUF_BYTES_H
#define QMI_FILE_GGUF_BYTES_H

#include "file/gguf.h"

static inline uint32_t qmi_bytes_u32(const uint8_t *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static inline uint64_t qmi_bytes_u64(const uint8_t *bytes)
{
    return qmi_bytes_u32(bytes) | (uint64_t)qmi_bytes_u32(bytes + 4) << 32;
}

int64_t qmi_gguf_type_bytes(uint32_t type); /* of one number or bool; 0 for texts, arrays and unknown types */

int qmi_gguf_compare(qmi_text a, qmi_text b); /* as memcmp; of two that agree, the shorter is less */

/* Sorts indices by compare(context, a, b), in place: a heapsort, which needs no memory and is never quadratic. */
typedef int qmi_gguf_comparison(const void *context, int32_t a, int32_t b);
void qmi_gguf_sort(int32_t *order, int64_t count, qmi_gguf_comparison *compare, const void *context);

#endif

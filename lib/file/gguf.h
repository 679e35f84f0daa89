/* A GGUF header, read from memory: pointer and length in, no I/O, every number checked before it is used.
 *
 * Format: the GGUF specification (docs/gguf.md of ggml), versions 2 and 3, little endian. Keys, names and values point into
 * the caller's bytes, which must outlive this. */
#ifndef QMI_FILE_GGUF_H
#define QMI_FILE_GGUF_H

#include <stdbool.h>
#include "base/alloc.h"

enum { /* GGUF's value types */
    QMI_GGUF_U8, QMI_GGUF_I8, QMI_GGUF_U16, QMI_GGUF_I16, QMI_GGUF_U32, QMI_GGUF_I32, QMI_GGUF_F32, QMI_GGUF_BOOL,
    QMI_GGUF_STRING, QMI_GGUF_ARRAY, QMI_GGUF_U64, QMI_GGUF_I64, QMI_GGUF_F64
};

typedef struct qmi_text { /* bytes of the file, not zero-terminated */
    const char *data;
    int64_t length;
} qmi_text;

typedef struct qmi_gguf_value {
    qmi_text key;
    uint32_t type;         /* QMI_GGUF_* */
    uint32_t element_type; /* of an array; arrays of arrays are refused */
    int64_t count;         /* elements of an array, 1 otherwise */
    const uint8_t *data;   /* the value, or the array's first element (strings: u64 length, bytes) */
} qmi_gguf_value;

typedef struct qmi_gguf_tensor {
    qmi_text name;
    uint32_t type;         /* a known qmi_quant id */
    int32_t dimension_count;
    int64_t dimensions[4]; /* fastest first; 1 where absent; product checked */
    int64_t bytes;
    const uint8_t *data;   /* inside the file; bytes long, checked against its end and against overlap */
    int32_t part;          /* index of the file it lies in */
} qmi_gguf_tensor;

typedef struct qmi_gguf {
    uint32_t version;
    int64_t value_count;
    qmi_gguf_value *values;
    int64_t tensor_count;
    qmi_gguf_tensor *tensors;
    int64_t header_bytes;  /* up to where tensor data starts */
} qmi_gguf;

/* Reads `size` bytes at `data`. QM_ERROR_FORMAT names the field and its offset, QM_ERROR_UNSUPPORTED a version, endianness or
 * tensor type that is not known. Free with qmi_gguf_free also after failure. */
int32_t qmi_gguf_read(const uint8_t *data, int64_t size, const qmi_alloc *alloc, qmi_gguf *out);
void qmi_gguf_free(qmi_gguf *gguf, const qmi_alloc *alloc);

const qmi_gguf_value *qmi_gguf_find(const qmi_gguf *gguf, const char *key); /* NULL if absent; keys are indexed or few */
const qmi_gguf_tensor *qmi_gguf_find_tensor(const qmi_gguf *gguf, const char *name); /* O(log n) */

/* Typed access. Returns 1 if present, 0 if absent (*out unchanged), or QM_ERROR_FORMAT when it has another type or does not fit. */
int32_t qmi_gguf_int(const qmi_gguf *gguf, const char *key, int64_t *out);    /* any integer type or bool */
int32_t qmi_gguf_float(const qmi_gguf *gguf, const char *key, double *out);   /* F32 or F64 */
int32_t qmi_gguf_text(const qmi_gguf *gguf, const char *key, qmi_text *out);
/* Element access of an array, for 0 <= index < count; strings are walked with a cursor that starts at value->data. */
int64_t qmi_gguf_array_int(const qmi_gguf_value *array, int64_t index);
double qmi_gguf_array_float(const qmi_gguf_value *array, int64_t index);
qmi_text qmi_gguf_array_next_text(const uint8_t **cursor);

#endif

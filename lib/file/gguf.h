/* A GGUF header, read from memory: pointer and length in, no I/O, every number checked before it is used.
 *
 * Format: the GGUF specification (docs/gguf.md of ggml), versions 2 and 3, little endian. Keys, names and values point into
 * the caller's bytes, which must outlive this. What is refused beyond the specification's own rules: keys or tensor names that
 * appear twice, arrays of arrays, more than QMI_GGUF_COUNT_MAX values or tensors, and tensors that overlap. */
#ifndef QMI_FILE_GGUF_H
#define QMI_FILE_GGUF_H

#include <stdbool.h>
#include "base/alloc.h"

#define QMI_GGUF_COUNT_MAX (1 << 20)      /* values, tensors; real files have below 1,000 and 10,000 */
#define QMI_GGUF_ALIGNMENT_MAX (1 << 20)

enum { /* GGUF's value types */
    QMI_GGUF_U8, QMI_GGUF_I8, QMI_GGUF_U16, QMI_GGUF_I16, QMI_GGUF_U32, QMI_GGUF_I32, QMI_GGUF_F32, QMI_GGUF_BOOL,
    QMI_GGUF_STRING, QMI_GGUF_ARRAY, QMI_GGUF_U64, QMI_GGUF_I64, QMI_GGUF_F64,
    QMI_GGUF_TYPE_COUNT
};

typedef struct qmi_text { /* bytes of the file, not zero-terminated, not checked to be UTF-8 */
    const char *data;
    int64_t length;
} qmi_text;

typedef struct qmi_gguf_value {
    qmi_text key;
    uint32_t type;         /* QMI_GGUF_* */
    uint32_t element_type; /* of an array; arrays of arrays are refused */
    int64_t count;         /* elements of an array, 1 otherwise */
    const uint8_t *data;   /* the value, or the array's first element (strings: u64 length, bytes); not aligned */
} qmi_gguf_value;

typedef struct qmi_gguf_tensor {
    qmi_text name;
    uint32_t type;         /* a known qmi_quant id */
    int32_t dimension_count;
    int64_t dimensions[4]; /* fastest first; 1 where absent; each 1 .. INT32_MAX, product checked */
    int64_t bytes;
    const uint8_t *data;   /* inside the file, aligned to 8; bytes long, checked against its end and against overlap */
    int32_t part;          /* index of the file it lies in */
} qmi_gguf_tensor;

typedef struct qmi_gguf {
    uint32_t version;
    int64_t value_count;
    qmi_gguf_value *values;   /* in the file's order */
    int32_t *value_order;     /* indices into values, by key */
    int64_t tensor_count;
    qmi_gguf_tensor *tensors; /* in the file's order */
    int32_t *tensor_order;    /* indices into tensors, by name */
    int64_t header_bytes;     /* up to where tensor data starts */
} qmi_gguf;

/* Reads `size` bytes at `data` (aligned to 8). QM_ERROR_FORMAT names the field and its offset, QM_ERROR_UNSUPPORTED a version,
 * endianness or tensor type that is not known. *out is all zero on failure. */
int32_t qmi_gguf_read(const uint8_t *data, int64_t size, const qmi_alloc *alloc, qmi_gguf *out);
void qmi_gguf_free(qmi_gguf *gguf, const qmi_alloc *alloc); /* accepts an all-zero one; leaves it so */
/* Fills tensor_order (room for tensor_count) from tensors. QM_ERROR_FORMAT when two have one name. */
int32_t qmi_gguf_order_tensors(qmi_gguf *gguf);

const qmi_gguf_value *qmi_gguf_find(const qmi_gguf *gguf, const char *key);          /* NULL if absent; O(log n) */
const qmi_gguf_tensor *qmi_gguf_find_tensor(const qmi_gguf *gguf, const char *name); /* likewise */

/* Typed access. Returns 1 if present, 0 if absent, or QM_ERROR_FORMAT when it has another type or does not fit; *out is
 * unchanged unless it is 1. */
int32_t qmi_gguf_int(const qmi_gguf *gguf, const char *key, int64_t *out);    /* any integer type or bool */
int32_t qmi_gguf_float(const qmi_gguf *gguf, const char *key, double *out);   /* F32 or F64; finite */
int32_t qmi_gguf_text(const qmi_gguf *gguf, const char *key, qmi_text *out);
/* An array whose elements are integers or bools, or floats, or texts. */
int32_t qmi_gguf_int_array(const qmi_gguf *gguf, const char *key, const qmi_gguf_value **out);
int32_t qmi_gguf_float_array(const qmi_gguf *gguf, const char *key, const qmi_gguf_value **out);
int32_t qmi_gguf_text_array(const qmi_gguf *gguf, const char *key, const qmi_gguf_value **out);

/* Elements of an array for 0 <= index < count. Of another element type than asked for: 0. U64 beyond INT64_MAX: INT64_MAX. */
int64_t qmi_gguf_array_int(const qmi_gguf_value *array, int64_t index);
double qmi_gguf_array_float(const qmi_gguf_value *array, int64_t index);
/* For arrays of texts only: the text at *cursor, which starts as array->data and moves to the next; count of them. */
qmi_text qmi_gguf_array_next_text(const uint8_t **cursor);

/* The text for a message or a terminal: at most 64 bytes of it, anything but printable ASCII as '?'. Returns `out`. */
#define QMI_GGUF_PRINTABLE 72
const char *qmi_gguf_printable(qmi_text text, char out[QMI_GGUF_PRINTABLE]);

#endif

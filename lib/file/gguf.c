/* Reading a GGUF header from memory: see gguf.h. Access to what was read is in gguf_access.c. */
#include "file/gguf.h"

#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "file/gguf_bytes.h"
#include "quant/quant.h"

#define KEY_LENGTH_MAX 65535 /* of the specification */
#define NAME_LENGTH_MAX 64
#define DEFAULT_ALIGNMENT 32
#define ALIGNMENT_KEY "general.alignment"

/* The smallest that each can be: a key's length, one byte of key, a type and one byte of value; a name's length and one byte,
 * number of dimensions, one dimension, type and offset. A count beyond what the remaining bytes can hold is refused at once. */
#define VALUE_BYTES_MIN (8 + 1 + 4 + 1)
#define TENSOR_BYTES_MIN (8 + 1 + 4 + 8 + 4 + 8)

typedef struct reader {
    const uint8_t *data;
    int64_t size, at; /* 0 <= at <= size */
    const qmi_alloc *alloc;
    qmi_gguf *out;
    int64_t alignment;
    char where[QMI_GGUF_PRINTABLE + 64]; /* what is being read, for messages */
} reader;

static int64_t remaining(const reader *r)
{
    return r->size - r->at;
}

/* The next `count` bytes, or NULL with the message set. */
static const uint8_t *take(reader *r, uint64_t count, const char *field)
{
    if (count > (uint64_t)remaining(r)) {
        qmi_fail(QM_ERROR_FORMAT, "the file ends inside %s: %s at byte %lld needs %llu bytes and %lld are left; it is damaged or "
                 "was not copied whole", r->where, field, (long long)r->at, (unsigned long long)count, (long long)remaining(r));
        return NULL;
    }
    const uint8_t *bytes = r->data + r->at;
    r->at += (int64_t)count;
    return bytes;
}

static int32_t take_u32(reader *r, const char *field, uint32_t *out)
{
    const uint8_t *bytes = take(r, 4, field);
    if (!bytes)
        return QM_ERROR_FORMAT;
    *out = qmi_bytes_u32(bytes);
    return QM_OK;
}

static int32_t take_u64(reader *r, const char *field, uint64_t *out)
{
    const uint8_t *bytes = take(r, 8, field);
    if (!bytes)
        return QM_ERROR_FORMAT;
    *out = qmi_bytes_u64(bytes);
    return QM_OK;
}

static int32_t take_text(reader *r, const char *field, int64_t longest, qmi_text *out)
{
    uint64_t length;
    if (take_u64(r, field, &length) < 0)
        return QM_ERROR_FORMAT;
    if (length == 0 || length > (uint64_t)longest)
        return qmi_fail(QM_ERROR_FORMAT, "%s: %s at byte %lld has length %llu, which must be 1 to %lld", r->where, field,
                        (long long)r->at - 8, (unsigned long long)length, (long long)longest);
    out->data = (const char *)take(r, length, field);
    out->length = (int64_t)length;
    return out->data ? QM_OK : QM_ERROR_FORMAT;
}

/* ---- metadata ---- */

static int32_t skip_text(reader *r)
{
    uint64_t length;
    if (take_u64(r, "a text's length", &length) < 0 || !take(r, length, "a text"))
        return QM_ERROR_FORMAT;
    return QM_OK;
}

/* Bools are 0 or 1; anything else means that the file is not what it seems. */
static int32_t check_bools(const reader *r, const uint8_t *bytes, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (bytes[i] > 1)
            return qmi_fail(QM_ERROR_FORMAT, "%s: a bool at byte %lld is %d, which must be 0 or 1", r->where,
                            (long long)(bytes + i - r->data), bytes[i]);
    return QM_OK;
}

/* Moves past `count` elements of one type, checking each. */
static int32_t skip_elements(reader *r, uint32_t type, uint64_t count)
{
    const int64_t size = qmi_gguf_type_bytes(type);
    const uint64_t least = size ? (uint64_t)size : 8; /* a text has its length at least */
    if (count > (uint64_t)remaining(r) / least)
        return qmi_fail(QM_ERROR_FORMAT, "%s: %llu elements at byte %lld are more than the file's other %lld bytes can hold",
                        r->where, (unsigned long long)count, (long long)r->at, (long long)remaining(r));
    if (size) {
        const uint8_t *bytes = take(r, count * (uint64_t)size, "the value");
        if (!bytes)
            return QM_ERROR_FORMAT;
        return type == QMI_GGUF_BOOL ? check_bools(r, bytes, (int64_t)count) : QM_OK;
    }
    for (uint64_t i = 0; i < count; i++)
        if (skip_text(r) < 0)
            return QM_ERROR_FORMAT;
    return QM_OK;
}

static int32_t refuse_type(const reader *r, uint32_t type)
{
    return qmi_fail(QM_ERROR_FORMAT, "%s: value type %u at byte %lld is not one of GGUF's (0 to %d)", r->where, type,
                    (long long)r->at - 4, QMI_GGUF_TYPE_COUNT - 1);
}

static int32_t read_value(reader *r, qmi_gguf_value *value)
{
    char key[QMI_GGUF_PRINTABLE];
    uint64_t count = 1;
    int32_t status = take_text(r, "the key", KEY_LENGTH_MAX, &value->key);
    if (status < 0)
        return status;
    snprintf(r->where, sizeof r->where, "metadata key %s", qmi_gguf_printable(value->key, key));
    if ((status = take_u32(r, "the value's type", &value->type)) < 0)
        return status;
    if (value->type >= QMI_GGUF_TYPE_COUNT)
        return refuse_type(r, value->type);
    uint32_t type = value->type;
    if (type == QMI_GGUF_ARRAY) {
        if ((status = take_u32(r, "the elements' type", &type)) < 0)
            return status;
        if (type == QMI_GGUF_ARRAY)
            return qmi_fail(QM_ERROR_UNSUPPORTED, "%s: an array of arrays at byte %lld; no model that this library runs has one",
                            r->where, (long long)r->at - 4);
        if (type >= QMI_GGUF_TYPE_COUNT)
            return refuse_type(r, type);
        if ((status = take_u64(r, "the array's length", &count)) < 0)
            return status;
        value->element_type = type;
    }
    value->data = r->data + r->at;
    value->count = (int64_t)count;
    return skip_elements(r, type, count);
}

static int32_t read_values(reader *r, uint64_t count)
{
    qmi_gguf *out = r->out;
    size_t capacity = 0;
    for (uint64_t i = 0; i < count; i++) {
        snprintf(r->where, sizeof r->where, "metadata entry %llu of %llu", (unsigned long long)i + 1, (unsigned long long)count);
        /* Grown as entries are found, so that memory follows what the file holds and not what it says. */
        int32_t status = qmi_reserve(r->alloc, (void **)&out->values, &capacity, (size_t)i + 1, sizeof *out->values, "metadata");
        if (status < 0 || (status = read_value(r, &out->values[i])) < 0)
            return status;
        out->value_count++;
    }
    return QM_OK;
}

static int32_t read_alignment(reader *r)
{
    const qmi_gguf_value *value = qmi_gguf_find(r->out, ALIGNMENT_KEY);
    r->alignment = DEFAULT_ALIGNMENT;
    if (!value)
        return QM_OK;
    if (value->type != QMI_GGUF_U32)
        return qmi_fail(QM_ERROR_FORMAT, "metadata key " ALIGNMENT_KEY " has value type %u, which must be 4 (uint32)",
                        value->type);
    const uint32_t alignment = qmi_bytes_u32(value->data);
    if (alignment < 8 || alignment > QMI_GGUF_ALIGNMENT_MAX || (alignment & (alignment - 1)))
        return qmi_fail(QM_ERROR_FORMAT, "metadata key " ALIGNMENT_KEY " is %u, which must be a power of two, 8 to %d", alignment,
                        QMI_GGUF_ALIGNMENT_MAX);
    r->alignment = alignment;
    return QM_OK;
}

/* ---- tensors ---- */

/* Dimensions and type to a size in bytes, all products checked. */
static int32_t read_shape(reader *r, qmi_gguf_tensor *tensor)
{
    uint32_t count;
    int32_t status = take_u32(r, "the number of dimensions", &count);
    if (status < 0)
        return status;
    if (count < 1 || count > 4)
        return qmi_fail(QM_ERROR_FORMAT, "%s has %u dimensions, which must be 1 to 4", r->where, count);
    tensor->dimension_count = (int32_t)count;
    int64_t rows = 1;
    for (uint32_t i = 0; i < 4; i++) {
        uint64_t dimension = 1;
        if (i < count && (status = take_u64(r, "a dimension", &dimension)) < 0)
            return status;
        if (dimension < 1 || dimension > INT32_MAX)
            return qmi_fail(QM_ERROR_FORMAT, "%s: dimension %u is %llu, which must be 1 to %d", r->where, i,
                            (unsigned long long)dimension, INT32_MAX);
        tensor->dimensions[i] = (int64_t)dimension;
        if (i > 0 && rows > INT64_MAX / (int64_t)dimension)
            return qmi_fail(QM_ERROR_FORMAT, "%s: the product of its dimensions does not fit 63 bits", r->where);
        if (i > 0)
            rows *= (int64_t)dimension;
    }
    if ((status = take_u32(r, "the tensor's type", &tensor->type)) < 0)
        return status;
    const qmi_quant_format *format = qmi_quant_format_of(tensor->type);
    if (!format)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "%s has type %u, which this version does not know", r->where, tensor->type);
    const int64_t row = qmi_quant_row_bytes(tensor->type, tensor->dimensions[0]);
    if (row < 0)
        return qmi_fail(QM_ERROR_FORMAT, "%s: rows of %lld values are no multiple of %s's block of %d", r->where,
                        (long long)tensor->dimensions[0], format->name, format->block);
    if (rows > INT64_MAX / row)
        return qmi_fail(QM_ERROR_FORMAT, "%s: its size in bytes does not fit 63 bits", r->where);
    tensor->bytes = rows * row;
    return QM_OK;
}

/* Reads one entry. Its offset counts from the end of the header, which is not known yet: it is kept in `offset`. */
static int32_t read_tensor(reader *r, qmi_gguf_tensor *tensor, uint64_t *offset)
{
    char name[QMI_GGUF_PRINTABLE];
    int32_t status = take_text(r, "the tensor's name", NAME_LENGTH_MAX, &tensor->name);
    if (status < 0)
        return status;
    snprintf(r->where, sizeof r->where, "tensor %s", qmi_gguf_printable(tensor->name, name));
    if ((status = read_shape(r, tensor)) < 0 || (status = take_u64(r, "the tensor's offset", offset)) < 0)
        return status;
    if (*offset % (uint64_t)r->alignment)
        return qmi_fail(QM_ERROR_FORMAT, "%s: offset %llu is no multiple of the alignment %lld", r->where,
                        (unsigned long long)*offset, (long long)r->alignment);
    /* An early check that keeps the sum of a data start and an offset from ever wrapping. */
    if (*offset > (uint64_t)r->size)
        return qmi_fail(QM_ERROR_FORMAT, "%s: offset %llu is past the end of the file (%lld bytes)", r->where,
                        (unsigned long long)*offset, (long long)r->size);
    return QM_OK;
}

static int compare_data(const void *context, int32_t a, int32_t b)
{
    const qmi_gguf_tensor *tensors = context;
    return tensors[a].data < tensors[b].data ? -1 : tensors[a].data > tensors[b].data;
}

static int32_t check_overlap(reader *r)
{
    const qmi_gguf *out = r->out;
    char first[QMI_GGUF_PRINTABLE], second[QMI_GGUF_PRINTABLE];
    qmi_gguf_sort(out->tensor_order, out->tensor_count, compare_data, out->tensors);
    for (int64_t i = 1; i < out->tensor_count; i++) {
        const qmi_gguf_tensor *a = &out->tensors[out->tensor_order[i - 1]], *b = &out->tensors[out->tensor_order[i]];
        if (b->data - a->data < a->bytes)
            return qmi_fail(QM_ERROR_FORMAT, "tensors %s and %s overlap at byte %lld", qmi_gguf_printable(a->name, first),
                            qmi_gguf_printable(b->name, second), (long long)(b->data - r->data));
    }
    return QM_OK;
}

/* Turns offsets into pointers now that the start of the data is known. */
static int32_t place_tensor(const reader *r, qmi_gguf_tensor *tensor, uint64_t offset)
{
    char name[QMI_GGUF_PRINTABLE];
    const int64_t start = r->out->header_bytes; /* at most size + alignment, and offset at most size: no sum wraps */
    if (start > r->size || (int64_t)offset > r->size - start || tensor->bytes > r->size - start - (int64_t)offset)
        return qmi_fail(QM_ERROR_FORMAT, "tensor %s: its %lld bytes at offset %llu end past the file's end (data starts at byte "
                        "%lld, the file has %lld); it was not copied or downloaded whole", qmi_gguf_printable(tensor->name, name),
                        (long long)tensor->bytes, (unsigned long long)offset, (long long)start, (long long)r->size);
    tensor->data = r->data + start + offset;
    return QM_OK;
}

static int32_t read_tensors(reader *r, uint64_t count)
{
    qmi_gguf *out = r->out;
    uint64_t *offsets = NULL;
    size_t capacity = 0, offset_capacity = 0;
    int32_t status = QM_OK;
    for (uint64_t i = 0; i < count && status == QM_OK; i++) {
        snprintf(r->where, sizeof r->where, "tensor entry %llu of %llu", (unsigned long long)i + 1, (unsigned long long)count);
        const size_t needed = (size_t)i + 1;
        if ((status = qmi_reserve(r->alloc, (void **)&out->tensors, &capacity, needed, sizeof *out->tensors, "tensors")) < 0 ||
            (status = qmi_reserve(r->alloc, (void **)&offsets, &offset_capacity, needed, sizeof *offsets, "offsets")) < 0 ||
            (status = read_tensor(r, &out->tensors[i], &offsets[i])) < 0)
            break;
        out->tensor_count++;
    }
    if (status == QM_OK) {
        out->header_bytes = (r->at + r->alignment - 1) / r->alignment * r->alignment;
        for (uint64_t i = 0; i < count && status == QM_OK; i++)
            status = place_tensor(r, &out->tensors[i], offsets[i]);
        if (out->header_bytes > r->size) /* nothing follows a header without tensors, not even its padding */
            out->header_bytes = r->size;
    }
    qmi_delete(r->alloc, offsets);
    return status;
}

/* ---- the whole ---- */

/* Room for an order, and the order itself. */
static int32_t order_new(const reader *r, int64_t count, int32_t **order)
{
    *order = qmi_new(r->alloc, (size_t)count, sizeof **order, "the index of the file's header");
    if (!*order)
        return QM_ERROR_MEMORY;
    for (int64_t i = 0; i < count; i++)
        (*order)[i] = (int32_t)i;
    return QM_OK;
}

static int compare_keys(const void *context, int32_t a, int32_t b)
{
    const qmi_gguf_value *values = context;
    return qmi_gguf_compare(values[a].key, values[b].key);
}

static int32_t order_values(const reader *r)
{
    qmi_gguf *out = r->out;
    char key[QMI_GGUF_PRINTABLE];
    int32_t status = order_new(r, out->value_count, &out->value_order);
    if (status < 0)
        return status;
    qmi_gguf_sort(out->value_order, out->value_count, compare_keys, out->values);
    for (int64_t i = 1; i < out->value_count; i++) {
        const qmi_text before = out->values[out->value_order[i - 1]].key, here = out->values[out->value_order[i]].key;
        if (qmi_gguf_compare(before, here) == 0)
            return qmi_fail(QM_ERROR_FORMAT, "metadata key %s appears twice", qmi_gguf_printable(here, key));
    }
    return QM_OK;
}

static int compare_names(const void *context, int32_t a, int32_t b)
{
    const qmi_gguf_tensor *tensors = context;
    return qmi_gguf_compare(tensors[a].name, tensors[b].name);
}

int32_t qmi_gguf_order_tensors(qmi_gguf *gguf)
{
    char name[QMI_GGUF_PRINTABLE];
    for (int64_t i = 0; i < gguf->tensor_count; i++)
        gguf->tensor_order[i] = (int32_t)i;
    qmi_gguf_sort(gguf->tensor_order, gguf->tensor_count, compare_names, gguf->tensors);
    for (int64_t i = 1; i < gguf->tensor_count; i++) {
        const qmi_text before = gguf->tensors[gguf->tensor_order[i - 1]].name, here = gguf->tensors[gguf->tensor_order[i]].name;
        if (qmi_gguf_compare(before, here) == 0)
            return qmi_fail(QM_ERROR_FORMAT, "tensor %s appears twice", qmi_gguf_printable(here, name));
    }
    return QM_OK;
}

/* Magic, version and the two counts. */
static int32_t read_start(reader *r, uint64_t *tensors, uint64_t *values)
{
    char magic[QMI_GGUF_PRINTABLE];
    const uint8_t *bytes = take(r, 4, "the magic number");
    if (!bytes)
        return QM_ERROR_FORMAT;
    if (memcmp(bytes, "GGUF", 4) != 0)
        return qmi_fail(QM_ERROR_FORMAT, "not a GGUF file: it starts with \"%s\" instead of \"GGUF\"",
                        qmi_gguf_printable((qmi_text){ (const char *)bytes, 4 }, magic));
    int32_t status = take_u32(r, "the version", &r->out->version);
    if (status < 0)
        return status;
    const uint32_t version = r->out->version;
    if (version && (version & 0xFFFF) == 0)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "a big-endian GGUF file (version field %08x); this library reads "
                        "little-endian ones", version);
    if (version != 2 && version != 3)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "GGUF version %u; this library reads versions 2 and 3", version);
    if ((status = take_u64(r, "the number of tensors", tensors)) < 0 ||
        (status = take_u64(r, "the number of metadata entries", values)) < 0)
        return status;
    const uint64_t tensors_most = (uint64_t)remaining(r) / TENSOR_BYTES_MIN;
    const uint64_t values_most = (uint64_t)remaining(r) / VALUE_BYTES_MIN;
    if (*tensors > tensors_most || *tensors > QMI_GGUF_COUNT_MAX)
        return qmi_fail(QM_ERROR_FORMAT, "the number of tensors is %llu; the file's size allows %llu, this library %d",
                        (unsigned long long)*tensors, (unsigned long long)tensors_most, QMI_GGUF_COUNT_MAX);
    if (*values > values_most || *values > QMI_GGUF_COUNT_MAX)
        return qmi_fail(QM_ERROR_FORMAT, "the number of metadata entries is %llu; the file's size allows %llu, this library %d",
                        (unsigned long long)*values, (unsigned long long)values_most, QMI_GGUF_COUNT_MAX);
    return QM_OK;
}

int32_t qmi_gguf_read(const uint8_t *data, int64_t size, const qmi_alloc *alloc, qmi_gguf *out)
{
    reader r = { .data = data, .size = size, .alloc = alloc, .out = out, .where = "the file's start" };
    uint64_t tensors = 0, values = 0;
    *out = (qmi_gguf){ 0 };
    int32_t status = read_start(&r, &tensors, &values);
    if (status == QM_OK)
        status = read_values(&r, values);
    if (status == QM_OK)
        status = order_values(&r);
    if (status == QM_OK)
        status = read_alignment(&r);
    if (status == QM_OK)
        status = read_tensors(&r, tensors);
    if (status == QM_OK)
        status = order_new(&r, out->tensor_count, &out->tensor_order);
    if (status == QM_OK)
        status = check_overlap(&r);
    if (status == QM_OK)
        status = qmi_gguf_order_tensors(out);
    if (status < 0)
        qmi_gguf_free(out, alloc);
    return status;
}

void qmi_gguf_free(qmi_gguf *gguf, const qmi_alloc *alloc)
{
    qmi_delete(alloc, gguf->values);
    qmi_delete(alloc, gguf->value_order);
    qmi_delete(alloc, gguf->tensors);
    qmi_delete(alloc, gguf->tensor_order);
    *gguf = (qmi_gguf){ 0 };
}

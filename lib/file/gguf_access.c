/* Finding and converting what gguf.c has read: see gguf.h. */
#include <math.h>
#include <string.h>
#include "base/error.h"
#include "file/gguf_bytes.h"

int64_t qmi_gguf_type_bytes(uint32_t type)
{
    static const uint8_t sizes[QMI_GGUF_TYPE_COUNT] = {
        [QMI_GGUF_U8] = 1, [QMI_GGUF_I8] = 1, [QMI_GGUF_BOOL] = 1, [QMI_GGUF_U16] = 2, [QMI_GGUF_I16] = 2, [QMI_GGUF_U32] = 4,
        [QMI_GGUF_I32] = 4, [QMI_GGUF_F32] = 4, [QMI_GGUF_U64] = 8, [QMI_GGUF_I64] = 8, [QMI_GGUF_F64] = 8
    };
    return type < QMI_GGUF_TYPE_COUNT ? sizes[type] : 0;
}

int qmi_gguf_compare(qmi_text a, qmi_text b)
{
    const int order = memcmp(a.data, b.data, (size_t)(a.length < b.length ? a.length : b.length));
    return order ? order : a.length < b.length ? -1 : a.length > b.length;
}

/* Restores the heap's rule (no child above its parent) below `root`. */
static void sift_down(int32_t *order, int64_t root, int64_t count, qmi_gguf_comparison *compare, const void *context)
{
    const int32_t moved = order[root];
    for (int64_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && compare(context, order[child], order[child + 1]) < 0)
            child++;
        if (compare(context, moved, order[child]) >= 0)
            break;
        order[root] = order[child];
    }
    order[root] = moved;
}

void qmi_gguf_sort(int32_t *order, int64_t count, qmi_gguf_comparison *compare, const void *context)
{
    for (int64_t root = count / 2 - 1; root >= 0; root--)
        sift_down(order, root, count, compare, context);
    for (int64_t end = count - 1; end > 0; end--) {
        const int32_t largest = order[0];
        order[0] = order[end];
        order[end] = largest;
        sift_down(order, 0, end, compare, context);
    }
}

const char *qmi_gguf_printable(qmi_text text, char out[QMI_GGUF_PRINTABLE])
{
    const int64_t shown = text.length <= 64 ? text.length : 61;
    for (int64_t i = 0; i < shown; i++)
        out[i] = text.data[i] >= 0x20 && text.data[i] < 0x7F ? text.data[i] : '?';
    strcpy(out + shown, shown < text.length ? "..." : "");
    return out;
}

/* ---- finding ---- */

const qmi_gguf_value *qmi_gguf_find(const qmi_gguf *gguf, const char *key)
{
    const qmi_text wanted = { key, (int64_t)strlen(key) };
    int64_t low = 0, high = gguf->value_count;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        const qmi_gguf_value *value = &gguf->values[gguf->value_order[middle]];
        const int order = qmi_gguf_compare(value->key, wanted);
        if (order == 0)
            return value;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

const qmi_gguf_tensor *qmi_gguf_find_tensor(const qmi_gguf *gguf, const char *name)
{
    const qmi_text wanted = { name, (int64_t)strlen(name) };
    int64_t low = 0, high = gguf->tensor_count;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        const qmi_gguf_tensor *tensor = &gguf->tensors[gguf->tensor_order[middle]];
        const int order = qmi_gguf_compare(tensor->name, wanted);
        if (order == 0)
            return tensor;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* ---- converting ---- */

static bool is_int(uint32_t type)
{
    return qmi_gguf_type_bytes(type) && type != QMI_GGUF_F32 && type != QMI_GGUF_F64;
}

static bool is_float(uint32_t type)
{
    return type == QMI_GGUF_F32 || type == QMI_GGUF_F64;
}

static bool is_text(uint32_t type)
{
    return type == QMI_GGUF_STRING;
}

static int64_t int_at(uint32_t type, const uint8_t *bytes)
{
    switch (type) {
    case QMI_GGUF_U8:
    case QMI_GGUF_BOOL:
        return bytes[0];
    case QMI_GGUF_I8:
        return (int8_t)bytes[0];
    case QMI_GGUF_U16:
        return bytes[0] | bytes[1] << 8;
    case QMI_GGUF_I16:
        return (int16_t)(bytes[0] | bytes[1] << 8);
    case QMI_GGUF_U32:
        return qmi_bytes_u32(bytes);
    case QMI_GGUF_I32:
        return (int32_t)qmi_bytes_u32(bytes);
    case QMI_GGUF_U64:
        return qmi_bytes_u64(bytes) > INT64_MAX ? INT64_MAX : (int64_t)qmi_bytes_u64(bytes);
    case QMI_GGUF_I64:
        return (int64_t)qmi_bytes_u64(bytes);
    default:
        return 0;
    }
}

static double float_at(uint32_t type, const uint8_t *bytes)
{
    union { uint32_t bits; float value; } single;
    union { uint64_t bits; double value; } twice;
    switch (type) {
    case QMI_GGUF_F32:
        single.bits = qmi_bytes_u32(bytes);
        return single.value;
    case QMI_GGUF_F64:
        twice.bits = qmi_bytes_u64(bytes);
        return twice.value;
    default:
        return 0;
    }
}

static int32_t wrong_type(const qmi_gguf_value *value, const char *wanted)
{
    char key[QMI_GGUF_PRINTABLE];
    const bool array = value->type == QMI_GGUF_ARRAY;
    return qmi_fail(QM_ERROR_FORMAT, "metadata key %s is %s of GGUF type %u; %s is expected", qmi_gguf_printable(value->key, key),
                    array ? "an array with elements" : "a value", array ? value->element_type : value->type, wanted);
}

int32_t qmi_gguf_int(const qmi_gguf *gguf, const char *key, int64_t *out)
{
    const qmi_gguf_value *value = qmi_gguf_find(gguf, key);
    if (!value)
        return 0;
    if (!is_int(value->type))
        return wrong_type(value, "an integer");
    if (value->type == QMI_GGUF_U64 && qmi_bytes_u64(value->data) > INT64_MAX)
        return qmi_fail(QM_ERROR_FORMAT, "metadata key %s is %llu, which does not fit 63 bits", key,
                        (unsigned long long)qmi_bytes_u64(value->data));
    *out = int_at(value->type, value->data);
    return 1;
}

int32_t qmi_gguf_float(const qmi_gguf *gguf, const char *key, double *out)
{
    const qmi_gguf_value *value = qmi_gguf_find(gguf, key);
    if (!value)
        return 0;
    if (!is_float(value->type))
        return wrong_type(value, "a float");
    const double number = float_at(value->type, value->data);
    if (!isfinite(number))
        return qmi_fail(QM_ERROR_FORMAT, "metadata key %s is %f, which must be finite", key, number);
    *out = number;
    return 1;
}

int32_t qmi_gguf_text(const qmi_gguf *gguf, const char *key, qmi_text *out)
{
    const qmi_gguf_value *value = qmi_gguf_find(gguf, key);
    if (!value)
        return 0;
    if (!is_text(value->type))
        return wrong_type(value, "a text");
    const uint8_t *cursor = value->data;
    *out = qmi_gguf_array_next_text(&cursor);
    return 1;
}

static int32_t find_array(const qmi_gguf *gguf, const char *key, bool (*fits)(uint32_t), const char *wanted,
                          const qmi_gguf_value **out)
{
    const qmi_gguf_value *value = qmi_gguf_find(gguf, key);
    if (!value)
        return 0;
    if (value->type != QMI_GGUF_ARRAY || !fits(value->element_type))
        return wrong_type(value, wanted);
    *out = value;
    return 1;
}

int32_t qmi_gguf_int_array(const qmi_gguf *gguf, const char *key, const qmi_gguf_value **out)
{
    return find_array(gguf, key, is_int, "an array of integers", out);
}

int32_t qmi_gguf_float_array(const qmi_gguf *gguf, const char *key, const qmi_gguf_value **out)
{
    return find_array(gguf, key, is_float, "an array of floats", out);
}

int32_t qmi_gguf_text_array(const qmi_gguf *gguf, const char *key, const qmi_gguf_value **out)
{
    return find_array(gguf, key, is_text, "an array of texts", out);
}

int64_t qmi_gguf_array_int(const qmi_gguf_value *array, int64_t index)
{
    return int_at(array->element_type, array->data + index * qmi_gguf_type_bytes(array->element_type));
}

double qmi_gguf_array_float(const qmi_gguf_value *array, int64_t index)
{
    return float_at(array->element_type, array->data + index * qmi_gguf_type_bytes(array->element_type));
}

qmi_text qmi_gguf_array_next_text(const uint8_t **cursor)
{
    const qmi_text text = { (const char *)*cursor + 8, (int64_t)qmi_bytes_u64(*cursor) };
    *cursor += 8 + text.length;
    return text;
}

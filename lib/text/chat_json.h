/* JSON in, and out again as Python prints it, since the chat templates print with Python's json.dumps() and str().
 *
 * Trees are jansson's: key order is kept, of equal keys the last value counts, at the first one's place (as in Python).
 * jansson takes memory from the process's own allocator. */
#ifndef QMI_TEXT_CHAT_JSON_H
#define QMI_TEXT_CHAT_JSON_H

#include <jansson.h>
#include "text/chat_text.h"

/* A whole JSON array or object. Integers of any size are kept (see qmi_json_is_integer). QM_ERROR_TEXT names `what`, line and
 * column; that goes for numbers beyond a double's range, lone surrogates, zeros in keys and nesting over 2048 levels too. */
int32_t qmi_json_parse(qmi_view text, const char *what, json_t **out);
/* The same, and it must be an array. length -1: zero-terminated. */
int32_t qmi_json_parse_array(const char *text, int64_t length, const char *what, json_t **out);

/* An integer; those over 64 bits are kept as strings that start with a byte no UTF-8 has, so ask these and not jansson's. */
bool qmi_json_is_integer(const json_t *value);
bool qmi_json_is_string(const json_t *value);
qmi_view qmi_json_text(const json_t *string);
bool qmi_json_equals(const json_t *value, const char *text);  /* is the string `text` */
json_t *qmi_json_get(const json_t *object, const char *key);  /* NULL when it is no object or has no such key */

void qmi_json_write(qmi_writer *writer, const json_t *value); /* json.dumps(value, ensure_ascii=False) */
void qmi_json_write_string(qmi_writer *writer, qmi_view text);
/* str(value) of a string, number, boolean or null; false, and nothing written, for arrays and objects. */
bool qmi_json_write_str(qmi_writer *writer, const json_t *value);
void qmi_json_write_float(qmi_writer *writer, double value);  /* repr(float) */

#endif

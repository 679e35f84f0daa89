/* Objects of a JSON schema; and what its files share. */
#ifndef QMI_TEXT_SCHEMA_OBJECT_H
#define QMI_TEXT_SCHEMA_OBJECT_H

#include "text/grammar_schema.h"

/* Refuses with the schema's place before the message. Returns the empty expression. */
qmi_expression qmi_schema_refuse(qmi_schema *schema, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A keyword's whole number; false, and the fallback, when it is not there. */
bool qmi_schema_count(qmi_schema *schema, const json_t *part, const char *keyword, uint32_t fallback, uint32_t *out);

/* Types of JSON, a bit each; an integer is a number, too. */
enum { QMI_SCHEMA_NULL = 1, QMI_SCHEMA_BOOLEAN = 2, QMI_SCHEMA_INTEGER = 4, QMI_SCHEMA_FRACTION = 8, QMI_SCHEMA_STRING = 16,
       QMI_SCHEMA_ARRAY = 32, QMI_SCHEMA_OBJECT = 64, QMI_SCHEMA_ANY = 127 };
int qmi_schema_types(qmi_schema *schema, const json_t *part);
bool qmi_schema_restricts(const char *keyword); /* a keyword of JSON Schema that does more than to describe */
const json_t *qmi_schema_target(qmi_schema *schema, const json_t *reference); /* what a $ref names; NULL after a refusal */

/* Refuses keywords that restrict and are not understood. */
void qmi_schema_check(qmi_schema *schema, const json_t *part);
/* Messages name the place `name` below the present one from now on; returns what to leave it by. */
size_t qmi_schema_enter(qmi_schema *schema, const char *name);
void qmi_schema_leave(qmi_schema *schema, size_t entered);

qmi_expression qmi_schema_object(qmi_schema *schema, const json_t *part);

/* A string by its length, pattern or format. plain: without quotation marks and escapes, and without <, as between the marks of
 * a tool call; apart: nor such that it could be read as an array or object. */
qmi_expression qmi_schema_string(qmi_schema *schema, const json_t *part);
qmi_expression qmi_schema_plain_string(qmi_schema *schema, const json_t *part, bool apart);
bool qmi_schema_is_free_string(const json_t *part); /* any text will do */

#endif

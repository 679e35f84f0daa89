/* JSON schemas that hold together: allOf, and keywords beside $ref, anyOf and oneOf, as one schema; and schemas that exclude each
 * other, for oneOf. */
#ifndef QMI_TEXT_SCHEMA_MERGE_H
#define QMI_TEXT_SCHEMA_MERGE_H

#include "text/schema_object.h"

/* The same without allOf, and with $ref, anyOf or oneOf only alone (alternatives that stood beside other keywords have taken
 * them in). A new reference, or NULL after a refusal. */
json_t *qmi_schema_flatten(qmi_schema *schema, const json_t *part, int depth);
/* Whether no JSON that is written for one of the alternatives fits another one too. */
bool qmi_schema_exclusive(qmi_schema *schema, const json_t *alternatives);

#endif

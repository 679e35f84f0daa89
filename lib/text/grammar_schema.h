/* JSON schemas to grammars.
 *
 * Every text of the grammar is JSON that fits the schema; not every such JSON is a text of it: members come in the order of
 * `properties`, blanks are few (grammar_json.h), and members that only the default of `additionalProperties` allows are not
 * written.
 *
 * Understood: type (also an array of types), enum, const, allOf, anyOf, oneOf (where the alternatives can be told apart), $ref
 * to places in the schema, also recursive ones; properties, required, additionalProperties; items, prefixItems, minItems,
 * maxItems; minLength, maxLength, pattern and format (grammar_regex.h); minimum, maximum, exclusiveMinimum, exclusiveMaximum,
 * multipleOf (schema_number.h); nullable. What restricts and is not understood is refused. Keywords that JSON Schema does not
 * define restrict nothing and are passed over. The schema {} as a whole stands for any object ("JSON mode"). */
#ifndef QMI_TEXT_GRAMMAR_SCHEMA_H
#define QMI_TEXT_GRAMMAR_SCHEMA_H

#include "text/grammar_json.h"

typedef struct qmi_schema {
    qmi_grammar *grammar;
    json_t *root;              /* what $ref points into */
    qmi_json_rules rules;
    struct qmi_schema_rule {
        const json_t *schema;  /* in `root`, or owned by `made` */
        uint32_t rule;
    } *known;                  /* schemas that have a rule of their own */
    size_t known_count, known_capacity;
    int depth;
    char name[80], path[160];  /* what the schema is, and where in it we are, for messages */
} qmi_schema;

/* The expression of a schema in `root`, which is borrowed. A failure is in the grammar's code; its message names the place. */
void qmi_schema_start(qmi_schema *schema, qmi_grammar *grammar, json_t *root);
qmi_expression qmi_schema_read(qmi_schema *schema, const json_t *part, const char *name);
void qmi_schema_end(qmi_schema *schema);

/* The same of a schema as text. */
qmi_expression qmi_schema_read_text(qmi_grammar *grammar, const char *text, size_t length);

#endif

/* Numbers of a JSON schema within bounds, as expressions over their digits. */
#ifndef QMI_TEXT_SCHEMA_NUMBER_H
#define QMI_TEXT_SCHEMA_NUMBER_H

#include "text/schema_object.h"

/* By minimum, maximum, exclusiveMinimum, exclusiveMaximum and multipleOf (of 1, 0.1, 0.01 ...), written without an exponent
 * when there are any. whole: only integers. */
qmi_expression qmi_schema_number(qmi_schema *schema, const json_t *part, bool whole);

#endif

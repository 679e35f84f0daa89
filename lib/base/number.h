/* Numbers in text, read and written the same way whatever the host's locale: the decimal point is always '.'. */
#ifndef QMI_BASE_NUMBER_H
#define QMI_BASE_NUMBER_H

#include <stddef.h>
#include <stdint.h>

/* How reading went. The whole text has to be the number: no spaces, no suffix, no hexadecimal. */
typedef enum qmi_number_result { QMI_NUMBER_OK, QMI_NUMBER_NOT_ONE, QMI_NUMBER_TOO_LARGE } qmi_number_result;

/* [+-]digits */
qmi_number_result qmi_number_read_int(const char *text, size_t length, int64_t *out);
/* [+-]digits[.digits][e[+-]digits], finite. Exact for up to 15 digits with an exponent within 22, else to about one unit in
 * the last place. */
qmi_number_result qmi_number_read_float(const char *text, size_t length, double *out);

#define QMI_NUMBER_SIZE 32
/* The shortest text that qmi_number_read_float reads as `value` again. Returns its length. */
int qmi_number_write_float(double value, char out[QMI_NUMBER_SIZE]);

#endif

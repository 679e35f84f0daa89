/* Errors: a negative code for the program, a sentence for the person.
 *
 * The sentence is set where the fault is known, once, and names file, field and value and what to do about it.
 * It is kept per thread; a handle that outlives the call keeps a copy of its own (qmi_error_copy). */
#ifndef QMI_BASE_ERROR_H
#define QMI_BASE_ERROR_H

#include "qwenmoe.h"

#define QMI_ERROR_SIZE 512 /* bytes of a message with its zero; longer ones are cut at a code point */

#if defined(__GNUC__)
#define QMI_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define QMI_PRINTF(text, first)
#endif

/* Sets this thread's message and returns `code`, so that a fault is one statement: return qmi_fail(QM_ERROR_FILE, ...).
 * Control characters and what is not UTF-8 become '?': values from a file can be named without a thought. */
int32_t qmi_fail(int32_t code, const char *format, ...) QMI_PRINTF(2, 3);

/* Puts "prefix: " before this thread's message; returns `code` unchanged. For callers who know the file's name. */
int32_t qmi_fail_within(int32_t code, const char *prefix);

const char *qmi_error_text(void);              /* this thread's message, "" if there was none; borrowed until its next failure */
void qmi_error_copy(char out[QMI_ERROR_SIZE]); /* to carry a message to a handle or another thread ... */
void qmi_error_restore(const char *message);   /* ... and back */

#endif

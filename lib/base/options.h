/* Every option of the library, in one table; and a set of values for them.
 *
 * The command line's help, Python's keywords, plugin settings and the manual come from this table. To add an option, add a row to
 * options_table.h. */
#ifndef QMI_BASE_OPTIONS_H
#define QMI_BASE_OPTIONS_H

#include <stdbool.h>
#include "base/alloc.h"
#include "base/log.h"

typedef enum qmi_option_type {
    QMI_OPTION_INT, QMI_OPTION_FLOAT, QMI_OPTION_BOOL, QMI_OPTION_CHOICE, QMI_OPTION_TEXT
} qmi_option_type;
typedef enum qmi_option_scope { QMI_SCOPE_MODEL, QMI_SCOPE_SESSION, QMI_SCOPE_SAMPLING } qmi_option_scope;

/* identifier, name, scope, type, default, lowest, highest, choices, help */
#define QMI_OPTION(id, name, scope, type, fallback, low, high, choices, help) QMI_OPT_##id,
typedef enum qmi_option_id {
#include "base/options_table.h"
    QMI_OPT_COUNT
} qmi_option_id;
#undef QMI_OPTION

typedef struct qmi_option {
    const char *name;
    qmi_option_scope scope;
    qmi_option_type type;
    const char *fallback;   /* default, as text */
    double low, high;       /* of numbers, inclusive */
    const char *choices;    /* "a|b" */
    const char *help;
} qmi_option;

const qmi_option *qmi_option_at(int32_t id); /* NULL out of range */
int32_t qmi_option_find(const char *name);   /* id, or QM_ERROR_OPTION with a message that offers the nearest name */
#define QMI_SHOWN_SIZE 72
/* Foreign text for a message: cut, and with '?' for controls and what is not UTF-8. */
const char *qmi_option_shown(const char *text, char out[QMI_SHOWN_SIZE]);
const char *qmi_option_type_name(qmi_option_type type);
const char *qmi_option_scope_name(qmi_option_scope scope);
const char *qmi_option_range_text(int32_t id); /* "0..1024", "f32|f16", "" for bool and text; static */

/* The values: what qm_options holds. Copied into models and sessions. */
typedef struct qmi_settings {
    qmi_alloc alloc;
    qmi_log log;
    qm_progress_callback progress;
    void *progress_user;
    struct {
        double number;      /* int, float, bool (0, 1), choice (index) */
        int64_t integer;    /* the same for INT, exactly */
        char *text;         /* TEXT only; NULL: the default */
        char choice[16];    /* CHOICE only: its name */
    } values[QMI_OPT_COUNT];
} qmi_settings;

void qmi_settings_start(qmi_settings *settings, const qmi_alloc *alloc); /* all defaults; alloc NULL: the process's own */
int32_t qmi_settings_copy(const qmi_settings *from, qmi_settings *to);   /* `to` is not started; hooks too */
void qmi_settings_end(qmi_settings *settings);                           /* frees the texts */
int32_t qmi_settings_use_alloc(qmi_settings *settings, const qmi_alloc *alloc); /* moves the texts there. Unchanged on failure */
int32_t qmi_settings_set(qmi_settings *settings, int32_t id, const char *value); /* NULL: default. Unchanged on failure */
int64_t qmi_settings_get(const qmi_settings *settings, int32_t id, char *text, int64_t size); /* snprintf rules */

int64_t qmi_settings_int(const qmi_settings *settings, qmi_option_id id);
double qmi_settings_float(const qmi_settings *settings, qmi_option_id id);
bool qmi_settings_bool(const qmi_settings *settings, qmi_option_id id);
const char *qmi_settings_text(const qmi_settings *settings, qmi_option_id id);   /* TEXT and CHOICE */

#endif

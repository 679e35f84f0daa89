/* Version and errors. */
#include "base/error.h"

#define TEXT_OF(number) #number
#define VERSION(major, minor, patch) TEXT_OF(major) "." TEXT_OF(minor) "." TEXT_OF(patch)

const char *qm_version(void)
{
    return VERSION(QM_VERSION_MAJOR, QM_VERSION_MINOR, QM_VERSION_PATCH);
}

int32_t qm_version_number(void)
{
    return QM_VERSION_MAJOR * 1000000 + QM_VERSION_MINOR * 1000 + QM_VERSION_PATCH;
}

const char *qm_error_name(int32_t code)
{
    switch (code) {
    case QM_OK: return "QM_OK";
    case QM_ERROR_ARGUMENT: return "QM_ERROR_ARGUMENT";
    case QM_ERROR_MEMORY: return "QM_ERROR_MEMORY";
    case QM_ERROR_FILE: return "QM_ERROR_FILE";
    case QM_ERROR_FORMAT: return "QM_ERROR_FORMAT";
    case QM_ERROR_UNSUPPORTED: return "QM_ERROR_UNSUPPORTED";
    case QM_ERROR_OPTION: return "QM_ERROR_OPTION";
    case QM_ERROR_CONTEXT: return "QM_ERROR_CONTEXT";
    case QM_ERROR_CANCELLED: return "QM_ERROR_CANCELLED";
    case QM_ERROR_BUSY: return "QM_ERROR_BUSY";
    case QM_ERROR_DEVICE: return "QM_ERROR_DEVICE";
    case QM_ERROR_FIT: return "QM_ERROR_FIT";
    case QM_ERROR_TEXT: return "QM_ERROR_TEXT";
    case QM_ERROR_STATE: return "QM_ERROR_STATE";
    default: return "unknown";
    }
}

const char *qm_error_message(void)
{
    return qmi_error_text();
}

# Written by generate_api.py from qwenmoe.h, not to be edited: its constants, handles, callbacks and functions.
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from typing import Any, Dict, Tuple

QM_VERSION_MAJOR = 0
QM_VERSION_MINOR = 1
QM_VERSION_PATCH = 0
QM_OK = 0
QM_ERROR_ARGUMENT = -1
QM_ERROR_MEMORY = -2
QM_ERROR_FILE = -3
QM_ERROR_FORMAT = -4
QM_ERROR_UNSUPPORTED = -5
QM_ERROR_OPTION = -6
QM_ERROR_CONTEXT = -7
QM_ERROR_CANCELLED = -8
QM_ERROR_BUSY = -9
QM_ERROR_DEVICE = -10
QM_ERROR_FIT = -11
QM_ERROR_TEXT = -12
QM_ERROR_STATE = -13
QM_LOG_DEBUG = 0
QM_LOG_INFO = 1
QM_LOG_WARNING = 2
QM_SPECIAL_NONE = 0
QM_SPECIAL_USER = 1
QM_SPECIAL_ALL = 2
QM_JOB_DONE = 0
QM_JOB_RUNNING = 1
QM_PIECE_NONE = 0
QM_PIECE_ANSWER = 1
QM_PIECE_THOUGHT = 2
QM_PIECE_TOOL = 3


class qm_options(c_void_p):
    pass


class qm_model(c_void_p):
    pass


class qm_session(c_void_p):
    pass


class qm_job(c_void_p):
    pass


qm_allocate_callback = CFUNCTYPE(c_void_p, c_int64, c_int64, c_void_p)
qm_release_callback = CFUNCTYPE(None, c_void_p, c_void_p)
qm_log_callback = CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
qm_progress_callback = CFUNCTYPE(c_int32, c_char_p, c_int64, c_int64, c_void_p)

# name: (type of the result, ((name of an argument, its type), ...))
FUNCTIONS: Dict[str, Tuple[Any, Tuple[Tuple[str, Any], ...]]] = {
    "qm_version": (c_char_p, ()),
    "qm_version_number": (c_int32, ()),
    "qm_error_name": (c_char_p, (("code", c_int32),)),
    "qm_error_message": (c_char_p, ()),
    "qm_options_new": (c_int32, (("out", POINTER(qm_options)),)),
    "qm_options_copy": (c_int32, (("options", qm_options), ("out", POINTER(qm_options)),)),
    "qm_options_free": (None, (("options", POINTER(qm_options)),)),
    "qm_options_set": (c_int32, (("options", qm_options), ("name", c_char_p), ("value", c_char_p),)),
    "qm_options_get": (c_int64, (("options", qm_options), ("name", c_char_p), ("text", c_char_p), ("size", c_int64),)),
    "qm_options_set_allocator": (c_int32, (("options", qm_options), ("allocate", qm_allocate_callback), ("release",
        qm_release_callback), ("user", c_void_p),)),
    "qm_options_set_log": (c_int32, (("options", qm_options), ("log", qm_log_callback), ("user", c_void_p),)),
    "qm_options_set_progress": (c_int32, (("options", qm_options), ("progress", qm_progress_callback), ("user", c_void_p),)),
    "qm_option_count": (c_int32, ()),
    "qm_option_name": (c_char_p, (("index", c_int32),)),
    "qm_option_type": (c_char_p, (("index", c_int32),)),
    "qm_option_range": (c_char_p, (("index", c_int32),)),
    "qm_option_default": (c_char_p, (("index", c_int32),)),
    "qm_option_scope": (c_char_p, (("index", c_int32),)),
    "qm_option_help": (c_char_p, (("index", c_int32),)),
    "qm_model_load": (c_int32, (("path", c_char_p), ("options", qm_options), ("out", POINTER(qm_model)),)),
    "qm_model_free": (None, (("model", POINTER(qm_model)),)),
    "qm_follow": (c_int32, (("path", c_char_p), ("options", qm_options),)),
    "qm_plan": (c_int64, (("path", c_char_p), ("options", qm_options), ("format", c_char_p), ("text", c_char_p), ("size",
        c_int64),)),
    "qm_model_number": (c_int32, (("model", qm_model), ("name", c_char_p), ("value", POINTER(c_int64)),)),
    "qm_model_text": (c_int64, (("model", qm_model), ("name", c_char_p), ("text", c_char_p), ("size", c_int64),)),
    "qm_model_save_correction": (c_int32, (("model", qm_model), ("path", c_char_p),)),
    "qm_tokenize": (c_int64, (("model", qm_model), ("text", c_char_p), ("length", c_int64), ("special", c_int32), ("tokens",
        POINTER(c_int32)), ("capacity", c_int64),)),
    "qm_detokenize": (c_int64, (("model", qm_model), ("tokens", POINTER(c_int32)), ("count", c_int64), ("skip_special", c_int32),
        ("text", c_char_p), ("size", c_int64),)),
    "qm_token_find": (c_int32, (("model", qm_model), ("text", c_char_p), ("length", c_int64),)),
    "qm_chat_format": (c_int64, (("model", qm_model), ("messages", c_char_p), ("messages_length", c_int64), ("tools", c_char_p),
        ("tools_length", c_int64), ("thinking", c_int32), ("opening", c_int32), ("text", c_char_p), ("size", c_int64),)),
    "qm_chat_tokens": (c_int64, (("model", qm_model), ("messages", c_char_p), ("messages_length", c_int64), ("tools", c_char_p),
        ("tools_length", c_int64), ("thinking", c_int32), ("opening", c_int32), ("tokens", POINTER(c_int32)), ("capacity",
        c_int64),)),
    "qm_chat_parse": (c_int64, (("model", qm_model), ("answer", c_char_p), ("answer_length", c_int64), ("tools", c_char_p),
        ("tools_length", c_int64), ("thinking", c_int32), ("json", c_char_p), ("size", c_int64),)),
    "qm_session_new": (c_int32, (("model", qm_model), ("options", qm_options), ("out", POINTER(qm_session)),)),
    "qm_session_fork": (c_int32, (("session", qm_session), ("out", POINTER(qm_session)),)),
    "qm_session_free": (None, (("session", POINTER(qm_session)),)),
    "qm_session_set": (c_int32, (("session", qm_session), ("name", c_char_p), ("value", c_char_p),)),
    "qm_session_get": (c_int64, (("session", qm_session), ("name", c_char_p), ("text", c_char_p), ("size", c_int64),)),
    "qm_session_context": (c_int64, (("session", qm_session),)),
    "qm_session_length": (c_int64, (("session", qm_session),)),
    "qm_session_tokens": (c_int64, (("session", qm_session), ("tokens", POINTER(c_int32)), ("capacity", c_int64),)),
    "qm_prefill": (c_int32, (("session", qm_session), ("tokens", POINTER(c_int32)), ("count", c_int64),)),
    "qm_prefill_rows": (c_int32, (("session", qm_session), ("tokens", POINTER(c_int32)), ("count", c_int64), ("rows",
        POINTER(c_int64)), ("row_count", c_int64), ("logits", POINTER(c_float)),)),
    "qm_decode": (c_int32, (("sessions", POINTER(qm_session)), ("tokens", POINTER(c_int32)), ("count", c_int32),)),
    "qm_logits": (POINTER(c_float), (("session", qm_session),)),
    "qm_sample": (c_int32, (("session", qm_session), ("token", POINTER(c_int32)),)),
    "qm_mtp_logits": (c_int32, (("session", qm_session), ("next", c_int32), ("logits", POINTER(c_float)),)),
    "qm_session_rewind": (c_int32, (("session", qm_session), ("length", c_int64),)),
    "qm_session_sync": (c_int64, (("session", qm_session), ("tokens", POINTER(c_int32)), ("count", c_int64),)),
    "qm_session_save": (c_int32, (("session", qm_session), ("path", c_char_p),)),
    "qm_session_restore": (c_int32, (("session", qm_session), ("path", c_char_p),)),
    "qm_submit_load": (c_int32, (("path", c_char_p), ("options", qm_options), ("out", POINTER(qm_job)),)),
    "qm_submit_follow": (c_int32, (("path", c_char_p), ("options", qm_options), ("out", POINTER(qm_job)),)),
    "qm_submit_tokenize": (c_int32, (("model", qm_model), ("text", c_char_p), ("length", c_int64), ("special", c_int32), ("out",
        POINTER(qm_job)),)),
    "qm_submit_chat_tokens": (c_int32, (("model", qm_model), ("messages", c_char_p), ("messages_length", c_int64), ("tools",
        c_char_p), ("tools_length", c_int64), ("thinking", c_int32), ("opening", c_int32), ("out", POINTER(qm_job)),)),
    "qm_submit_prefill": (c_int32, (("session", qm_session), ("tokens", POINTER(c_int32)), ("count", c_int64), ("out",
        POINTER(qm_job)),)),
    "qm_submit_decode": (c_int32, (("sessions", POINTER(qm_session)), ("tokens", POINTER(c_int32)), ("count", c_int32), ("out",
        POINTER(qm_job)),)),
    "qm_submit_rewind": (c_int32, (("session", qm_session), ("length", c_int64), ("out", POINTER(qm_job)),)),
    "qm_submit_sync": (c_int32, (("session", qm_session), ("tokens", POINTER(c_int32)), ("count", c_int64), ("out",
        POINTER(qm_job)),)),
    "qm_submit_save": (c_int32, (("session", qm_session), ("path", c_char_p), ("out", POINTER(qm_job)),)),
    "qm_submit_restore": (c_int32, (("session", qm_session), ("path", c_char_p), ("out", POINTER(qm_job)),)),
    "qm_submit_generate": (c_int32, (("session", qm_session), ("tokens", POINTER(c_int32)), ("count", c_int64), ("out",
        POINTER(qm_job)),)),
    "qm_job_poll": (c_int32, (("job", qm_job),)),
    "qm_job_wait": (c_int32, (("job", qm_job), ("timeout_ms", c_int64),)),
    "qm_job_descriptor": (c_int32, (("job", qm_job),)),
    "qm_job_cancel": (c_int32, (("job", qm_job),)),
    "qm_job_end_thinking": (c_int32, (("job", qm_job),)),
    "qm_job_free": (None, (("job", POINTER(qm_job)),)),
    "qm_job_read": (c_int64, (("job", qm_job), ("text", c_char_p), ("size", c_int64), ("kind", POINTER(c_int32)),)),
    "qm_job_text": (c_int64, (("job", qm_job), ("text", c_char_p), ("size", c_int64),)),
    "qm_job_tokens": (c_int64, (("job", qm_job), ("tokens", POINTER(c_int32)), ("capacity", c_int64),)),
    "qm_job_logprobs": (c_int64, (("job", qm_job), ("first", c_int64), ("logprobs", POINTER(c_float)), ("top_tokens",
        POINTER(c_int32)), ("top_logprobs", POINTER(c_float)), ("capacity", c_int64),)),
    "qm_job_finish": (c_char_p, (("job", qm_job),)),
    "qm_job_number": (c_int32, (("job", qm_job), ("name", c_char_p), ("value", POINTER(c_double)),)),
    "qm_job_model": (c_int32, (("job", qm_job), ("out", POINTER(qm_model)),)),
}

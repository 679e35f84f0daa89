-- The interface of libqwenmoe for LuaJIT: declarations and constants of include/qwenmoe.h, written by update_cdef.py.
local M = {}

M.declarations = [[
typedef struct qm_options qm_options;
typedef struct qm_model qm_model;
typedef struct qm_session qm_session;
typedef struct qm_job qm_job;
const char *qm_version(void);
int32_t qm_version_number(void);
const char *qm_error_name(int32_t code);
const char *qm_error_message(void);
typedef void *(*qm_allocate_callback)(int64_t size, int64_t alignment, void *user);
typedef void (*qm_release_callback)(void *pointer, void *user);
typedef void (*qm_log_callback)(int32_t level, const char *line, void *user);
typedef int32_t (*qm_progress_callback)(const char *stage, int64_t done, int64_t total, void *user);
int32_t qm_options_new(qm_options **out);
int32_t qm_options_copy(const qm_options *options, qm_options **out);
void qm_options_free(qm_options **options);
int32_t qm_options_set(qm_options *options, const char *name, const char *value);
int64_t qm_options_get(const qm_options *options, const char *name, char *text, int64_t size);
int32_t qm_options_set_allocator(qm_options *options, qm_allocate_callback allocate, qm_release_callback release, void *user);
int32_t qm_options_set_log(qm_options *options, qm_log_callback log, void *user);
int32_t qm_options_set_progress(qm_options *options, qm_progress_callback progress, void *user);
int32_t qm_option_count(void);
const char *qm_option_name(int32_t index);
const char *qm_option_type(int32_t index);
const char *qm_option_range(int32_t index);
const char *qm_option_default(int32_t index);
const char *qm_option_scope(int32_t index);
const char *qm_option_help(int32_t index);
int32_t qm_model_load(const char *path, const qm_options *options, qm_model **out);
void qm_model_free(qm_model **model);
int32_t qm_follow(const char *path, const qm_options *options);
int64_t qm_plan(const char *path, const qm_options *options, const char *format, char *text, int64_t size);
int32_t qm_model_number(const qm_model *model, const char *name, int64_t *value);
int64_t qm_model_text(const qm_model *model, const char *name, char *text, int64_t size);
int32_t qm_model_save_correction(qm_model *model, const char *path);
int64_t qm_tokenize(const qm_model *model, const char *text, int64_t length, int32_t special, int32_t *tokens, int64_t
    capacity);
int64_t qm_detokenize(const qm_model *model, const int32_t *tokens, int64_t count, int32_t skip_special, char *text, int64_t
    size);
int32_t qm_token_find(const qm_model *model, const char *text, int64_t length);
int64_t qm_chat_format(const qm_model *model, const char *messages, int64_t messages_length, const char *tools, int64_t
    tools_length, int32_t thinking, int32_t opening, char *text, int64_t size);
int64_t qm_chat_tokens(const qm_model *model, const char *messages, int64_t messages_length, const char *tools, int64_t
    tools_length, int32_t thinking, int32_t opening, int32_t *tokens, int64_t capacity);
int64_t qm_chat_parse(const qm_model *model, const char *answer, int64_t answer_length, const char *tools, int64_t
    tools_length, int32_t thinking, char *json, int64_t size);
int32_t qm_session_new(qm_model *model, const qm_options *options, qm_session **out);
int32_t qm_session_fork(qm_session *session, qm_session **out);
void qm_session_free(qm_session **session);
int32_t qm_session_set(qm_session *session, const char *name, const char *value);
int64_t qm_session_get(const qm_session *session, const char *name, char *text, int64_t size);
int64_t qm_session_context(const qm_session *session);
int64_t qm_session_length(const qm_session *session);
int64_t qm_session_tokens(const qm_session *session, int32_t *tokens, int64_t capacity);
int32_t qm_prefill(qm_session *session, const int32_t *tokens, int64_t count);
int32_t qm_prefill_rows(qm_session *session, const int32_t *tokens, int64_t count, const int64_t *rows, int64_t row_count,
    float *logits);
int32_t qm_decode(qm_session **sessions, const int32_t *tokens, int32_t count);
const float *qm_logits(const qm_session *session);
int32_t qm_sample(qm_session *session, int32_t *token);
int32_t qm_mtp_logits(qm_session *session, int32_t next, float *logits);
int32_t qm_session_rewind(qm_session *session, int64_t length);
int64_t qm_session_sync(qm_session *session, const int32_t *tokens, int64_t count);
int32_t qm_session_save(qm_session *session, const char *path);
int32_t qm_session_restore(qm_session *session, const char *path);
int32_t qm_submit_load(const char *path, const qm_options *options, qm_job **out);
int32_t qm_submit_follow(const char *path, const qm_options *options, qm_job **out);
int32_t qm_submit_tokenize(const qm_model *model, const char *text, int64_t length, int32_t special, qm_job **out);
int32_t qm_submit_chat_tokens(const qm_model *model, const char *messages, int64_t messages_length, const char *tools, int64_t
    tools_length, int32_t thinking, int32_t opening, qm_job **out);
int32_t qm_submit_prefill(qm_session *session, const int32_t *tokens, int64_t count, qm_job **out);
int32_t qm_submit_decode(qm_session **sessions, const int32_t *tokens, int32_t count, qm_job **out);
int32_t qm_submit_rewind(qm_session *session, int64_t length, qm_job **out);
int32_t qm_submit_sync(qm_session *session, const int32_t *tokens, int64_t count, qm_job **out);
int32_t qm_submit_save(qm_session *session, const char *path, qm_job **out);
int32_t qm_submit_restore(qm_session *session, const char *path, qm_job **out);
int32_t qm_submit_generate(qm_session *session, const int32_t *tokens, int64_t count, qm_job **out);
int32_t qm_job_poll(const qm_job *job);
int32_t qm_job_wait(qm_job *job, int64_t timeout_ms);
int32_t qm_job_descriptor(const qm_job *job);
int32_t qm_job_cancel(qm_job *job);
int32_t qm_job_end_thinking(qm_job *job);
void qm_job_free(qm_job **job);
int64_t qm_job_read(qm_job *job, char *text, int64_t size, int32_t *kind);
int64_t qm_job_text(const qm_job *job, char *text, int64_t size);
int64_t qm_job_tokens(const qm_job *job, int32_t *tokens, int64_t capacity);
int64_t qm_job_logprobs(const qm_job *job, int64_t first, float *logprobs, int32_t *top_tokens, float *top_logprobs, int64_t
    capacity);
const char *qm_job_finish(const qm_job *job);
int32_t qm_job_number(const qm_job *job, const char *name, double *value);
int32_t qm_job_model(qm_job *job, qm_model **out);
]]

M.constants = {
    VERSION_MAJOR = 0,
    VERSION_MINOR = 1,
    VERSION_PATCH = 0,
    OK = 0,
    ERROR_ARGUMENT = -1,
    ERROR_MEMORY = -2,
    ERROR_FILE = -3,
    ERROR_FORMAT = -4,
    ERROR_UNSUPPORTED = -5,
    ERROR_OPTION = -6,
    ERROR_CONTEXT = -7,
    ERROR_CANCELLED = -8,
    ERROR_BUSY = -9,
    ERROR_DEVICE = -10,
    ERROR_FIT = -11,
    ERROR_TEXT = -12,
    ERROR_STATE = -13,
    LOG_DEBUG = 0,
    LOG_INFO = 1,
    LOG_WARNING = 2,
    SPECIAL_NONE = 0,
    SPECIAL_USER = 1,
    SPECIAL_ALL = 2,
    JOB_DONE = 0,
    JOB_RUNNING = 1,
    PIECE_NONE = 0,
    PIECE_ANSWER = 1,
    PIECE_THOUGHT = 2,
    PIECE_TOOL = 3,
}

return M

/* qwenmoe.h: the whole public interface of libqwenmoe, and its manual.
 *
 * libqwenmoe runs language models of the Qwen3 and Qwen3.5 families (mixture of experts and dense, hybrid of
 * gated-delta and attention layers) from GGUF files inside other programs.
 *
 * ---- A complete program -------------------------------------------------------------------------------------------
 *
 *     qm_model *model = NULL;  qm_session *session = NULL;  qm_job *job = NULL;
 *     if (qm_model_load("model.gguf", NULL, &model) < 0) goto failed;
 *     if (qm_session_new(model, NULL, &session) < 0) goto failed;
 *
 *     int32_t prompt[64];
 *     int64_t count = qm_tokenize(model, "def fibonacci(n):", -1, QM_SPECIAL_NONE, prompt, 64);
 *     if (count < 0 || count > 64) goto failed;
 *     if (qm_submit_generate(session, prompt, count, &job) < 0) goto failed;
 *     int32_t state;
 *     do {
 *         char piece[256];  int32_t kind;  int64_t length;
 *         state = qm_job_wait(job, -1);
 *         while ((length = qm_job_read(job, piece, sizeof piece, &kind)) > 0) fwrite(piece, 1, (size_t)length, stdout);
 *     } while (state == QM_JOB_RUNNING);
 *     ...
 *     qm_job_free(&job);  qm_session_free(&session);  qm_model_free(&model);
 *
 * ---- Rules that hold for every function ---------------------------------------------------------------------------
 *
 * Values    Only handles, pointers, lengths, int32_t, int64_t, float and double cross the line. No struct, no enum, no
 *           bool: 0 is no, anything else is yes. Nothing here changes its layout, because there is no layout.
 * Errors    A function that can fail returns a negative QM_ERROR_* code, else 0 or a count. qm_error_message() then gives
 *           the calling thread's last message, which names file, field and value and says what to do. The library never
 *           exits, aborts, prints or installs a signal handler. A null handle or pointer where one is needed is
 *           QM_ERROR_ARGUMENT.
 * Ownership A function with `qm_x **out` makes something that is yours to free; on failure *out is NULL. A returned
 *           pointer is borrowed. qm_x_free(&x) frees, sets x to NULL and accepts NULL. Handles may be freed in any order:
 *           what another handle still needs lives until that one is freed.
 * Text      UTF-8, with an explicit length in bytes; -1 means "up to the zero byte". Text results follow snprintf: at
 *           most `size` bytes are written including the terminating zero, and the length that the whole text has (without
 *           the zero) is returned, so a call with (NULL, 0) asks for the size.
 * Callbacks The `void *user` after a callback is handed back to it, last. Callbacks come from library threads unless
 *           said otherwise, and must not call the library with the same handle.
 * Threads   qm_model: any number of threads at once. qm_session: one thread at a time, and no second job while one is
 *           under way (QM_ERROR_BUSY). qm_job: reading by one thread at a time; poll, wait, cancel and end-thinking from
 *           any. qm_options: one thread at a time. Work of all sessions of a model is done by that model's own worker
 *           threads, which sleep when there is nothing to do.
 * Time      What can take more than a millisecond exists as a job too (qm_submit_*), with a descriptor to watch.
 * Sameness  The same model, settings and tokens give the same logits, bit for bit, on the same machine, whatever the
 *           number of threads, however the tokens are divided into calls, and whichever sessions are computed along.
 *
 * The interface is stable: within a version 0.x functions are only added; the SONAME changes when that is ever broken.
 */
#ifndef QWENMOE_H
#define QWENMOE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QM_VERSION_MAJOR 0
#define QM_VERSION_MINOR 1
#define QM_VERSION_PATCH 0

#if defined(__GNUC__)
#define QM_API __attribute__((visibility("default")))
#else
#define QM_API
#endif

typedef struct qm_options qm_options; /* settings by name, for loading a model or making a session */
typedef struct qm_model qm_model;     /* the weights of a file, its tokenizer, and the workers that compute */
typedef struct qm_session qm_session; /* one conversation: its tokens, keys and values, recurrent state, sampler */
typedef struct qm_job qm_job;         /* work under way */

/* ---- Version and errors ------------------------------------------------------------------------------------------- */

QM_API const char *qm_version(void);        /* "0.1.0" of the library that runs; static */
QM_API int32_t qm_version_number(void);     /* major * 1000000 + minor * 1000 + patch */

#define QM_OK 0
#define QM_ERROR_ARGUMENT (-1)     /* a null pointer, a negative size, an id out of range */
#define QM_ERROR_MEMORY (-2)       /* out of memory; everything the call had allocated is freed again */
#define QM_ERROR_FILE (-3)         /* a file cannot be opened or read */
#define QM_ERROR_FORMAT (-4)       /* a file's content is damaged or contradicts itself */
#define QM_ERROR_UNSUPPORTED (-5)  /* well-formed, but not something this library runs */
#define QM_ERROR_OPTION (-6)       /* unknown option, or a value out of its range */
#define QM_ERROR_CONTEXT (-7)      /* the session's context is full; the session stays usable as it was */
#define QM_ERROR_CANCELLED (-8)    /* cancelled by qm_job_cancel or by freeing the job */
#define QM_ERROR_BUSY (-9)         /* the session has a job under way */
#define QM_ERROR_DEVICE (-10)      /* a compute device is missing or failed */
#define QM_ERROR_FIT (-11)         /* does not fit the memory; the message gives the sums */
#define QM_ERROR_TEXT (-12)        /* text is not UTF-8, JSON is malformed, or the chat format refuses the messages */
#define QM_ERROR_STATE (-13)       /* not possible now, for example logits before any token */

QM_API const char *qm_error_name(int32_t code); /* "QM_ERROR_FILE"; static; "unknown" for other numbers */
QM_API const char *qm_error_message(void);      /* this thread's last message; borrowed until its next failing call; never NULL */

/* ---- Hooks -------------------------------------------------------------------------------------------------------- */

/* Returns `size` bytes aligned to `alignment` (a power of two), or NULL. Called from any thread. */
typedef void *(*qm_allocate_callback)(int64_t size, int64_t alignment, void *user);
typedef void (*qm_release_callback)(void *pointer, void *user);

#define QM_LOG_DEBUG 0
#define QM_LOG_INFO 1
#define QM_LOG_WARNING 2
/* One line without newline; borrowed for the call. Called from any thread. */
typedef void (*qm_log_callback)(int32_t level, const char *line, void *user);

/* done of total, in the unit of `stage` ("load": bytes, "prefill" and "drop": tokens). Returns 0 to go on; else the work is
 * cancelled. For loading it is called by the thread that loads, for sessions by a worker. */
typedef int32_t (*qm_progress_callback)(const char *stage, int64_t done, int64_t total, void *user);

/* ---- Options ------------------------------------------------------------------------------------------------------ */
/* Settings are set by name and as text: qm_options_set(o, "context", "32768"). Names, types, ranges, defaults and help can
 * be asked from the library (qm_option_*), so that a host's own settings, help and checks need no second list. */

QM_API int32_t qm_options_new(qm_options **out);
QM_API int32_t qm_options_copy(const qm_options *options, qm_options **out);
QM_API void qm_options_free(qm_options **options);
/* QM_ERROR_OPTION for an unknown name (the message offers the nearest) or a value that is not in its range; the options are
 * then unchanged. value NULL sets the default again. "preset" sets several at once. */
QM_API int32_t qm_options_set(qm_options *options, const char *name, const char *value);
/* The value as text, as it would be set. snprintf rules. */
QM_API int64_t qm_options_get(const qm_options *options, const char *name, char *text, int64_t size);

/* Both callbacks or neither. They serve everything made from a model loaded with these options; must outlive it. JSON
 * parsing and Unicode tables belong to other libraries and use the process's own allocator. */
QM_API int32_t qm_options_set_allocator(qm_options *options, qm_allocate_callback allocate, qm_release_callback release,
                                        void *user);
QM_API int32_t qm_options_set_log(qm_options *options, qm_log_callback log, void *user);
QM_API int32_t qm_options_set_progress(qm_options *options, qm_progress_callback progress, void *user);

/* The table of options, index 0 .. qm_option_count() - 1. Returned text is static; NULL for an index out of range. */
QM_API int32_t qm_option_count(void);
QM_API const char *qm_option_name(int32_t index);
QM_API const char *qm_option_type(int32_t index);    /* "int", "float", "bool", "choice" or "text" */
QM_API const char *qm_option_range(int32_t index);   /* "0..1024" for numbers, "f32|f16" for choices, "" for others */
QM_API const char *qm_option_default(int32_t index); /* as text */
QM_API const char *qm_option_scope(int32_t index);   /* "model" (read by qm_model_load), "session" (by qm_session_new), or
                                                        "sampling" (by qm_session_new, and changed at will by qm_session_set) */
QM_API const char *qm_option_help(int32_t index);    /* one sentence or two */

/* ---- Models ------------------------------------------------------------------------------------------------------- */

/* Maps a GGUF file (of a file in parts, -00001-of-0000N.gguf, any part) and makes it ready to compute. Weights used by the
 * CPU stay where they are in the file's mapping. options NULL: the defaults. The options are copied.
 * Expected errors: QM_ERROR_FILE, _FORMAT, _UNSUPPORTED, _FIT, _MEMORY, _DEVICE, _CANCELLED (by the progress callback).
 * Freeing a model while sessions or jobs of it live only drops the handle. */
QM_API int32_t qm_model_load(const char *path, const qm_options *options, qm_model **out);
QM_API void qm_model_free(qm_model **model);

/* One model on several devices of several processes, on one machine or more (option "ranks"). Each process is told its number
 * (option "rank"), and all where rank 0 listens (option "rank-id"). Rank 0 calls qm_model_load, which waits for the others and
 * then computes on the devices of all; the others call this, with the same file and options (those of their own machine apart:
 * "device", "threads", "pin", "isa", "cuda-library", "memory-limit" and the like). It returns 0 when rank 0 has freed the model.
 * When a rank fails, is gone, or is silent for longer than "rank-timeout", this and all calls of rank 0 end with an error that
 * names the rank; likewise when one has another file, version or options. What the ranks say to each other travels in the
 * clear, and a rank computes what it is sent: the network between them has to be one that only friends can reach.
 * Expected errors: QM_ERROR_FILE, _UNSUPPORTED, _OPTION, _DEVICE, _MEMORY. */
QM_API int32_t qm_follow(const char *path, const qm_options *options);

/* What loading would take, from the file's header alone: nothing is allocated on a device. `format` is "table" (for people)
 * or "json". snprintf rules. A plan that does not fit is still a plan: it says so, and why. options NULL: the defaults. */
QM_API int64_t qm_plan(const char *path, const qm_options *options, const char *format, char *text, int64_t size);

/* Facts about a loaded model, by name. As numbers: "layers", "attention_layers", "delta_layers", "hidden", "vocabulary",
 * "context" (trained length), "experts", "experts_used", "parameters", "file_bytes", "mtp" (1 if the file has a
 * multi-token-prediction block), "token_eos", "token_pad"; as they are now (these wait for the step under way): "memory_total"
 * and "memory_free" (bytes of the device that computes, for this library), "kv_tokens" and "kv_tokens_free" (tokens that there
 * is memory for keys and values of, in whole pages, and how many of them no session and no checkpoint holds), "checkpoints"
 * (states kept to go back to); what decoding reads of the memory, in bytes: "step_bytes" (weights, once a step for all sessions
 * that it decodes), "expert_bytes" (the experts that one token chooses, beyond that), "state_bytes" (a session's recurrent state,
 * read and written), "held_bytes" (a session's keys and values, for each token that it holds); "read_rate" (bytes a second that
 * the device reads of its memory, measured at each call for some 0.3 s, where the device can); of several devices
 * "predicted_token_ns" (what a token should take by such measurements; 0: they can't be made), and "predicted_by" as text, which
 * names them; and any integer key of the file's metadata. As text: "architecture", "name", "tokenizer", "chat_format", "device",
 * "isa" (kernels in use), "file"; and any key of the file's metadata.
 * QM_ERROR_ARGUMENT when there is no such fact. */
QM_API int32_t qm_model_number(const qm_model *model, const char *name, int64_t *value);
QM_API int64_t qm_model_text(const qm_model *model, const char *name, char *text, int64_t size);

/* Writes the linear correction of 2-bit keys (key-type q2), fitted to all that the model has computed since it was loaded with
 * option "kv-fit", for option "kv-correction". Some thousand tokens of the kind of text that the model shall read do; what
 * sessions reuse is not computed again, so it counts once. Written beside and renamed. The file belongs to this model's file.
 * Waits for the step under way. Expected errors: QM_ERROR_STATE (not loaded so, or nothing packed yet), _FILE, _MEMORY. */
QM_API int32_t qm_model_save_correction(qm_model *model, const char *path);

/* ---- Tokens ------------------------------------------------------------------------------------------------------- */

#define QM_SPECIAL_NONE 0 /* no added token is recognised in the text: the safe choice for text from users */
#define QM_SPECIAL_USER 1 /* only those that the file marks as user defined */
#define QM_SPECIAL_ALL 2  /* all, control tokens too: for prompts written with marks */

/* Text to token ids. At most `capacity` ids are written; the number that the text has is returned, so (NULL, 0) asks for it.
 * Invalid UTF-8 is QM_ERROR_TEXT and the message gives the offset. No begin or end token is added. */
QM_API int64_t qm_tokenize(const qm_model *model, const char *text, int64_t length, int32_t special, int32_t *tokens,
                           int64_t capacity);
/* Token ids to text, byte for byte (the bytes may not be whole code points when the tokens are not). skip_special leaves
 * control tokens out, but keeps the marks of fill-in-the-middle and of repositories, as the reference does. Ids without text give
 * nothing; ids out of range are QM_ERROR_ARGUMENT. snprintf rules. */
QM_API int64_t qm_detokenize(const qm_model *model, const int32_t *tokens, int64_t count, int32_t skip_special, char *text,
                             int64_t size);
/* The id of the token with exactly this text ("<|im_end|>"), or QM_ERROR_ARGUMENT. */
QM_API int32_t qm_token_find(const qm_model *model, const char *text, int64_t length);

/* ---- Chat format -------------------------------------------------------------------------------------------------- */

/* Messages to prompt text, as the file's own template would render them.
 * messages  JSON array of {"role", "content", ...} as OpenAI's chat API has it: roles system, user, assistant, tool;
 *           "reasoning_content" and "tool_calls" in assistant messages.
 * tools     JSON array of tool descriptions, or NULL.
 * thinking  1 or 0 answers the template's switch; -1 leaves it to the template's default.
 * opening   1 appends the start of the assistant's turn.
 * What the template refuses is QM_ERROR_TEXT with its words. qm_chat_tokens gives the prompt's tokens. snprintf rules. */
QM_API int64_t qm_chat_format(const qm_model *model, const char *messages, int64_t messages_length, const char *tools,
                              int64_t tools_length, int32_t thinking, int32_t opening, char *text, int64_t size);
/* The same as token ids, for prompts with texts from elsewhere: what users and tools say is text and nothing else, so that a
 * "<|im_end|>" in it ends no turn. Marks in what system and assistant say are marks, and without any in the messages it is what
 * qm_tokenize gives for the text with QM_SPECIAL_ALL. At most `capacity` ids are written; returns how many there are. */
QM_API int64_t qm_chat_tokens(const qm_model *model, const char *messages, int64_t messages_length, const char *tools,
                              int64_t tools_length, int32_t thinking, int32_t opening, int32_t *tokens, int64_t capacity);
/* An answer's text back into its parts, as JSON: {"reasoning_content": text or null, "content": text,
 * "tool_calls": [{"name": text, "arguments": object}], "status": "complete" | "partial" | "malformed"}.
 * Nothing is lost: what can't be read as a tool call stays in content and makes the status "malformed"; an answer that just
 * ends in the middle is "partial". tools (as above, or NULL) tells which parameters are text and which are JSON.
 * thinking 1: the text starts inside the thoughts, as after a prompt that opened them. snprintf rules. */
QM_API int64_t qm_chat_parse(const qm_model *model, const char *answer, int64_t answer_length, const char *tools,
                             int64_t tools_length, int32_t thinking, char *json, int64_t size);

/* ---- Sessions ----------------------------------------------------------------------------------------------------- */

/* An empty session. options NULL: those of the model. Scopes "session" and "sampling" count. Its memory is taken as it grows: the
 * model has it ready for one session of its context (more with option "kv-memory"), and beyond that as far as the device has any.
 * A call for which none is left fails with QM_ERROR_MEMORY, and the session stays usable as it was.
 * Expected errors: QM_ERROR_MEMORY, _FIT, _OPTION (context smaller than the answer budget, or larger than the model's). */
QM_API int32_t qm_session_new(qm_model *model, const qm_options *options, qm_session **out);
/* A second session in the same state: same tokens, logits, settings and random state. The two share the memory of what they have
 * in common, so nothing is copied. */
QM_API int32_t qm_session_fork(qm_session *session, qm_session **out);
/* Cancels its job if one is under way, and waits for it. */
QM_API void qm_session_free(qm_session **session);

/* Options of scope "sampling" of this session. Setting the seed starts its random sequence again. */
QM_API int32_t qm_session_set(qm_session *session, const char *name, const char *value);
QM_API int64_t qm_session_get(const qm_session *session, const char *name, char *text, int64_t size);

QM_API int64_t qm_session_context(const qm_session *session); /* tokens it can hold */
QM_API int64_t qm_session_length(const qm_session *session);  /* tokens it holds */
/* Copies them; returns the length. */
QM_API int64_t qm_session_tokens(const qm_session *session, int32_t *tokens, int64_t capacity);

/* Appends tokens and computes them. Afterwards the logits are those of the last one.
 * When they do not fit the context nothing is appended: QM_ERROR_CONTEXT. With option "context-full" set to drop-oldest, the
 * oldest turns after the system prompt (marked as the chat format does) are dropped instead, so that a quarter of the context is
 * free, and what remains is computed again from the last state kept before; likewise while qm_submit_generate decodes. The
 * progress callback says so before it happens, with stage "drop", tokens dropped, tokens there were, and may cancel it. */
QM_API int32_t qm_prefill(qm_session *session, const int32_t *tokens, int64_t count);
/* The same, and writes the logits after tokens[rows[i]] to logits[i * vocabulary ...] (caller's, row_count x vocabulary
 * floats). Rows are indices into `tokens`, ascending. */
QM_API int32_t qm_prefill_rows(qm_session *session, const int32_t *tokens, int64_t count, const int64_t *rows, int64_t row_count,
                               float *logits);
/* Appends one token to each of several different sessions of one model, computed together.
 * If one of them fails its check (busy, full), nothing is done. */
QM_API int32_t qm_decode(qm_session **sessions, const int32_t *tokens, int32_t count);

/* Logits after the last token: vocabulary floats, borrowed until the session's next call. NULL before any token. */
QM_API const float *qm_logits(const qm_session *session);
/* Chooses the next token from the logits by the session's sampling options, and does not append it. */
QM_API int32_t qm_sample(qm_session *session, int32_t *token);
/* Logits of the token after `next`, predicted by the multi-token-prediction block from the state after the last token
 * (vocabulary floats, caller's). The session does not change. QM_ERROR_STATE unless the model was loaded with option "mtp". */
QM_API int32_t qm_mtp_logits(qm_session *session, int32_t next, float *logits);

/* Makes the session hold its first `length` tokens; the logits are then those of the last of them. Exact. A recurrent state
 * cannot run backwards: models with delta layers go on from the nearest state that was kept before (options "checkpoint-memory"
 * and "checkpoint-every") and compute the tokens from there again. When it is cancelled or fails on the way, the session holds as
 * many of them as were computed, perhaps without logits, which a prefill of no tokens brings; likewise qm_session_sync. */
QM_API int32_t qm_session_rewind(qm_session *session, int64_t length);
/* Makes the session hold exactly these tokens, computing only those after the longest start of them that is held already: by this
 * session, by another session of the model, or by a state that was kept of one, also of one that is freed. Returns how many
 * tokens did not have to be computed. So a chat client may send its whole history each turn, rendered anew. With option
 * "prefix-cache" (a folder) what sessions held when they were freed is found too, also that of earlier runs and other programs. */
QM_API int64_t qm_session_sync(qm_session *session, const int32_t *tokens, int64_t count);

/* Writes what the session holds to a file: tokens, keys and values, states, logits, the options of scope "sampling" and the
 * random sequence. It is written beside the file of that name and takes its place when it is whole and on the disk, so a full
 * disk or a power cut leaves the old one. Only its owner may read it. QM_ERROR_FILE says what the system said. */
QM_API int32_t qm_session_save(qm_session *session, const char *path);
/* Makes the session hold what the file does: the same logits to sample from at once, and the same text after them, bit for bit.
 * A file of another model or version, of a model loaded with other types of keys and values or mtp, with more tokens than the
 * session's context, or with a damaged byte, is refused and leaves the session as it was.
 * Expected errors: QM_ERROR_FILE, _FORMAT, _UNSUPPORTED, _CONTEXT, _MEMORY, _OPTION. */
QM_API int32_t qm_session_restore(qm_session *session, const char *path);

/* ---- Jobs --------------------------------------------------------------------------------------------------------- */
/* A job is submitted, runs on the model's worker, and ends as done or with a code. Watch qm_job_descriptor() in your event
 * loop, or call qm_job_wait(). Jobs of several sessions advance together. */

QM_API int32_t qm_submit_load(const char *path, const qm_options *options, qm_job **out);          /* result: qm_job_model */
QM_API int32_t qm_submit_follow(const char *path, const qm_options *options, qm_job **out);
QM_API int32_t qm_submit_tokenize(const qm_model *model, const char *text, int64_t length, int32_t special,
                                  qm_job **out);                                               /* result: qm_job_tokens */
QM_API int32_t qm_submit_chat_tokens(const qm_model *model, const char *messages, int64_t messages_length, const char *tools,
                                     int64_t tools_length, int32_t thinking, int32_t opening,
                                     qm_job **out);                                            /* result: qm_job_tokens */
QM_API int32_t qm_submit_prefill(qm_session *session, const int32_t *tokens, int64_t count, qm_job **out);
QM_API int32_t qm_submit_decode(qm_session **sessions, const int32_t *tokens, int32_t count, qm_job **out);
QM_API int32_t qm_submit_rewind(qm_session *session, int64_t length, qm_job **out);
QM_API int32_t qm_submit_sync(qm_session *session, const int32_t *tokens, int64_t count, qm_job **out); /* "tokens_reused" */
QM_API int32_t qm_submit_save(qm_session *session, const char *path, qm_job **out);
QM_API int32_t qm_submit_restore(qm_session *session, const char *path, qm_job **out);
/* Appends tokens (none: count 0), then samples and appends tokens until the model ends its turn, a stop string appears, the
 * budgets "answer-tokens" or "context" are used up, or it is cancelled. Text comes in pieces from qm_job_read. The session then
 * holds every token of qm_job_tokens, also the one that ended the answer.
 *
 * Constrained output: with option "grammar" (GBNF text) or "json-schema" (a JSON schema's text) set in the session, the text
 * of an answer fits it; with "tools" (the array that qm_chat_format takes) its tool calls are well-formed, name one of the
 * tools and fit the parameters of those that are "strict" ("tool-choice" may ask for none, some or a certain one). Tokens that
 * do not fit are banned before all sampling. Thoughts are free, but do not end the turn; it can end where the text is
 * complete, and ends where nothing can follow. Before the budgets leave too little room for the shortest completion, that is
 * written, so a text is left incomplete ("length", "context") only if its budget was too small for any from the start; a stop
 * string still cuts. What is asked for and cannot be kept is refused when the option takes effect (qm_session_new,
 * qm_session_set): QM_ERROR_OPTION, and a message that names the place. The model keeps what it made of the last texts, so the
 * same one costs nothing again. qm_sample, qm_logits and qm_decode are not constrained. */
QM_API int32_t qm_submit_generate(qm_session *session, const int32_t *tokens, int64_t count, qm_job **out);

#define QM_JOB_DONE 0
#define QM_JOB_RUNNING 1
/* QM_JOB_RUNNING, QM_JOB_DONE, or the negative code it failed with (and this thread's message is then the job's). */
QM_API int32_t qm_job_poll(const qm_job *job);
/* Sleeps until there is something to read or the job has ended, at most timeout_ms (-1: for ever). Returns as qm_job_poll. While
 * text is unread it returns at once: read until nothing is left, then wait again; the last text is there when it has ended. */
QM_API int32_t qm_job_wait(qm_job *job, int64_t timeout_ms);
/* Readable (poll, select, libuv) as long as there is something to read or the job has ended; never read from it yourself.
 * Belongs to the job; a negative code only for a null job. */
QM_API int32_t qm_job_descriptor(const qm_job *job);
/* Asks it to end soon; it then fails with QM_ERROR_CANCELLED. What was computed stays in the session. Safe from any thread. */
QM_API int32_t qm_job_cancel(qm_job *job);
/* Ends the thinking of a running answer at the next token: the model goes on with its answer. Nothing happens when it does not
 * think. Safe from any thread. */
QM_API int32_t qm_job_end_thinking(qm_job *job);
/* Cancels it if it runs, waits, and frees. */
QM_API void qm_job_free(qm_job **job);

#define QM_PIECE_NONE 0
#define QM_PIECE_ANSWER 1   /* text of the answer */
#define QM_PIECE_THOUGHT 2  /* text inside the thoughts */
#define QM_PIECE_TOOL 3     /* the raw text of tool calls; qm_chat_parse(qm_job_text) gives names and arguments */
/* The next piece of generated text: whole code points, one kind at a time. Returns its length, at most size - 1 (a zero is
 * added; size at least 8), or 0 with QM_PIECE_NONE when there is nothing to read now. The marks <think>, </think> and the end
 * of the turn are not part of any piece. Text that could be the start of a stop string is held back until it is decided. */
QM_API int64_t qm_job_read(qm_job *job, char *text, int64_t size, int32_t *kind);
/* All text generated so far with its marks, as qm_chat_parse wants it. snprintf rules. */
QM_API int64_t qm_job_text(const qm_job *job, char *text, int64_t size);
/* The tokens generated (or the result of qm_submit_tokenize). At most capacity are copied; returns their number. */
QM_API int64_t qm_job_tokens(const qm_job *job, int32_t *tokens, int64_t capacity);
/* Log probabilities of the tokens of qm_job_tokens from index `first` on, by the model alone, before any option of sampling: the
 * tokens' own to logprobs[capacity], and, row by row, the ids and log probabilities of the most likely ones, highest first (of
 * equal ones the lower id), to top_tokens and top_logprobs [capacity x top]; each may be NULL. `top` is the value of option
 * "logprobs" when the job was submitted, at most the vocabulary; it is QM_ERROR_STATE when that was -1. At most `capacity` tokens
 * are copied; returns how many there are from `first` on. */
QM_API int64_t qm_job_logprobs(const qm_job *job, int64_t first, float *logprobs, int32_t *top_tokens, float *top_logprobs,
                               int64_t capacity);
/* Why a generate job ended: "end" (the model's end of turn), "stop" (a stop string), "length" (answer budget), "context" (context
 * full), "cancelled", "error"; "" while it runs. Static. */
QM_API const char *qm_job_finish(const qm_job *job);
/* Numbers of a job, by name: "tokens_total" (to prefill), "tokens_prefilled", "tokens_reused", "tokens_dropped" (by option
 * "context-full"), "tokens_generated", "tokens_thought", "seconds_prefill", "seconds_decode", "seconds_first" (submission to first
 * token). */
QM_API int32_t qm_job_number(const qm_job *job, const char *name, double *value);
/* Hands over the model that a load job made; the caller's to free. QM_ERROR_STATE if it has none (any more). */
QM_API int32_t qm_job_model(qm_job *job, qm_model **out);

#ifdef __cplusplus
}
#endif

#endif

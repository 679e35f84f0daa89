/* The table of options: one row each. Included several times with QMI_OPTION defined; see options.h. */

/* clang-format off */
QMI_OPTION(PRESET, "preset", SESSION, CHOICE, "none", 0, 0, "none|coding|chat|quick",
           "sets context and answer-tokens at once: coding 32768 / 8192, chat 8192 / 2048, quick 2048 / 512")
/* ---- model: read by qm_model_load ---- */
QMI_OPTION(DEVICE, "device", MODEL, TEXT, "auto", 0, 0, "",
           "where to compute: cpu, cuda (a graphics card; the second one is cuda:1), or auto, which takes a card that the model fits on, else the CPU")
QMI_OPTION(DEVICES, "devices", MODEL, TEXT, "", 0, 0, "",
           "several devices that share the model, as cuda:0,cuda:1; @12G behind one limits its memory, and the CPU may come more than once (cpu,cpu). Empty: one, by option device")
QMI_OPTION(SPLIT, "split", MODEL, CHOICE, "auto", 0, 0, "auto|layers|tensor|tensor:2|tensor:3|tensor:4|tensor:8",
           "how several devices share the model: layers (each has some of the layers), tensor (each has a part of every layer), tensor:2 (two neighbours have parts of layers, and pairs have layers; likewise tensor:3, :4, :8), auto")
QMI_OPTION(SHARES, "shares", MODEL, TEXT, "", 0, 0, "",
           "how much of the work each of several devices does, as 3:1; empty: all alike, or as their memory allows")
QMI_OPTION(HOST_EXPERTS, "host-experts", MODEL, INT, "-1", -1, 512, "",
           "last layers whose experts the last of several devices computes, and nothing else (cuda:0,cpu: experts in RAM); -1: as many as the others have no room for")
QMI_OPTION(EXPERT_CACHE, "expert-cache", MODEL, INT, "0", -1, 1000000000000000, "",
           "bytes of each card for experts of the host's memory that are chosen often; -1: three quarters of what is left of it; 0: none, and the same input gives the same bits")
QMI_OPTION(EXCHANGE, "exchange", MODEL, CHOICE, "auto", 0, 0, "auto|peer|pinned|nccl|host",
           "how several devices sum what they have of a layer: peer (cards write into each other's memory), pinned (into the host's), nccl (the library), host (the CPU adds); auto: what is fastest here")
QMI_OPTION(EXCHANGE_TIMEOUT, "exchange-timeout", MODEL, INT, "600", 1, 86400, "",
           "seconds after which a device that does not answer the others counts as lost")
QMI_OPTION(PLAN_DEVICES, "plan-devices", MODEL, TEXT, "", 0, 0, "",
           "cards that the plan's split is made for instead of this machine's, as 12G,12G (GiB, or bytes without the letter; 12G:360,12G:360,cpu:40 with the GB a second that they read, for a prediction); for qwenmoe info")
QMI_OPTION(CUDA_LIBRARY, "cuda-library", MODEL, TEXT, "", 0, 0, "",
           "file of the CUDA backend; empty: libqwenmoe-cuda.so beside this library, or where the system looks for libraries")
QMI_OPTION(THREADS, "threads", MODEL, INT, "0", 0, 1024, "",
           "threads that compute on the CPU; 0 takes one for each processor this process may use")
QMI_OPTION(PIN, "pin", MODEL, BOOL, "1", 0, 1, "",
           "bind each computing thread to a processor of its own")
QMI_OPTION(ISA, "isa", MODEL, CHOICE, "auto", 0, 0, "auto|scalar|avx2|avx512|amx",
           "highest instruction set whose kernels are used; auto takes the best this machine has")
QMI_OPTION(READ_AHEAD, "read-ahead", MODEL, BOOL, "0", 0, 1, "",
           "read the whole file into memory while loading, with progress, instead of when it is first used")
QMI_OPTION(LOCK, "lock", MODEL, BOOL, "0", 0, 1, "",
           "keep the weights in memory so that they are never paged out; needs the permission (ulimit -l)")
QMI_OPTION(VOCABULARY_ONLY, "vocabulary-only", MODEL, BOOL, "0", 0, 1, "",
           "load only tokenizer and chat format; also the only way to load a file without weights")
QMI_OPTION(CHAT_FORMAT, "chat-format", MODEL, CHOICE, "auto", 0, 0, "auto|chatml|qwen3|qwen3.5|qwen3.6",
           "how chat messages become a prompt; auto recognises the file's own template")
QMI_OPTION(PRESERVE_THINKING, "preserve-thinking", MODEL, BOOL, "0", 0, 1, "",
           "keep the thoughts of earlier turns in the prompt, where the chat format has the switch (qwen3.6)")
QMI_OPTION(MTP, "mtp", MODEL, BOOL, "0", 0, 1, "",
           "run the multi-token-prediction block along, so that its logits can be asked for")
QMI_OPTION(KV_TYPE, "kv-type", MODEL, CHOICE, "f16", 0, 0, "f32|f16|bf16|q8_0|q6|q5|q4_0|q2|auto",
           "format of stored keys and values, of all sessions of the model; auto takes f16, or less where that does not fit")
QMI_OPTION(KEY_TYPE, "key-type", MODEL, CHOICE, "same", 0, 0, "same|f32|f16|bf16|q8_0|q6|q5|q4_0|q2",
           "format of stored keys, where it is not that of option kv-type")
QMI_OPTION(VALUE_TYPE, "value-type", MODEL, CHOICE, "same", 0, 0, "same|f32|f16|bf16|q8_0|q6|q5|q4_0|q2",
           "format of stored values, where it is not that of option kv-type")
QMI_OPTION(KV_ROTATION, "kv-rotation", MODEL, CHOICE, "on", 0, 0, "on|keys|off",
           "turn quantized keys and values (or keys alone) so that their large numbers are spread, which loses less")
QMI_OPTION(KV_WINDOW, "kv-window", MODEL, INT, "128", 1, 8192, "",
           "latest tokens whose keys and values stay f16 where they are of type q2, and up to 63 more until they are packed")
QMI_OPTION(KV_CORRECTION, "kv-correction", MODEL, TEXT, "", 0, 0, "",
           "file of the model's correction of keys of type q2, which makes up for a part of what they lose; empty: none")
QMI_OPTION(KV_FIT, "kv-fit", MODEL, BOOL, "0", 0, 1, "",
           "gather from all that is computed what such a correction is fitted from; see qm_model_save_correction")
QMI_OPTION(KV_MEMORY, "kv-memory", MODEL, INT, "0", 0, 1000000000000000, "",
           "bytes for the keys and values of all sessions together, taken when the model is loaded; 0 takes one session's and more as sessions grow")
QMI_OPTION(CHECKPOINT_MEMORY, "checkpoint-memory", MODEL, INT, "-1", -1, 1000000000000000, "",
           "bytes for states kept to go back to, so that prompts are not computed again; 0 keeps none, -1 takes a part of what is free")
QMI_OPTION(CHECKPOINT_EVERY, "checkpoint-every", MODEL, INT, "256", 1, 16777216, "",
           "tokens after which another state is kept: while decoding, near the end of a prompt, and before that at the ends of its chunks (option chunk)")
QMI_OPTION(PREFIX_CACHE, "prefix-cache", MODEL, TEXT, "", 0, 0, "",
           "folder for what sessions have computed, so that sync finds it in later runs and other programs; empty: none. It holds their text")
QMI_OPTION(PREFIX_CACHE_SIZE, "prefix-cache-size", MODEL, INT, "4294967296", 0, 1000000000000000, "",
           "bytes of all files in prefix-cache; those unused for longest go first")
QMI_OPTION(CHUNK, "chunk", MODEL, INT, "0", 0, 8192, "",
           "tokens of a prompt computed at once; 0 lets the plan choose")
QMI_OPTION(SEQUENCES, "sequences", MODEL, INT, "8", 1, 256, "",
           "most sessions whose tokens are computed together in one step")
QMI_OPTION(MEMORY_LIMIT, "memory-limit", MODEL, INT, "0", 0, 1000000000000000, "",
           "bytes the library may allocate on the device; 0 takes what the machine has")
QMI_OPTION(PROFILE, "profile", MODEL, BOOL, "0", 0, 1, "",
           "log how long each kind of operation took, when the model is freed; computing on a card is slower meanwhile")
QMI_OPTION(RANKS, "ranks", MODEL, INT, "1", 1, 16, "",
           "processes, on this machine or several, that compute one model together; each loads it with these options")
QMI_OPTION(RANK, "rank", MODEL, INT, "0", 0, 15, "",
           "which of them this is; 0 has the sessions, the others follow it")
QMI_OPTION(RANK_ID, "rank-id", MODEL, TEXT, "", 0, 0, "",
           "where rank 0 listens and a word that the ranks of one run share: HOST:PORT/WORD")
QMI_OPTION(RANK_TIMEOUT, "rank-timeout", MODEL, INT, "60", 1, 86400, "",
           "seconds to wait for the other ranks at the start, and after which one that gives no sign of life counts as dead")
/* ---- session: read by qm_session_new ---- */
QMI_OPTION(CONTEXT, "context", SESSION, INT, "0", 0, 16777216, "",
           "tokens a session can hold, prompt and answer together; 0 takes 8192, or the model's own length if that is less")
QMI_OPTION(CONTEXT_FULL, "context-full", SESSION, CHOICE, "error", 0, 0, "error|drop-oldest",
           "what happens when the context is full: an error (an answer ends), or the oldest turns after the system prompt are dropped and what is left is computed again")
QMI_OPTION(PRIORITY, "priority", SESSION, INT, "0", -100, 100, "",
           "jobs of sessions with a higher number go first")
/* ---- sampling: read by qm_session_new, changed by qm_session_set ---- */
QMI_OPTION(TEMPERATURE, "temperature", SAMPLING, FLOAT, "0.7", 0, 100, "",
           "divides the logits before sampling; 0 always takes the most likely token")
QMI_OPTION(TOP_K, "top-k", SAMPLING, INT, "20", 0, 1000000, "",
           "sample from this many most likely tokens; 0 keeps all")
QMI_OPTION(TOP_P, "top-p", SAMPLING, FLOAT, "0.95", 0, 1, "",
           "sample from the fewest most likely tokens whose probabilities sum to this; 1 keeps all")
QMI_OPTION(MIN_P, "min-p", SAMPLING, FLOAT, "0", 0, 1, "",
           "drop tokens less likely than this times the most likely one")
QMI_OPTION(REPETITION_PENALTY, "repetition-penalty", SAMPLING, FLOAT, "1", 0.01, 100, "",
           "divides positive logits (multiplies negative ones) of tokens seen in the penalty window")
QMI_OPTION(PRESENCE_PENALTY, "presence-penalty", SAMPLING, FLOAT, "0", -100, 100, "",
           "taken from the logit of each token seen in the penalty window")
QMI_OPTION(FREQUENCY_PENALTY, "frequency-penalty", SAMPLING, FLOAT, "0", -100, 100, "",
           "taken from a token's logit once for each time it is seen in the penalty window")
QMI_OPTION(PENALTY_WINDOW, "penalty-window", SAMPLING, INT, "256", 0, 16777216, "",
           "how many of the last tokens the penalties look at")
QMI_OPTION(LOGIT_BIAS, "logit-bias", SAMPLING, TEXT, "", 0, 0, "",
           "added to logits before all else, as id:value pairs: 198:-2.5,1234:-inf")
QMI_OPTION(SEED, "seed", SAMPLING, INT, "-1", -1, 9007199254740992, "",
           "start of the random sequence: the same seed gives the same text; -1 takes one from the system")
QMI_OPTION(STOP, "stop", SAMPLING, TEXT, "", 0, 0, "",
           "text that ends an answer and is not part of it; several as a JSON array of strings")
QMI_OPTION(ANSWER_TOKENS, "answer-tokens", SAMPLING, INT, "2048", 0, 16777216, "",
           "most tokens an answer may have, thoughts included; 0 allows as many as the context has room for")
QMI_OPTION(THINKING_TOKENS, "thinking-tokens", SAMPLING, INT, "-1", -1, 16777216, "",
           "tokens of thinking after which it is ended and the answer begins; -1 sets no limit")
QMI_OPTION(THINKING_SOFT, "thinking-soft", SAMPLING, INT, "-1", -1, 16777216, "",
           "tokens of thinking after which it is ended at the next end of a line; -1: four fifths of thinking-tokens")
QMI_OPTION(LOGPROBS, "logprobs", SAMPLING, INT, "-1", -1, 64, "",
           "log probabilities kept with each token of an answer: its own, and those of so many most likely tokens; -1 keeps none")
QMI_OPTION(GRAMMAR, "grammar", SAMPLING, TEXT, "", 0, 0, "",
           "grammar (GBNF) that an answer's text has to fit, its thoughts apart")
QMI_OPTION(JSON_SCHEMA, "json-schema", SAMPLING, TEXT, "", 0, 0, "",
           "JSON schema that an answer has to fit, its thoughts apart; {} asks for any JSON object")
QMI_OPTION(TOOLS, "tools", SAMPLING, TEXT, "", 0, 0, "",
           "JSON array of tools, as the chat format takes it: tool calls in an answer name one of them, and fit its parameters if it is strict")
QMI_OPTION(TOOL_CHOICE, "tool-choice", SAMPLING, TEXT, "auto", 0, 0, "",
           "with tools: auto, none (no call), required (calls and no other text), or the name of the function that is called once")
QMI_OPTION(PARALLEL_TOOL_CALLS, "parallel-tool-calls", SAMPLING, BOOL, "1", 0, 1, "",
           "with tools: an answer may have several calls")
QMI_OPTION(IGNORE_END, "ignore-end", SAMPLING, BOOL, "0", 0, 1, "",
           "go on after the model's end of turn, for measuring")
/* clang-format on */

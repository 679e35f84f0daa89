-- The model and its two sessions: one for completions, which goes first, and one for chat and rewriting.
local ffi = require("ffi")
local jobs = require("qwenmoe.job")
local library = require("qwenmoe.library")

local M = {
    state = "unloaded", -- "loading", "ready", "failed"
    failure = nil, -- why, when it failed
    model = nil, -- qm_model *[1]
    completion = nil, -- qm_session *[1]
    chat = nil, -- qm_session *[1]
    marks = nil, -- token ids of the marks of fill-in-the-middle; nil when the vocabulary lacks them
}

local MARKS = {
    prefix = "<|fim_prefix|>", suffix = "<|fim_suffix|>", middle = "<|fim_middle|>", file = "<|file_sep|>",
}
local waiting = {} -- functions to call when it is ready or failed

local function settle(state, failure)
    M.state, M.failure = state, failure
    if failure then
        vim.notify("qwenmoe: " .. failure, vim.log.levels.ERROR)
    end
    local list = waiting
    waiting = {}
    for _, heard in ipairs(list) do
        heard(state == "ready", failure)
    end
end

local function find_marks()
    local marks = {}
    for name, text in pairs(MARKS) do
        marks[name] = library.C.qm_token_find(M.model[0], text, -1)
    end
    if marks.prefix >= 0 and marks.suffix >= 0 and marks.middle >= 0 then
        M.marks = marks
    end
end

-- A session with the options of the model and these; nil and the message.
local function new_session(...)
    local options, message = library.new_options(vim.tbl_extend("force", ...))
    if not options then
        return nil, message
    end
    local box = ffi.new("qm_session *[1]")
    local code = library.C.qm_session_new(M.model[0], options[0], box)
    message = code < 0 and library.message() or nil
    library.C.qm_options_free(options)
    if code < 0 then
        return nil, message
    end
    return box
end

local function free_all()
    for _, name in ipairs({ "completion", "chat" }) do
        if M[name] then
            library.C.qm_session_free(M[name])
            M[name] = nil
        end
    end
    if M.model then
        library.C.qm_model_free(M.model)
        M.model = nil
    end
    M.marks = nil
end

local function finish_loading(settings, job)
    local message
    M.model = ffi.new("qm_model *[1]")
    if library.C.qm_job_model(job.box[0], M.model) < 0 then
        return settle("failed", library.message())
    end
    -- A completion is computed before whatever else the model does.
    M.completion, message = new_session(settings.options, settings.completion.options, { priority = 1 })
    if M.completion then
        M.chat, message = new_session(settings.options, settings.chat.options)
    end
    if message then
        free_all()
        return settle("failed", message)
    end
    find_marks()
    settle("ready")
end

local function load(settings)
    local config = require("qwenmoe.config")
    local problems = config.check_options(settings)
    if #problems > 0 then
        return settle("failed", table.concat(problems, "; "))
    end
    local path, message = library.find_model(settings.model)
    local options
    if path then
        options, message = library.new_options(settings.options)
    end
    if not options then
        return settle("failed", message)
    end
    local box = ffi.new("qm_job *[1]")
    local code = library.C.qm_submit_load(path, options[0], box)
    message = code < 0 and library.message() or nil
    library.C.qm_options_free(options)
    if code < 0 then
        return settle("failed", message)
    end
    jobs.watch(box, nil, function(state, failure, job)
        if state < 0 then
            return settle("failed", failure)
        end
        finish_loading(settings, job)
    end)
end

-- Loads the library and the model unless that has begun; heard(ready, message) is called when it has ended.
function M.ensure(settings, heard)
    if M.state == "ready" or M.state == "failed" then
        return heard(M.state == "ready", M.failure)
    end
    table.insert(waiting, heard)
    if M.state == "loading" then
        return
    end
    M.state = "loading"
    if library.C then
        return load(settings)
    end
    library.find(settings.library, function(path)
        if M.state ~= "loading" then -- given up meanwhile
            return
        end
        local opened, reason = library.open(path)
        if not opened then
            return settle("failed", "cannot open the library: " .. reason)
        end
        load(settings)
    end)
end

-- Ends everything. Waits for the step that is being computed.
function M.unload()
    jobs.dispose_all()
    free_all()
    M.state, M.failure, waiting = "unloaded", nil, {}
end

-- Ids of a text as an FFI array and their number; nil and the message for text that is not UTF-8.
function M.tokenize(text, special)
    local ids = ffi.new("int32_t[?]", #text + 1) -- no token is shorter than a byte
    local count = tonumber(library.C.qm_tokenize(M.model[0], text, #text, special or library.constants.SPECIAL_NONE, ids, #text))
    if count < 0 then
        return nil, library.message()
    end
    return ids, count
end

-- A fact as text or number; nil where there is none.
function M.fact(name)
    return (library.text(function(buffer, size)
        return library.C.qm_model_text(M.model[0], name, buffer, size)
    end))
end

return M

-- One answer to chat messages: the prompt by the model's own format, computed by jobs, and text as it comes.
local ffi = require("ffi")
local jobs = require("qwenmoe.job")
local library = require("qwenmoe.library")
local model = require("qwenmoe.model")

local M = {}

local active = nil -- { job, stopped }

function M.busy()
    return active ~= nil
end

-- Stops the answer under way. false when there is none.
function M.stop()
    if not active then
        return false
    end
    active.stopped = true
    active.job:cancel()
    return true
end

function M.end_thinking()
    if not active then
        return false
    end
    active.job:end_thinking()
    return true
end

function M.forget()
    active = nil
end

local function watch(talk, box, on_piece, on_end)
    talk.job = jobs.watch(box, on_piece, function(state, message, job)
        if state < 0 then
            active = nil
            local stopped = state == library.constants.ERROR_CANCELLED
            return talk.on_end(stopped and "stopped" or "failed", message, job)
        end
        on_end(job)
    end)
end

local function generate(talk)
    local box = ffi.new("qm_job *[1]")
    if library.C.qm_submit_generate(model.chat[0], nil, 0, box) < 0 then
        active = nil
        return talk.on_end("failed", library.message())
    end
    watch(talk, box, function(text, kind)
        if not talk.stopped then
            talk.on_piece(text, kind == library.constants.PIECE_THOUGHT)
        end
    end, function(job)
        active = nil
        talk.on_end(job:finish(), nil, job)
    end)
end

-- The prompt's tokens, then the answer. They are made by a job, since a long conversation is much text.
local function prepare(talk, text)
    local box = ffi.new("qm_job *[1]")
    if library.C.qm_submit_tokenize(model.model[0], text, #text, library.constants.SPECIAL_ALL, box) < 0 then
        return library.message()
    end
    watch(talk, box, nil, function(job)
        local count = tonumber(library.C.qm_job_tokens(job.box[0], nil, 0))
        local ids = ffi.new("int32_t[?]", count + 1)
        library.C.qm_job_tokens(job.box[0], ids, count)
        local sync = ffi.new("qm_job *[1]")
        if library.C.qm_submit_sync(model.chat[0], ids, count, sync) < 0 then
            active = nil
            return talk.on_end("failed", library.message())
        end
        watch(talk, sync, nil, function()
            generate(talk)
        end)
    end)
end

-- Begins an answer. messages: list of { role =, content = }. on_piece(text, thought); on_end(finish, message, job), where finish is
-- "end", "length", ..., "stopped" or "failed". Returns nil, or why it cannot begin.
function M.begin(messages, thinking, on_piece, on_end)
    if active then
        return "an answer is being written; :Qwen stop ends it"
    end
    local json = vim.fn.json_encode(messages)
    local switch = thinking == nil and -1 or (thinking and 1 or 0)
    local text, message = library.text(function(buffer, size)
        return library.C.qm_chat_format(model.model[0], json, #json, nil, 0, switch, 1, buffer, size)
    end)
    if not text then
        return message
    end
    active = { on_piece = on_piece, on_end = on_end }
    message = prepare(active, text)
    if message then
        active = nil
    end
    return message
end

return M

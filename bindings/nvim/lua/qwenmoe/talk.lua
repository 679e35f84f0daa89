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

local function fail(talk, message)
    active = nil
    talk.on_end("failed", message)
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
        return fail(talk, library.message())
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

local prepare

-- Tokens that a prompt may have: a quarter of the context is left to the answer, or all that it may take.
local function room()
    local context = tonumber(library.C.qm_session_context(model.chat[0]))
    local budget = tonumber((library.text(function(buffer, size)
        return library.C.qm_session_get(model.chat[0], "answer-tokens", buffer, size)
    end)))
    local quarter = math.floor(context / 4)
    return context - (budget > 0 and math.min(budget, quarter) or quarter)
end

-- Takes away the oldest question and its answer; false when there is only the newest.
local function drop_oldest(messages)
    local first = messages[1].role == "system" and 2 or 1
    if #messages - first < 2 then
        return false
    end
    table.remove(messages, first)
    table.remove(messages, first)
    return true
end

local function sync(talk, job)
    local count = tonumber(library.C.qm_job_tokens(job.box[0], nil, 0))
    if count > room() and drop_oldest(talk.messages) then
        local message = prepare(talk)
        return message and fail(talk, message)
    end
    local ids = ffi.new("int32_t[?]", count + 1)
    library.C.qm_job_tokens(job.box[0], ids, count)
    local box = ffi.new("qm_job *[1]")
    if library.C.qm_submit_sync(model.chat[0], ids, count, box) < 0 then
        return fail(talk, library.message())
    end
    watch(talk, box, nil, function()
        generate(talk)
    end)
end

-- The prompt's tokens, then the answer. They are made by a job, since a long conversation is much text.
prepare = function(talk)
    local json = vim.fn.json_encode(talk.messages)
    local switch = talk.thinking == nil and -1 or (talk.thinking and 1 or 0)
    local box = ffi.new("qm_job *[1]")
    if library.C.qm_submit_chat_tokens(model.model[0], json, #json, nil, 0, switch, 1, box) < 0 then
        return library.message()
    end
    watch(talk, box, nil, function(job)
        sync(talk, job)
    end)
end

-- Begins an answer. messages: list of { role =, content = }, whose oldest are taken away when they do not fit the context.
-- on_piece(text, thought); on_end(finish, message, job), where finish is "end", "length", ..., "stopped" or "failed". Returns
-- nil, or why it cannot begin.
function M.begin(messages, thinking, on_piece, on_end)
    if active then
        return "an answer is being written; :Qwen stop ends it"
    end
    active = { messages = messages, thinking = thinking, on_piece = on_piece, on_end = on_end }
    local message = prepare(active)
    if message then
        active = nil
    end
    return message
end

return M

-- Completion while typing: asks, shows, keeps, accepts. One request is under way at most; the next key cancels it.
local ffi = require("ffi")
local answer = require("qwenmoe.answer")
local config = require("qwenmoe.config")
local context = require("qwenmoe.context")
local ghost = require("qwenmoe.ghost")
local jobs = require("qwenmoe.job")
local library = require("qwenmoe.library")
local model = require("qwenmoe.model")
local prompt = require("qwenmoe.prompt")

local M = {
    enabled = true,
    failure = nil, -- what the last request failed with
    -- kept: keys that were what was shown; tokens: of prompts, computed
    statistics = { requests = 0, from_cache = 0, kept = 0, cancelled = 0, answers = 0, tokens = 0 },
    first_ms = nil, -- from asking to the first text, of the last answer
}

local offer = nil -- what is shown: { key, typed, text: what goes on from typed, used: bytes of it typed since, request }
local last = nil -- the last context, which gives its anchor to the next
local seen = nil -- where the cursor was then, in which state of the buffer
local stable = nil -- the last prompt's part that stays while one types
local active = nil -- the job under way: { job, request: nil when no longer wanted, generating }
local pending = nil -- the request to begin when it has ended
local timer = vim.loop.new_timer()
local taken = false -- pieces of the buffers that were open before the first completion

-- ---- answers of before ----

local cache, cache_order = {}, {}

local function cache_put(key, typed, text)
    cache[key] = cache[key] or {}
    if not cache[key][typed] then
        table.insert(cache_order, { key, typed })
    end
    cache[key][typed] = text
    while #cache_order > config.current.completion.cache do
        local oldest = table.remove(cache_order, 1)
        cache[oldest[1]][oldest[2]] = nil
        if not next(cache[oldest[1]]) then
            cache[oldest[1]] = nil
        end
    end
end

-- An answer for this text, or one for its beginning that goes on as it does. The text to offer; nil when there is none.
local function cache_get(key, typed)
    local answers = cache[key]
    if not answers then
        return nil
    end
    for cut = 0, math.min(#typed, 128) do
        local text = answers[typed:sub(1, #typed - cut)]
        if text and text:sub(1, cut) == typed:sub(#typed - cut + 1) and (#text > cut or cut == 0) then
            return text:sub(cut + 1)
        end
    end
end

-- What of a context stays while one types, as a short key.
local function key_of(place)
    local parts = { place.name, place.prefix, place.suffix }
    for _, chunk in ipairs(place.chunks) do
        table.insert(parts, chunk.text)
    end
    return vim.fn.sha256((table.concat(parts, "\0"):gsub("%z", "\1")))
end

-- ---- showing ----

local function clear()
    offer = nil
    ghost.clear()
end

local function remaining()
    return offer and offer.text:sub(offer.used + 1) or ""
end

local function draw()
    local text = remaining()
    if text == "" then
        return ghost.clear()
    end
    ghost.show(last.buffer, last.row, last.column, text, last.rest)
end

-- ---- requests ----

-- A key came: an answer under way is not wanted any more. A prompt that is being computed may still be, and goes on.
local function give_up()
    timer:stop()
    pending = nil
    if not active then
        return
    end
    active.request = nil
    if active.generating then
        active.job:cancel()
        M.statistics.cancelled = M.statistics.cancelled + 1
    end
end

local pump

-- Watches the job in `box` as the active one; on_end(job) when it has ended well and is still wanted.
local function begin(box, request, generating, on_piece, on_end)
    local entry = { request = request, stable = request.stable, generating = generating }
    active = entry
    entry.job = jobs.watch(box, function(text)
        if entry.request then
            on_piece(text)
        end
    end, function(state, message, job)
        active = nil
        M.statistics.tokens = M.statistics.tokens + (job:number("tokens_prefilled") or 0)
        if entry.request and state >= 0 then
            on_end(entry.request, job)
        elseif state < 0 and state ~= library.constants.ERROR_CANCELLED then
            M.failure = message
        end
        pump()
    end)
end

local function submitted(code)
    M.failure = code < 0 and library.message() or nil
    return code >= 0
end

-- What there is of an answer: kept when it is complete, and shown. Returns whether it is complete.
local function take(request, text, ended)
    local place, limit = request.context, config.current.completion.max_lines
    local offered, complete = answer.offer(text, place, limit)
    if ended then
        offered, complete = answer.final(text, place, limit), true
    end
    if complete then
        M.statistics.answers = M.statistics.answers + 1
        cache_put(request.key, place.typed, offered)
    end
    if offered ~= "" and (not offer or offer.request ~= request) then
        offer = { key = request.key, typed = place.typed, text = "", used = 0, request = request }
        M.first_ms = (vim.loop.hrtime() - request.asked) / 1e6
    end
    if offer and offer.request == request then
        offer.text = offered
        draw()
    end
    return complete
end

-- A blank before the cursor is left to the model, since a word and the blank before it are one token. If the model goes on in
-- another way, it is asked again as the text stands.
local function generate(request)
    local typed = request.context.typed
    local blank = request.leave_blank and typed:match("[ \t]$") or ""
    local tokens, message = prompt.typed(typed:sub(1, #typed - #blank))
    if not tokens then
        M.failure = message
        return
    end
    local box = ffi.new("qm_job *[1]")
    if not submitted(library.C.qm_submit_generate(model.completion[0], tokens.ids, tokens.count, box)) then
        return
    end
    local text = ""
    local function stop()
        active.request = nil
        active.job:cancel()
    end
    local function ask_again()
        request.leave_blank, request.seam = false, #request.stable.seams
        pending = request
    end
    begin(box, request, true, function(piece)
        text = text .. piece
        if text:sub(1, #blank) ~= blank then
            ask_again()
            stop()
        elseif take(request, text:sub(#blank + 1), false) then
            stop()
        end
    end, function()
        if #text < #blank then
            return ask_again()
        end
        take(request, text:sub(#blank + 1), true)
    end)
end

-- Brings the session to the next seam of the prompt; after the last one it generates.
local function advance(request)
    local count = request.stable.seams[request.seam]
    if not count then
        request.stable.computed = true
        return generate(request)
    end
    local box = ffi.new("qm_job *[1]")
    if submitted(library.C.qm_submit_sync(model.completion[0], request.stable.ids, count, box)) then
        begin(box, request, false, nil, function(wanted)
            wanted.seam = request.seam + 1
            advance(wanted)
        end)
    end
end

pump = function()
    if not pending then
        return
    elseif not active then
        local request = pending
        pending = nil
        advance(request)
    elseif not active.generating and active.stable == pending.stable then
        active.request, pending = pending, nil
    else
        active.job:cancel()
    end
end

local function ask(place)
    if not stable or stable.key ~= place.key then
        local budget = library.text(function(buffer, size)
            return library.C.qm_session_get(model.completion[0], "answer-tokens", buffer, size)
        end)
        stable, M.failure = prompt.stable(place, tonumber(budget))
        if not stable then
            return
        end
        stable.key = place.key
    end
    pending = { context = place, key = place.key, stable = stable, seam = stable.computed and #stable.seams or 1,
        leave_blank = true, asked = vim.loop.hrtime() }
    M.statistics.requests = M.statistics.requests + 1
    pump()
end

-- ---- the editor's side ----

-- Leaves nothing shown and nothing under way.
function M.reset()
    give_up()
    if active then
        active.job:cancel()
    end
    seen = nil
    clear()
end

-- Can text be offered here at all?
local function possible(buffer)
    return vim.api.nvim_get_mode().mode:sub(1, 1) == "i" and vim.bo[buffer].modifiable and vim.bo[buffer].buftype == "" and
        vim.fn.pumvisible() == 0
end

-- ... and without being asked for?
local function welcome(buffer, place)
    local settings = config.current.completion
    local by_type = settings.filetypes[vim.bo[buffer].filetype]
    if by_type == nil then
        by_type = settings.filetypes["*"] ~= false
    end
    return M.enabled and by_type and vim.b[buffer].qwenmoe ~= false and #vim.trim(place.rest) <= settings.line_rest
end

-- Is what is shown still right, with some of it typed meanwhile?
local function still_offered(place)
    if not offer or offer.key ~= place.key or place.typed:sub(1, #offer.typed) ~= offer.typed then
        return false
    end
    local used = #place.typed - #offer.typed
    if offer.text:sub(1, used) ~= place.typed:sub(#offer.typed + 1) then
        return false
    end
    local growing = active ~= nil and active.generating and active.request == offer.request
    if used == #offer.text and not growing then
        return false
    end
    offer.used = used
    return true
end

local function look(place, asked)
    if still_offered(place) then
        M.statistics.kept = M.statistics.kept + 1
        return draw()
    end
    give_up()
    clear()
    if not asked and not welcome(place.buffer, place) then
        return
    end
    local text = cache_get(place.key, place.typed)
    if text then
        M.statistics.from_cache = M.statistics.from_cache + 1
        if text ~= "" then
            offer = { key = place.key, typed = place.typed, text = text, used = 0 }
            draw()
        end
        return
    end
    timer:start(asked and 0 or config.current.completion.delay, 0, vim.schedule_wrap(function()
        if last == place and seen then
            ask(place)
        end
    end))
end

-- Text or cursor may have changed. asked: the user wants one now.
function M.update(asked)
    local buffer, settings = vim.api.nvim_get_current_buf(), config.current.completion
    if not possible(buffer) then
        return M.reset()
    end
    local cursor = vim.api.nvim_win_get_cursor(0)
    local row, column, tick = cursor[1] - 1, cursor[2], vim.api.nvim_buf_get_changedtick(buffer)
    if not asked and seen and seen[1] == buffer and seen[2] == tick and seen[3] == row and seen[4] == column then
        return
    end
    if model.state == "unloaded" then
        return model.ensure(config.current, function()
            M.update(asked)
        end)
    elseif model.state ~= "ready" then
        return
    elseif not model.marks then
        return
    end
    if not taken then
        taken = true
        context.take_all(settings)
    end
    local place = context.at(buffer, row, column, settings, last)
    if not place then
        return M.reset()
    end
    local same = last and last.prefix == place.prefix and last.suffix == place.suffix and last.chunks == place.chunks
    place.key = same and last.key or key_of(place)
    last, seen = place, { buffer, tick, row, column }
    look(place, asked)
end

function M.text()
    return remaining()
end

-- Puts "all", a "line" or a "word" of what is shown into the buffer. false when nothing is shown.
function M.accept(what)
    local text = remaining()
    local cursor = vim.api.nvim_win_get_cursor(0)
    if text == "" or last.buffer ~= vim.api.nvim_get_current_buf() or last.row ~= cursor[1] - 1 or last.column ~= cursor[2] then
        return false
    end
    local lines = vim.split(answer.part(text, what), "\n", { plain = true })
    local row, column = last.row, last.column
    ghost.clear()
    vim.api.nvim_buf_set_text(last.buffer, row, column, row, column, lines)
    vim.api.nvim_win_set_cursor(0, { row + #lines, #lines[#lines] + (#lines == 1 and column or 0) })
    M.update()
    return true
end

-- Takes away what is shown, until the next change. false when nothing is shown.
function M.dismiss()
    if remaining() == "" then
        return false
    end
    give_up()
    clear()
    return true
end

-- Forgets all, for another model.
function M.forget()
    M.reset()
    active, pending, stable, last, taken = nil, nil, nil, nil, false
    cache, cache_order = {}, {}
end

function M.busy()
    return active ~= nil or pending ~= nil or timer:is_active()
end

return M

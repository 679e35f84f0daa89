-- A context as tokens: see context.lua for the order and why.
local ffi = require("ffi")
local library = require("qwenmoe.library")
local model = require("qwenmoe.model")

local M = {}

local LEAST = 32 -- tokens between two seams that are worth a stop: the library keeps no state for fewer
local TYPED = 512 -- tokens that typed text may have

local kept = {} -- text -> tokens, of the last few texts
local kept_count = 0

-- { ids =, count = }; nil for text that is no UTF-8.
local function tokens(text)
    if kept[text] then
        return kept[text]
    end
    local ids, count = model.tokenize(text)
    if not ids then
        return nil, count
    end
    if kept_count >= 32 then
        kept, kept_count = {}, 0
    end
    kept[text] = { ids = ids, count = count }
    kept_count = kept_count + 1
    return kept[text]
end

-- The text without its first `lines` lines.
local function without_lines(text, lines)
    local at = 1
    for _ = 1, lines do
        local newline = text:find("\n", at, true)
        if not newline then
            return ""
        end
        at = newline + 1
    end
    return text:sub(at)
end

-- Tokens of the prefix, at most `room`: what is too much goes in large pieces, so that the start does not move with every line.
local function prefix_tokens(text, room)
    local found, message = tokens(text)
    while found and found.count > room do
        text = without_lines(text, 64)
        found, message = tokens(text)
    end
    return found, message
end

-- Appends to a list of parts, each { ids, count }.
local function add(parts, part, count)
    table.insert(parts, { part.ids, count or part.count })
end

local function mark(id)
    return { ids = ffi.new("int32_t[1]", id), count = 1 }
end

-- The pieces of other buffers that fit `room`, the newest first to be considered, in their own order.
local function add_chunks(parts, chunks, room)
    local chosen = {}
    for i = #chunks, 1, -1 do
        local part = tokens(chunks[i].name .. "\n" .. chunks[i].text .. "\n")
        if part and part.count + 1 <= room then
            room = room - part.count - 1
            table.insert(chosen, 1, part)
        end
    end
    for _, part in ipairs(chosen) do
        add(parts, mark(model.marks.file))
        add(parts, part)
    end
    return #chosen > 0
end

local function total(parts)
    local sum = 0
    for _, part in ipairs(parts) do
        sum = sum + part[2]
    end
    return sum
end

local function flatten(parts)
    local count = total(parts)
    local ids, at = ffi.new("int32_t[?]", math.max(1, count)), 0
    for _, part in ipairs(parts) do
        ffi.copy(ids + at, part[1], part[2] * 4)
        at = at + part[2]
    end
    return ids, count
end

-- The part that stays while one types: { ids =, count =, seams = }, seams ascending, the last one the count. nil and a message.
function M.stable(context, answer_tokens)
    local session = model.completion[0]
    local room = tonumber(library.C.qm_session_context(session)) - answer_tokens - TYPED - 16
    local parts, seams = {}, {}
    local suffix, message = tokens(context.suffix)
    local prefix
    if suffix then
        prefix, message = prefix_tokens(context.prefix, math.floor(room * 3 / 8))
    end
    if not prefix then
        return nil, message
    end
    local marks = model.marks
    if marks.file >= 0 and add_chunks(parts, context.chunks, math.floor(room / 2)) then
        add(parts, mark(marks.file))
        add(parts, tokens(context.name .. "\n"))
    end
    table.insert(seams, total(parts))
    add(parts, mark(marks.prefix))
    add(parts, prefix)
    table.insert(seams, total(parts))
    add(parts, mark(marks.suffix))
    add(parts, suffix, math.min(suffix.count, math.floor(room / 8)))
    add(parts, mark(marks.middle))
    local ids, count = flatten(parts)
    local stops, last = {}, 0
    for _, seam in ipairs(seams) do
        if seam - last >= LEAST and count - seam >= LEAST then
            table.insert(stops, seam)
            last = seam
        end
    end
    table.insert(stops, count)
    return { ids = ids, count = count, seams = stops }
end

-- Tokens of the typed text; nil and a message when there are too many.
function M.typed(text)
    local ids, count = model.tokenize(text)
    if not ids then
        return nil, count
    elseif count > TYPED then
        return nil, "the line is too long to complete"
    end
    return { ids = ids, count = count }
end

return M

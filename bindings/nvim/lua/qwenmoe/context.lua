-- What the model is shown for a completion: pieces of other buffers, text before the cursor, text after it.
--
-- The prompt is   other buffers | prefix <suffix> suffix <middle> | typed   where the prefix ends at the start of the line in
-- which typing began (the anchor), and what was typed since then opens the middle. Until the cursor leaves that place the prefix
-- and the suffix stay the same, so a key costs only the tokens that it changed. The bars are the seams: where something before a
-- seam changes, the states kept at the seams before it are gone on from.
local M = {}

local STEP = 64 -- the first line moves on by this many at once: each time, the prefix is computed anew
local ANCHOR_LINES = 24 -- typed since the anchor; more would make the middle longer than models are used to
-- Bytes, so that no key takes long in files with long lines.
local LINE_LARGEST, BEFORE_LARGEST, AFTER_LARGEST, CHUNK_LARGEST = 4096, 65536, 16384, 16384

local chunks = {} -- { buffer =, name =, text = }, those that were taken first in front

local function join(buffer, first, last)
    return table.concat(vim.api.nvim_buf_get_lines(buffer, first, last, false), "\n")
end

-- Lines first .. row - 1 with their line ends.
local function lines_before(buffer, first, row)
    return first < row and join(buffer, first, row) .. "\n" or ""
end

-- Bytes of lines first .. last - 1, which are not looked at.
local function size(buffer, first, last)
    return vim.api.nvim_buf_get_offset(buffer, last) - vim.api.nvim_buf_get_offset(buffer, first)
end

local function first_line(buffer, row, before)
    local first = math.max(0, math.ceil((row - before) / STEP) * STEP)
    while first < row and size(buffer, first, row) > BEFORE_LARGEST do
        first = math.min(row, first + STEP)
    end
    return first
end

-- The line after the last of `count` lines from `first` on, or of as many as are not too large.
local function last_line(buffer, first, count, largest)
    local last = math.min(first + count, vim.api.nvim_buf_line_count(buffer))
    while first < last and size(buffer, first, last) > largest do
        last = first + math.floor((last - first) / 2)
    end
    return last
end

local function short_name(buffer)
    local name = vim.api.nvim_buf_get_name(buffer)
    return name ~= "" and vim.fn.fnamemodify(name, ":.") or "untitled." .. vim.bo[buffer].filetype
end

-- The context at a cursor (row from 0, column in bytes). `last`, an earlier one, gives its anchor where that still holds. nil
-- in a line that is too long.
function M.at(buffer, row, column, settings, last)
    if size(buffer, row, row + 1) > LINE_LARGEST then
        return nil
    end
    local line = vim.api.nvim_buf_get_lines(buffer, row, row + 1, false)[1] or ""
    local rest = line:sub(column + 1)
    local after = join(buffer, row + 1, last_line(buffer, row + 1, settings.lines_after, AFTER_LARGEST))
    local suffix = rest .. "\n" .. after
    local context = { buffer = buffer, row = row, column = column, suffix = suffix, rest = rest, after = after,
        line = line:sub(1, column) }
    local anchor = row
    if last and last.buffer == buffer and last.suffix == suffix and row >= last.anchor and row - last.anchor <= ANCHOR_LINES and
        last.prefix == lines_before(buffer, last.first, last.anchor) then
        anchor = last.anchor
        context.first, context.prefix = last.first, last.prefix
        context.chunks = last.chunks
    else
        context.first = first_line(buffer, row, settings.lines_before)
        context.prefix = lines_before(buffer, context.first, row)
        context.chunks = M.chunks(buffer)
    end
    context.anchor = anchor
    context.typed = lines_before(buffer, anchor, row) .. line:sub(1, column)
    context.name = last and last.buffer == buffer and last.name or short_name(buffer)
    return context
end

-- ---- pieces of other buffers ----

local function is_text(buffer)
    return vim.api.nvim_buf_is_loaded(buffer) and vim.bo[buffer].buftype == "" and vim.bo[buffer].buflisted
end

-- Takes the lines round the cursor that a buffer has or had last. What was taken of it before is replaced if it is different.
function M.take(buffer, settings)
    if settings.chunks == 0 or not vim.api.nvim_buf_is_valid(buffer) or not is_text(buffer) then
        return
    end
    local row = vim.api.nvim_buf_get_mark(buffer, '"')[1]
    local window = vim.fn.bufwinid(buffer)
    if window > 0 then
        row = vim.api.nvim_win_get_cursor(window)[1]
    end
    local first = math.max(0, row - 1 - math.floor(settings.chunk_lines / 2))
    local text = join(buffer, first, last_line(buffer, first, settings.chunk_lines, CHUNK_LARGEST))
    if not text:find("%S") then
        return
    end
    for i, chunk in ipairs(chunks) do
        if chunk.buffer == buffer then
            if chunk.text == text then
                return
            end
            table.remove(chunks, i)
            break
        end
    end
    table.insert(chunks, { buffer = buffer, name = short_name(buffer), text = text })
    if #chunks > settings.chunks then -- half of them at once: whatever goes changes the start of every prompt
        chunks = vim.list_slice(chunks, math.ceil(settings.chunks / 2) + 1)
    end
end

-- Of all loaded buffers, before the first completion.
function M.take_all(settings)
    for _, buffer in ipairs(vim.api.nvim_list_bufs()) do
        if #chunks < settings.chunks then
            M.take(buffer, settings)
        end
    end
end

function M.drop(buffer)
    chunks = vim.tbl_filter(function(chunk)
        return chunk.buffer ~= buffer
    end, chunks)
end

-- Those of other buffers than this one.
function M.chunks(buffer)
    return vim.tbl_filter(function(chunk)
        return chunk.buffer ~= buffer
    end, chunks)
end

return M

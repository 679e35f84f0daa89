-- What of the model's text is offered: pure functions on text.
local M = {}

-- Where a vocabulary's mark begins that ends the text, if one came along as text.
local function find_mark(text)
    local first
    for _, mark in ipairs({ "<|fim_", "<|file_sep|>", "<|repo_name|>", "<|endoftext|>", "<|im_" }) do
        local at = text:find(mark, 1, true)
        if at and (not first or at < first) then
            first = at
        end
    end
    return first
end

-- The first line of the text after the cursor that is not blank.
local function next_line(after)
    for line in (after .. "\n"):gmatch("(.-)\n") do
        if line:find("%S") then
            return line
        end
    end
end

-- Columns by which the block is indented that the cursor's line belongs to; a blank line belongs to the block of the text.
local function block_indent(line, text)
    local blanks = line:match("^%s*$") and line .. text:match("^%s*") or line:match("^%s*")
    return #blanks:match("[^\n]*$")
end

-- How many of the lines are offered, and whether the others are not, whatever may still come. The last line may still grow.
local function count_lines(lines, place, max_lines)
    local following, indent = next_line(place.after), block_indent(place.line, table.concat(lines, "\n"))
    for i = 2, #lines do
        local line = lines[i]
        if i > max_lines then
            return i - 1, true
        elseif i < #lines and line:find("%S") then
            local less = #line:match("^%s*") < indent
            if line == following or (less and not line:find("^%s*[%]%)}]")) then
                return i - 1, true
            elseif less then -- a bracket that closes the block
                return i, true
            end
        end
    end
    return #lines, false
end

-- Text as generated so far -> text to offer, and whether nothing of what may still come can be offered. place: `line`, what the
-- cursor's line has before it, `rest`, what it has after it, and `after`, the lines below it. A completion ends with the block of
-- the cursor's line, and before what follows there anyway.
function M.offer(text, place, max_lines)
    local complete = false
    local mark = find_mark(text)
    if mark then
        text, complete = text:sub(1, mark - 1), true
    end
    if place.rest:find("%S") then -- within a line: only up to its end, without what stands there already
        local newline = text:find("\n", 1, true)
        if newline then
            text, complete = text:sub(1, newline - 1), true
        end
        local ending = vim.trim(place.rest)
        if text:sub(-#ending) == ending then
            text = text:sub(1, -#ending - 1)
        end
    end
    local lines = vim.split(text, "\n", { plain = true })
    local count, ended = count_lines(lines, place, max_lines)
    text = table.concat(lines, "\n", 1, count)
    complete = complete or ended
    if complete or not text:find("%S") then
        text = text:gsub("%s+$", "")
    end
    return text, complete
end

-- An answer that has ended: its last line is whole, too.
function M.final(text, place, max_lines)
    return (M.offer(text .. "\n", place, max_lines):gsub("%s+$", ""))
end

-- The first part of an offered text: "all" of it, the first "line" (with the line end before it, where it begins with one), or
-- the first "word" with the blanks before it.
function M.part(text, what)
    if what == "line" then
        return text:match("^\n*[^\n]+") or text
    elseif what == "word" then
        return text:match("^%s*[%w_\128-\255]+") or text:match("^%s*[^%w%s_\128-\255]+") or text
    end
    return text
end

-- The code of a chat answer: its first fenced block, or all of it where there is none.
function M.code(text)
    local block = text:match("```[^\n]*\n(.-)\n[ \t]*```") or text:match("```[^\n]*\n(.*)$")
    if not block then
        block = text:gsub("^%s*\n", ""):gsub("%s+$", "")
    end
    return block
end

return M

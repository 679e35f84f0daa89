-- Grey text at the cursor that is not in the buffer.
local M = {}

local namespace = vim.api.nvim_create_namespace("qwenmoe-ghost")
local shown = nil -- the buffer that has some
local has_inline = vim.fn.has("nvim-0.10") == 1

-- Tabs and control characters as they would look.
local function display(text)
    local width = vim.bo.tabstop
    return (text:gsub("[%z\1-\31\127]", function(character)
        return character == "\t" and (" "):rep(width) or ("^" .. string.char((character:byte() + 64) % 128))
    end))
end

function M.clear()
    if shown and vim.api.nvim_buf_is_valid(shown) then
        vim.api.nvim_buf_clear_namespace(shown, namespace, 0, -1)
    end
    shown = nil
end

-- Shows `text` at the cursor; `rest` is what the line has right of it, which moves behind the end of the text.
function M.show(buffer, row, column, text, rest)
    M.clear()
    local lines = vim.split(text, "\n", { plain = true })
    for i, line in ipairs(lines) do
        lines[i] = display(line)
    end
    local last = #lines
    local first = { { lines[1], "QwenmoeGhost" } }
    local options = { id = 1, hl_mode = "combine", virt_text = first, virt_text_pos = "overlay" }
    if rest ~= "" and last == 1 and has_inline then
        options.virt_text_pos = "inline"
    elseif rest ~= "" then
        -- Covers the line's rest by the text, then by the rest itself or by blanks.
        local shift = last == 1 and display(rest) or (" "):rep(math.max(0, vim.fn.strdisplaywidth(display(rest))
            - vim.fn.strdisplaywidth(lines[1])))
        table.insert(first, { shift, "Normal" })
    end
    if last > 1 then
        options.virt_lines = {}
        for i = 2, last do
            local parts = { { lines[i], "QwenmoeGhost" } }
            if i == last and rest ~= "" then
                table.insert(parts, { display(rest), "Normal" })
            end
            table.insert(options.virt_lines, parts)
        end
    end
    vim.api.nvim_buf_set_extmark(buffer, namespace, row, column, options)
    shown = buffer
end

return M

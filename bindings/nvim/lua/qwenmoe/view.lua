-- A buffer into which an answer is written as it comes, with the model's thoughts folded away.
local M = {}
local View = {}
View.__index = View

local views = {} -- buffer -> view

-- A view in a new or known buffer of this name, shown in a split made by `command`.
function M.open(name, filetype, command)
    local buffer = vim.fn.bufnr("^" .. name .. "$")
    local view = views[buffer]
    if not view then
        buffer = vim.api.nvim_create_buf(false, true)
        vim.api.nvim_buf_set_name(buffer, name)
        vim.bo[buffer].bufhidden = "hide"
        vim.bo[buffer].filetype = filetype
        vim.bo[buffer].modifiable = false
        view = setmetatable({ buffer = buffer, thoughts = {} }, View)
        views[buffer] = view
        vim.api.nvim_create_autocmd("BufWipeout", { buffer = buffer, callback = function()
            views[buffer] = nil
        end })
    end
    view:show(command)
    return view
end

function View:window()
    local window = vim.fn.bufwinid(self.buffer)
    return window > 0 and window or nil
end

function View:show(command)
    if self:window() then
        return
    end
    local before = vim.api.nvim_get_current_win()
    vim.cmd(command)
    vim.api.nvim_win_set_buf(0, self.buffer)
    vim.cmd([[setlocal foldmethod=expr foldexpr=v:lua.require'qwenmoe.view'.fold(v:lnum) foldlevel=0 foldminlines=0 foldenable]])
    vim.cmd([[setlocal foldtext=v:lua.require'qwenmoe.view'.fold_text() wrap linebreak nonumber norelativenumber signcolumn=no]])
    vim.api.nvim_set_current_win(before)
end

function View:valid()
    return vim.api.nvim_buf_is_valid(self.buffer)
end

local function change(view, first_row, first_column, last_row, last_column, text)
    if not view:valid() then
        return
    end
    vim.bo[view.buffer].modifiable = true
    vim.api.nvim_buf_set_text(view.buffer, first_row, first_column, last_row, last_column,
        vim.split(text, "\n", { plain = true }))
    vim.bo[view.buffer].modifiable = false
end

function View:end_position()
    local row = vim.api.nvim_buf_line_count(self.buffer) - 1
    return row, #vim.api.nvim_buf_get_lines(self.buffer, row, row + 1, false)[1]
end

-- Appends text. thought: it belongs to the fold, which begins with a line of its own.
function View:append(text, thought)
    if not self:valid() then
        return
    end
    local window = self:window()
    local follows = window and vim.api.nvim_win_get_cursor(window)[1] == vim.api.nvim_buf_line_count(self.buffer)
    local row, column = self:end_position()
    if thought and not self.thinking then
        self.thinking = true
        text = (column > 0 and "\n" or "") .. text
        table.insert(self.thoughts, { row + (column > 0 and 2 or 1), 0 })
    elseif not thought and self.thinking then
        self.thinking = false
        self.thoughts[#self.thoughts][2] = column > 0 and row + 1 or row
        text = (column > 0 and "\n" or "") .. text:gsub("^\n+", "")
    end
    change(self, row, column, row, column, text)
    if self.thinking then
        self.thoughts[#self.thoughts][2] = vim.api.nvim_buf_line_count(self.buffer)
    end
    if follows and window then
        vim.api.nvim_win_set_cursor(window, { vim.api.nvim_buf_line_count(self.buffer), 0 })
    end
end

-- Whole lines instead of all from `row` (0: the first) on.
function View:replace_from(row, lines)
    if self:valid() then
        vim.bo[self.buffer].modifiable = true
        vim.api.nvim_buf_set_lines(self.buffer, row, -1, false, lines)
        vim.bo[self.buffer].modifiable = false
    end
end

function View:clear()
    self.thoughts, self.thinking = {}, false
    self:replace_from(0, {})
end

function View:close()
    if self:valid() then
        vim.api.nvim_buf_delete(self.buffer, { force = true })
    end
end

-- Of the current buffer: the level of a line, and what stands for a closed fold.
function M.fold(line)
    local view = views[vim.api.nvim_get_current_buf()]
    for _, range in ipairs(view and view.thoughts or {}) do
        if line >= range[1] and line <= range[2] then
            return line == range[1] and ">1" or "1"
        end
    end
    return "0"
end

function M.fold_text()
    local count = vim.v.foldend - vim.v.foldstart + 1
    return ("[thoughts: %d line%s; zo opens]"):format(count, count == 1 and "" or "s")
end

return M

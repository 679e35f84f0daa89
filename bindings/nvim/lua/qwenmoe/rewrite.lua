-- Rewrites a selection: `:Qwen rewrite`. The result is shown as a difference and taken over only when it is accepted.
local answer = require("qwenmoe.answer")
local config = require("qwenmoe.config")
local model = require("qwenmoe.model")
local talk = require("qwenmoe.talk")
local view = require("qwenmoe.view")

local M = {}

local NAME = "qwenmoe://rewrite"
local HEAD = 3 -- lines of the preview before the answer
local namespace = vim.api.nvim_create_namespace("qwenmoe-rewrite")
local current = nil -- { buffer, mark, lines: of the selection, result: lines or nil, view }

local function warn(text)
    vim.notify("qwenmoe: " .. text, vim.log.levels.WARN)
end

local function finish()
    if vim.api.nvim_buf_is_valid(current.buffer) then
        vim.api.nvim_buf_clear_namespace(current.buffer, namespace, 0, -1)
    end
    current.view:close()
    current = nil
end

local function difference(old, new)
    local text = vim.diff(table.concat(old, "\n") .. "\n", table.concat(new, "\n") .. "\n", { ctxlen = 3 })
    return text == "" and { "(no difference)" } or vim.split(text:gsub("\n$", ""), "\n", { plain = true })
end

local function head(job, state)
    return {
        ("Rewrite of %s, %d lines: %s"):format(vim.fn.fnamemodify(vim.api.nvim_buf_get_name(job.buffer), ":t"), #job.lines,
            (job.instruction:gsub("\n", " "))),
        state, "",
    }
end

local function show_head(job, state)
    local shown = job.view
    if shown:valid() then
        vim.bo[shown.buffer].modifiable = true
        vim.api.nvim_buf_set_lines(shown.buffer, 0, HEAD, false, head(job, state))
        vim.bo[shown.buffer].modifiable = false
    end
end

-- The answer has ended: its code takes the place of its text, as a difference; the thoughts stay folded above it.
local function show_result(job, text, state)
    local code = answer.code(text)
    local shown = job.view
    if not code:find("%S") then
        return show_head(job, "The answer has no code. r closes.")
    end
    job.result = vim.split(code, "\n", { plain = true })
    local thoughts = shown.thoughts[#shown.thoughts]
    shown:replace_from(thoughts and thoughts[2] or HEAD, difference(job.lines, job.result))
    show_head(job, state .. "a accepts, r rejects")
end

local function begin(job, filetype)
    local code = ("```%s\n%s\n```"):format(filetype, table.concat(job.lines, "\n"))
    local messages = { { role = "user", content = job.instruction .. "\n\n" .. code ..
        "\n\nAnswer with the whole new code in one block, and nothing else." } }
    if config.current.chat.system then
        table.insert(messages, 1, { role = "system", content = config.current.chat.system })
    end
    local text = ""
    local message = talk.begin(messages, config.current.chat.thinking, function(piece, thought)
        if not thought then
            text = text .. piece
        end
        job.view:append(piece, thought)
    end, function(how, failure)
        if job ~= current then
            return
        elseif how == "failed" then
            show_head(job, failure .. " (r closes)")
        else
            show_result(job, text, how == "end" and "" or "(" .. how .. ") ")
        end
    end)
    if message then
        show_head(job, message .. " (r closes)")
    end
end

-- Rewrites lines first .. last (from 1) of the current buffer.
function M.begin(first, last, instruction)
    if talk.busy() then
        return warn("an answer is being written; :Qwen stop ends it")
    end
    if current then
        finish()
    end
    local buffer = vim.api.nvim_get_current_buf()
    local lines = vim.api.nvim_buf_get_lines(buffer, first - 1, last, false)
    local job = { buffer = buffer, lines = lines, instruction = instruction }
    job.mark = vim.api.nvim_buf_set_extmark(buffer, namespace, first - 1, 0, {
        end_row = last - 1, end_col = #lines[#lines], hl_group = "QwenmoeSelection", right_gravity = false,
        end_right_gravity = true,
    })
    job.view = view.open(NAME, "diff", "botright 15split")
    job.view:clear()
    job.view:replace_from(0, head(job, "The model is writing; :Qwen stop ends it."))
    job.view:append("\n", false)
    for key, what in pairs({ a = "accept", r = "reject", q = "reject" }) do
        vim.api.nvim_buf_set_keymap(job.view.buffer, "n", key, "<Cmd>Qwen " .. what .. "<CR>", { noremap = true, nowait = true })
    end
    current = job
    model.ensure(config.current, function(ready, failure)
        if job ~= current then
            return
        elseif ready then
            begin(job, vim.bo[buffer].filetype)
        else
            show_head(job, failure .. " (r closes)")
        end
    end)
end

-- Puts the result into the place of the selection, unless that was changed meanwhile.
function M.accept()
    if not current or not current.result then
        return warn(current and "the result is not whole yet" or "there is no rewrite to accept")
    elseif not vim.api.nvim_buf_is_valid(current.buffer) then
        finish()
        return warn("the buffer of the selection is gone")
    end
    local mark = vim.api.nvim_buf_get_extmark_by_id(current.buffer, namespace, current.mark, { details = true })
    local first, last = mark[1], mark[3].end_row
    local now = vim.api.nvim_buf_get_lines(current.buffer, first, last + 1, false)
    if table.concat(now, "\n") ~= table.concat(current.lines, "\n") then
        return warn("the selected text has changed since; :Qwen reject, and ask again")
    end
    vim.api.nvim_buf_set_lines(current.buffer, first, last + 1, false, current.result)
    finish()
end

function M.reject()
    if not current then
        return warn("there is no rewrite to reject")
    elseif not current.result then
        talk.stop()
    end
    finish()
end

function M.forget()
    if current then
        finish()
    end
end

return M

-- A conversation in a window of its own: `:Qwen chat`.
local config = require("qwenmoe.config")
local model = require("qwenmoe.model")
local talk = require("qwenmoe.talk")
local view = require("qwenmoe.view")

local M = {}

local NAME = "qwenmoe://chat"
local messages = {}

local function open()
    local shown = view.open(NAME, "markdown", "botright " .. config.current.chat.width .. "vsplit")
    vim.api.nvim_buf_set_keymap(shown.buffer, "n", "<CR>", "<Cmd>Qwen chat<CR>", {
        noremap = true, desc = "Ask",
    })
    return shown
end

local function heading(shown, text)
    local row, column = shown:end_position()
    shown:append(((row > 0 or column > 0) and "\n\n" or "") .. text .. "\n\n", false)
end

local function answer(shown)
    local text = ""
    heading(shown, "## Qwen")
    local message = talk.begin(messages, config.current.chat.thinking, function(piece, thought)
        if not thought then
            text = text .. piece
        end
        shown:append(piece, thought)
    end, function(finish, failure)
        if finish == "failed" then
            shown:append("\n*" .. failure .. "*", false)
        elseif finish ~= "end" then
            shown:append("\n*(" .. finish .. ")*", false)
        end
        -- A failed or empty answer would stand in the way of the next question.
        if text == "" then
            table.remove(messages)
        else
            table.insert(messages, { role = "assistant", content = text })
        end
    end)
    if message then
        table.remove(messages)
        shown:append("*" .. message .. "*", false)
    end
end

-- Asks; `code` is a selection and its filetype, or nil.
function M.ask(question, code)
    if talk.busy() then
        return vim.notify("qwenmoe: an answer is being written; :Qwen stop ends it", vim.log.levels.WARN)
    end
    local shown = open()
    if #messages == 0 and config.current.chat.system then
        messages = { { role = "system", content = config.current.chat.system } }
    end
    local content = question
    if code then
        content = question .. "\n\n```" .. code.filetype .. "\n" .. code.text .. "\n```"
    end
    heading(shown, "## You")
    shown:append(content, false)
    table.insert(messages, { role = "user", content = content })
    model.ensure(config.current, function(ready, failure)
        if ready then
            return answer(shown)
        end
        table.remove(messages)
        shown:append("\n\n*" .. failure .. "*", false)
    end)
end

-- Shows the conversation, and asks for a question.
function M.prompt(code)
    open()
    vim.ui.input({ prompt = "Ask Qwen: " }, function(question)
        if question and question:find("%S") then
            M.ask(question, code)
        end
    end)
end

-- Begins a new conversation.
function M.new()
    talk.stop()
    messages = {}
    local buffer = vim.fn.bufnr("^" .. NAME .. "$")
    if buffer > 0 then
        vim.api.nvim_buf_delete(buffer, { force = true })
    end
end

return M

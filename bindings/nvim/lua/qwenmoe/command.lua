-- :Qwen and what comes behind it.
local M = {}

-- The selection that a command got, with its filetype; nil when it got none.
local function selection(call)
    if call.range == 0 then
        return nil
    end
    local lines = vim.api.nvim_buf_get_lines(0, call.line1 - 1, call.line2, false)
    return { text = table.concat(lines, "\n"), filetype = vim.bo.filetype }
end

local function say(lines)
    vim.api.nvim_echo({ { table.concat(lines, "\n") } }, false, {})
end

local function enable(on)
    local complete = require("qwenmoe.complete")
    complete.enabled = on
    complete.reset()
    say({ "completions are " .. (on and "on" or "off") })
end

local function chat(call, text)
    local code = selection(call)
    if text == "" then
        return require("qwenmoe.chat").prompt(code)
    end
    require("qwenmoe.chat").ask(text, code)
end

local function rewrite(call, text)
    local first, last = call.line1, call.line2
    if text ~= "" then
        return require("qwenmoe.rewrite").begin(first, last, text)
    end
    vim.ui.input({ prompt = "Rewrite: " }, function(instruction)
        if instruction and instruction:find("%S") then
            require("qwenmoe.rewrite").begin(first, last, instruction)
        end
    end)
end

local function unless(done, otherwise)
    if not done then
        vim.notify("qwenmoe: " .. otherwise, vim.log.levels.WARN)
    end
end

local actions = {
    chat = chat,
    rewrite = rewrite,
    accept = function() require("qwenmoe.rewrite").accept() end,
    reject = function() require("qwenmoe.rewrite").reject() end,
    stop = function() unless(require("qwenmoe.talk").stop(), "nothing is being written") end,
    answer = function() unless(require("qwenmoe.talk").end_thinking(), "nothing is being written") end,
    new = function() require("qwenmoe.chat").new() end,
    enable = function() enable(true) end,
    disable = function() enable(false) end,
    toggle = function() enable(not require("qwenmoe.complete").enabled) end,
    status = function() say(require("qwenmoe").status()) end,
    load = function() require("qwenmoe").unload() require("qwenmoe").load() end,
    unload = function() require("qwenmoe").unload() end,
}

function M.run(call)
    local name, text = call.args:match("^%s*(%S*)%s*(.-)%s*$")
    local action = actions[name == "" and "status" or name]
    if not action then
        return vim.notify(("qwenmoe: there is no :Qwen %s; see :help :Qwen"):format(name), vim.log.levels.ERROR)
    end
    if not require("qwenmoe").active then
        require("qwenmoe").setup()
        if not require("qwenmoe").active then
            return
        end
    end
    action(call, text)
end

function M.complete(lead)
    local names = vim.tbl_filter(function(name)
        return name:sub(1, #lead) == lead
    end, vim.tbl_keys(actions))
    table.sort(names)
    return names
end

return M

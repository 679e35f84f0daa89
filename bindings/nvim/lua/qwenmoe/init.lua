-- The plugin's door: setup, keys, autocommands. See :help qwenmoe.
local config = require("qwenmoe.config")

local M = {}

local mapped = {} -- keys that setup mapped -> the mapping that was there, or false

local function report(problems)
    for _, problem in ipairs(problems) do
        vim.notify("qwenmoe: " .. problem, vim.log.levels.ERROR)
    end
end

local function highlights()
    vim.api.nvim_set_hl(0, "QwenmoeGhost", { default = true, link = "Comment" })
    vim.api.nvim_set_hl(0, "QwenmoeSelection", { default = true, link = "Visual" })
end

local function complete()
    return require("qwenmoe.complete")
end

-- ---- keys ----

-- What the key does without the plugin: the mapping that was there, or the key itself.
local function pass_on(key)
    local before = mapped[key]
    local keys = key
    if before and before.callback then
        keys = before.callback()
        if before.expr ~= 1 or type(keys) ~= "string" then
            return
        end
    elseif before and before.rhs then
        keys = before.expr == 1 and vim.api.nvim_eval(before.rhs) or before.rhs
    end
    local mode = (before and before.noremap == 0) and "im" or "in"
    vim.api.nvim_feedkeys(vim.api.nvim_replace_termcodes(keys, true, true, true), mode, false)
end

local function map(key, action, description)
    if not key or key == true then
        return
    end
    local before = vim.fn.maparg(key, "i", false, true)
    mapped[key] = next(before) and before or false
    vim.keymap.set("i", key, function()
        if not action() then
            pass_on(key)
        end
    end, { desc = description })
end

-- Takes the keys back, and gives them to the mappings that were there.
local function unmap_all()
    for key, before in pairs(mapped) do
        pcall(vim.keymap.del, "i", key)
        if before then
            vim.keymap.set("i", key, before.callback or before.rhs, {
                expr = before.expr == 1, remap = before.noremap == 0, silent = before.silent == 1,
            })
        end
    end
    mapped = {}
end

local function set_keys(keys)
    map(keys.accept, function()
        return complete().accept("all")
    end, "Take the whole completion")
    map(keys.accept_line, function()
        return complete().accept("line")
    end, "Take the completion's first line")
    map(keys.accept_word, function()
        return complete().accept("word")
    end, "Take the completion's first word")
    map(keys.dismiss, function()
        return complete().dismiss()
    end, "Take the completion away")
    map(keys.trigger, function()
        complete().update(true)
        return true
    end, "Ask for a completion now")
end

-- ---- events ----

local function set_events()
    local group = vim.api.nvim_create_augroup("qwenmoe", { clear = true })
    local function on(events, callback)
        vim.api.nvim_create_autocmd(events, { group = group, callback = callback })
    end
    on({ "TextChangedI", "TextChangedP", "CursorMovedI" }, function()
        complete().update()
    end)
    on("InsertEnter", vim.schedule_wrap(function() -- the mode changes after the event
        complete().update()
    end))
    on("InsertLeave", function()
        complete().reset()
    end)
    on("BufLeave", function(event)
        complete().reset()
        require("qwenmoe.context").take(event.buf, config.current.completion)
    end)
    on("BufWipeout", function(event)
        require("qwenmoe.context").drop(event.buf)
    end)
    on("ColorScheme", highlights)
    on("VimLeavePre", function()
        vim.api.nvim_clear_autocmds({ group = group })
        require("qwenmoe.model").unload()
    end)
end

-- ---- what users call ----

M.active = false -- has been set up

-- Starts the plugin, or gives it other settings. See :help qwenmoe-settings.
function M.setup(settings)
    if not pcall(require, "ffi") then
        return report({ "this Neovim has no LuaJIT, which the plugin needs" })
    end
    local problems = config.set(settings or {})
    if #problems > 0 then
        return report(problems)
    end
    if M.active then
        unmap_all()
        M.unload()
    end
    M.active = true
    complete().enabled = config.current.completion.enabled
    highlights()
    set_keys(config.current.keys)
    set_events()
    M.load()
end

-- Loads library and model, without waiting.
function M.load()
    require("qwenmoe.model").ensure(config.current, function(ready)
        if ready and vim.api.nvim_get_mode().mode:sub(1, 1) == "i" then
            complete().update()
        end
    end)
end

function M.unload()
    require("qwenmoe.rewrite").forget()
    require("qwenmoe.model").unload()
    complete().forget()
    require("qwenmoe.talk").forget()
end

-- The text that is offered at the cursor now; "" when none is. For status lines and other plugins.
function M.text()
    return M.active and complete().text() or ""
end

-- true when something was taken over: what = "all", "line" or "word".
function M.accept(what)
    return M.active and complete().accept(what or "all")
end

function M.status()
    local model, done = require("qwenmoe.model"), complete()
    local lines = { "model: " .. model.state .. (model.failure and " (" .. model.failure .. ")" or "") }
    if model.state == "ready" then
        table.insert(lines, ("%s on %s, %s"):format(model.fact("name") or model.fact("file"), model.fact("device"),
            model.marks and "can complete" or "cannot complete: its vocabulary has no marks of fill-in-the-middle"))
    end
    local counts = done.statistics
    table.insert(lines, ("completions: %s; asked %d, answered %d, cancelled %d, from cache %d, typed along %d"):format(
        done.enabled and "on" or "off", counts.requests, counts.answers, counts.cancelled, counts.from_cache, counts.kept))
    if done.first_ms then
        table.insert(lines, ("last one: first text after %.1f ms"):format(done.first_ms))
    end
    if done.failure then
        table.insert(lines, "last failure: " .. done.failure)
    end
    return lines
end

return M

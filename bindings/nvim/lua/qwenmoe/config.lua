-- The plugin's settings: defaults, and checks of what a user gives. Options of the library are checked against its own table.
local library = require("qwenmoe.library")

local M = {}

M.defaults = {
    library = nil, -- path of libqwenmoe.so
    model = nil, -- path of a GGUF file
    options = {}, -- the library's, of every scope: { threads = 4 }
    completion = {
        enabled = true,
        filetypes = {}, -- { markdown = false }; ["*"] = false leaves out those that are not named
        delay = 20, -- milliseconds after a key
        lines_before = 256,
        lines_after = 64,
        line_rest = 8, -- none is offered unasked with more characters than this right of the cursor
        max_lines = 12,
        chunks = 8, -- pieces of other buffers
        chunk_lines = 48,
        cache = 256, -- answers
        options = { temperature = 0, ["answer-tokens"] = 96 },
    },
    chat = {
        system = nil, -- the system message
        thinking = nil, -- true or false; nil leaves it to the model's template
        width = 80,
        options = {},
    },
    keys = {
        accept = "<Tab>",
        accept_line = "<M-l>",
        accept_word = "<M-w>",
        dismiss = "<C-]>",
        trigger = "<M-Space>",
    },
}

-- Types of the settings whose default is nil, or that allow more than their default's type.
local TYPES = {
    library = "string", model = "string", ["chat.system"] = "string", ["chat.thinking"] = "boolean",
    ["keys.accept"] = "string|boolean", ["keys.accept_line"] = "string|boolean", ["keys.accept_word"] = "string|boolean",
    ["keys.dismiss"] = "string|boolean", ["keys.trigger"] = "string|boolean",
}
local FREE = { options = true, ["completion.options"] = true, ["chat.options"] = true, ["completion.filetypes"] = true }

M.current = vim.deepcopy(M.defaults)
M.problems = {} -- of the last setup

local function check(given, defaults, path, problems)
    for name, value in pairs(given) do
        local full = path .. tostring(name)
        local wanted = TYPES[full] or (defaults[name] ~= nil and type(defaults[name]))
        if not wanted then
            table.insert(problems, ("there is no setting %s; see :help qwenmoe-settings"):format(full))
        elseif not ("|" .. wanted .. "|"):find("|" .. type(value) .. "|", 1, true) then
            table.insert(problems, ("setting %s is %s; it takes a %s"):format(full, vim.inspect(value),
                wanted:gsub("string|boolean", "string, or false for none")))
        elseif type(value) == "number" and (value < 0 or value ~= math.floor(value)) then
            table.insert(problems, ("setting %s is %s; it takes a whole number from 0"):format(full, value))
        elseif type(value) == "table" and not FREE[full] then
            check(value, defaults[name], full .. ".", problems)
        end
    end
end

-- Takes over a user's settings where they are right, and returns what is wrong with them. Wrong ones leave all as it was.
function M.set(given)
    local problems = {}
    if type(given) ~= "table" then
        problems = { ("setup takes a table of settings, not %s"):format(vim.inspect(given)) }
    else
        check(given, M.defaults, "", problems)
    end
    M.problems = problems
    if #problems == 0 then
        M.current = vim.tbl_deep_extend("force", vim.deepcopy(M.defaults), given)
    end
    return problems
end

local function check_table(values, where, scopes, known, problems)
    for name, value in pairs(values) do
        local option = known[(tostring(name):gsub("_", "-"))]
        if option and not scopes[option.scope] then
            table.insert(problems, ("%s.%s: it is read when the model is loaded; set it in options"):format(where, name))
        else
            local box, message = library.new_options({ [tostring(name)] = value })
            if box then
                library.C.qm_options_free(box)
            else
                table.insert(problems, ("%s.%s: %s"):format(where, name, message))
            end
        end
    end
end

-- What the opened library says is wrong with the options in `settings`.
function M.check_options(settings)
    local problems, known = {}, library.options()
    check_table(settings.options, "options", { model = true, session = true, sampling = true }, known, problems)
    for _, part in ipairs({ "completion", "chat" }) do
        check_table(settings[part].options, part .. ".options", { session = true, sampling = true }, known, problems)
    end
    return problems
end

return M

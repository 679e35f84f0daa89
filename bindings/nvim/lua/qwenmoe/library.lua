-- Finds and opens libqwenmoe.so, and wraps what every caller needs: errors, text results, options.
local cdef = require("qwenmoe.cdef")

local M = {
    constants = cdef.constants,
    C = nil, -- the opened library
    path = nil, -- what it was opened by
}

local has_ffi, ffi = pcall(require, "ffi")
local declared = false

-- The name by which the system's loader finds an installed library.
local STANDARD = "libqwenmoe.so.0"

function M.message()
    return ffi.string(M.C.qm_error_message())
end

-- A text result by the rules of snprintf: call(buffer, size) returns the length. nil and the message on failure.
function M.text(call)
    local length = tonumber(call(nil, 0))
    if length < 0 then
        return nil, M.message()
    end
    local buffer = ffi.new("char[?]", length + 1)
    if tonumber(call(buffer, length + 1)) < 0 then
        return nil, M.message()
    end
    return ffi.string(buffer, length)
end

-- true, or false and what is wrong.
local function check_version(C)
    local major, minor = cdef.constants.VERSION_MAJOR, cdef.constants.VERSION_MINOR
    local ok, number = pcall(function()
        return C.qm_version_number()
    end)
    if not ok then
        return false, "it is not libqwenmoe"
    end
    if math.floor(number / 1000000) ~= major or (major == 0 and math.floor(number / 1000) % 1000 < minor) then
        return false, ("it is version %s; the plugin needs %d.%d"):format(ffi.string(C.qm_version()), major, minor)
    end
    return true
end

-- Opens the library at `path`: true, or false and the reason.
function M.open(path)
    if M.C then
        return true
    end
    if not has_ffi then
        return false, "this Neovim has no LuaJIT FFI"
    end
    local opened, C = pcall(ffi.load, path)
    if not opened then
        return false, tostring(C):gsub("\n.*", "")
    end
    if not declared then
        ffi.cdef(cdef.declarations)
        declared = true
    end
    local fits, reason = check_version(C)
    if not fits then
        return false, path .. ": " .. reason
    end
    M.C, M.path = C, path
    return true
end

-- Calls done(path) with the library to open: the setting, else the environment's, else pkg-config's, else the loader's.
function M.find(setting, done)
    local chosen = setting or vim.env.QWENMOE_LIBRARY
    if chosen and chosen ~= "" then
        return done(vim.fn.expand(chosen))
    end
    local pipe, output = vim.loop.new_pipe(false), ""
    local process
    process = vim.loop.spawn("pkg-config", { args = { "--variable=libdir", "qwenmoe" }, stdio = { nil, pipe, nil } }, function()
        process:close()
    end)
    if not process then -- there is no pkg-config
        pipe:close()
        return done(STANDARD)
    end
    pipe:read_start(function(_, data)
        if data then
            output = output .. data
            return
        end
        pipe:close()
        local folder = vim.trim(output)
        local path = folder .. "/libqwenmoe.so"
        local found = folder ~= "" and vim.loop.fs_stat(path) ~= nil
        vim.schedule(function()
            done(found and path or STANDARD)
        end)
    end)
end

-- Where the default model lies: the environment's, beside the library (installed or built), or in the data folders.
function M.find_model(setting)
    local chosen = setting or vim.env.QWENMOE_MODEL
    if chosen and chosen ~= "" then
        return vim.fn.expand(chosen)
    end
    local name, folders = "qwenmoe-py.gguf", {}
    local library = M.path:match("^(.*)/[^/]*$")
    for up = 1, library and 3 or 0 do -- lib, lib64, lib/x86_64-linux-gnu; a build folder has lib/ and examples/
        local above = library .. ("/.."):rep(up)
        vim.list_extend(folders, { above .. "/share/qwenmoe", above .. "/examples" })
    end
    for folder in ((vim.env.XDG_DATA_DIRS or "/usr/local/share:/usr/share") .. ":"):gmatch("([^:]+):") do
        table.insert(folders, folder .. "/qwenmoe")
    end
    for _, folder in ipairs(folders) do
        if vim.loop.fs_stat(folder .. "/" .. name) then
            return vim.loop.fs_realpath(folder .. "/" .. name)
        end
    end
    return nil, "no model: set model, or QWENMOE_MODEL in the environment, to a GGUF file"
end

-- The library's table of options: { name = { type =, range =, default =, scope =, help = } }.
function M.options()
    local table = {}
    for i = 0, M.C.qm_option_count() - 1 do
        table[ffi.string(M.C.qm_option_name(i))] = {
            type = ffi.string(M.C.qm_option_type(i)),
            range = ffi.string(M.C.qm_option_range(i)),
            default = ffi.string(M.C.qm_option_default(i)),
            scope = ffi.string(M.C.qm_option_scope(i)),
            help = ffi.string(M.C.qm_option_help(i)),
        }
    end
    return table
end

-- A Lua value as the text that qm_options_set takes; lists (stop strings) become JSON.
function M.value(value)
    if type(value) == "boolean" then
        return value and "1" or "0"
    elseif type(value) == "number" then
        return value == math.floor(value) and ("%.0f"):format(value) or ("%.9g"):format(value)
    elseif type(value) == "table" then
        return vim.fn.json_encode(value)
    end
    return tostring(value)
end

-- New options (an FFI box, to be freed by qm_options_free) with these values set; nil and the message when one is refused.
function M.new_options(values)
    local box = ffi.new("qm_options *[1]")
    if M.C.qm_options_new(box) < 0 then
        return nil, M.message()
    end
    for name, value in pairs(values) do
        if M.C.qm_options_set(box[0], (name:gsub("_", "-")), M.value(value)) < 0 then
            local message = M.message()
            M.C.qm_options_free(box)
            return nil, message
        end
    end
    return box
end

return M

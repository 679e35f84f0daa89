-- :checkhealth qwenmoe
local M = {}

-- Neovim 0.10 has other names for the same functions, and before 0.8 they lie elsewhere.
local health = vim.health or require("health")
local start = health.start or health.report_start
local ok = health.ok or health.report_ok
local warn = health.warn or health.report_warn
local bad = health.error or health.report_error
local info = health.info or health.report_info

local function check_library(library, settings)
    local opened, reason = library.C ~= nil, nil
    if not opened then
        local path
        library.find(settings.library, function(found)
            path = found
        end)
        vim.wait(2000, function()
            return path ~= nil
        end)
        opened, reason = library.open(path or "libqwenmoe.so.0")
    end
    if not opened then
        bad("libqwenmoe cannot be opened: " .. reason, {
            "build and install it, or set library, or QWENMOE_LIBRARY in the environment, to libqwenmoe.so",
        })
        return false
    end
    ok(("libqwenmoe %s (%s)"):format(require("ffi").string(library.C.qm_version()), library.path))
    return true
end

local function check_settings(config)
    local problems = vim.list_extend(vim.deepcopy(config.problems), config.check_options(config.current))
    for _, problem in ipairs(problems) do
        bad(problem)
    end
    if #problems == 0 then
        ok("the settings are right")
    end
end

local function check_model(model, library, config)
    if model.state == "failed" then
        return bad("the model could not be loaded: " .. model.failure, { "set it right, then :Qwen load" })
    elseif model.state ~= "ready" then
        local path, reason = library.find_model(config.current.model)
        if path then
            return info(("%s is %s"):format(path, model.state))
        end
        return bad(reason)
    end
    ok(("%s (%s)"):format(model.fact("name") or "a model without name", model.fact("file")))
    info(("architecture %s, computed on %s, kernels %s"):format(model.fact("architecture"), model.fact("device"),
        model.fact("isa") or "of its own"))
    if model.marks then
        ok("its vocabulary has the marks of fill-in-the-middle: it can complete")
    else
        warn("its vocabulary has no marks of fill-in-the-middle: it can chat, not complete")
    end
end

function M.check()
    local config = require("qwenmoe.config")
    start("qwenmoe")
    if not pcall(require, "ffi") then
        return bad("this Neovim has no LuaJIT FFI", { "use a Neovim that was built with LuaJIT" })
    end
    ok(("Neovim with %s"):format(jit.version))
    if not require("qwenmoe").active then
        info("require(\"qwenmoe\").setup() was not called: no completions")
    end
    local library = require("qwenmoe.library")
    if check_library(library, config.current) then
        check_settings(config)
        check_model(require("qwenmoe.model"), library, config)
    end
end

return M

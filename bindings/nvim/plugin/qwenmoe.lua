-- Defines :Qwen. Nothing is loaded before it is used, or before require("qwenmoe").setup().
if vim.g.loaded_qwenmoe then
    return
end
vim.g.loaded_qwenmoe = 1

vim.api.nvim_create_user_command("Qwen", function(call)
    require("qwenmoe.command").run(call)
end, {
    nargs = "*",
    range = true,
    desc = "Chat with a Qwen model, rewrite a selection, see :help qwenmoe",
    complete = function(lead, line)
        return line:match("^.-Qwen%s+%S*$") and require("qwenmoe.command").complete(lead) or {}
    end,
})

-- Jobs of the library in Neovim's event loop: a job's descriptor is watched by libuv, and nothing here waits for it.
local ffi = require("ffi")
local library = require("qwenmoe.library")

local M = {}
local Job = {}
Job.__index = Job

local live = {} -- all that run
local PIECES = 32 -- read in one turn of the event loop, so that a burst of text does not hold up a key
local buffer = ffi.new("char[4096]")
local kind = ffi.new("int32_t[1]")
local number = ffi.new("double[1]")

-- Takes over the job in `box` (qm_job *[1]). on_piece(text, kind) for each piece of text; on_end(code, message, job) once, where
-- the job can still be asked and is freed afterwards.
function M.watch(box, on_piece, on_end)
    local job = setmetatable({ box = box, on_piece = on_piece, on_end = on_end }, Job)
    job.poll = vim.loop.new_poll(library.C.qm_job_descriptor(box[0]))
    live[job] = true
    job:arm()
    return job
end

-- The descriptor stays readable until everything is read, so it is watched only when that has been done.
function Job:arm()
    self.poll:start("r", function()
        self.poll:stop()
        vim.schedule(function()
            self:advance()
        end)
    end)
end

function Job:read()
    for _ = 1, PIECES do
        local length = tonumber(library.C.qm_job_read(self.box[0], buffer, 4096, kind))
        if length <= 0 then
            return true
        end
        if self.on_piece then
            self.on_piece(ffi.string(buffer, length), kind[0])
            if not self.box then -- given up by who heard it
                return false
            end
        end
    end
    return false
end

function Job:advance()
    if not self.box then
        return
    end
    local state = library.C.qm_job_poll(self.box[0])
    local message = state < 0 and library.message() or nil
    -- Asked before reading: a job that had ended by then has no more text than is read here.
    local empty = self:read()
    if not self.box then
        return
    elseif state == library.constants.JOB_RUNNING or not empty then
        return self:arm()
    end
    self.poll:close()
    live[self] = nil
    local ok, failure = pcall(self.on_end, state, message, self)
    library.C.qm_job_free(self.box)
    self.box = nil
    if not ok then
        error(failure, 0)
    end
end

function Job:number(name)
    return library.C.qm_job_number(self.box[0], name, number) >= 0 and number[0] or nil
end

function Job:finish()
    return ffi.string(library.C.qm_job_finish(self.box[0]))
end

-- Asks it to end soon; on_end hears of it.
function Job:cancel()
    if self.box then
        library.C.qm_job_cancel(self.box[0])
    end
end

function Job:end_thinking()
    if self.box then
        library.C.qm_job_end_thinking(self.box[0])
    end
end

-- Ends all jobs now, unheard: the one place that waits, for quitting and unloading.
function M.dispose_all()
    for job in pairs(live) do
        job:cancel()
    end
    for job in pairs(live) do
        job.poll:close()
        library.C.qm_job_free(job.box)
        job.box = nil
    end
    live = {}
end

function M.count()
    return vim.tbl_count(live)
end

return M
